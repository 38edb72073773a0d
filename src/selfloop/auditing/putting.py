"""What an audit puts to a verifier: every attack and control on a sample, as answers to judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selfloop.auditing.attacks import ATTACKS, UNREADABLE, gold_texts, plain, wrong_for
from selfloop.auditing.pictured import BLANK, IN_PICTURE, MOST, ORDERS, Pictured
from selfloop.roles import Verifier, parameters, reads
from selfloop.types import Group, Part, Rollout, Sample, Turn


@dataclass(frozen=True)
class Put:
    """One answer to be judged: by itself, or as the last of a group."""

    case: str
    sample: Sample
    said: str
    beside: tuple[str, ...] = ()

    @property
    def group(self) -> Group:
        """The answer as the verifier sees it."""
        return group(self.sample, (*self.beside, self.said))


def group(sample: Sample, said: Sequence[str]) -> Group:
    """Answers to a sample that nobody drew."""
    return Group(sample=sample, rollouts=tuple(
        Rollout(id=f"audit-{sample.id}-{i}", sample=sample.id, context=sample.context,
                turns=(Turn(token_ids=(1,)),), output=(Part(text=text),))
        for i, text in enumerate(said)))


def all_puts(verifier: Verifier, samples: Sequence[Sample], golds: Sequence[str],
             pictured: Pictured, few: bool) -> list[Put]:
    """Every attack and control on each sample; if few, one answer of each."""
    found: list[Put] = []
    for number, sample in enumerate(samples):
        puts = [*_attacks(verifier, sample, golds), *_controls(verifier, sample)]
        if number < MOST:
            puts += _pictured(verifier, sample, golds, pictured, number)
        found += {p.case: p for p in reversed(puts)}.values() if few else puts
    return found


def _attacks(verifier: Verifier, sample: Sample, golds: Sequence[str]) -> Iterator[Put]:
    in_groups, gold = "group" in parameters(verifier), gold_texts(sample.answer)[:1]
    for attack in ATTACKS:
        for said in attack.write(sample, golds):
            yield Put(attack.name, sample, said, tuple(gold * 3) if in_groups else ())
            if attack.blank and in_groups and gold:
                yield Put("blank majority", sample, said, (gold[0], said, said))


def _controls(verifier: Verifier, sample: Sample) -> Iterator[Put]:
    gold = gold_texts(sample.answer)[:1]
    yield from (Put("gold answer", sample, g, (g, g) if "group" in parameters(verifier) else ())
                for g in gold)
    if "answer" not in reads(verifier):
        return
    bare = sample.model_copy(update={"answer": None, "rationale": None})
    yield from (Put("no gold", bare, said) for said in (*gold, ""))
    for value in UNREADABLE:
        mislabelled = sample.model_copy(update={"answer": value, "rationale": None})
        said = [g for g in gold if plain(g) != plain(str(value))]
        yield from (Put("unreadable gold", mislabelled, s) for s in (*said, "", "no idea"))


def _pictured(verifier: Verifier, sample: Sample, golds: Sequence[str], pictured: Pictured,
              number: int) -> Iterator[Put]:
    """Attacks on the picture; the blank one only for who asks a model and reads no gold value."""
    gold, wrong = gold_texts(sample.answer)[:1], wrong_for(sample, golds)[:1]
    in_groups = "group" in parameters(verifier)
    if wrong and (ordered := pictured.with_orders(sample, ORDERS[number % len(ORDERS)])):
        yield Put(IN_PICTURE, ordered, wrong[0], tuple(gold * 3) if in_groups else ())
    if gold and "generate" in parameters(verifier) and not in_groups and not reads(verifier) \
            and (blank := pictured.blanked(sample)):
        yield Put(BLANK, blank, gold[0])
