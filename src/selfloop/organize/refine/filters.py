"""Filters over judged groups (primitives, section 5.5). Pure: groups in, groups out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from selfloop.roles import SelfloopError
from selfloop.types import Branch, Group, Rollout


def not_below(part: object, **least: tuple[float, float]) -> None:
    """Raises SelfloopError for an option, given as (value, its least), that is below its least:
    such a step would throw all away, or keep all, without a word."""
    for name, (value, most) in least.items():
        if not value >= most:
            raise SelfloopError(f"{type(part).__name__}({name}={value:g}): must be at least "
                                f"{most:g}")


def in_order(part: object, low: float, high: float) -> None:
    """Raises SelfloopError for a window that nothing can be in."""
    if not low <= high:
        raise SelfloopError(f"{type(part).__name__}(low={low:g}, high={high:g}): nothing lies "
                            "between them; low must not be above high")


@dataclass(frozen=True)
class AccuracyBand:
    """Keep groups whose mean score lies in [low, high] (primitives F8)."""

    low: float = 0.1
    high: float = 0.9

    def __post_init__(self) -> None:
        in_order(self, self.low, self.high)

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The groups inside the band; unjudged groups are outside."""
        kept = []
        for group in groups:
            scores = [s for _, s in group.scored()]
            if scores and self.low <= fmean(scores) <= self.high:
                kept.append(group)
        return kept


@dataclass(frozen=True)
class HardToFind:
    """Keep groups whose tree search took more than `above` iterations, or found nothing right
    (primitives F9; ThinkLite-VL, arXiv 2504.07934, keeps those above 5).

    Reads what `search.TreeSearch` notes on its answers: `sampling["iterations"]`, `["solved"]`.
    Raises SelfloopError where it noted nothing.
    """

    above: int = 5

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The hard groups."""
        return [group for group in groups if self._hard(group)]

    def _hard(self, group: Group) -> bool:
        noted = [r.sampling for r in group.rollouts if "iterations" in r.sampling]
        if not noted:
            raise SelfloopError(f"HardToFind: sample {group.sample.id}: no answer notes how many "
                                "iterations a search took; draw with search.TreeSearch")
        return not any(n.get("solved") for n in noted) \
            or int(str(noted[0]["iterations"])) > self.above


@dataclass(frozen=True)
class Finished:
    """Take out rollouts that were cut off at the length limit."""

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with finished rollouts only."""
        return [only(g, [r.finish_reason == "stop" for r in g.rollouts]) for g in groups]


def only(group: Group, keep: Sequence[bool]) -> Group:
    """The group with the marked rollouts and their verdicts alone; one mark a rollout. A group
    that was never judged stays unjudged: no verdicts are as many that abstain."""
    verdicts = tuple(v for v, k in zip(group.verdicts, keep, strict=bool(group.verdicts)) if k)
    rollouts = tuple(r for r, k in zip(group.rollouts, keep, strict=True) if k)
    return group.model_copy(update={"rollouts": rollouts, "verdicts": verdicts})


@dataclass(frozen=True)
class Noted:
    """Keep the rollouts of which the sampler noted this: `Noted("phase", "clue")`,
    `Noted("stage", "choice")`."""

    note: str
    value: str | bool | int

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with those rollouts only."""
        return [only(g, [r.sampling.get(self.note) == self.value for r in g.rollouts])
                for g in groups]


@dataclass(frozen=True)
class Apart:
    """Makes a group of its own of the rollouts that are noted alike: `Apart(("game",))`.

    Means and baselines of a maker then stay within a game, a phase, a stage. Rollouts without a
    note are alike in that. All groups of a sample keep its name, so that they are learned together.
    """

    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.notes:
            raise SelfloopError('Apart needs the names of notes, as in Apart(("game", "phase"))')

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The parts of each group, in the order in which they were begun."""
        return [only(g, [noted_alike(r, self.notes) == part for r in g.rollouts])
                for g in groups
                for part in dict.fromkeys(noted_alike(r, self.notes) for r in g.rollouts)]


def converses(answer: Rollout | Branch) -> bool:
    """Whether it took several turns. Such an answer cannot be put under another context: what an
    environment said in between would be lost."""
    return len(answer.turns) > 1


def by_what_was_asked(group: Group, key: str) -> list[tuple[Group, str]]:
    """(part, key) of a group for each question in it: a sampler may ask several about one sample,
    or for a description first, and answers to different questions are no pair."""
    asked = [r.context.text for r in group.rollouts]
    questions = list(dict.fromkeys(asked))
    if len(questions) < 2:
        return [(group, key)]
    return [(only(group, [a == question for a in asked]), f"{key}/{i}")
            for i, question in enumerate(questions)]


def noted_alike(rollout: Rollout, notes: Sequence[str]) -> tuple[str, ...]:
    """What a sampler noted under these names, as one label: equal for rollouts noted alike."""
    return tuple(str(rollout.sampling.get(name)) for name in notes)


@dataclass(frozen=True)
class Role:
    """Keep the rollouts of one role: how a proposer's draws reach the proposer's organizer."""

    role: str

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with that role's rollouts only."""
        return [only(g, [r.role == self.role for r in g.rollouts]) for g in groups]
