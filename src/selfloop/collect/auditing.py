"""Are the negatives really worse, as long as the good answers, and about the picture?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import fmean

from selfloop.collect.negatives import BLIND
from selfloop.types import Group, Rollout

Apart = Callable[[str, str], float]
"""How far two answers lie from each other, from 0 (one answer) to 1."""


@dataclass(frozen=True)
class Audit:
    """One cause's figures. None: there was nothing to count it from."""

    drawn: int
    skipped: int
    """Good answers for which the cause gave no negative: nothing to change, or not sayable."""
    empty: float | None
    """Share of the negatives without any text: wrong, but nobody's hallucination."""
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
    depends: float | None
    """How far the negatives depend on the picture, from 0 (they read like answers that saw none)
    to 1; see `dependence`."""
    good_depends: float | None
    """The same of the good answers."""

    def __str__(self) -> str:
        def said(value: float | None) -> str:
            return "unknown" if value is None else f"{value:.2f}"

        return (f"{self.drawn} drawn, {self.skipped} skipped, empty {said(self.empty)}; "
                f"{self.judged} judged: wrong {said(self.wrong)} (good answers "
                f"{said(self.good_wrong)}), length ratio {said(self.length_ratio)}, longer "
                f"{said(self.longer)}, depends on the picture {said(self.depends)} (good answers "
                f"{said(self.good_depends)})")


def words_apart(a: str, b: str) -> float:
    """1 - Dice's coefficient of the two texts' words, each as often as it stands there.

    2 |A and B| / (|A| + |B|), apart from case and white space: 0 for the same words, 1 for none in
    common. On answers of one word it says same or not; on long ones, of which no two drawn at
    temperature 1 are equal, it still tells what is nearer.
    """
    first, second = Counter(a.lower().split()), Counter(b.lower().split())
    total = first.total() + second.total()
    return 1 - 2 * (first & second).total() / total if total else 0.0


def dependence(families: Sequence[tuple[Sequence[str], Sequence[str]]],
               apart: Apart = words_apart) -> float | None:
    """How much further answers lie from blind ones than blind ones from each other, in [0, 1].

    `families`: of each problem (answers, answers drawn without pictures). With D the mean distance
    of (answer, blind) pairs and B that of (blind, blind) pairs, each averaged within a problem and
    then over problems, it is (D - B) / (1 - B), and 0 where D < B. B is what differs by chance
    alone: answers that did not look have D = B, whatever the temperature. Problems without an
    answer or with fewer than two blind ones are left out; None without any, and where B is 1, so
    that nothing could lie further.
    """
    known = [(said, blind) for said, blind in families if said and len(blind) > 1]
    if not known:
        return None
    far = fmean(fmean(apart(a, b) for a, b in product(said, blind)) for said, blind in known)
    null = fmean(fmean(apart(a, b) for a, b in combinations(blind, 2)) for _, blind in known)
    return None if null > 1 - 1e-9 else min(1.0, max(0.0, (far - null) / (1 - null)))


def audit(groups: Sequence[Group], apart: Apart = words_apart) -> dict[str, Audit]:
    """What the judged groups of `Negatives` say of each cause, by its name.

    Verdicts are those of the run's own verifier; unjudged answers are left out, never wrong.
    Dependence on the picture needs `Negatives(blind=True)`; empty answers have none. The cause
    "no picture" is audited like the others. `apart` says how far two texts differ.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    causes = {str(c) for r in rollouts if (c := r.sampling.get("negative")) is not None}
    causes |= {cause for r in rollouts for cause in _skipped(r)}
    return {cause: _audit(groups, cause, apart) for cause in sorted(causes)}


def _audit(groups: Sequence[Group], cause: str, apart: Apart) -> Audit:
    # Problems where the cause gave nothing are left out: compare like with like.
    with_cause = [g for g in groups if _of(g, cause)]
    bad_and_good = [(_of(g, cause), _of(g, None)) for g in with_cause]
    bad = [r for family, _ in bad_and_good for r in family]
    wrong = _wrong(with_cause, cause)
    pairs = [(b.tokens, g.tokens) for bad, good in bad_and_good for b, g in product(bad, good)]
    mean_good = _mean([g for _, g in pairs])

    def depends(which: str | None) -> float | None:
        return None if which == BLIND else dependence(
            [(_said(_of(g, which)), [r.text for r in _of(g, BLIND)]) for g in with_cause], apart)

    return Audit(
        drawn=len(bad), skipped=sum(cause in _skipped(r) for g in groups for r in g.rollouts),
        empty=_mean([not r.text.strip() for r in bad]), judged=len(wrong), wrong=_mean(wrong),
        good_wrong=_mean(_wrong(with_cause, None)),
        length_ratio=fmean(b for b, _ in pairs) / mean_good if mean_good else None,
        longer=_mean([(b > g) + (b == g) / 2 for b, g in pairs]),
        depends=depends(cause), good_depends=None if cause == BLIND else depends(None),
    )


def _of(group: Group, cause: str | None) -> list[Rollout]:
    return [r for r in group.rollouts if r.sampling.get("negative") == cause]


def _said(rollouts: Sequence[Rollout]) -> list[str]:
    return [r.text for r in rollouts if r.text.strip()]


def _skipped(rollout: Rollout) -> list[str]:
    found = rollout.sampling.get("skipped", ())
    return [str(cause) for cause in found] if isinstance(found, list | tuple) else []


def _wrong(groups: Sequence[Group], cause: str | None) -> list[bool]:
    return [score < 0.5 for g in groups for r, score in g.scored()
            if r.sampling.get("negative") == cause]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
