"""Whether an answer has the asked form, and form and result as one reward (primitives V1)."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from selfloop.calling import SelfloopError
from selfloop.organize.verify.parts import combined
from selfloop.roles import Verifier
from selfloop.types import Rollout, Verdict


@dataclass(frozen=True)
class Pattern:
    """1 if the whole output, white space at its ends apart, matches `regex`, else 0.

    "." also matches line ends. The format reward of the works on rule-based RL (DeepSeek-R1, arXiv
    2501.12948, section 2.2.2). `regex` is yours: never build it from what a model wrote.
    """

    regex: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.regex)
        except re.error as error:
            raise SelfloopError(f"Pattern({self.regex!r}): not a regular expression: {error}") \
                from None

    def __call__(self, rollout: Rollout) -> Verdict:
        """Reads no label."""
        return Verdict(score=float(bool(re.fullmatch(self.regex, rollout.text.strip(), re.S))))


@dataclass(frozen=True)
class Tags:
    """1 if the output is exactly these blocks, each `<tag>...</tag>`, in this order, else 0.

    Every block holds something other than white space and no tag of the list again, so nested and
    doubled tags are wrong. Only white space lies outside the blocks. Tags may repeat in the list:
    SRPO (arXiv 2506.01713, released reward) asks for think, answer, reflection, think, answer.
    """

    tags: tuple[str, ...] = ("think", "answer")

    def __call__(self, rollout: Rollout) -> Verdict:
        """Reads no label."""
        return Verdict(score=float(tagged_blocks(rollout.text, self.tags) is not None))


def tagged_blocks(text: str, tags: tuple[str, ...]) -> list[str] | None:
    """What stands in each block, or None where the text is not exactly these blocks in order."""
    found, at = [], 0
    for tag in tags:
        opened = re.compile(rf"\s*<{re.escape(tag)}>").match(text, at)
        closed = text.find(f"</{tag}>", opened.end()) if opened else -1
        if opened is None or closed == -1:
            return None
        found.append(text[opened.end():closed])
        at = closed + len(tag) + 3
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    clean = all(block.strip() and not any(m in block for m in marks) for block in found)
    return found if clean and not text[at:].strip() else None


@dataclass(frozen=True)
class FormatAndResult:
    """1 only if both say so (score of at least one half), else 0: hard AND, so that neither alone
    is worth writing for.

    Vision-R1's hard formatting result reward (HFRRF; arXiv 2503.06749). 0 if one says no, whatever
    the other; None if one cannot tell and the other does not say no.
    """

    format: Verifier
    result: Verifier

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict | Awaitable[Verdict]:
        """Gold values reach only the part that names them. To be awaited if a part is a judge."""
        return combined((self.format, self.result), rollout, offered, self._judged)

    @staticmethod
    def _judged(found: list[Verdict]) -> Verdict:
        parts = {name: v.score for name, v in zip(("format", "result"), found, strict=True)
                 if v.score is not None}
        told = [v.right for v in found if v.score is not None]
        score = 0.0 if not all(told) else 1.0 if len(told) == 2 else None
        return Verdict(score=score, parts=parts, rationale=found[1].rationale,
                       cost=sum(v.cost for v in found))
