"""Hallucination and prior, counted exactly: sums that can be pooled over captions and questions.

CHAIR: Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, section 2.1.
POPE: Li et al., arXiv 2305.10355, section 4. Every tally adds up with `+`; its ratios are None
where nothing was counted, because unknown is not zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, Self

from selfloop.testbeds.scenes_objects import PLACES, Mention, Thing, mentioned, stereotype

Level = Literal["kind", "coloured", "placed"]
"""What has to fit for an object to be there: its kind; its colour too; its place too."""


def _ratio(top: float, bottom: float) -> float | None:
    return top / bottom if bottom else None


class _Sums:
    """Tallies of one type add up field by field."""

    def __add__(self, other: Self) -> Self:
        pairs = zip(astuple(self), astuple(other), strict=True)  # type: ignore[call-overload]
        return type(self)(*(a + b for a, b in pairs))


@dataclass(frozen=True)
class Chair(_Sums):
    """Counts of one caption, or of many."""

    captions: int = 0
    hallucinating: int = 0
    """Captions with at least one object that is not there."""
    mentions: int = 0
    """Objects named, repetitions included."""
    invented: int = 0
    """Of these, not there."""
    objects: int = 0
    """Objects in the pictures."""
    found: int = 0
    """Of these, named."""
    words: int = 0

    @property
    def chair_i(self) -> float | None:
        """Share of named objects that are not there."""
        return _ratio(self.invented, self.mentions)

    @property
    def chair_s(self) -> float | None:
        """Share of captions that name one that is not there."""
        return _ratio(self.hallucinating, self.captions)

    @property
    def recall(self) -> float | None:
        """Share of the objects in the pictures that are named: CHAIR falls by saying less."""
        return _ratio(self.found, self.objects)

    @property
    def length(self) -> float | None:
        """Words a caption."""
        return _ratio(self.words, self.captions)


def chair(text: str, things: Sequence[Thing], level: Level = "kind") -> Chair:
    """The counts of one caption of the scene `things`.

    An attribute that the text leaves open is not held against it at the stricter levels. Raises
    ValueError on an unknown level.
    """
    if level not in ("kind", "coloured", "placed"):
        raise ValueError(f"no level {level!r}; there are kind, coloured, placed")
    said = mentioned(text)
    fits = [[_fits(mention, thing, level) for thing in things] for mention in said]
    invented = sum(not any(line) for line in fits)
    found = sum(any(line[i] for line in fits) for i in range(len(things)))
    return Chair(captions=1, hallucinating=int(invented > 0), mentions=len(said),
                 invented=invented, objects=len(things), found=found, words=len(text.split()))


def _fits(mention: Mention, thing: Thing, level: Level) -> bool:
    colour = level == "kind" or mention.colour in (None, thing.colour)
    place = level != "placed" or mention.place in (None, PLACES[thing.place])
    return mention.kind == thing.kind and colour and place


@dataclass(frozen=True)
class Existence(_Sums):
    """Answers to yes/no questions. One that says neither or both is unread: asked, and wrong."""

    true_yes: int = 0
    false_yes: int = 0
    true_no: int = 0
    false_no: int = 0
    unread: int = 0
    unread_true: int = 0
    """Of the unread ones, those whose right answer is yes: they are missed."""

    @property
    def asked(self) -> int:
        """All questions."""
        return self.true_yes + self.false_yes + self.true_no + self.false_no + self.unread

    @property
    def accuracy(self) -> float | None:
        """Share answered rightly."""
        return _ratio(self.true_yes + self.true_no, self.asked)

    @property
    def precision(self) -> float | None:
        """Share of the yeses that are right."""
        return _ratio(self.true_yes, self.true_yes + self.false_yes)

    @property
    def recall(self) -> float | None:
        """Share of the objects that are there to which it says yes."""
        return _ratio(self.true_yes, self.true_yes + self.false_no + self.unread_true)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        missed = self.false_no + self.unread_true
        return _ratio(2 * self.true_yes, 2 * self.true_yes + self.false_yes + missed)

    @property
    def yes_rate(self) -> float | None:
        """Share answered yes; one half of the questions should be."""
        return _ratio(self.true_yes + self.false_yes, self.asked)


def existence(text: str, answer: str) -> Existence:
    """The counts of one answer to a question whose right answer is "yes" or "no"."""
    if answer not in ("yes", "no"):
        raise ValueError(f"the gold answer of an existence question is yes or no, not {answer!r}")
    said = set(re.findall(r"\b(?:yes|no)\b", text.lower()))
    if len(said) != 1:
        return Existence(unread=1, unread_true=int(answer == "yes"))
    if said == {"yes"}:
        return Existence(true_yes=1) if answer == "yes" else Existence(false_yes=1)
    return Existence(true_no=1) if answer == "no" else Existence(false_no=1)


@dataclass(frozen=True)
class Stereotyped(_Sums):
    """Answers to colour questions: what they say beside what is there."""

    asked: int = 0
    right: int = 0
    usual: int = 0
    """Answers that give the kind's usual colour, right or not."""
    unusual: int = 0
    """Questions about an object that has another colour than its kind usually has."""
    misled: int = 0
    """Of these, answered with the usual colour: what the language prior does."""

    @property
    def misled_share(self) -> float | None:
        """Share of objects of an unusual colour that are given the usual one."""
        return _ratio(self.misled, self.unusual)


def stereotyped(text: str, row: Mapping[str, Any]) -> Stereotyped:
    """The counts of one answer to the colour question `row` (see scenes.row).

    Raises ValueError when the row asks for something else.
    """
    if row["task"] != "colour":
        raise ValueError(f"row {row['id']}: task {row['task']!r}; expected 'colour'")
    said = text.strip().lower()
    usual = stereotype(mentioned(row["prompt"])[0].kind)
    unusual = row["answer"] != usual
    return Stereotyped(asked=1, right=int(said == row["answer"]), usual=int(said == usual),
                       unusual=int(unusual), misled=int(unusual and said == usual))


def usual_named(text: str) -> tuple[int, int]:
    """(objects named with a colour, how many of these in their kind's usual colour).

    Beside the share of the scene's own objects this shows the prior in free text: where nothing
    has its usual colour, every usual one was made up.
    """
    said = [mention for mention in mentioned(text) if mention.colour is not None]
    return len(said), sum(mention.colour == stereotype(mention.kind) for mention in said)
