"""The gold answer preferred to the model's own, or to another picture's: labelled pairs."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

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
            golds = [str(answers[sample.id]) for sample in samples]
            others = _Others(golds, self.near)
            for sample, gold in zip(samples, golds, strict=True):
                u = float(keys.uniforms(f"{key}/{sample.id}", 1)[0])
                other = others.drawn(gold, u)
                if other is not None:
                    found.append(_contradiction(sample, samples[other], gold, golds[other]))
        return found


class _Others:
    """Which of many gold answers say something else than one of them: the `near` of them that
    share most words with it, or all (0). Answers that say the same are looked at once."""

    def __init__(self, golds: Sequence[str], near: int) -> None:
        self._near, self._count = near, len(golds)
        self._places: dict[tuple[str, ...], list[int]] = {}
        for i, gold in enumerate(golds):
            self._places.setdefault(_words(gold), []).append(i)
        self._said = list(self._places)
        self._sizes = np.array([len(words) for words in self._said])
        self._having: dict[tuple[str, int], list[int]] = {}
        for i, words in enumerate(self._said if near else ()):
            for token in _counted(words):
                self._having.setdefault(token, []).append(i)
        self._nearest = cache(self._nearest_of)

    def drawn(self, gold: str, u: float) -> int | None:
        """The place of one of them, by a number from [0, 1); None where there is none."""
        own = self._places[_words(gold)]
        if self._near:
            nearest = self._nearest(_words(gold))
            return nearest[int(u * len(nearest))] if nearest else None
        if len(own) == self._count:
            return None
        k = int(u * (self._count - len(own)))  # the k-th place that is none of its own
        return k + bisect_right([place - i for i, place in enumerate(own)], k)

    def _nearest_of(self, words: tuple[str, ...]) -> list[int]:
        both = np.zeros(len(self._said))
        for token in _counted(words):
            both[self._having[token]] += 1
        share = both / np.maximum(1, len(words) + self._sizes - both)
        ranked: list[tuple[float, int]] = []
        last = 0.0
        for i in np.argsort(-share, kind="stable").tolist():
            if len(ranked) >= self._near and share[i] != last:
                break
            if self._said[i] != words:
                last = float(share[i])
                ranked += [(-last, place) for place in self._places[self._said[i]]]
        return [place for _, place in sorted(ranked)[:self._near]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.lower().split())


def _counted(words: Sequence[str]) -> list[tuple[str, int]]:
    """The words, a repeated one as its first, second ... occurrence."""
    seen: Counter[str] = Counter()
    found = []
    for word in words:
        found.append((word, seen[word]))
        seen[word] += 1
    return found


def _contradiction(sample: Sample, other: Sample, gold: str, theirs: str) -> Pair:
    return Pair(branches={"chosen": Branch(context=sample.context, text=gold),
                          "rejected": Branch(context=sample.context, text=theirs),
                          "corrupted": Branch(context=other.context, text=gold)},
                sample=sample.id, why=f"gold against that of {other.id}")


def _same(a: str, b: str) -> bool:
    return _words(a) == _words(b)
