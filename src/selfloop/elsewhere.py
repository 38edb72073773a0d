"""What a run does for engines that ask a server elsewhere: where answers are kept, what they cost.

Such an engine has `keep_records` and `account`; all others are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from selfloop.roles import Engine

FOLDER = "asked"
"""Of a run: one file of recorded answers a role."""


def keep_records(engines: Iterable[tuple[str, Engine]], folder: Path) -> None:
    """Let every engine elsewhere record its answers in the run's folder, and answer from there."""
    for role, engine in engines:
        keep: Callable[[Path], None] | None = getattr(engine, "keep_records", None)
        if keep is not None:
            keep(folder / FOLDER / f"{role}.jsonl")


def tell_spent(engines: Iterable[tuple[str, Engine]], tell: Callable[..., None]) -> None:
    """An event "spent" for every engine elsewhere: answers, tokens and dollars of the whole run."""
    for role, engine in engines:
        account: Callable[[], dict[str, Any]] | None = getattr(engine, "account", None)
        if account is not None:
            tell("spent", role=role, **account())
