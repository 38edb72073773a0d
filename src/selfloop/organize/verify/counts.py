"""How many: counting answers (primitives V2; GRIT's count reward, arXiv 2505.15879)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.rules import final_answer
from selfloop.types import Rollout, Verdict

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty")
_COUNT = re.compile(r"(?<![\w.,-])(\d{1,6}|" + "|".join(WORDS) + r")(?![\w]|[.,]\d)", re.I)


def counted(text: str) -> int | None:
    """The one whole number that a text says, in digits or words up to twenty; None if it says none
    or two different ones."""
    found = {int(n) if n.isdigit() else WORDS.index(n.lower()) for n in _COUNT.findall(text)}
    return found.pop() if len(found) == 1 else None


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
