"""Processes that carry out the same calls (starting.py brings them together).

Rank 0 leads: it runs the loop, writes files, and says each engine call to the others before it
makes it, too. They follow (`Crew.follow`) until the leader ends. Words go over gloo, and so do
tensors in main memory; tensors on accelerators go over nccl where every process has a device of
its own. Objects are sent as Python serialises them, between processes of one run that trust each
other, on one machine over its loopback interface.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from selfloop.optimize.processes import Lost, Team
from selfloop.optimize.sharding import Steps, cut
from selfloop.roles import SelfloopError

WRITES = ("save_state", "save", "save_merged")
"""Calls that write files, for which every process gives its pieces of cut layers."""
_SETTLE = 0.1
"""Seconds."""


@dataclass
class Crew:
    """The processes, as one of them sees them."""

    rank: int
    size: int
    timeout: float
    idle: Any = None
    """The group over which the leader calls; it may be silent for as long as a verifier thinks."""
    words: Any = None
    fast: Any = None
    started: list[tuple[subprocess.Popen[bytes], Any]] = field(default_factory=list)
    """Processes that the leader has started, with what they write to stderr."""
    engines: dict[int, Any] = field(default_factory=dict)
    threads: int = 0
    """Of the leader, before it shared the cores."""
    dropped: list[int] = field(default_factory=list)
    """Engines that nobody here uses any more; the others hear of it at the next call."""
    ended: str = ""

    def team(self, device: str) -> Team:
        """What an engine on `device` knows of the others. All call this together."""
        alone = device == "cuda" and torch.cuda.device_count() >= _local_size()
        if self.fast is None and all(Team(self.rank, self.size, self.words).gathered(alone)):
            self.fast = dist.new_group(backend="nccl", timeout=timedelta(seconds=self.timeout))
        return Team(self.rank, self.size, self.words, self.fast)

    # -- the leader's side ------------------------------------------------------------------------

    def call(self, key: int, name: str, *args: Any, **options: Any) -> Any:
        """The same call on every process; the leader's result. Raises where any of them fails."""
        if self.ended:
            raise SelfloopError(f"{self.ended}: build the engine again to go on")
        try:
            self._say(key, name, args, options)
            return self._carry_out(key, name, args, options)
        except Lost as error:
            raise self._lost(error) from None
        except RuntimeError as error:
            if any(word in str(error).lower() for word in ("gloo", "nccl")):
                raise self._lost(error) from None
            raise
        except Exception as error:
            if "pickle" in str(error).lower():  # nothing was sent
                raise SelfloopError(f"{name} cannot be given to other processes "
                                    f"({' '.join(str(error).split())[:200]}): use losses, media "
                                    "and readers that are defined in a module") from error
            raise
        except BaseException:  # half a call cannot be taken up again
            self.end("the processes were interrupted")
            raise

    def _say(self, *said: Any) -> None:
        dropped, self.dropped = self.dropped, []
        dist.broadcast_object_list([(dropped, *said)], src=0, group=self.idle)

    def drop(self, key: int) -> None:
        """Forget an engine. Safe at any moment, so that a garbage collector may call it."""
        self.engines.pop(key, None)
        self.dropped.append(key)

    def _carry_out(self, key: int, name: str, args: Sequence[Any], options: dict[str, Any]) -> Any:
        if name == "build":
            return self._build(key, *args, **options)
        engine = self.engines[key]
        learner = getattr(engine, "learner", engine)
        team: Team = learner.team
        if name == "publish":
            team.same(learner.policy.trainable(), f"before version {args[0]} is published")
        if self.rank and name in WRITES:  # what it holds goes to the leader, which writes it
            with tempfile.TemporaryDirectory() as aside:
                return team.agreed(lambda: getattr(engine, name)(Path(aside)))
        return team.agreed(lambda: getattr(engine, name)(*args, **options))

    def _build(self, key: int, paths: Sequence[str], build: Callable[..., Any],
               args: Sequence[Any], options: dict[str, Any], shard: bool) -> Any:
        """An engine on every process, which know of each other."""
        sys.path += [path for path in paths if path not in sys.path]
        team = Team(self.rank, self.size, self.words)
        more = {"sharded": self.cut} if shard else {}
        engine = team.agreed(lambda: build(*args, **options, **more))
        learner = getattr(engine, "learner", engine)
        trainable = learner.policy.trainable()
        found = self.team(next(iter(trainable.values())).device.type)
        found.steps = getattr(engine, "steps", None)
        found.same(trainable, "at the start")
        learner.team = found
        self.engines[key] = engine
        return engine

    def cut(self, net: Any, device: str) -> Steps:
        """A model's layers over all processes (optimize/sharding.py). All call this together."""
        from torch.distributed.device_mesh import DeviceMesh

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        team = self.team(device)
        if device == "cuda" and team.fast is None:
            raise SelfloopError(f"shard: {self.size} processes need a GPU each, and there are "
                                f"{torch.cuda.device_count()}: lower `processes`")
        steps = cut(net, DeviceMesh.from_group(team.fast or team.words, device), device)
        steps.words = team.words
        return steps

    def end(self, why: str) -> None:
        """Lets the others go; what was started here has ended when this returns."""
        if self.ended:
            return
        self.ended = why
        if not self.rank and not why.endswith("lost") and not why.endswith("interrupted"):
            with suppress(Exception):
                self._say(0, "end", (), {})
        for process, said in self.started:
            said.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5 if why == "the run has ended" else 1)
            if process.poll() is None:
                process.kill()
                process.wait()
        if self.threads:
            torch.set_num_threads(self.threads)
        leave()

    def _lost(self, error: Exception) -> Lost:
        """What to say when a process is gone or stuck; the others are ended."""
        deadline = time.monotonic() + 2
        while self.started and time.monotonic() < deadline and not self.last_words():
            time.sleep(0.02)
        found = Lost(self.last_words() or str(error))
        self.end("a process was lost")
        return found

    def last_words(self) -> str:
        """How a process that was started here has come to its end, in one line; "" if none has."""
        for rank, (process, said) in enumerate(self.started, 1):
            code = process.poll()
            if code:
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                return (f"process {rank} of {self.size} has ended ({how})"
                        + (f": {lines[-1][:400]}" if lines else "") + "; what is stored is whole: "
                        "give the same command again to go on from there")
        return ""

    # -- the followers' side ----------------------------------------------------------------------

    def follow(self) -> None:
        """Carry out what the leader calls, until it ends."""
        while True:
            said: list[Any] = [None]
            try:
                dist.broadcast_object_list(said, src=0, group=self.idle)
            except RuntimeError:  # the leader is gone; it has said why, if it could
                return
            except Exception as error:  # what was said is not known here: a loss of __main__, say
                said = [([], 0, "misheard", (error,), {})]
            dropped, key, name, args, options = said[0]
            for old in dropped:
                self.engines.pop(old, None)
            if name == "end":
                return
            try:
                if name == "misheard":
                    Team(self.rank, self.size, self.words).agreed(_raise(args[0]))
                self._carry_out(key, name, args, options)
            except Lost:
                return
            except Exception as error:  # the leader was told, in one line
                if not isinstance(error, SelfloopError):
                    traceback.print_exc()


def _raise(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise SelfloopError(f"what the leader sends cannot be read here ({error}): define losses "
                            "and readers in a module, not in the script that is run")
    return fail


def leave() -> None:
    """Ends what this process has to do with the others."""
    from accelerate import PartialState

    # A call of gloo returns before its thread has let go of the tensors, for which that needs the
    # interpreter: one that is being taken down by then aborts the process.
    time.sleep(_SETTLE)
    with suppress(Exception):
        dist.destroy_process_group()
    PartialState._reset_state()


def _local_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
