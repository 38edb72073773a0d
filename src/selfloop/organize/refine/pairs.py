"""Which two answers of a group become a preference pair: propose candidates, then filter them.

`Pairs(propose, filters)` is the maker. A proposer maps a group to candidates; a filter (see
pair_filters.py) maps the candidates of all groups to those that stay, perhaps swapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, cycle, pairwise
from typing import Any, ClassVar

from selfloop import keys
from selfloop.organize.refine.filters import by_what_was_asked, not_below
from selfloop.organize.refine.wording import visible
from selfloop.organize.signals import EDGE, HERE, says_more, trained_on
from selfloop.roles import SelfloopError, name_of, parameters
from selfloop.types import AnySignal, Group, Pair, Rollout


@dataclass(frozen=True)
class Candidate:
    """Two answers to one problem, and what they scored."""

    group: Group
    chosen: Rollout
    rejected: Rollout
    chosen_score: float
    rejected_score: float
    why: str = ""

    @property
    def gap(self) -> float:
        """Score of the chosen minus score of the rejected."""
        return self.chosen_score - self.rejected_score

    def swapped(self) -> Candidate:
        """The other way round."""
        return replace(self, chosen=self.rejected, rejected=self.chosen,
                       chosen_score=self.rejected_score, rejected_score=self.chosen_score,
                       why=f"{self.why}, swapped")


Propose = Callable[[Group, str], list[Candidate]]
PairFilter = Callable[[Sequence[Candidate]], list[Candidate]]


@dataclass(frozen=True)
class Pairs:
    """Preference pairs: `propose` per group, then every filter in turn, over all candidates.

    A group in which several questions were asked is proposed from question by question. Both
    answers are trained under the unchanged pictures; cut and failed rollouts take no part, and a
    pair whose chosen answer is empty is never made: it would teach to say nothing.
    """

    propose: Propose
    filters: tuple[PairFilter, ...] = ()
    margins: bool = True
    """Whether the score gap is the pair's margin, which DPO subtracts; False leaves it at 0."""
    makes: ClassVar[tuple[AnySignal, ...]] = (Pair(branches={"chosen": HERE, "rejected": HERE}),)

    def __post_init__(self) -> None:
        for what, part in (("propose", self.propose), *(("filters", f) for f in self.filters)):
            if {"rollout", "groups"} & parameters(part).keys():
                raise SelfloopError(
                    f"Pairs.{what}: {name_of(part)} neither proposes pairs nor filters them; there "
                    "are Margin, BestVersusWorst, Levels and Constructed, and the filters of "
                    "pair_filters")

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Pair a candidate that stays."""
        found = [c for g in groups for part, own in by_what_was_asked(g, f"{key}/{g.sample.id}")
                 for c in self.propose(part, own)]
        for keep in self.filters:
            found = keep(found)
        return [_pair(c, c.gap if self.margins else 0.0) for c in found
                if visible(c.chosen.text)]


def _pair(candidate: Candidate, margin: float) -> Pair:
    best, worst = candidate.chosen, candidate.rejected
    return Pair(
        branches={"chosen": trained_on(best, False), "rejected": trained_on(worst, False)},
        sample=candidate.group.sample.id, rollouts=(best.id, worst.id), role=best.role,
        margin=margin, why=f"{candidate.why}, score gap {candidate.gap:g}")


def _judged(group: Group) -> list[tuple[Rollout, float]]:
    return [(r, s) for r, s in group.scored() if r.finish_reason == "stop"]


def _candidate(group: Group, a: Any, b: Any, why: str) -> Candidate:
    (best, high), (worst, low) = (a, b) if a[1] >= b[1] else (b, a)
    return Candidate(group, best, worst, high, low, why)


@dataclass(frozen=True)
class Margin:
    """All pairs {(i, j): s_i - s_j >= gap}, at most `per_sample` of them, drawn by key (F3).

    Answers of equal texts are no pair, whatever they scored.

    RLAIF-V (arXiv 2405.17220, released code): gap 1 over claim counts, 2 pairs a prompt.
    `per_sample=0` keeps all.
    """

    gap: float = 1.0
    per_sample: int = 2

    def __post_init__(self) -> None:
        not_below(self, per_sample=(self.per_sample, 0))

    def __call__(self, group: Group, key: str) -> list[Candidate]:
        """Candidates of one group; equal scores never make one."""
        found = [c for a, b in combinations(_judged(group), 2)
                 if (c := _candidate(group, a, b, "margin")).gap >= self.gap - EDGE and c.gap > EDGE
                 and says_more(c.chosen, c.rejected)]
        order = keys.shuffled(len(found), key)
        return [found[i] for i in sorted(order[:self.per_sample or None])]


@dataclass(frozen=True)
class BestVersusWorst:
    """The highest against the lowest score, ties drawn by key (F4; CSR, arXiv 2405.14622)."""

    gap: float = 0.0

    def __call__(self, group: Group, key: str) -> list[Candidate]:
        """One candidate, or none when the gap is 0 or below `gap`."""
        judged = _judged(group)
        mixed = [judged[i] for i in keys.shuffled(len(judged), key)]
        if len(mixed) < 2:
            return []
        found = _candidate(group, max(mixed, key=_score), min(mixed, key=_score), "best, worst")
        apart = found.gap > EDGE and found.gap >= self.gap - EDGE
        return [found] if apart and says_more(found.chosen, found.rejected) else []


def _score(judged: tuple[Rollout, float]) -> float:
    return judged[1]


@dataclass(frozen=True)
class Levels:
    """One answer for each of the K distinct scores, and the K(K-1)/2 pairs among them (F5).

    `adjacent` keeps only the K - 1 pairs of neighbouring levels. AMP (arXiv 2405.11165,
    section 3). Which answer stands for a level is drawn by key.
    """

    adjacent: bool = False

    def __call__(self, group: Group, key: str) -> list[Candidate]:
        """Candidates of one group, from the best level down."""
        judged = _judged(group)
        levels: dict[float, Any] = {}
        for i in keys.shuffled(len(judged), key):
            levels.setdefault(round(judged[i][1], 9), judged[i])
        ranked = sorted(levels.values(), key=_score, reverse=True)
        chosen = pairwise(ranked) if self.adjacent else combinations(ranked, 2)
        return [c for a, b in chosen if says_more((c := _candidate(group, a, b, "levels")).chosen,
                                                  c.rejected)]


@dataclass(frozen=True)
class Constructed:
    """Answers drawn as they should be are chosen, those led astray rejected.

    Astray is what saw a changed picture, or what `Negatives` marked. The construction says which
    is better, not the scores: SeVa, STIC, judge-free (V33). Add `SwapOrDrop` to check it. What was
    made of a good answer (`sampling["of"]`: a swap, a cut, one gone on with while the picture was
    hidden) meets that answer and no other, so that the two differ in nothing else; where that one
    was itself cut off there is no pair. Of the rest, the i-th of one kind meets the i-th of the
    other; where more are astray, the good ones come round again.
    """

    def __call__(self, group: Group, key: str) -> list[Candidate]:
        """Candidates of one group; unjudged answers count as equal to their partner."""
        verdicts = group.verdicts or (None,) * len(group.rollouts)
        done = [(r, v.score if v else None) for r, v in zip(group.rollouts, verdicts, strict=True)
                if r.finish_reason == "stop"]
        plain = [one for one in done if not astray(one[0])]
        worse = [one for one in done if astray(one[0])]
        own = {r.id: (r, score) for r, score in plain}
        turns = cycle(plain)
        met = [(own.get(str(of)) if (of := b.sampling.get("of")) else next(turns, None), (b, t))
               for b, t in worse]
        return [Candidate(group, good[0], b, *_known(good[1], t), why=_cause(b))
                for good, (b, t) in met if good is not None]


def astray(rollout: Rollout) -> bool:
    """Whether an answer was marked by `Negatives`, or saw a changed picture."""
    return "negative" in rollout.sampling or any(m.changed for m in rollout.context.media)


def _cause(rollout: Rollout) -> str:
    cause = rollout.sampling.get("negative")
    return f"by construction: {cause}" if cause else "by construction"


def _known(a: float | None, b: float | None) -> tuple[float, float]:
    """Both scores, or two zeros: half a comparison says nothing."""
    return (a, b) if a is not None and b is not None else (0.0, 0.0)
