"""Sums of rewards and lexicographic order (primitives "combine"); products and means: combine.py.

Both are async, so that a part may be a judge. None from a part that counts makes the whole None:
a sum with a missing summand, or an order with a missing rank, is unknown and not smaller. A part
that failed makes the whole fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfloop.calling import SelfloopError
from selfloop.organize.verify.parts import all_of, failed, judges_answers
from selfloop.roles import Verifier
from selfloop.types import Rollout, Verdict


def _total(found: list[Verdict], score: float | None) -> Verdict:
    if (error := failed(found)) is not None:
        return error
    parts = {f"{i}:{v.verifier.rsplit(':')[-1]}": v.score for i, v in enumerate(found)
             if v.score is not None}
    return Verdict(score=score, parts=parts, rationale=found[0].rationale,
                   cost=sum(v.cost for v in found))


@dataclass(frozen=True)
class Sum:
    """sum of w_i * score_i over (weight, verifier) terms; weights may be negative (penalties).

    As rewards are written in most works: DeepEyes' .8 accuracy + .2 format, SRPO's .5 + .5 + .1.
    None as soon as one term abstains. For a mean over those that could tell: combine.Weighted.
    """

    terms: tuple[tuple[float, Verifier], ...]

    def __post_init__(self) -> None:
        judges_answers("Sum", [v for _, v in self.terms])

    async def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """Gold values reach only those verifiers that name them."""
        found = await all_of([v for _, v in self.terms], rollout, offered)
        scores = [v.score for v in found]
        told = [w * s for (w, _), s in zip(self.terms, scores, strict=True) if s is not None]
        return _total(found, sum(told) if len(told) == len(scores) else None)


@dataclass(frozen=True)
class Lexicographic:
    """The first verifier decides, the next only among those that the first finds equal, and so on.

    Scores in [0, 1] are rounded to `levels` steps and read as the digits of a number, most
    important first, scaled to [0, 1]: comparing totals compares scores in that order. Raises
    SelfloopError for a score outside [0, 1], which would reach into the digit before.
    """

    verifiers: tuple[Verifier, ...]
    levels: int = 11

    def __post_init__(self) -> None:
        judges_answers("Lexicographic", self.verifiers)
        if self.levels < 2 or self.levels ** len(self.verifiers) > 10**12:
            raise SelfloopError(f"Lexicographic: levels={self.levels} for {len(self.verifiers)} "
                                "verifiers; expected at least 2, and 1e12 numbers at most")

    async def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """Gold values reach only those verifiers that name them."""
        found = await all_of(self.verifiers, rollout, offered)
        total: int | None = 0
        for verdict in found:
            digit = self._digit(verdict)
            total = None if total is None or digit is None else total * self.levels + digit
        most = self.levels ** len(found) - 1
        return _total(found, None if total is None else total / most)

    def _digit(self, verdict: Verdict) -> int | None:
        if verdict.score is None:
            return None
        if not 0 <= verdict.score <= 1:
            raise SelfloopError(f"Lexicographic: {verdict.verifier} scored {verdict.score}; "
                                "expected a score in [0, 1]: scale it first")
        return int(verdict.score * (self.levels - 1) + 0.5)
