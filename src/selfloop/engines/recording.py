"""What was asked of a paid model and what it answered, kept so that nothing is asked twice.

One JSON line an answer, under the hash of what was asked: appended and flushed to disk before the
answer is used, so a run that is killed finds it again. Keys, addresses and clocks are not in it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from selfloop.engines.openai_messages import Reply
from selfloop.roles import SelfloopError
from selfloop.store import mend_log


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Dollars for a million tokens."""

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        if not (self.prompt >= 0 and self.completion >= 0):
            raise SelfloopError(f"{self}: prices are dollars a million tokens, 0 or more")


@dataclass(frozen=True, kw_only=True)
class Account:
    """What all recorded answers cost."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Answers whose server did not say how many tokens they took."""
    dollars: float | None = None
    """None: no prices were given, or some answers are uncounted."""

    @property
    def tokens(self) -> int:
        """Read and drawn."""
        return self.prompt_tokens + self.completion_tokens


class Records:
    """Answers by the hash of what was asked; in memory alone until `path` is given."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._found: dict[str, Reply] = {}
        self._prompt = self._completion = self._uncounted = 0
        self._lock = Lock()
        if path is not None:
            mend_log(path)
            self._load(path)

    def get(self, asked: str) -> Reply | None:
        """The recorded answer to the request of this hash."""
        return self._found.get(asked)

    def put(self, asked: str, key: str, reply: Reply) -> None:
        """Record an answer; it is on disk when this returns. `key` says whose it was."""
        with self._lock:
            if self.path is not None:
                _append(self.path, {"asked": asked, "key": key, **asdict(reply)})
            self._count(asked, reply)

    def account(self, prices: Prices | None = None) -> Account:
        """All answers' tokens, and dollars where there are prices."""
        dollars = None
        if prices is not None and not self._uncounted:
            dollars = (self._prompt * prices.prompt + self._completion * prices.completion) / 1e6
        return Account(answers=len(self._found), prompt_tokens=self._prompt,
                       completion_tokens=self._completion, uncounted=self._uncounted,
                       dollars=dollars)

    def _count(self, asked: str, reply: Reply) -> None:
        self._found[asked] = reply
        self._prompt += reply.prompt_tokens or 0
        self._completion += reply.completion_tokens or 0
        self._uncounted += reply.prompt_tokens is None or reply.completion_tokens is None

    def _load(self, path: Path) -> None:
        if not path.exists():
            return
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                asked, _ = row.pop("asked"), row.pop("key")
                pieces = row.pop("pieces")
                reply = Reply(**row, pieces=None if pieces is None else tuple(
                    (str(piece), float(x)) for piece, x in pieces))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise SelfloopError(f"{path}, line {number}: no recorded answer ({error}): take "
                                    "the line out, and it is asked again") from None
            self._count(asked, reply)


def _append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
