"""Runs code that a model wrote, in a process of its own that can reach nothing.

Recipes whose models draw by writing code (EVE, MM-Zero) need that code run. It is
never run in-process. A fresh interpreter gets an empty folder, no network, no right to start
processes, a cleaned environment, and limits of memory, CPU, time, files and output; all that comes
back is text and one picture, and the picture is decoded within bounds. See `LEVELS` for what holds
where; docs/safety.md says what is not covered.
"""

from __future__ import annotations

import json
import os
import platform
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from PIL import Image

import selfloop
from selfloop.decoding import Limits, decode, header
from selfloop.engines.sandbox_filter import MACHINES
from selfloop.roles import SelfloopError

Level = Literal["namespaces", "landlock"]
LEVELS: dict[Level, str] = {
    "namespaces": "own file system, network, processes and users, and a seccomp filter",
    "landlock": "Landlock for files and a seccomp filter for sockets, processes and signals",
}
"""How the code is shut in, the stronger first. In both it reads only Python and the system's
libraries, writes only to its folder, and opens no socket. At "landlock" it may still see which
other files exist, and its folder lies on the disk, where only each file's size is bounded."""
Reason = Literal["ok", "error", "timeout", "memory", "output"]


@dataclass(frozen=True)
class Ran:
    """What came of a snippet."""

    reason: Reason
    """How it ended. A picture that is asked for and cannot be taken is an "error"."""
    stdout: str
    stderr: str
    picture: Image.Image | None
    """RGB; None when the snippet left none, or left one that may not be opened (see `why`)."""
    why: str
    """One line on what went wrong; empty when all went well."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ran to its end within all limits."""
        return self.reason == "ok"


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """`Sandbox()(code)` runs Python code and returns what it printed and the picture it saved."""

    seconds: float = 10.0
    """Wall-clock time, after which everything is killed; CPU time is limited to the same."""
    memory: int = 1 << 30
    """Address space, in bytes."""
    disk: int = 32 << 20
    """Bytes of its folder (of a single file at level "landlock")."""
    output: int = 100_000
    """Bytes of stdout and stderr together; more ends it."""
    picture: str = "picture.png"
    """The file that is taken back, by its name in the folder."""
    picture_limits: Limits = Limits(bytes=10_000_000, pixels=4_000_000, frames=1)
    least: Level = "landlock"
    """The weakest level that is good enough; where it cannot be had nothing is run."""
    python: str = sys.executable
    """The interpreter, whose packages the code may import."""

    def __post_init__(self) -> None:
        if min(self.seconds, self.memory, self.disk, self.output) <= 0:
            raise SelfloopError(f"{self}: seconds, memory, disk and output must be above 0")
        if not _is_plain(self.picture):
            raise SelfloopError(f"Sandbox(picture={self.picture!r}): expected a plain file name "
                                "such as picture.png, without folders")
        if self.least not in LEVELS:
            raise SelfloopError(f"Sandbox(least={self.least!r}): expected one of "
                                f"{', '.join(LEVELS)}")

    def __call__(self, code: str, files: Mapping[str, bytes] | None = None) -> Ran:
        """Run `code` beside `files` (name -> bytes). What the code does wrong is told, not raised.

        Raises SelfloopError where this machine cannot shut it in.
        """
        best, why_not = level()
        if best is None or list(LEVELS).index(best) > list(LEVELS).index(self.least):
            raise SelfloopError(
                f"the sandbox cannot shut code in as asked (least={self.least!r}, possible: "
                f"{best}): {why_not}; allow user namespaces, or run on Linux 5.13 or newer")
        return self._at(best, code, files or {})

    def _at(self, at: Level, code: str, files: Mapping[str, bytes]) -> Ran:
        for name in files:
            if not _is_plain(name) or name == "main.py":
                raise SelfloopError(f"sandbox: file {name!r}: expected a plain name other than "
                                    "main.py")
        with tempfile.TemporaryDirectory(prefix="sandbox-") as home, \
                tempfile.TemporaryFile() as report:
            given = Path(home, "given")
            for folder in (given, Path(home, "root")):
                folder.mkdir()
            for name, data in {**files, "main.py": code.encode("utf-8", "replace")}.items():
                (given / name).write_bytes(data)
            began = time.monotonic()
            out, err, cut = self._watched(self._start(at, home, report), began)
            return self._told(report, out, err, cut, time.monotonic() - began)

    def _start(self, at: Level, home: str, report: IO[bytes]) -> subprocess.Popen[bytes]:
        orders = {
            "level": at, "home": home, "report": report.fileno(), "python": self.python,
            "prefixes": _prefixes(self.python), "memory": self.memory, "disk": self.disk,
            "cpu": max(1, round(self.seconds + 0.5)), "picture": self.picture,
            "bytes": self.picture_limits.bytes,
        }
        return subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", "-m", "selfloop.engines.sandbox_inside",
             json.dumps(orders)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            pass_fds=(report.fileno(),), start_new_session=True, cwd="/",
            env={"PYTHONPATH": str(Path(selfloop.__file__).parent.parent), "LANG": "C.UTF-8"})

    def _watched(self, process: subprocess.Popen[bytes], began: float
                 ) -> tuple[bytes, bytes, Reason | None]:
        """(stdout, stderr, why it was ended from here), read until both are closed."""
        assert process.stdout is not None and process.stderr is not None
        kept: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
        cut: Reason | None = None
        with process, selectors.DefaultSelector() as ready:
            try:
                for stream in kept:
                    ready.register(stream, selectors.EVENT_READ)
                while ready.get_map() and cut is None:
                    left = began + self.seconds - time.monotonic()
                    for found, _ in ready.select(max(0.0, left)):
                        data = os.read(found.fd, 65536)
                        kept[found.fileobj] += data
                        if not data:
                            ready.unregister(found.fileobj)
                    if sum(map(len, kept.values())) > self.output:
                        cut = "output"
                    elif left <= 0:
                        cut = "timeout"
                if cut is None:  # both are closed, and yet it may go on
                    try:
                        process.wait(max(0.05, began + self.seconds - time.monotonic()))
                    except subprocess.TimeoutExpired:
                        cut = "timeout"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        out, err = (bytes(kept[s][:self.output]) for s in (process.stdout, process.stderr))
        return out, err, cut

    def _told(self, report: IO[bytes], out: bytes, err: bytes, cut: Reason | None,
              seconds: float) -> Ran:
        report.seek(0)
        head, _, data = report.read().partition(b"\n")
        facts = json.loads(head) if head else {}
        stdout, stderr = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
        if "failed" in facts or not (facts or cut):
            raise SelfloopError("the sandbox could not be set up: "
                                f"{facts.get('failed') or _last_line(stderr)}")
        reason = cut or self._reason(facts, stderr)
        picture, why = None, "" if reason == "ok" else self._why(reason, facts, stderr)
        if cut is None and (data or facts.get("why")):
            picture, refused = self._opened(data, facts.get("why", ""))
            if refused:
                reason, why = "error" if reason == "ok" else reason, why or refused
        return Ran(reason, stdout, stderr, picture, why, seconds)

    def _reason(self, facts: Mapping[str, Any], stderr: str) -> Reason:
        code, last = facts.get("code", 1), _last_line(stderr)
        if code == 0:
            return "ok"
        if code < 0 and facts.get("cpu", 0.0) >= self.seconds - 0.5:
            return "timeout"
        if code == -signal.SIGKILL or re.match(r"[\w.]*MemoryError\b|.*bad_alloc", last):
            return "memory"
        return "error"

    def _why(self, reason: Reason, facts: Mapping[str, Any], stderr: str) -> str:
        code = facts.get("code", 1)
        return {
            "timeout": f"stopped after {self.seconds:g} s",
            "output": f"printed more than {self.output:,} bytes",
            "memory": f"needed more than {self.memory:,} bytes of memory",
        }.get(reason) or _last_line(stderr)[:300] or (
            f"ended by signal {-code}" if code < 0 else f"ended with status {code}")

    def _opened(self, data: bytes, refused: str) -> tuple[Image.Image | None, str]:
        """The picture within its limits, or why not."""
        if refused:
            return None, refused
        try:
            header(data, self.picture, pages="first", limits=self.picture_limits)
            return decode(data, self.picture, page=0, limits=self.picture_limits), ""
        except SelfloopError as error:
            return None, str(error)


def _is_plain(name: str) -> bool:
    return bool(name) and name not in (".", "..") and "/" not in name and "\0" not in name


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


@cache
def _prefixes(python: str) -> list[str]:
    """The folders that an interpreter lives in and loads its packages from."""
    ask = ("import json, os, sys; print(json.dumps([sys.prefix, sys.base_prefix, "
           "os.path.dirname(os.path.dirname(os.path.realpath(sys.executable)))]))")
    try:
        said = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SelfloopError(f"Sandbox(python={python!r}): {error}; give the path of a Python "
                            "interpreter") from None
    found = [str(path) for path in json.loads(said.stdout)]
    if "/" in found:
        raise SelfloopError(f"sandbox: {python} is installed in /, so its folder cannot be shown "
                            "without showing all; use a virtual environment")
    return found


@cache
def level() -> tuple[Level | None, str]:
    """(the strongest level that this machine permits or None, why no stronger one), by trying."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return None, f"it needs Linux on {' or '.join(MACHINES)}, not {sys.platform} on " \
                     f"{platform.machine()}"
    reasons = []
    for at in LEVELS:
        try:
            ran = Sandbox(memory=1 << 28)._at(at, "print(6 * 7)", {})
        except (SelfloopError, OSError, subprocess.SubprocessError) as error:
            reasons.append(f"{at}: {error}")
            continue
        if ran.stdout == "42\n":
            return at, "; ".join(reasons)
        reasons.append(f"{at}: {ran.why or ran.stdout[:80]}")
    return None, "; ".join(reasons)
