"""Formulas that have one value, by math-verify (primitives V2; the extra `math`)."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.final import final_answer, uncut
from selfloop.types import Rollout, Verdict

LONGEST = 2000
"""Characters of a formula that are handed to a parser; longer ones are not judged."""

_TOWER = re.compile(
    r"\^\s*[{(]*\s*-?\d{5,}|\d\s*\^\s*[{(]*\s*\d+\s*\^|\^\s*[{(][^})]*\^\s*[{(][^})]*\^"
    r"|\*\*|!\s*!|\d{400}")

_MARKED = re.compile(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_ANNOUNCED = re.compile(r"answer\s*(?:is\b|:)", re.I)
_ASSIGNED = re.compile(r"\s*(\\?[A-Za-z](?:_\{?\w+\}?)?|\\[A-Za-z]+)\s*=(?!=)")
_JOINED = re.compile(r"(\\(?:text|mathrm|mbox)\s*\{\s*(?:or|and)\s*\}|\b(?:or|and)\b)")
_NEXT = re.compile(r"[,;]\s*(?=\\?[A-Za-z](?:_\{?\w+\}?)?\s*=(?!=))")
"""The comma between two values: "x = 1, x = 2"."""
_POWER_OF_TEN = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)")
_UNIT = re.compile(  # a gap makes the unit: 5 m is a length, 5m five times m
    r"\d\s*(?:\\?%|°|\^\s*\{?\\circ|(?:\\[,;:! ]|~|\s)*\\(?:text|mathrm|mbox|rm)\b)"
    r"|\d(?:(?:\\[,;:! ]|~|\s)+(?:[mgshtVAWJNKLC]|(?!(?:or|and)\b)[A-Za-z]{2,})"
    r"|(?:mm|cm|dm|km|mg|kg|ms|ml|kN|kW))"
    r"(?![A-Za-z\\])")
_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt max min gcd "
    "lcm mod det lim pi inf oo")
_FUNCTIONS = frozenset(_NAMES.split())


def same_maths(text: str, gold: str, *, seconds: int = 3) -> bool | None:
    """Whether two formulas (LaTeX or plain) have one value, by math-verify.

    The answer's formula is the boxed or announced one, or the only one; several are wrong, so is
    one of another unknown ("y = 2" for "x = 2"), a choice ("x = 3 or x = 2"), a set for a pair, and
    a percentage for a number. An equation in another form ("y = 2 - x" for "x + y = 2") may be
    refused.

    None where that cannot be told: math-verify is not installed, `gold` is no formula but words,
    broken, values of several unknowns ("x = 1, y = 2") or a number with a unit (`numeric.Quantity`
    reads those), a text is over LONGEST characters or holds towers of powers, a parser fails or
    needs over `seconds`, or the caller is not the main thread, outside of which nothing could stop
    the parser.
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
    wanted_form, said_form = _formula(gold), _formula(text)
    if wanted_form is None or not _is_formula(wanted_form):
        return None
    if len({name for p in _pieces(wanted_form, listed=True) if (name := _assigned(p))}) > 1:
        return None  # values of several unknowns
    if said_form is None or _differ(said_form, wanted_form):
        return False
    if _UNIT.search(said_form):
        return None
    forms = _sides(wanted_form, said_form)
    try:
        wanted, said = (parse(f"${form}$", reading, parsing_timeout=seconds, raise_on_error=True)
                        for form in forms)
        if not wanted:
            return None
        return bool(said) and bool(
            verify(wanted, said, timeout_seconds=seconds, raise_on_error=True))
    except (Exception, TimeoutException):  # math-verify's timeout is no Exception
        return None


def _formula(text: str) -> str | None:
    """The formula of an answer, its dollars taken off: the boxed or announced one, or the only one.

    None for none, and for several different ones of which none is announced.
    """
    final = final_answer(text)
    if final is None:
        return None
    whole = next((t for t in uncut(text) if t and "=" in t), final)
    if _ANNOUNCED.search(whole):
        whole = final
    marked = {next(filter(None, m)).strip() for m in _MARKED.findall(whole) if any(m)}
    if len(marked) > 1:
        return None
    formula = marked.pop() if marked else whole.strip().strip("$").strip()
    return _POWER_OF_TEN.sub(r"\1 \\times 10^{\2}", formula.rstrip(".").replace("−", "-")) or None


def _is_formula(gold: str) -> bool:
    """Whether a gold text is one that has a value: balanced, no plain words, no units."""
    depth = 0
    for c in re.sub(r"\\[{}]", "", gold):
        depth += (c == "{") - (c == "}")
        if depth < 0:
            return False
    plain = re.sub(r"\\(?!text|mathrm|mbox|rm\b)[A-Za-z]+", " ", gold)
    words = [w for w in re.findall(r"[A-Za-z]{2,}", plain) if w.lower() not in _FUNCTIONS]
    return not depth and not _UNIT.search(gold) and not any(len(w) > 2 for w in words)


def _differ(said: str, gold: str) -> bool:
    """What math-verify lets pass: another unknown, a set for a pair, a percentage for a number."""
    left = [_assigned(t) for t in (said, gold)]
    sets = [re.match(r"\s*(?:\\left\s*)?(\\\{|[(\[])", t.split("=")[-1]) for t in (said, gold)]
    braces = {m[1] == "\\{" for m in sets if m}
    lists = all("," in t for t in (said, gold))
    bare = _unknowns(gold) and not left[1] and not _unknowns(said)
    return (all(left) and left[0] != left[1]) or (lists and len(braces) == 2) or bare or "%" in said


def _unknowns(text: str) -> bool:
    """Whether an equation has unknowns on its left side."""
    left, equals, _ = text.partition("=")
    return bool(equals) and re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", left)) is not None


def _sides(gold: str, said: str) -> tuple[str, str]:
    """What is compared: the values of "x = 2" and "2", but both sides of any other equation."""
    if "=" in gold and not _ASSIGNED.match(gold):
        return gold, said
    listed = len(_pieces(gold, listed=True)) > 1
    return _values(gold, listed), _values(said, listed)


def _values(text: str, listed: bool) -> str:
    """What stands behind the last "=": of "x = 2 or x = 3" behind that of each, so that no choice
    is taken for its last part. Of steps the last counts."""
    return " or ".join(piece.rsplit("=", 1)[-1].strip() for piece in _pieces(text, listed=listed))


def _pieces(text: str, *, listed: bool) -> list[str]:
    """The formulas that "or" joins, or "and" between values of one unknown; if `listed`, those
    between commas, too: elsewhere these are steps."""
    pieces = _JOINED.split(text)
    parts, words = pieces[::2], pieces[1::2]
    known = {_assigned(part) for part in parts}
    if not any("or" in word for word in words) and (len(known) > 1 or "" in known):
        parts = [text]
    if not listed:
        return parts
    split = [_NEXT.split(part) for part in parts]
    return [one for found in split for one in found  # "So, x = 1 or x = 2"
            if len(found) == 1 or not re.fullmatch(r"[A-Za-z\s]{2,}", one)]


def _assigned(text: str) -> str:
    """The unknown that has a value here: "x" of "x = 2"."""
    found = _ASSIGNED.match(text)
    return found[1] if found else ""


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
