"""Several verifiers as one (primitives: "combine"): abstain-aware conjunction and weighted mean.

A part may be a judge: what is called then returns something to await. A part that failed makes the
whole fail, whatever the others say.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from selfloop.calling import (
    SelfloopError,
    among_groups,
    as_verdict,
    call_by_name,
    name_of,
    parameters,
)
from selfloop.organize.judging import as_asked
from selfloop.organize.verify.parts import awaited, combined, judges_answers, named, put_in
from selfloop.organize.verify.rules import final_answer
from selfloop.roles import Verifier
from selfloop.types import Group, Rollout, Verdict


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
        weights = [w for w, _ in self.verifiers]
        if not all(map(math.isfinite, weights)) or min(weights) < 0 or not sum(weights):
            raise SelfloopError(f"Weighted: weights {', '.join(f'{w:g}' for w in weights)}; "
                                "expected none below 0 and one above: where nothing but a penalty "
                                "could tell, its mean would be a reward; take Sum")

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


@dataclass(frozen=True)
class InGroups:
    """A combination of single answers' verifiers, some of whose parts judge whole groups: a vote
    times the asked form is `InGroups(AllOf((MajorityVote(), Tags())))`.

    Each of those parts judges the group once, and what it says of an answer stands in its place
    when that answer is judged. Its own parts, a vote's share among them, are kept. The others are
    shown, as the sample, what the answer was asked, as `judging.judge` shows it.
    """

    combination: Verifier

    def __post_init__(self) -> None:
        if "group" in parameters(self.combination) or not among_groups(self.combination):
            raise SelfloopError(f"InGroups({name_of(self.combination)}): expected a verifier of "
                                "single answers, AllOf or the like, with a part that judges groups")

    async def __call__(self, group: Group, **offered: Any) -> list[Verdict]:
        """One verdict a rollout. Gold values reach only those verifiers that name them."""
        parts = among_groups(self.combination)
        told = [await self._told(part, group, offered) for part in parts]
        found = []
        for i, rollout in enumerate(group.rollouts):
            alone = put_in(self.combination, parts, [verdicts[i] for verdicts in told])
            own_sample = {"sample": as_asked(rollout, group.sample)}
            value = await awaited(call_by_name(alone, rollout=rollout, **{**offered, **own_sample}))
            verdict = as_verdict(value, name_of(self.combination))
            own = {name: part for verdicts in told for name, part in verdicts[i].parts.items()}
            found.append(verdict.model_copy(update={"parts": {**own, **verdict.parts}}))
        return found

    @staticmethod
    async def _told(part: Verifier, group: Group, offered: dict[str, Any]) -> list[Verdict]:
        value = await awaited(call_by_name(part, group=group, **offered))
        found = [as_verdict(v, name_of(part))
                 for v in (value.verdicts if isinstance(value, Group) else value)]
        if len(found) != len(group.rollouts):
            raise SelfloopError(f"{name_of(part)}: {len(found)} verdicts for {len(group.rollouts)} "
                                "rollouts")
        return found
