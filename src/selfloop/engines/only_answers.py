"""Engines that only answer: a judge, a critic or a proposer whose weights never change.

A run asks every engine to publish, save and load versions. For these there is nothing to save, so
the verbs do nothing, and every version is the same one; whatever would learn or score refuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from selfloop.roles import Engine, Known, Loss, Optim, Request, SelfloopError
from selfloop.types import AnySignal, Branch, Turn


class OnlyAnswers:
    """The verbs of `roles.Engine` that an engine of fixed weights does not have."""

    name = ""
    version = 0

    def _cannot(self, verb: str) -> NoReturn:
        raise SelfloopError(f"the engine {self.name!r} only answers, and cannot {verb}: give the "
                            "role that learns a local model")

    def rows(self, branch: Branch) -> list[Any]:
        """Refused: it has no tokens that a learner could read."""
        self._cannot("make training rows")

    def logprobs(self, branches: Sequence[Branch], version: int | str = "current"
                 ) -> list[list[float]]:
        """Refused: it does not score given answers."""
        self._cannot("score given answers")

    def forward_backward(self, signals: Sequence[AnySignal], loss: Loss, known: Known
                         ) -> dict[str, float]:
        """Refused: it does not learn."""
        self._cannot("learn")

    def optim_step(self, optim: Optim, lr: float) -> dict[str, float]:
        """Refused: it does not learn."""
        self._cannot("learn")

    def reset_optimizer(self) -> None:
        """Nothing to forget."""

    def publish(self, version: int, keep: int) -> None:
        """Its only weights are called `version` from now on; older numbers mean the same."""
        self.version = version

    def save(self, folder: Path) -> None:
        """Nothing to save."""

    def save_state(self, folder: Path) -> None:
        """Nothing to save."""

    def load_state(self, folder: Path) -> None:
        """Nothing to load."""

    def restart(self) -> None:
        """It is always its seed."""
        self.version = 0

    def flops(self, forward_tokens: int, trained_tokens: int) -> float:
        """Not known (NaN)."""
        return math.nan


class Fixed(OnlyAnswers):
    """A local engine in a role that does not learn: it draws and scores, and is never saved.

    Without it a run would write a local judge's weights into every checkpoint.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name = engine, engine.name
        self.supports = engine.supports - {"learn"}
        engine.publish(0, 0)

    def bind(self, open_media: Callable[..., Any]) -> None:
        """See roles.Engine."""
        self.engine.bind(open_media)

    def generate(self, requests: Sequence[Request], version: int) -> list[list[Turn]]:
        """See roles.Engine; every version is the same."""
        return self.engine.generate(requests, 0)

    def decode(self, token_ids: Sequence[int]) -> str:
        """See roles.Engine."""
        return self.engine.decode(token_ids)

    def rows(self, branch: Branch) -> list[Any]:
        """See roles.Engine."""
        return self.engine.rows(branch)

    def logprobs(self, branches: Sequence[Branch], version: int | str = "current"
                 ) -> list[list[float]]:
        """See roles.Engine; every version is the same."""
        return self.engine.logprobs(branches)

    def flops(self, forward_tokens: int, trained_tokens: int) -> float:
        """See roles.Engine."""
        return self.engine.flops(forward_tokens, trained_tokens)

    def fingerprint(self) -> str:
        """See roles.Engine."""
        return self.engine.fingerprint()
