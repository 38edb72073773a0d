"""Filters over judged groups (primitives, section 5.5). Pure: groups in, groups out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from selfloop.types import Group


@dataclass(frozen=True)
class AccuracyBand:
    """Keep groups whose mean score lies in [low, high] (primitives F8)."""

    low: float = 0.1
    high: float = 0.9

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The groups inside the band; unjudged groups are outside."""
        kept = []
        for group in groups:
            scores = [s for _, s in group.scored()]
            if scores and self.low <= fmean(scores) <= self.high:
                kept.append(group)
        return kept


@dataclass(frozen=True)
class Finished:
    """Take out rollouts that were cut off at the length limit."""

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with finished rollouts only."""
        return [only(g, [r.finish_reason == "stop" for r in g.rollouts]) for g in groups]


def only(group: Group, keep: Sequence[bool]) -> Group:
    """The group with the marked rollouts and their verdicts alone; one mark a rollout."""
    verdicts = tuple(v for v, k in zip(group.verdicts, keep, strict=True) if k)
    rollouts = tuple(r for r, k in zip(group.rollouts, keep, strict=True) if k)
    return group.model_copy(update={"rollouts": rollouts, "verdicts": verdicts})


@dataclass(frozen=True)
class Role:
    """Keep the rollouts of one role: how a proposer's draws reach the proposer's organizer."""

    role: str

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with that role's rollouts only."""
        return [only(g, [r.role == self.role for r in g.rollouts]) for g in groups]
