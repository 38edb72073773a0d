"""From a group's rewards to advantages: the baselines and scales of the policy-gradient papers.

Makers end a chain, steps stand before one. GRPO's own maker is signals.GroupAdvantage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean, pstdev
from typing import Any, ClassVar

from selfloop import keys
from selfloop.organize.refine.filters import not_below, noted_alike, only
from selfloop.organize.signals import EDGE, HERE, clean, trained_on
from selfloop.roles import SelfloopError, call_by_name
from selfloop.types import Advantage, AnySignal, Branch, Group, Rollout, Verdict

_MAKES: tuple[AnySignal, ...] = (Advantage(branches={"answer": HERE}, advantage=0.0),)
Score = tuple[Rollout, float]


def _advantage(group: Group, rollout: Rollout, value: float, why: str, **more: Branch
               ) -> Advantage:
    return Advantage(branches={"answer": trained_on(rollout, as_drawn=True), **more},
                     advantage=value, sample=group.sample.id, group=group.sample.id,
                     rollouts=(rollout.id,), role=rollout.role, why=why)


def _each(groups: Sequence[Group], values: Callable[[list[float]], list[float] | None],
          what: str) -> list[AnySignal]:
    """Advantages of every judged rollout; `values` maps a group's scores to them (None: skip)."""
    made: list[AnySignal] = []
    for group in groups:
        judged = list(group.scored())
        found = values([s for _, s in judged]) if judged else None
        if found is not None:
            made += [_advantage(group, r, a, f"score {s:g}: {what}")
                     for (r, s), a in zip(judged, found, strict=True)]
    return made


@dataclass(frozen=True)
class AsScored:
    """The score itself: REINFORCE without a baseline, or after RunningBaseline."""

    makes: ClassVar[tuple[AnySignal, ...]] = _MAKES

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Advantage a judged rollout."""
        return _each(groups, lambda scores: scores, "as it is")


@dataclass(frozen=True)
class LeaveOneOut:
    """r_i - mean of the group's other rewards (RLOO, arXiv 2402.14740)."""

    makes: ClassVar[tuple[AnySignal, ...]] = _MAKES

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Advantage a judged rollout; groups without variance teach nothing."""
        return _each(groups, leave_one_out, "less the others' mean")


def leave_one_out(scores: list[float]) -> list[float] | None:
    """None for a group that teaches nothing."""
    n, total = len(scores), sum(scores)
    if n < 2 or max(scores) - min(scores) <= EDGE:
        return None
    return [s - (total - s) / (n - 1) for s in scores]


@dataclass(frozen=True)
class Whitened:
    """(r - mean) / std over the whole step (REINFORCE++, arXiv 2501.03262).

    `centre` first takes each group's mean off (REINFORCE++-baseline).
    """

    centre: bool = False
    eps: float = 1e-8
    makes: ClassVar[tuple[AnySignal, ...]] = _MAKES

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Advantage a judged rollout."""
        means = [fmean(s for _, s in g.scored()) if any(g.scored()) and self.centre else 0.0
                 for g in groups]
        every = [s - m for g, m in zip(groups, means, strict=True) for _, s in g.scored()]
        if not every:
            return []
        mean, std = fmean(every), pstdev(every)
        return [_advantage(g, r, (s - m - mean) / (std + self.eps), f"score {s:g}, whitened")
                for g, m in zip(groups, means, strict=True) for r, s in g.scored()]


@dataclass(frozen=True)
class OnlyBest:
    """(r_1 - r_2) / (std + eps) for the best of a group, 0 for the others (EasyR1's pass@k).

    A tie at the top teaches nothing: the group is left out.
    """

    eps: float = 1e-6
    makes: ClassVar[tuple[AnySignal, ...]] = _MAKES

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Advantage a judged rollout; those of 0 are kept, since they count as tokens."""
        return _each(groups, self._values, "best against second best")

    def _values(self, scores: list[float]) -> list[float] | None:
        best, *rest = sorted(scores, reverse=True)
        if not rest or best - rest[0] <= EDGE:
            return None
        std = sqrt(sum((s - fmean(scores)) ** 2 for s in scores) / (len(scores) - 1))
        return [(best - rest[0]) / (std + self.eps) if s == best else 0.0 for s in scores]


@dataclass(frozen=True)
class PassAtK:
    """The exact pass@k advantage (Chen et al. 2025, arXiv 2508.10751).

    A rollout's value is the mean, over all k-subsets of its group that contain it, of (best score
    of the subset - mean) / std; mean and std are those of all k-subsets. Scores count as right from
    `at_least` on. k = 1 is GRPO.
    """

    k: int = 4
    at_least: float = 0.5
    makes: ClassVar[tuple[AnySignal, ...]] = _MAKES

    def __post_init__(self) -> None:
        not_below(self, k=(self.k, 1))

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Advantage a judged rollout; groups smaller than k, or of one kind, are left out."""
        return _each(groups, self._values, f"pass@{self.k}")

    def _values(self, scores: list[float]) -> list[float] | None:
        n, k = len(scores), self.k
        right = sum(s >= self.at_least for s in scores)
        if n < k or not 0 < right < n:
            return None
        mean = 1 - comb(n - right, k) / comb(n, k)
        if mean == 1:  # so few wrong ones that every subset holds a right one
            return None
        std = sqrt(mean * (1 - mean))
        wrong = (1 - mean - comb(n - right - 1, k - 1) / comb(n - 1, k - 1)) / std
        return [(1 - mean) / std if s >= self.at_least else wrong for s in scores]


@dataclass(frozen=True)
class Desirability:
    """Good (+1) or bad (-1) answers for KTO and BCO, from `at_least` on.

    Each has the branch `mismatched`: its own prompt with the answer to another problem, drawn by
    key, from which KTO estimates its reference point (arXiv 2402.01306).
    """

    at_least: float = 0.5
    makes: ClassVar[tuple[AnySignal, ...]] = (
        Advantage(branches={"answer": HERE, "mismatched": HERE}, advantage=1.0),)

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Advantage a judged one-turn rollout; none where there is only one problem."""
        judged = [(g, r, s) for g in groups for r, s in g.scored() if len(r.turns) == 1]
        if len({g.sample.id for g, _, _ in judged}) < 2:
            return []
        order = keys.shuffled(len(judged), key)
        made: list[AnySignal] = []
        for i, (group, rollout, score) in enumerate(judged):
            other = next(judged[j][1] for j in order[i:] + order[:i]
                         if judged[j][0].sample.id != group.sample.id)
            signal = _advantage(group, rollout, 1.0 if score >= self.at_least else -1.0,
                                f"score {score:g}",
                                mismatched=Branch.under(clean(rollout.context), other))
            answer = trained_on(rollout, as_drawn=False)
            made.append(signal.model_copy(update={
                "branches": {**signal.branches, "answer": answer}}))
        return made


@dataclass(frozen=True)
class Together:
    """Several makers over the same groups: the signals of all (GRPO beside SFT on right rethinks,
    VL-Rethinker, arXiv 2504.08837)."""

    makers: tuple[Callable[..., list[AnySignal]], ...]

    def __post_init__(self) -> None:
        if not self.makers:
            raise SelfloopError("Together needs at least one maker")

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """What the makers make."""
        return tuple(s for maker in self.makers for s in getattr(maker, "makes", ()))

    def __call__(self, groups: Sequence[Group], key: str, **gold: Any) -> list[AnySignal]:
        """Maker by maker."""
        return [s for i, maker in enumerate(self.makers)
                for s in call_by_name(maker, groups=groups, key=f"{key}/{i}", **gold)]


@dataclass(frozen=True)
class Marked:
    """A maker over those rollouts only whose `sampling` has the entry `mark` (with `value`: that
    very value), or, with `without`, has it not.

    Together((GroupAdvantage(), Marked(Demonstrate(), "rethought"))) imitates right rethinks beside
    reinforcing all answers (VL-Rethinker; collect.forced.Rethink marks them);
    Marked(GroupAdvantage(), "rethought", without=True) reinforces the first answers only, and
    Marked(GroupAdvantage(), "phase", value="vote") a game's votes.
    """

    maker: Any
    mark: str
    without: bool = False
    value: str | bool | int | None = None
    """None: any value."""

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """What the maker makes."""
        return tuple(getattr(self.maker, "makes", ()))

    def __call__(self, groups: Sequence[Group], key: str, **gold: Any) -> list[AnySignal]:
        """The maker's signals."""
        marked = [only(g, [self._has(r) != self.without for r in g.rollouts]) for g in groups]
        made: list[AnySignal] = call_by_name(self.maker, groups=marked, key=key, **gold)
        return made

    def _has(self, rollout: Rollout) -> bool:
        return self.mark in rollout.sampling and self.value in (None, rollout.sampling[self.mark])


# -- steps that change scores before a maker sees them ---------------------------------------------

def _rescored(group: Group, change: Callable[[Rollout, float], float]) -> Group:
    verdicts: list[Verdict] = []
    for rollout, verdict in zip(group.rollouts, group.verdicts, strict=False):
        score = verdict.score
        verdicts.append(verdict if score is None else verdict.model_copy(
            update={"score": change(rollout, score)}))
    return group.model_copy(update={"verdicts": tuple(verdicts)})


@dataclass(frozen=True)
class RunningBaseline:
    """Takes a running mean of each role's score off: b <- decay b + (1 - decay) mean.

    EvoLMM's and Vision-Zero's role baselines (arXiv 2511.16672; 2509.25541), decay .9.
    The scores of a step are compared with the baseline before that step. The state is kept with
    the run. `by` names notes of the sampler that tell roles of one model apart: in a spy game
    ("phase", "spy"), since all players are the role "solver".
    """

    decay: float = 0.9
    by: tuple[str, ...] = ()

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any]
                 ) -> tuple[list[Group], dict[str, Any]]:
        """The groups with lower scores, and the new baselines."""
        then: dict[str, float] = dict(state.get("baseline", {}))
        roles: dict[str, list[float]] = {}
        for group in groups:
            for rollout, score in group.scored():
                roles.setdefault(self._who(rollout), []).append(score)
        now = then | {role: self.decay * then.get(role, 0.0) + (1 - self.decay) * fmean(scores)
                      for role, scores in roles.items()}
        return ([_rescored(g, lambda r, s: s - then.get(self._who(r), 0.0)) for g in groups],
                {"baseline": now})

    def _who(self, rollout: Rollout) -> str:
        return "/".join((rollout.role, *noted_alike(rollout, self.by)))


@dataclass(frozen=True)
class Overlong:
    """Soft punishment of length (DAPO, arXiv 2503.14476, eq. 13): 0 up to `limit` - `cache` drawn
    tokens, then falling linearly to -1 at `limit`, and -1 beyond or where the answer was cut."""

    limit: int
    cache: int

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.limit:
            raise SelfloopError(f"Overlong(limit={self.limit}, cache={self.cache}): need "
                                "0 < cache <= limit, in tokens")

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with lower scores for long answers."""
        return [_rescored(g, lambda r, s: s + self._penalty(r)) for g in groups]

    def _penalty(self, rollout: Rollout) -> float:
        if rollout.finish_reason == "length":
            return -1.0
        return max(-1.0, min(0.0, (self.limit - self.cache - rollout.tokens) / self.cache))
