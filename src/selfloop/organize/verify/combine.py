"""Several verifiers as one (primitives: "combine"): abstain-aware conjunction and weighted mean.

A part may be a judge: what is called then returns something to await. A part that failed makes the
whole fail, whatever the others say.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from selfloop.calling import SelfloopError
from selfloop.organize.verify.parts import combined, judges_answers, named
from selfloop.organize.verify.rules import final_answer
from selfloop.roles import Verifier
from selfloop.types import Rollout, Verdict


@dataclass(frozen=True)
class AllOf:
    """The product of the scores of rollout verifiers.

    0 as soon as one says 0, whatever the others; otherwise None when one abstains. Raises
    SelfloopError for a score below 0: two of them would make a right answer.
    """

    verifiers: tuple[Verifier, ...]

    def __post_init__(self) -> None:
        judges_answers("AllOf", self.verifiers)

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict | Awaitable[Verdict]:
        """Gold values reach only those verifiers that name them."""
        def judged(found: list[Verdict]) -> Verdict:
            return _judged(rollout, found, _product(found))
        return combined(self.verifiers, rollout, offered, judged)


def _product(found: list[Verdict]) -> float | None:
    for v in found:
        if v.score is not None and v.score < 0:
            raise SelfloopError(f"AllOf: {v.verifier} scored {v.score:g}; expected none below "
                                "0: scale it first, or use Sum")
    scores = [v.score for v in found if v.score is not None]
    if 0 in scores:
        return 0.0
    return math.prod(scores) if len(scores) == len(found) else None


@dataclass(frozen=True)
class Weighted:
    """The weighted mean over the verifiers that could tell; None when none could."""

    verifiers: tuple[tuple[float, Verifier], ...]

    def __post_init__(self) -> None:
        judges_answers("Weighted", [v for _, v in self.verifiers])

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict | Awaitable[Verdict]:
        """See AllOf."""
        def judged(found: list[Verdict]) -> Verdict:
            told = [(w, v.score) for (w, _), v in zip(self.verifiers, found, strict=True)
                    if v.score is not None]
            total = sum(w for w, _ in told)
            return _judged(rollout, found, sum(w * s for w, s in told) / total if total else None)
        return combined([v for _, v in self.verifiers], rollout, offered, judged)


def _judged(rollout: Rollout, found: list[Verdict], score: float | None) -> Verdict:
    return Verdict(score=score, parts=named(found), rationale=final_answer(rollout.text) or "",
                   cost=sum(v.cost for v in found))
