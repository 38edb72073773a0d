"""An engine that fails in one of several processes, in one of several ways."""

from __future__ import annotations

import os
import signal
import time

import torch

from selfloop.engines.hf import HFEngine
from selfloop.engines.toy import ToyEngine


class Fragile(ToyEngine):
    """Fails where `ill` says, in process 1 only."""

    def __init__(self, *args, ill: str = "", **options) -> None:
        super().__init__(*args, **options)
        self.ill = ill

    def logps(self, rows, *, entropy=False):
        if self.learner.team.rank == 1:
            if self.ill == "memory" and len(rows) > 2 and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("out of memory, tried to allocate 80 GiB")
            if self.ill == "bug":
                raise KeyError("no such thing")
            if self.ill == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.ill == "asleep":
                time.sleep(600)
        return super().logps(rows, entropy=entropy)


class FragileModel(HFEngine):
    """Fails in process 1 only: before a pass, or in the middle of one."""

    def __init__(self, *args, ill: str, **options) -> None:
        super().__init__(*args, **options)
        self.ill, self.layer = ill, self.model.get_decoder().layers[1]

    def forward_backward(self, signals, loss, known):
        if self.team.rank == 1 and self.ill == "inside":
            self.layer.register_forward_pre_hook(self._fail)
        return super().forward_backward(signals, loss, known)

    def _fail(self, module, args):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory, tried to allocate 80 GiB")

    def logps(self, rows, *, entropy=False):
        if self.team.rank == 1 and self.ill == "before" and torch.is_grad_enabled():
            raise KeyError("no such thing")
        return super().logps(rows, entropy=entropy)
