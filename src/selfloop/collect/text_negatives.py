"""Worse texts: one named thing swapped for another, a cut, and prompts that ask for inventions.

Everything here is a pure function of (text or context, severity in [0, 1], key): severity 0
changes nothing, the same key gives the same text, and what a smaller severity changes a larger one
changes too. The words are few, English and listed here; a text that names nothing is left alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from selfloop import keys
from selfloop.collect.guided import ending
from selfloop.roles import SelfloopError
from selfloop.types import Context


def checked(severity: float) -> float:
    """The severity, if it is one. Raises SelfloopError outside [0, 1]."""
    if not 0 <= severity <= 1:
        raise SelfloopError(f"severity is {severity}; expected a number from 0 to 1")
    return severity


def truncated(text: str, severity: float, key: str = "") -> str:
    """The text without the last `severity` of its words; white space within it stays as it was."""
    words = list(re.finditer(r"\S+", text))
    kept = len(words) - math.floor(checked(severity) * len(words) + 1e-9)
    return text if kept == len(words) else text[:words[kept - 1].end()] if kept else ""


# -- swaps ----------------------------------------------------------------------------------------

ENTITIES: tuple[tuple[str, ...], ...] = (
    ("dog", "cat", "horse", "cow", "sheep", "bird", "elephant", "bear", "zebra", "owl"),
    ("car", "bus", "truck", "bicycle", "motorcycle", "train", "boat", "airplane", "ambulance"),
    ("apple", "banana", "orange", "pizza", "cake", "sandwich", "carrot", "egg"),
    ("chair", "table", "sofa", "bed", "lamp", "oven", "armchair", "television"),
    ("man", "woman", "boy", "girl"),
    ("cup", "bottle", "bowl", "plate", "fork", "spoon", "knife"),
    ("circle", "square", "triangle", "star", "ellipse", "oval", "hexagon"),
    ("ball", "kite", "umbrella", "backpack", "book", "phone", "clock", "axe"),
)
"""Classes of things: one is swapped only for another of its own class."""

ATTRIBUTES: tuple[tuple[str, ...], ...] = (
    ("red", "blue", "green", "yellow", "black", "white", "brown", "grey", "purple", "pink",
     "orange"),
    ("small", "large"), ("big", "little"), ("tall", "short"), ("old", "young"), ("open", "closed"),
    ("wooden", "metal", "plastic", "leather"), ("empty", "full"), ("wet", "dry"),
    ("striped", "dotted"), ("round", "square"),
)

RELATIONS: tuple[tuple[str, ...], ...] = (
    ("left of", "right of"), ("on the left", "on the right"), ("to the left", "to the right"),
    ("above", "below"), ("in front of", "behind"), ("inside", "outside"),
    ("on top of", "underneath"), ("next to", "far from"),
)

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_IRREGULAR = {"man": "men", "woman": "women", "sheep": "sheep", "knife": "knives"}


class Mention(NamedTuple):
    """One named thing in a text: its characters, and what it may become."""

    start: int
    end: int
    choices: tuple[str, ...]


def swapped(text: str, kind: str, severity: float, key: str,
            vocabulary: frozenset[str] = frozenset()) -> str:
    """The text with a `severity` share of its mentions of one kind (rounded up) swapped.

    `kind` is one of `SWAPS`: entity, attribute, number, relation. A swap keeps case, plural and
    the article a or an, takes a word that the text does not name yet where its class has one
    left, and changes no other character. For a model of few words, `vocabulary` names those (and
    digits) that it can say; empty = any. Raises SelfloopError for another kind.
    """
    if kind not in SWAPS:
        raise SelfloopError(f"no text swap {kind!r}; there are: {', '.join(sorted(SWAPS))}")
    mentions = SWAPS[kind](text)
    if vocabulary:
        mentions = [m._replace(choices=tuple(c for c in m.choices if _sayable(c, vocabulary)))
                    for m in mentions]
    mentions = [m for m in _unnamed(text, mentions) if m.choices]
    # The tolerance: .7 * 10 is a little more than 7 in floating point.
    changed = math.ceil(checked(severity) * len(mentions) - 1e-9)
    picked = sorted(keys.shuffled(len(mentions), f"{key}/{kind}/order")[:changed])
    for i in reversed(picked):  # from the back, so that earlier positions stay true
        start, end, choices = mentions[i]
        new = choices[int(keys.generator(f"{key}/{kind}/{i}").integers(len(choices)))]
        text = text[:start] + _cased_like(text[start:end], new) + text[end:]
    return text


def _sayable(words: str, vocabulary: frozenset[str]) -> bool:
    return all(word in vocabulary or (word.isdigit() and set(word) <= vocabulary)
               for word in words.split())


def _cased_like(old: str, new: str) -> str:
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[0].upper() + new[1:] if old[:1].isupper() else new


def _plural(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


_SINGULAR = {_plural(w): w for words in ENTITIES for w in words}


def _mentions(text: str, classes: tuple[tuple[str, ...], ...]) -> list[Mention]:
    """Whole-word mentions; in two classes ("orange", "square") a word belongs to the first."""
    of = {word: words for words in reversed(classes) for word in words}
    pattern = "|".join(re.escape(w) for w in sorted(of, key=len, reverse=True))
    return [
        Mention(m.start(), m.end(), tuple(
            other for other in of[m[0].lower()]
            if other != m[0].lower() and _article_fits(text[:m.start()], other)))
        for m in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", text, re.I)
    ]


def _unnamed(text: str, mentions: list[Mention]) -> list[Mention]:
    """The mentions with those choices only that the text does not name, in singular or plural.

    Where it names them all ("small or large"), they stay: two things may change places.
    """
    named = {_SINGULAR.get(word, word) for word in (text[m.start:m.end].lower() for m in mentions)}
    return [m._replace(choices=tuple(
        c for c in m.choices if _SINGULAR.get(c, c) not in named) or m.choices) for m in mentions]


def _article_fits(before: str, word: str) -> bool:
    """"a dog" may become "a cat" and not "a owl": otherwise another word had to change too."""
    article = re.search(r"(?<!\w)(an?)\s+$", before, re.I)
    return article is None or (article[1].lower() == "an") == (word[0] in "aeiou")


def _entities(text: str) -> list[Mention]:
    # Where singular and plural are one word (sheep), it is read as the singular.
    plurals = tuple(tuple(_plural(w) for w in words if _plural(w) != w) for words in ENTITIES)
    return sorted(_mentions(text, ENTITIES) + _mentions(text, plurals))


def _attributes(text: str) -> list[Mention]:
    return _mentions(text, ATTRIBUTES)


def _relations(text: str) -> list[Mention]:
    return _mentions(text, RELATIONS)


_FIGURES = re.compile(r"(?<![\w.,-])\d{1,9}(?![\w-]|[.,]\d)")


def _numbers(text: str) -> list[Mention]:
    """Number words two to ten, and whole numbers in figures: no decimals, no "1,234", no "2nd"."""
    figures = {int(m[0]) for m in _FIGURES.finditer(text)}
    found = _mentions(text, (NUMBERS,))
    for m in _FIGURES.finditer(text):
        value = int(m[0])
        near = (value + step for step in (-3, -2, -1, 1, 2, 3))
        found.append(Mention(m.start(), m.end(), tuple(
            str(n) for n in near if n >= 0 and n not in figures)))
    return sorted(found)


SWAPS: dict[str, Callable[[str], list[Mention]]] = {
    "entity": _entities, "attribute": _attributes, "number": _numbers, "relation": _relations,
}
"""Kind of swap -> what finds its mentions."""


# -- prompts --------------------------------------------------------------------------------------

ELICITING: tuple[str, ...] = (
    "Also tell of {amount} that might well be there but cannot be seen.",
    "Add {amount} that would suit such a scene, as if it were in the picture.",
    "Mention {amount} just outside the frame as though it were visible.",
    "Fill in {amount} from what you know of similar pictures.",
    "Make it livelier with {amount} of your own invention, told as fact.",
    "Say what people nearby are doing, with {amount}, even if there is nobody.",
    "Guess {amount} that is too small to make out, and state it without doubt.",
    "Name {amount} that usually goes with what is shown, whether or not it is there.",
)
"""Eight ways to ask for hallucinations (the idea is STIC's, arXiv 2405.19716; own words)."""

AMOUNTS = ("one small thing", "a few things", "many things")


def eliciting(context: Context, severity: float, key: str) -> Context:
    """The context with a request for inventions: few, some or many, in one of eight wordings."""
    if checked(severity) == 0:
        return context
    wording = ELICITING[int(keys.generator(f"{key}/eliciting").integers(len(ELICITING)))]
    return ending(context, wording.format(amount=AMOUNTS[math.ceil(3 * severity - 1e-9) - 1]))


def injecting(context: Context, text: str, severity: float) -> Context:
    """The conversation in which the model put `text` and is asked to put errors into it (BPO,
    arXiv 2403.08730; own words).

    The number of errors is `severity` of the sentences, rounded up. What comes back is the
    model's; that it is wrong has to be verified (`auditing.audit`).
    """
    sentences = max(1, len(re.findall(r"[.!?](?=\s|$)", text)))
    errors = math.ceil(checked(severity) * sentences - 1e-9)
    if not errors:
        return context
    return context.said("assistant", text).said("user", (
        f"Write this once more with {errors} of its facts about the picture made wrong (what is "
        "there, how many, what it is like, or where). Keep its length and style, and write "
        "nothing else."))
