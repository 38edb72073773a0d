"""What commands print: one JSON document or a table on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfloop.roles import SelfloopError

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


def tell(text: str) -> None:
    """One line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def put_json(value: Any) -> None:
    """The one JSON document of a command. Numbers that JSON has no word for become null."""
    print(json.dumps(_finite(value), indent=1, ensure_ascii=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = (), title: str = "") -> None:
    """A table on stdout; its text is never cut."""
    from rich.table import Table
    from rich.text import Text

    made = Table(*head, title=title or None, title_justify="left", show_header=bool(head),
                 box=None, pad_edge=False)
    if not head:
        for _ in rows[0] if rows else ():
            made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    stdout().print(made)


def stdout() -> Console:
    """Where tables go. Without a terminal lines are never wrapped: a program reads them."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=10_000)


def say(text: str) -> None:
    """Plain text on stdout."""
    print(text)


def run_folder(name: str) -> Path:
    """A run by its path, or by its name under ./runs. Raises SelfloopError, naming those there."""
    for path in (Path(name), Path("runs") / name):
        if (path / "loop.json").exists() or (path / "summary.json").exists():
            return path
    there = sorted(p.parent.name for p in Path("runs").glob("*/*.json")) \
        if Path("runs").is_dir() else []
    known = f"; runs here: {', '.join(dict.fromkeys(there))}" if there else \
        "; start one with `selfloop run`"
    raise SelfloopError(f"no run {name!r}: neither {name} nor runs/{name} is a run folder{known}")


# -- whatever goes wrong, in one line --------------------------------------------------------------

@contextmanager
def one_line(again: Callable[[], str]) -> Iterator[None]:
    """Turn what goes wrong into one line on stderr and an exit code.

    2: an error that the user can mend; 1: one of ours; 130: interrupted. `again()` is the command
    that was given. SELFLOOP_TRACEBACK=1 lets everything through instead.
    """
    if os.environ.get("SELFLOOP_TRACEBACK") == "1":
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        tell(f"interrupted: everything collected so far is kept; to go on: {again()}")
        raise typer.Exit(130) from None
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("typer", "click"):
            raise  # exits and usage errors are the command line's own
        if isinstance(error, BrokenPipeError):
            raise  # `| head` has read enough
        code, text = _said(error)
        tell("error: " + " ".join(text.split()))
        raise typer.Exit(code) from None


def _said(error: BaseException) -> tuple[int, str]:
    """(exit code, what to say)."""
    if isinstance(error, SelfloopError):
        return 2, str(error)
    if _out_of_memory(error):
        return 2, ("out of memory: what was collected stays, and the same command goes on from "
                   "it; make options.batch or options.max_new_tokens smaller, use lora: or "
                   "dtype: bfloat16, or a smaller model")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return 2, (f"disk full{where}: what was collected stays; free some space and give the "
                   "same command again")
    if isinstance(error, OSError):
        return 2, f"{error.filename or 'a file'}: {error.strerror or error}"
    first = (str(error).strip().splitlines() or ["no message"])[0][:300]
    return 1, (f"unexpected {type(error).__name__}: {first}; SELFLOOP_TRACEBACK=1 shows where "
               "(please report it)")


def _out_of_memory(error: BaseException) -> bool:
    # torch's own classes are known by name, so that torch need not be imported to ask.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error))
