"""Formulas that have one value, by math-verify (primitives V2; the extra `math`)."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.rules import final_answer
from selfloop.types import Rollout, Verdict

LONGEST = 2000
"""Characters of a formula that are handed to a parser; longer ones are not judged."""

_TOWER = re.compile(
    r"\^\s*[{(]*\s*-?\d{5,}|\d\s*\^\s*[{(]*\s*\d+\s*\^|\^\s*[{(][^})]*\^\s*[{(][^})]*\^"
    r"|\*\*|!\s*!|\d{400}")


def same_maths(text: str, gold: str, *, seconds: int = 3) -> bool | None:
    """Whether two formulas (LaTeX or plain) have one value, by math-verify.

    None where that cannot be told: math-verify is not installed, `gold` is no formula, a text is
    over LONGEST characters or holds towers of powers, a parser fails or needs over `seconds`, or
    the caller is not the main thread, outside of which nothing could stop the parser.
    """
    try:
        from math_verify import LatexExtractionConfig, parse, verify
        from math_verify.errors import TimeoutException
    except ImportError:
        return None
    alone = threading.current_thread() is not threading.main_thread()
    if alone or any(len(t) > LONGEST or _TOWER.search(t) for t in (text, gold)):
        return None
    # Its reader of plain expressions evaluates Python; the LaTeX reader has a grammar of its own.
    reading: Any = [LatexExtractionConfig()]
    try:
        wanted, said = (parse(_formula(t), reading, parsing_timeout=seconds, raise_on_error=True)
                        for t in (gold, text))
        if not wanted:
            return None
        return bool(said) and bool(
            verify(wanted, said, timeout_seconds=seconds, raise_on_error=True))
    except (Exception, TimeoutException):  # math-verify's timeout is no Exception
        return None


def _formula(text: str) -> str:
    """The final answer in dollars, unless the text marks its formulas itself."""
    if re.search(r"\$|\\boxed|\\\(|\\\[", text):
        return text
    return f"${final_answer(text) or ''}$"


@dataclass(frozen=True)
class Symbolic:
    """The final formula equals the gold one as mathematics: 1/2 is 0.5 is \\frac{2}{4}.

    An empty answer is wrong; whatever `same_maths` cannot tell makes it abstain, a missing
    math-verify among it.
    """

    seconds: int = 3

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """See `same_maths`."""
        parsed = final_answer(rollout.text)
        if answer is None:
            return Verdict(rationale=parsed or "")
        right = same_maths(rollout.text, str(answer), seconds=self.seconds) if parsed else False
        return Verdict(score=None if right is None else float(right), rationale=parsed or "")
