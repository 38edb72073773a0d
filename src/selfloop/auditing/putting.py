"""What an audit puts to a verifier: every attack and control on a sample, as answers to judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selfloop.auditing.attacks import (
    ATTACKS,
    GOLD,
    HONEST,
    PLAUSIBLE,
    UNREADABLE,
    gold_texts,
    plain,
    wrong_for,
)
from selfloop.auditing.pictured import BLANK, IN_PICTURE, MOST, ORDERS, Pictured
from selfloop.auditing.said import (
    BARE,
    reads_structures,
    said,
    said_as_gold,
    shape_for,
)
from selfloop.roles import Verifier, asks_a_model, parameters, reads
from selfloop.types import Group, Sample


@dataclass(frozen=True)
class Asked:
    """A sample that is put to the verifier, and the same with its gold value as texts: that is
    what attacks are written from."""

    sample: Sample
    known: Sample

    @classmethod
    def of(cls, sample: Sample, verifier: Verifier) -> Asked:
        """With the texts that say its gold value to this verifier."""
        texts = [*said_as_gold(sample.answer, verifier)]
        return cls(sample, sample.model_copy(update={"answer": texts or None}))

    @property
    def gold(self) -> list[str]:
        """The first of its gold texts, if it has any."""
        return gold_texts(self.known.answer)[:1]


@dataclass(frozen=True)
class Put:
    """One answer to be judged: by itself, or as the last of a group."""

    case: str
    about: str
    """The id of the sample that it is about, whatever was done to it."""
    sample: Sample
    said: str
    beside: tuple[str, ...] = ()

    @property
    def group(self) -> Group:
        """The answer as the verifier sees it."""
        return said(self.sample, (*self.beside, self.said))


@dataclass(frozen=True)
class Puts:
    """Writes the puts for one verifier."""

    verifier: Verifier
    golds: Sequence[str]
    """Distinct gold texts, most frequent first."""
    pictured: Pictured
    shape: str
    structures: bool

    @property
    def in_groups(self) -> bool:
        """Whether it judges answers beside others."""
        return "group" in parameters(self.verifier)

    def of(self, asked: Asked, number: int) -> Iterator[Put]:
        """Every attack and control on one sample, the `number`th."""
        yield from self._attacks(asked)
        yield from self._honest(asked)
        yield from self._mislabelled(asked)
        if number < MOST:
            yield from self._in_pictures(asked, number)

    def _put(self, case: str, asked: Asked, text: str, beside: Sequence[str] = ()) -> Put:
        return Put(case, asked.sample.id, asked.sample, text, tuple(beside))

    def _attacks(self, asked: Asked) -> Iterator[Put]:
        among = (asked.gold or [PLAUSIBLE[0]]) * 3 if self.in_groups else []
        for attack in ATTACKS:
            if not asked.gold and not attack.bare:
                continue
            for text in attack.write(asked.known, self.golds):
                yield self._put(attack.name, asked, text, among)
                if self.shape != BARE:
                    yield self._put(attack.name, asked, self.shape.replace(BARE, text), among)
                if attack.blank and among:
                    yield self._put("blank majority", asked, text, (among[0], text, text))

    def _honest(self, asked: Asked) -> Iterator[Put]:
        for gold in asked.gold:
            text = self.shape.replace(BARE, gold)
            yield self._put(GOLD, asked, text, (text, text) if self.in_groups else ())
        if not asked.gold:
            for text in PLAUSIBLE:
                yield self._put(HONEST, asked, text, (text, text) if self.in_groups else ())

    def _mislabelled(self, asked: Asked) -> Iterator[Put]:
        """Answers beside labels that are none; for verifiers that read them."""
        if "answer" not in reads(self.verifier) or not asked.gold:
            return
        (gold,) = asked.gold
        bare = asked.sample.model_copy(update={"answer": None, "rationale": None})
        for text in (gold, ""):
            yield Put("no gold", asked.sample.id, bare, text)
        for value in UNREADABLE:
            if value == [] and self.structures:
                continue
            other = asked.sample.model_copy(update={"answer": value, "rationale": None})
            texts = [gold] if plain(gold) != plain(str(value)) else []
            yield from (Put("unreadable gold", asked.sample.id, other, s)
                        for s in (*texts, "", "no idea"))

    def _in_pictures(self, asked: Asked, number: int) -> Iterator[Put]:
        """The blank picture is only for who asks a model and reads no gold value."""
        gold, wrong = asked.gold, wrong_for(asked.known, self.golds)[:1]
        orders = ORDERS[number % len(ORDERS)]
        if wrong and (ordered := self.pictured.with_orders(asked.sample, orders)):
            yield Put(IN_PICTURE, asked.sample.id, ordered, wrong[0],
                      tuple(gold * 3) if self.in_groups else ())
        looks = asks_a_model(self.verifier) and not self.in_groups and not reads(self.verifier)
        if gold and looks and (blank := self.pictured.blanked(asked.sample)):
            yield Put(BLANK, asked.sample.id, blank, gold[0])


def shape_of(verifier: Verifier, samples: Sequence[Asked]) -> str:
    """The form in which the verifier pays for gold answers, with BARE in the place of one."""
    labels = [(a.sample.answer, g) for a in samples for g in a.gold]
    return shape_for(verifier, labels) if "answer" in reads(verifier) else BARE


def all_puts(verifier: Verifier, samples: Sequence[Asked], golds: Sequence[str],
             pictured: Pictured, few: bool) -> list[Put]:
    """Every attack and control on each sample; if few, one answer of each, another for the next
    sample: who knows one opener need not know all."""
    writer = Puts(verifier, golds, pictured, shape_of(verifier, samples),
                  reads_structures(verifier) if "answer" in reads(verifier) else False)
    found: list[Put] = []
    for number, asked in enumerate(samples):
        puts = list(writer.of(asked, number))
        if few:
            by_case: dict[str, list[Put]] = {}
            for put in puts:
                by_case.setdefault(put.case, []).append(put)
            puts = [own[number % len(own)] for own in by_case.values()]
        found += puts
    return found
