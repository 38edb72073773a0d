"""The numbers that a text says, with signs, fractions, powers, units, and what hedges them.

"−5" and "- 5" are minus five, "3-5" is three and five, "1 1/2" is 1.5, "3 x 10^8" is one number.
"not 5" and "more than 5" are marked, so that they are not taken for 5. Where a text has no digits
its number words are read: "twenty-one" is 21.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass, replace

from selfloop.organize.verify.counts import NAME, value_of
from selfloop.organize.verify.final import final_answer, unwrapped
from selfloop.organize.verify.measures import converted, spelt, unit_at

LONGEST = 5_000
"""Characters of a final answer that are read; a longer one says no number."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![A-Za-z_^\d])(?<!\d\.)(?P<money>US\$|[$€£¥₹]|(?:USD|EUR|GBP)\s)?\s?(?P<value>{_DIGITS})"
    r"(?P<e>[eE][-+]?\d+)?(?![\d])")
_TEN = re.compile(r"\s*[×xX*·]\s*10\s*(?:\^|\*\*)\s*[{(]?\s*([-+]?\s?\d{1,6})\s*[)}]?")
_POWER = re.compile(r"\s*(?:\^|\*\*)\s*(?:[{(]\s*)?([-+]?\d{1,6})(?!\d)(?:\s*[})])?")
_BELOW = re.compile(rf"\s*[/⁄]\s*({_DIGITS})(?![\d/])")
_MIXED = re.compile(r"\s+(\d+)\s*[/⁄]\s*([1-9]\d*)(?![\d/.])")
_SCALE = re.compile(r"\s*(thousand|million|billion|trillion)s?\b", re.I)
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_FILL = r"(?:\s+(?:equal(?:s|\s+to)?|exactly|the|a|an|be|about|just|number|=|:|is))*\s*"
_NOT = re.compile(r"(?:\b(?:not|never|neither|nor|cannot|other than|instead of|rather than|except)"
                  rf"|n['’]t|≠|!=|\\neq?){_FILL}$", re.I)
_BOUNDS = ((">", r"(?:\b(?:more|greater|larger|higher|bigger|longer|heavier)\s+than|\babove|>)"),
           ("<", r"(?:\b(?:less|fewer|smaller|lower|shorter|lighter)\s+than|\bbelow|<)"),
           (">=", r"(?:\bat least|\bno (?:less|fewer) than|\bminimum of|≥|>=|\\geq?)"),
           ("<=", r"(?:\bat most|\bno more than|\bup to|\bmaximum of|≤|<=|\\leq?)"))
_BEFORE = [(mark, re.compile(rf"{shape}{_FILL}$", re.I)) for mark, shape in reversed(_BOUNDS)]
_AFTER = ((">=", re.compile(r"\s*(?:\+(?!\s*\d)|or (?:more|greater|higher|above)\b)", re.I)),
          ("<=", re.compile(r"\s*or (?:less|fewer|lower|below)\b", re.I)),
          ("not", re.compile(r"\s*(?:is|was|are|would be)(?:\s+not\b|n['’]t\b|\s+(?:wrong|incorrect"
                             r"|false)\b)|\s*can(?:not|['’]t|\s+not) be\b", re.I)))
_INSIDE = re.compile(r"(?:√|\\[A-Za-z]+|\^|_|(?<![A-Za-z])[b-zB-Z]\s*[-+*/×])\s*[{(]*\s*$")
_RELATION = re.compile(r"(?:\\(?:neq?|leq?|geq?|approx|pm)|\bnot)\s*$")
_NEAR = 80
"""Characters before a number in which its sign and what hedges it are looked for."""
_WORDS = re.compile(
    rf"(?<![\w-])(?<!\bpoint )(?:a\s+)?(?:{NAME})\b(?:(?:\s+and\s+|[\s-]+)(?:{NAME})\b)*(?![\w-])"
    r"(?!\s+(?:point|half|halves|thirds?|quarters?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|"
    r"hundredths?|and\s+an?\s+\w+)\b)", re.I)
"""A run of number words that is no part of a fraction."""
_PRONOUN = re.compile(
    r"\b(?:the|this|that|which|each|every|no|any|some|an?other|only|last)[ -]$", re.I)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")


@dataclass(frozen=True)
class Said:
    """One number of a text. `mark` says how it is meant: "" plainly, "not", or a bound (">")."""

    value: float
    """NaN where it is part of what cannot be read: a root, an unknown power."""
    unit: str = ""
    mark: str = ""


def without_latex(text: str) -> str:
    """A text with LaTeX's marks for numbers and units as people type them."""
    text = unwrapped(text.replace("−", "-").replace("﹣", "-").replace("²⁄", "²/"))
    text = re.sub(r"(?<!\\)\$([^$\n]{1,300}?)(?<!\\)\$(?!\d)", r" \1 ", text).replace("\\$", "$")
    text = re.sub(r"(?<=\d)(?:\\,|\\ |\{,\}|~|[\u202f\u00a0\u2009])(?=\d{3}(?!\d))", ",", text)
    text = re.sub(r"\\[dtc]?frac\s*\{\s*([-+]?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r" \1/\2", text)
    text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)(?!\d)", r" \1/\2", text)
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "×", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![A-Za-z])", "°", text)
    text = re.sub(r"\\(?:[,;:!\s%&#]|quad\b|left\b|right\b|[()\[\]])",
                  lambda m: m[0][1] if m[0][1] in "%&#()[]" else " ", text)
    text = re.sub(r"[¼-¾⅐-⅞]", lambda m: f" {unicodedata.normalize('NFKC', m[0])}", text)
    return re.sub(r"(?<=\d)([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda m: f"^{m[1].translate(_RAISED)}", text)


def _in_digits(text: str) -> str:
    """A text without digits with its number words as digits; a text that has digits stays."""
    def written(m: re.Match[str]) -> str:
        before, after = text[max(0, m.start() - 10):m.start()], text[m.end():m.end() + 10]
        pronoun = m[0].lower() == "one" and (
            _PRONOUN.search(before) or re.match(r"\s+(?:can|could|another)\b", after))
        value = None if pronoun else value_of(m[0])
        return m[0] if value is None else str(value)

    return text if re.search(r"\d", text) else _WORDS.sub(written, text)


def numbers_said(text: str) -> list[Said]:
    """All numbers of a text in order; digits inside words and units ("H2O", "m2") are none."""
    text = spelt(_in_digits(without_latex(text[-LONGEST:])))
    found: list[Said] = []
    at = end = 0
    while (m := _NUMBER.search(text, at)) is not None:
        before = text[max(0, m.start() - _NEAR):m.start()]
        value, at = _value(text, m)
        sign, before = _sign(before)
        if _INSIDE.search(before) and not _RELATION.search(before):
            value = math.nan
        if scale := _SCALE.match(text, at):
            value, at = value * _SCALES[scale[1].lower()], scale.end()
        unit, at = unit_at(text, at)
        money = (m["money"] or "").strip()
        rest = unit if unit[:1] == "/" or unit.startswith("per ") else ""
        if money or (money := _money(before)):
            unit = money + rest
        said = Said(sign * value, unit, _mark(before, text[at:at + 40]))
        whole = _together(found[-1], said, text[end:m.start()]) if found else None
        found[-1:] = [whole] if whole else [*found[-1:], said]
        end = at
    return found


def _together(first: Said, more: Said, between: str) -> Said | None:
    """Hours and minutes, feet and inches, metres and centimetres as one number in the first unit.

    None for two numbers: of one unit, of two kinds, as much as one of the first unit or more, or,
    but for times, joined by a comma or "and"."""
    if not (first.unit and more.unit and first.value.is_integer()) or len(between) > _NEAR:
        return None
    joined = re.fullmatch(r"\s*(,?\s*(?:and\s+)?)", between)
    if joined is None or (joined[1].strip() and math.isnan(_in(1.0, first.unit, "s"))):
        return None
    part = _in(more.value, more.unit, first.unit)
    if not 0 < part < 1:
        return None
    return Said(first.value + math.copysign(part, first.value), first.unit, first.mark or more.mark)


def _in(value: float, unit: str, wanted: str) -> float:
    """A value in another unit; NaN where that is not known or another dimension."""
    there = converted(value, unit, wanted)
    return math.nan if there is None else there[0]


def _money(before: str) -> str:
    """The sign of currency before a minus sign: $-5."""
    return before.rstrip()[-1] if before.rstrip()[-1:] in tuple("$€£¥₹") else ""


def _float(digits: str) -> float:
    return float(digits.replace(",", ""))


def _value(text: str, m: re.Match[str]) -> tuple[float, int]:
    """The number that starts with these digits, and where it ends."""
    value, at = _float(m["value"] + (m["e"] or "")), m.end()
    try:
        if ten := _TEN.match(text, at):
            return value * 10.0 ** int(ten[1].replace(" ", "")), ten.end()
        if power := _POWER.match(text, at):
            return value ** int(power[1]), power.end()
    except OverflowError:
        return math.inf, (_TEN.match(text, at) or _POWER.match(text, at) or m).end()
    except ZeroDivisionError:
        return math.nan, at
    if re.match(r"\s*(?:\^|\*\*(?=\s*[\w({]))", text[at:at + 8]):
        return math.nan, at
    if m["value"].isdigit() and (mixed := _MIXED.match(text, at)):
        return value + _float(mixed[1]) / _float(mixed[2]), mixed.end()
    if below := _BELOW.match(text, at):
        bottom = _float(below[1])
        return (value / bottom if bottom else math.nan), below.end()
    return value, at


def _sign(before: str) -> tuple[float, str]:
    """-1 behind a minus sign that belongs to the number, else 1; and what stands before that.

    A sign between two numbers belongs to neither: "3-5" and "3 - 5" are three and five.
    """
    word = re.search(r"\b(?:minus|negative)\s+$", before, re.I)
    if word and not re.search(r"\d\s*$", before[:word.start()]):
        return -1.0, before[:word.start()]
    m = re.search(r"([-+])(\s*)$", before)
    if m is None:
        return 1.0, before
    rest = before[:m.start()]
    near = rest.rstrip(" \t")
    alone = not near or near[-1] in "=([{,:;≈~<>\n|/*×$€£¥₹"
    touching = not m[2] and rest[-1:].isspace() and not near[-1:].isdigit()
    if not (alone or touching):
        return 1.0, before
    return (-1.0 if m[1] == "-" else 1.0), rest


def _mark(before: str, after: str) -> str:
    near = before
    for mark, shape in _AFTER:
        if shape.match(after):
            return mark
    for mark, shape in _BEFORE:
        if found := shape.search(near):
            return "not" if _NOT.search(near[:found.start()]) else mark
    return "not" if _NOT.search(near) else ""


def the_number(text: str) -> Said | None:
    """The one number of an answer's final part; None for none, several different ones, or one that
    cannot be read.

    Of a calculation ("3 + 4 = 7") what stands after the last "=". What is said not to be the answer
    does not count beside what is ("5, not 3"). Digit tokens ("1 2") are one number.
    """
    final = final_answer(text)
    if final is None or len(final) > LONGEST:
        return None
    if re.fullmatch(r"\d+( \d+)*", final):
        return _finite(Said(float(final.replace(" ", ""))))
    tail = re.split(r"(?<![!<>=])[=≈](?!=)", final)[-1]
    found = numbers_said(tail)
    plain = [s for s in found if s.mark != "not"] or found
    if not plain or any(not _same(s, plain[-1]) for s in plain):
        return None
    return next((s for s in reversed(plain) if s.unit), plain[-1])


def _finite(said: Said) -> Said:
    return said if math.isfinite(said.value) else replace(said, value=math.inf)


def _same(a: Said, b: Said) -> bool:
    """Whether two numbers say one thing: 5 cm is 50 mm."""
    if math.isnan(a.value) or math.isnan(b.value) or a.mark != b.mark:
        return False
    if a.value == b.value and (not a.unit or not b.unit or a.unit == b.unit):
        return True
    there = converted(a.value, a.unit, b.unit) if a.unit and b.unit else None
    if there is None:
        return a.value == b.value
    return math.isclose(there[0], b.value, rel_tol=1e-9)
