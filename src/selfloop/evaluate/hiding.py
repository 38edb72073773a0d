"""Files that a running loop may not touch, held by Python's own audit events (PEP 578).

While a run is under way in this process, an attempt to open, link, copy, move or delete a hidden
file raises, whoever makes it (a sampler, a verifier, an organizer, a data loader), under whatever
name: the file itself, a symbolic or hard link, or a byte-for-byte copy of it. The attempt is
remembered, so that swallowing the exception does not help: the run stops at the end of its step.

An audit hook cannot be taken out, but it sees only what passes through the interpreter. Code in C
that opens files by itself (pyarrow's reader of parquet, ctypes) is not seen, nor is a program
that another process runs on a name that it builds by itself. For those: `sealed.seal`.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfloop.roles import SelfloopError

_hidden: dict[Path, str] = {}
"""Real path of a hidden file or folder -> sha256 of the file, "" of a folder."""
_runs = 0
_attempts: list[str] = []
_installed = False
_allowed = threading.local()

_PATHS = {"open": (0,), "os.link": (0,), "os.symlink": (0,), "os.rename": (0,), "os.remove": (0,),
          "os.chmod": (0,), "os.truncate": (0,), "shutil.copyfile": (0,), "shutil.move": (0,),
          "shutil.copytree": (0,), "os.listxattr": (0,)}
"""Audit event -> which of its arguments name a file."""
_PROGRAMS = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"})


def hide(path: Path) -> None:
    """Hide a file or folder from every run of this process, from now on."""
    global _installed
    real = Path(os.path.realpath(path))
    with allowed():
        _hidden[real] = "" if real.is_dir() else _sha256(real)
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True


@contextmanager
def closed() -> Iterator[None]:
    """A run is under way: hidden files stay closed until it ends."""
    global _runs
    _runs += 1
    if _runs == 1:
        _attempts.clear()
    try:
        yield
    finally:
        _runs -= 1


@contextmanager
def allowed() -> Iterator[None]:
    """Within this thread the hook looks away: for hashing, and for opening after the runs."""
    before = getattr(_allowed, "now", False)
    _allowed.now = True
    try:
        yield
    finally:
        _allowed.now = before


def check() -> None:
    """Raise SelfloopError if anything tried to touch a hidden file since the run began."""
    if _attempts:
        raise SelfloopError(f"{_attempts[0]} (tried {len(_attempts)} times): it stayed closed; "
                            "mend the component and start a run of another name")


def _hook(event: str, arguments: Sequence[Any]) -> None:
    if not _runs or getattr(_allowed, "now", False):
        return
    if event in _PATHS:
        names = [arguments[i] for i in _PATHS[event]]
    elif event in _PROGRAMS:
        names = _words(arguments)
    else:
        return
    with allowed():
        touched = next((n for n in names if isinstance(n, str | bytes | os.PathLike)
                        and _is_hidden(n)), None)
    if touched is not None:
        _attempts.append(f"{os.fsdecode(touched)} is sealed while a run is under way, and a "
                         f"component of the run tried to touch it ({event})")
        raise SelfloopError(_attempts[-1])


def _words(arguments: Sequence[Any]) -> list[str]:
    """Everything in a program's call that may be a file's name."""
    found: list[str] = []
    for argument in arguments:
        given = argument if isinstance(argument, list | tuple) else [argument]
        for text in (os.fsdecode(g) for g in given if isinstance(g, str | bytes | os.PathLike)):
            try:
                found += [text, *shlex.split(text)]
            except ValueError:  # unbalanced quotes
                found += [text, *text.split()]
    return found


def _is_hidden(name: Any) -> bool:
    try:
        real = Path(os.path.realpath(os.fsdecode(name)))
        found = os.stat(real)
    except (OSError, ValueError):
        return False
    for hidden, sha256 in _hidden.items():
        if real == hidden or (not sha256 and hidden in real.parents):
            return True
        if sha256 and real.is_file() and _same(hidden, sha256, real, found):
            return True
    return False


def _same(hidden: Path, sha256: str, real: Path, found: os.stat_result) -> bool:
    """A hard link, or a copy with the same bytes. Only files of equal size are hashed."""
    try:
        own = os.stat(hidden)
    except OSError:
        return False
    if (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino):
        return True
    return own.st_size == found.st_size > 0 and _sha256(real) == sha256


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "missing"
