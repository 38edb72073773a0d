"""Typed matchers: pure functions from texts to what they say, and whether two say the same.

Each tool's own rule has a function of its own here, exact down to its oddities, because a score
is comparable with a published one only under the published rule. `None` means "cannot tell".
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping

from selfloop.organize.verify.numeric import quantities, relaxed, same_quantity
from selfloop.organize.verify.options import option
from selfloop.organize.verify.rules import final_answer
from selfloop.organize.verify.symbolic import LONGEST, same_maths
from selfloop.organize.verify.texts import anls, edit_distance

__all__ = [
    "LONGEST", "anls", "edit_distance", "lmms_eval_option", "number", "numbers", "option", "plain",
    "quantities", "relaxed", "same_maths", "same_numbers", "same_quantity", "vlmevalkit_option",
]


# -- option letters --------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return " ".join(text.lower().split()).strip(string.punctuation + " ")


_REFUSALS = ("Sorry, I can't help with images of people yet.", "I can't process this file.",
             "I'm sorry, but without the image provided", "Cannot determine the answer")
_SEPARATORS = str.maketrans(".()[],:;!*#{}", " " * 13)


def vlmevalkit_option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that VLMEvalKit's matching finds without its judge (utils/matching_util.py).

    One option letter among the words, one of the last four; else the text of exactly one option
    inside a short answer. "Z" for a refusal; None where VLMEvalKit asks its judge.
    """
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    words = text.translate(_SEPARATORS).split()
    said = [letter for letter in options if letter in words]
    if len(said) == 1 and words.index(said[0]) > len(words) - 5:
        return said[0]
    if not said and "Z" in words:
        return "Z"
    low = text.lower()
    if len(low) > 2 * sum(map(len, options.values())):
        return None
    inside = [letter for letter, other in options.items() if other.lower() in low]
    return inside[0] if len(inside) == 1 else None


_ANNOUNCED = (
    *(f"{the}{what} is" for the in ("the ", "") for what in (
        "answer", "correct answer", "best answer", "correct option", "best option", "choice",
        "correct choice")),
    "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは")


def lmms_eval_option(text: str, letters: str = "ABCD") -> str | None:
    """The letter that lmms-eval's shared extraction finds (0.7.3, _task_utils/mcq_extract.py).

    Of all places where a letter stands the most telling kind wins (alone at the start, at the end,
    after "the answer is", in brackets, ...), and among those of one kind the last.
    """
    bare = text.strip()
    for mark in ",.!?;:'\"":
        bare = bare.strip(mark)
    if not bare.strip():
        return None
    padded = f" {bare} "
    places = list(_places(padded, letters))
    if not places:
        places = [(0, padded.rfind(c), c) for c in letters if c in padded]
    return max(places, key=lambda place: place[:2])[2] if places else None


def _places(text: str, letters: str) -> Iterator[tuple[int, int, str]]:
    """(how telling, where, letter) of every place in which a letter could be the answer."""
    bare, low = text.strip(), text.lower()
    after = [low.find(phrase) + len(phrase) for phrase in _ANNOUNCED if phrase in low]
    for c in letters:
        for telling, shape in ((6, f"({c})"), (5, f"{c}."), (4, f"{c}:"), (3, f"{c})"),
                               (2, f"{c} ")):
            if shape in text:
                yield telling, text.rfind(shape), c
        for start in after:
            if (where := text.find(c, start)) != -1:
                yield 7, where, c
        if bare.startswith(c) and not bare[1:2].isalpha():
            yield 10, 0, c
        if bare.endswith(c) and not bare[-2:-1].isalpha():
            yield 9, len(text) - 1, c


# -- numbers, lists -------------------------------------------------------------------------------


def number(text: str) -> float | None:
    """The last number of the final answer; None where there is none."""
    found = quantities(final_answer(text) or "")
    return found[-1][0] if found else None


def numbers(text: str) -> list[float]:
    """The last bracketed list of numbers, or all numbers of the final answer."""
    lists = re.findall(r"[\[(]([^\[\]()]*\d[^\[\]()]*)[\])]", text)
    pieces = lists[-1].split(",") if lists else [final_answer(text) or ""]
    return [value for piece in pieces for value, _ in quantities(piece)]


def same_numbers(text: str, gold: str, *, absolute: float = 1e-9) -> bool | None:
    """Whether an answer gives the gold list, in its order; None where gold holds no number."""
    said, wanted = numbers(text), numbers(gold)
    if not wanted:
        return None
    return len(said) == len(wanted) and all(
        abs(a - b) <= absolute for a, b in zip(said, wanted, strict=True))
