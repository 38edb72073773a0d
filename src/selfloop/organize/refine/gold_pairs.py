"""The gold answer preferred to the model's own: labelled preference pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.organize.refine.pairs import astray
from selfloop.organize.signals import HERE, trained_on
from selfloop.types import AnySignal, Branch, Group, Pair, Rollout


@dataclass(frozen=True)
class GoldAgainst:
    """Prefer the gold answer to each drawn answer that says something else.

    POVID (arXiv 2402.11411) sets it against answers to a noisy picture, HA-DPO (arXiv 2311.16839)
    against the model's own. `led_astray` takes the answers that `Negatives` marked or that saw a
    changed picture, False the others. `corrupted` names a picture operation and adds the branch of
    mDPO (arXiv 2406.11839): the gold answer under that picture, at `severity`. Case and white space
    make no difference; cut answers take no part. Every gold answer read is a label.
    """

    led_astray: bool = True
    corrupted: str = ""
    severity: float = 1.0

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """A pair, with `corrupted` when asked for."""
        names = ("chosen", "rejected", *(("corrupted",) if self.corrupted else ()))
        return (Pair(branches=dict.fromkeys(names, HERE)),)

    def __call__(self, groups: Sequence[Group], key: str, answers: Mapping[str, Any]
                 ) -> list[AnySignal]:
        """One Pair a wrong answer of a sample that has a gold one."""
        return [self._pair(group, str(answers[group.sample.id]), rollout, key)
                for group in groups if answers.get(group.sample.id) is not None
                for rollout in group.rollouts
                if astray(rollout) == self.led_astray and rollout.finish_reason == "stop"
                and not _same(rollout.text, str(answers[group.sample.id]))]

    def _pair(self, group: Group, gold: str, rollout: Rollout, key: str) -> Pair:
        context = group.sample.context
        branches = {"chosen": Branch(context=context, text=gold),
                    "rejected": trained_on(rollout, False)}
        if self.corrupted:
            media = tuple(m.with_op(self.corrupted, self.severity, f"{key}/{rollout.id}")
                          for m in context.media)
            branches["corrupted"] = Branch(context=context.seen_as(media), text=gold)
        return Pair(branches=branches, sample=group.sample.id, rollouts=(rollout.id,),
                    role=rollout.role, why="gold against "
                    f"{rollout.sampling.get('negative', 'what was drawn')}")


def _same(a: str, b: str) -> bool:
    return a.lower().split() == b.lower().split()
