"""Image-side negatives that are wrong for a reason: one thing is taken out of the picture.

A spoilt picture is told from a good one without looking at what is in it. A picture in which one
named thing was erased differs in that thing alone, and what is right to say of it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.doors import asking
from selfloop.organize.signals import HERE
from selfloop.types import AnySignal, Branch, Demonstration, Group, Pair, Sample


@dataclass(frozen=True)
class Thing:
    """Something that a gold answer names and that can be erased."""

    place: tuple[int, int, int, int]
    """Left, top, right, bottom, in thousandths of the picture's sides."""
    without: str
    """The gold answer once it is gone."""
    questions: tuple[tuple[str, str | None, str | None], ...] = ()
    """(question, answer with it, answer without it): what the gold answer settles besides. None:
    the question is not asked of that picture."""


@dataclass(frozen=True)
class WithAndWithout:
    """Pictures with one of their things erased, and what is then right, beside the whole ones.

    `things` reads off a sample and its gold answer what can be erased. What is right of each erased
    picture becomes a demonstration, as do the answers to the questions. With `pairs` what was right
    of the whole picture is the negative as well: that of the erased one is preferred to it, and the
    whole picture is preferred for it. Counterfactual pictures as in V-DPO (arXiv 2411.02712,
    section 3.2) and S-VCO (arXiv 2502.13928, section 3), which have them inpainted. Every gold
    answer read is a label. Samples with other than one picture give nothing.
    """

    things: Callable[[Sample, str], Sequence[Thing]]
    pairs: bool = False

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """Demonstrations, and pairs when asked for."""
        pair = Pair(branches=dict.fromkeys(("chosen", "rejected"), HERE))
        return (Demonstration(branches={"target": HERE}), *((pair,) if self.pairs else ()))

    def __call__(self, groups: Sequence[Group], key: str, answers: Mapping[str, Any]
                 ) -> list[AnySignal]:
        """Sample after sample, thing after thing."""
        return [signal for sample in (group.sample for group in groups)
                if answers.get(sample.id) is not None and len(sample.media) == 1
                for thing in self.things(sample, str(answers[sample.id]))
                for signal in self._of(sample, str(answers[sample.id]), thing)]

    def _of(self, sample: Sample, gold: str, thing: Thing) -> list[AnySignal]:
        (medium,) = sample.media
        erased = (medium.with_op("erase", 1.0, ",".join(map(str, thing.place))),)
        why, found = f"{thing.place} erased", list[AnySignal]()

        def shown(branch: Branch) -> None:
            found.append(Demonstration(branches={"target": branch}, sample=sample.id, why=why))

        for context, right, less in (
                (sample.context, gold, thing.without),
                *((asking(sample, q), yes, no) for q, yes, no in thing.questions)):
            gone = context.seen_as(erased)
            if right is not None and context is not sample.context:
                shown(Branch(context=context, text=right))  # its own answer others imitate
            if less is not None:
                shown(Branch(context=gone, text=less))
            if self.pairs and None not in (right, less) and right != less:
                wrong = Branch(context=gone, text=right)
                found += [Pair(branches={"chosen": better, "rejected": wrong}, sample=sample.id,
                               why=why) for better in (Branch(context=gone, text=less),
                                                       Branch(context=context, text=right))]
        return found
