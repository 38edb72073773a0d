"""A verifier in a process of its own, with limits of time, memory and output.

For what is expensive, leaks, crashes or is somebody else's code. The worker is started once and
fed a line of JSON for each rollout or group. When it dies, hangs or exceeds a limit, that row gets
an error verdict that says so, and the next row a new worker.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import selfloop
from selfloop.roles import SelfloopError
from selfloop.types import Group, Verdict

PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES",
          "HF_HOME", "OMP_NUM_THREADS", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables that every worker gets: keys and tokens are not among them."""
MEMORY = 2 << 30
"""What a worker may fill without being told otherwise: enough for rules and small models, and a
leak does not take the machine. It bounds data and not address space, of which a GPU build of torch
maps tens of GiB by being imported."""
TAIL = 2000
"""Bytes of what a worker printed that an error quotes from."""


class OutsideError(Exception):
    """The verifier failed on a row, or its worker did: the row gets an error verdict."""


@dataclass(frozen=True)
class Outside:
    """`Outside("module:name")` judges as that verifier does, from another process.

    It takes and declares what the verifier names, labels included. A verifier that names
    `generate` is refused: a model is asked from the process that has it. Raises SelfloopError,
    when it is built, for a verifier that cannot be imported.
    """

    verifier: str
    seconds: float = 30.0
    """For one row."""
    memory: int | None = MEMORY
    """Bytes of data of the worker (what it writes to; not the libraries that it maps), on systems
    that can limit it; None = no limit."""
    output: int = 1_000_000
    """Bytes of one reply, and of what the verifier prints for one row."""
    start_seconds: float = 120.0
    """For starting a worker, imports included."""
    network: tuple[str, ...] = ()
    """Hosts that the worker may reach from Python; see egress.py for what this does not cover."""
    environment: tuple[str, ...] = ()
    """Further environment variables that it gets, by name."""
    names: tuple[str, ...] = ()
    """What the verifier names; filled in."""
    source: str = ""
    """Hash of the verifier's source; filled in, so that a mended one changes the fingerprint."""
    _worker: _Worker = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.start_seconds <= 0 or self.output < 1000 \
                or (self.memory is not None and self.memory < 1 << 26):
            raise SelfloopError(f"Outside({self.verifier!r}): seconds must be above 0, output at "
                                "least 1,000 and memory at least 64 MiB (bytes: 67108864)")
        worker = _Worker(self)
        object.__setattr__(self, "_worker", worker)
        try:
            told = worker.start()
        except OutsideError as error:
            raise SelfloopError(f"Outside({self.verifier!r}): {error}; write it as module:name, "
                                "and see that it can be imported within the limits") from None
        if {"generate", "decode"} & set(told["names"]):
            raise SelfloopError(f"Outside({self.verifier!r}) names `generate`, but a model cannot "
                                "be asked from outside: use the verifier itself")
        object.__setattr__(self, "names", tuple(told["names"]))
        object.__setattr__(self, "source", str(told["source"]))

    @classmethod
    def named(cls, told: str) -> Outside:
        """"module:name", and limits after it as run.yaml gives them: "my:f memory=4GiB seconds=60".

        Memory in bytes, MiB or GiB, or "none"; hosts and variables are listed with commas. Raises
        SelfloopError naming a limit that does not exist or cannot be read.
        """
        verifier, *limits = told.split() or [""]
        return cls(verifier, **dict(_limit(told, limit) for limit in limits))

    @property
    def __signature__(self) -> inspect.Signature:
        """The verifier's parameters: they say what it is offered and which labels it reads."""
        return inspect.Signature([inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY)
                                  for n in self.names])

    def __call__(self, **offered: Any) -> Any:
        """The verdict (a list of them, or the Group, for a verifier of groups)."""
        try:
            told = self._worker.ask({name: _as_json(value) for name, value in offered.items()})
        except OutsideError as error:
            raise OutsideError(f"{self.verifier}: {error}") from None
        if "error" in told:
            raise OutsideError(f"{self.verifier}: {told['error']}")
        if "group" in told:
            return Group.model_validate(told["group"])
        found = [Verdict.model_validate(v) for v in told["verdicts"]]
        return found if "group" in self.names else found[0]

    def close(self) -> None:
        """End the worker; the next row would start a new one."""
        self._worker.stop()


def _limit(told: str, limit: str) -> tuple[str, Any]:
    name, _, text = limit.partition("=")
    try:
        if name in ("seconds", "start_seconds"):
            return name, float(text)
        if name in ("network", "environment"):
            return name, tuple(filter(None, text.split(",")))
        if name == "output":
            return name, int(text)
        if name == "memory" and text.lower() == "none":
            return name, None
        if name == "memory" and (m := re.fullmatch(r"(\d+)(MiB|GiB)?", text)):
            return name, int(m[1]) << {None: 0, "MiB": 20, "GiB": 30}[m[2]]
    except ValueError:
        pass
    raise SelfloopError(f"outside:{told}: {limit!r} is no limit; write seconds=60, memory=4GiB (or "
                        "none), output=1000000, start_seconds=120, network=HOST,HOST or "
                        "environment=NAME,NAME after the name")


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


class _Worker:
    """The process behind an Outside: one question at a time, started when needed."""

    def __init__(self, about: Outside) -> None:
        self.orders = {"verifier": about.verifier, "memory": about.memory,
                       "network": list(about.network)}
        self.passed = (*PASSED, *about.environment)
        self.seconds, self.start_seconds = about.seconds, about.start_seconds
        self.output = about.output
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = Lock()

    def start(self) -> dict[str, Any]:
        """A worker that is ready, and what it says of the verifier. Raises OutsideError."""
        package = str(Path(selfloop.__file__).parent.parent)
        env = {n: os.environ[n] for n in self.passed if n in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "selfloop.organize.verify.outside_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, env={**env, "PYTHONPATH": package})
        return self._asked({**self.orders, "path": sys.path}, self.start_seconds)

    def ask(self, offered: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one row. Raises OutsideError, after which the worker is gone."""
        with self.lock:
            if self.process is None:
                self.start()
            return self._asked({"offered": offered}, self.seconds)

    def _asked(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        with self._ended_on_failure():
            found: dict[str, Any] = json.loads(self._exchange(
                json.dumps(question).encode() + b"\n", seconds))
            if "refused" in found:
                raise OutsideError(found["refused"])
            return found

    @contextmanager
    def _ended_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _exchange(self, question: bytes, seconds: float) -> bytes:
        """Send a line and read one, within the limits; both ways at once, so neither blocks."""
        process = self.process
        assert process is not None and process.stdin and process.stdout and process.stderr
        reply, printed, deadline = bytearray(), bytearray(), time.monotonic() + seconds
        os.set_blocking(process.stdin.fileno(), False)
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdin, selectors.EVENT_WRITE)
            for stream in (process.stdout, process.stderr):
                ready.register(stream, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                found = ready.select(max(0.0, deadline - time.monotonic()))
                if not found:
                    raise OutsideError(f"no verdict within {seconds:g} s{_quoted(printed)}")
                for at, _ in found:
                    if at.fileobj is process.stdin:
                        question = _sent(at.fd, question)
                        if not question:
                            ready.unregister(process.stdin)
                        continue
                    data = os.read(at.fd, 65536)
                    if not data and at.fileobj is process.stdout:
                        raise OutsideError(f"{_ending(process)}{_quoted(printed)}")
                    if not data:
                        ready.unregister(at.fileobj)
                    (reply if at.fileobj is process.stdout else printed).extend(data)
                if max(len(reply), len(printed)) > self.output:
                    raise OutsideError(f"it printed or replied more than {self.output:,} bytes")
        return bytes(reply)

    def stop(self) -> None:
        """Kill the worker with all that it started."""
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        process.wait()


def _sent(descriptor: int, data: bytes) -> bytes:
    """What is left to send; nothing for a worker that no longer listens (its end is read next)."""
    try:
        return data[os.write(descriptor, data[:65536]):]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "its worker closed its output"
    return f"its worker was ended by signal {-code}" if code < 0 else \
        f"its worker ended with status {code}"


def _quoted(printed: bytearray) -> str:
    lines = bytes(printed[-TAIL:]).decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; it last said: {last[:300]}" if last else ""
