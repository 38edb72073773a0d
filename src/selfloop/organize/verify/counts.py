"""How many: counting answers (primitives V2; GRIT's count reward, arXiv 2505.15879)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.final import final_answer
from selfloop.types import Rollout, Verdict

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty")
_SMALL = {word: n for n, word in enumerate(WORDS)} | {
    word: 10 * n for n, word in enumerate(("thirty", "forty", "fifty", "sixty", "seventy",
                                           "eighty", "ninety"), 3)} | {"fourty": 40, "ninty": 90}
_LARGE = {"hundred": 100, "dozen": 12, "thousand": 1000, "million": 10**6}
_DIGITS = r"\d{1,3}(?:,\d{3})+|\d{1,9}"
NAME = "|".join(sorted([*_SMALL, *_LARGE], key=len, reverse=True))
"""A number word, as a pattern."""
_COUNT = re.compile(
    rf"(?<![\w.,])(?:(?:{_DIGITS}|a(?=\s+(?:{'|'.join(_LARGE)})\b)|{NAME})"
    rf"(?:(?:\s+and\s+|[\s-]+)(?:{_DIGITS}|{NAME}))*)(?:\s*(%|\w|[.,/:]\d))?", re.I)
_TOKEN = re.compile(rf"{_DIGITS}|\w+")
_NONE = re.compile(r"\b(?:none|nothing|nobody|no[ -]one|not (?:a single one|any(?:one|thing)?))\b|"
                   r"\bno\s+(?!(?:idea|way|clue|doubt|question|problem|matter|information|answer|"
                   r"more|fewer|less|longer|other|means|need|but|and|or|not|it|there|the|they|i|"
                   rf"this|{NAME})\b)[a-z]+", re.I)
_HEDGED = re.compile(
    r"(?:\b(?:more|less|fewer|greater|larger|smaller|other) than|\bat (?:least|most)|\bup to|"
    r"\b(?:over|under|above|below|not|never|almost|nearly|minus|negative)|n['’]t|[<>≤≥≠~−]|"
    r"(?<!\w)(?<!\w )[-–]) *(?:exactly |equal to |the |just |only )?$", re.I)


def counted(text: str) -> int | None:
    """The one whole number that a text says, in digits or words up to millions.

    "None" and "no cats" are 0. None if it says none, two different ones, or one that is denied or a
    bound ("more than 5").
    """
    found: set[int | None] = set()
    for m in _COUNT.finditer(text):
        if m[1] and not (m[1].isalnum() and text[m.start(1) - 1].isspace()):
            found.add(None)  # 3.5, 5%, 5th
            continue
        end = m.start(1) if m[1] else m.end()
        if _in_no_one(text, m.start()):
            continue
        hedged = _HEDGED.search(text[max(0, m.start() - 40):m.start()]) \
            or re.match(r"\s*(?:\+|or (?:more|less|fewer)\b|and (?:a|one) half\b)",
                        text[end:end + 30])
        found.add(None if hedged else value_of(text[m.start():end]))
    if _NONE.search(text):
        found.add(0)
    return found.pop() if len(found) == 1 else None


def _in_no_one(text: str, at: int) -> bool:
    return re.search(r"\bno[ -]$", text[max(0, at - 4):at], re.I) is not None \
        and text[at:at + 3].lower() == "one"


def value_of(words: str) -> int | None:
    """A run of number words or digits as one number: "two hundred and five", "3 million".

    None where the words are not one number: "five six", "twenty twelve", "hundred million million".
    """
    total, part, last, scale = 0, 0, 10**9, 10**9
    for token in _TOKEN.findall(words.lower()):
        if token == "and":
            if part % 100 or not (part or total):
                return None
            continue
        if token in ("hundred", "dozen"):
            if 100 <= last < 10**9 or (total and token == "dozen") or (part == 0 and last != 10**9):
                return None
            part, last = max(part, 1) * _LARGE[token], _LARGE[token]
        elif token in _LARGE:
            if _LARGE[token] >= scale or (part == 0 and last != 10**9):
                return None
            total, part, scale = total + max(part, 1) * _LARGE[token], 0, _LARGE[token]
            last = 10**9 - 1
        elif token != "a":
            n = _SMALL.get(token)
            n = int(token.replace(",", "")) if n is None else n
            room = 10 if 20 <= last < 100 else last if last != 12 else 0
            if not (n < room or last >= 10**9 - 1) or (last < 20) or (n == 0 and last < 10**9):
                return None
            if last == 10**9 - 1 and n >= scale:
                return None
            part, last = part + n, n if n < 100 else 100
            last = last if n else 0
    return total + part


@dataclass(frozen=True)
class Count:
    """The final answer says the gold count. Naming two counts is wrong.

    With `soft`, 1 - |n - gold| / max(n, gold) instead of 0 for a wrong count: nearer is better.
    Abstains on a gold that is no count.
    """

    soft: bool = False

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """`answer`: a whole number, or a text that says one."""
        gold = None if answer is None else counted(str(answer))
        said = final_answer(rollout.text)
        if gold is None:
            return Verdict(rationale=said or "")
        n = counted(said) if said else None
        if n is None or n == gold or not self.soft:
            return Verdict(score=float(n == gold), rationale=said or "")
        return Verdict(score=1 - abs(n - gold) / max(n, gold), rationale=said or "")
