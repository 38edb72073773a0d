"""One engine, played by several processes; docs/scaling.md says when that pays.

To the loop it is the engine: draws, scores and micro-batches are shared out, gradients are added
up (optimize/processes.py), and only this process writes files.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from selfloop.engines.crew import WRITES
from selfloop.engines.launching import follows, launched
from selfloop.engines.starting import TIMEOUT, crew_of, follow
from selfloop.pictures import Library
from selfloop.roles import SelfloopError

__all__ = ["Processes", "follow", "follows", "launched"]

TOGETHER = ("generate", "attempt", "logprobs", "forward_backward", "optim_step", "reset_optimizer",
            "publish", "restart", "load_state")
"""Calls that every process makes. Everything else is the leader's alone."""
_keys = count(1)


class Processes:
    """`build(*args, **options)` on each of several processes of this machine, as one engine.

    Under accelerate launch or torchrun their processes are taken, whatever `processes` says (1 or
    the same number); every process runs the script, and those that follow never come back from
    here: they leave when the leader's script ends. `shard`: layers are cut over the processes
    (optimize/sharding.py), for models that one device does not hold. `build` and its arguments
    must be importable in a fresh Python; all processes read the same files.

    Raises SelfloopError, in one line, for what any of them runs into.
    """

    def __init__(self, build: Callable[..., Any], *args: Any, processes: int = 1,
                 shard: bool = False, timeout: float = TIMEOUT, **options: Any) -> None:
        if follows():
            follow()
            raise SystemExit(0)
        self._crew = crew_of(processes, timeout)
        self._key = next(_keys)
        self._verbs = (*TOGETHER, *(WRITES if shard else ()))
        self._local = self._crew.call(self._key, "build", list(sys.path), build, args, options,
                                      shard)
        weakref.finalize(self, self._crew.drop, self._key)

    @property
    def processes(self) -> int:
        """How many there are."""
        return self._crew.size

    def bind(self, open_media: Callable[..., Any]) -> None:
        """Give every process the reader that turns a Media into a picture."""
        self._crew.call(self._key, "bind", _Opener.of(open_media))

    def beside(self, adapter: str, lora: Any = None) -> Any:
        """Refused: an adapter beside this engine's would learn in one process only."""
        raise SelfloopError(f"role {adapter!r} is an adapter on the run's own model, which is "
                            "played by several processes: leave out `processes`, or the adapter")

    def close(self) -> None:
        """Let the other processes end; they do so anyway when this one ends."""
        self._crew.end("the processes were closed")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_local", "_verbs", "_crew", "_key"):
            raise AttributeError(name)
        found = getattr(self._local, name)
        if name not in self._verbs:
            return found
        return lambda *args, **options: self._crew.call(self._key, name, *args, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or not hasattr(self, "_local"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._local, name, value)


class _Opener:
    """`Library.open` without its open pictures: what another process needs to read the same."""

    def __init__(self, folder: Path | None, limits: Any) -> None:
        self.folder, self.limits = folder, limits
        self._library: Library | None = None

    @classmethod
    def of(cls, open_media: Callable[..., Any]) -> Callable[..., Any]:
        """A reader that can be sent; any other than a Library's must be so already."""
        library = getattr(open_media, "__self__", None)
        return cls(library.folder, library.limits) if isinstance(library, Library) else open_media

    def __call__(self, media: Any) -> Any:
        if self._library is None:
            self._library = Library(self.folder, limits=self.limits)
        return self._library.open(media)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "limits": self.limits, "_library": None}

