"""The gold answer preferred to the model's own, or to another picture's: labelled pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop import keys
from selfloop.organize.refine.pairs import astray
from selfloop.organize.signals import HERE, trained_on
from selfloop.types import AnySignal, Branch, Group, Pair, Rollout, Sample


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


@dataclass(frozen=True)
class GoldOfAnother:
    """Prefer a gold answer to another picture's, and the picture to that other one.

    Two samples with the same question and different gold answers contradict each other. Unlike a
    picture that was spoilt, which is told without looking closely, another one is told apart only
    by what is in it (S-VCO, arXiv 2502.13928, section 3; there with pictures that differ in one
    thing, a third branch without a picture, and no frozen reference). Branches: `chosen`;
    `rejected`, the other's answer; `corrupted`, the chosen answer under the other picture. `near`
    picks among that many whose answers share most words with the sample's own, 0 among all.
    All groups of a step are compared (`Loop.samples`, whatever `Loop.shard`). Samples whose
    question nobody else there answers differently give nothing. Every gold answer read is a label;
    nothing is drawn.
    """

    near: int = 0

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """A pair with its `corrupted` branch."""
        return (Pair(branches=dict.fromkeys(("chosen", "rejected", "corrupted"), HERE)),)

    def __call__(self, groups: Sequence[Group], key: str, answers: Mapping[str, Any]
                 ) -> list[AnySignal]:
        """One Pair a sample that another one contradicts."""
        asked: dict[str, list[Sample]] = {}
        for sample in (group.sample for group in groups):
            if answers.get(sample.id) is not None and sample.media:
                asked.setdefault(sample.context.text, []).append(sample)
        found: list[AnySignal] = []
        for samples in asked.values():
            for sample in samples:
                gold = str(answers[sample.id])
                others = [o for o in samples if not _same(gold, str(answers[o.id]))]
                if self.near:
                    others = sorted(others, key=lambda o: -_shared(gold, str(answers[o.id])))
                    others = others[:self.near]
                if others:
                    u = float(keys.uniforms(f"{key}/{sample.id}", 1)[0])
                    other = others[int(u * len(others))]
                    found.append(_contradiction(sample, other, gold, str(answers[other.id])))
        return found


def _contradiction(sample: Sample, other: Sample, gold: str, theirs: str) -> Pair:
    return Pair(branches={"chosen": Branch(context=sample.context, text=gold),
                          "rejected": Branch(context=sample.context, text=theirs),
                          "corrupted": Branch(context=other.context, text=gold)},
                sample=sample.id, why=f"gold against that of {other.id}")


def _shared(a: str, b: str) -> float:
    """Words in both over words in either, as multisets."""
    mine, theirs = Counter(a.lower().split()), Counter(b.lower().split())
    return (mine & theirs).total() / max(1, (mine | theirs).total())


def _same(a: str, b: str) -> bool:
    return a.lower().split() == b.lower().split()
