"""VQA accuracy: ten people's answers to one question, and how many of them agree with the model.

Goyal et al. 2017 (VQAv2, arXiv 1612.00837); rules of normalisation from the official evaluation
(GT-Vision-Lab/VQA) and as lmms-eval reads answers (EvalAI, from MMF).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32
"""Periods that are dropped at most: the official rule passes a flag where a count belongs."""
_WORDS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4",
          "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am "
    "mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at "
    "shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's "
    "someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas "
    "wasn't we'd've we've weren't what'll what're what's what've when's where'd where's "
    "where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't "
    "wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)


def _one_missing(word: str) -> list[str]:
    """The word with one of its apostrophes left out."""
    return [word[:i] + word[i + 1:] for i, c in enumerate(word) if c == "'"]


_CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _one_missing(word)}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round


def normal(text: str, *, eval_ai: bool = False) -> str:
    """An answer as VQA compares it: no punctuation or articles, number words as digits.

    `eval_ai`: first drop commas and question marks and set "'s" apart, as lmms-eval does.
    """
    if eval_ai:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_marks(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in _ARTICLES)


def _without_marks(text: str) -> str:
    """A mark beside a space, or in a text with "1,000" anywhere, goes; any other is a space."""
    thousands, found = _COMMA_IN_NUMBER.search(text), text
    for mark in _MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside or thousands else " ")
    return _PERIOD.sub("", found, count=_PERIODS)


def vqa_accuracy(said: str, people: Sequence[str], *, eval_ai: bool = False) -> float:
    """Mean over all people of min(1, others who say the same / 3), in 0..1: each is left out once.

    Both sides are normalised, as lmms-eval and VLMEvalKit do; the official script leaves both as
    written where all people wrote the same. 0.0 for an empty list of people.
    """
    if not people:
        return 0.0
    text = normal(said, eval_ai=eval_ai)
    same = [normal(person, eval_ai=eval_ai) == text for person in people]
    return sum(min(1.0, (sum(same) - one) / 3) for one in same) / len(same)
