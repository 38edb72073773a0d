"""Are the negatives really worse, as long as the good answers, and about the picture?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import fmean

from selfloop.collect.negatives import BLIND
from selfloop.types import Group, Rollout


@dataclass(frozen=True)
class Audit:
    """One cause's figures. None: there was nothing to count it from.

    `differs_blind` is to be read beside `differs_by_chance`: two draws at a temperature differ
    with the picture in sight, too.
    """

    drawn: int
    judged: int
    wrong: float | None
    """Share of the judged negatives with a score under one half."""
    good_wrong: float | None
    """The same of the good answers: what the negatives have to exceed."""
    length_ratio: float | None
    """Mean drawn tokens of the negatives over those of the good answers; 1 = matched."""
    longer: float | None
    """Chance that a negative is longer than a good answer of the same problem, ties one half;
    .5 = length gives nothing away."""
    differs_blind: float | None
    """Share of (negative, answer without pictures) of a problem whose texts differ."""
    differs_by_chance: float | None
    """Share of pairs of good answers to a problem whose texts differ."""

    def __str__(self) -> str:
        def said(value: float | None) -> str:
            return "unknown" if value is None else f"{value:.2f}"

        return (f"{self.drawn} drawn, {self.judged} judged: wrong {said(self.wrong)} (good answers "
                f"{said(self.good_wrong)}), length ratio {said(self.length_ratio)}, longer "
                f"{said(self.longer)}, differs from blind {said(self.differs_blind)} (by chance "
                f"{said(self.differs_by_chance)})")


def same_words(a: str, b: str) -> bool:
    """Equal apart from case and white space."""
    return a.lower().split() == b.lower().split()


def audit(groups: Sequence[Group], same: Callable[[str, str], bool] = same_words
          ) -> dict[str, Audit]:
    """What the judged groups of `Negatives` say of each cause, by its name.

    Verdicts are those of the run's own verifier; unjudged answers are left out, never wrong.
    Dependence on the picture needs `Negatives(blind=True)`. The cause "no picture" is audited
    like the others. `same` says whether two texts are one answer.
    """
    causes = sorted({str(c) for g in groups for r in g.rollouts
                     if (c := r.sampling.get("negative")) is not None})
    return {cause: _audit(groups, cause, same) for cause in causes}


def _audit(groups: Sequence[Group], cause: str, same: Callable[[str, str], bool]) -> Audit:
    # Problems where the cause gave nothing are left out: compare like with like.
    with_cause = [g for g in groups if _of(g, cause)]
    bad_and_good = [(_of(g, cause), _of(g, None)) for g in with_cause]
    wrong = _wrong(with_cause, cause)
    pairs = [(b.tokens, g.tokens) for bad, good in bad_and_good for b, g in product(bad, good)]
    chance = [not same(a.text, b.text)
              for _, good in bad_and_good for a, b in combinations(good, 2)]
    differs = [not same(b.text, blind.text)
               for g in with_cause for b, blind in product(_of(g, cause), _of(g, BLIND))
               if cause != BLIND]
    mean_good = _mean([g for _, g in pairs])
    return Audit(
        drawn=sum(len(bad) for bad, _ in bad_and_good), judged=len(wrong), wrong=_mean(wrong),
        good_wrong=_mean(_wrong(with_cause, None)),
        length_ratio=fmean(b for b, _ in pairs) / mean_good if mean_good else None,
        longer=_mean([(b > g) + (b == g) / 2 for b, g in pairs]),
        differs_blind=_mean(differs), differs_by_chance=_mean(chance),
    )


def _of(group: Group, cause: str | None) -> list[Rollout]:
    return [r for r in group.rollouts if r.sampling.get("negative") == cause]


def _wrong(groups: Sequence[Group], cause: str | None) -> list[bool]:
    return [score < 0.5 for g in groups for r, score in g.scored()
            if r.sampling.get("negative") == cause]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
