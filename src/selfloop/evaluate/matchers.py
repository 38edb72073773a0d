"""Typed matchers: pure functions from texts to what they say, and whether two say the same.

Each tool's own rule has a function of its own here, exact down to its oddities, because a score
is comparable with a published one only under the published rule. `None` means "cannot tell".
"""

from __future__ import annotations

import re
import string
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfloop.organize.verify.rules import final_answer

LONGEST = 2000
"""Characters of a formula that are handed to a parser; longer ones are not judged."""

# -- option letters --------------------------------------------------------------------------------


def option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer finally names: our own, fair rule.

    A letter counts at the start of the final answer ("B", "(b)", "B. a cat"); "A" and "I" are also
    words, so before a space they count only if their option's text follows. Naming a second letter
    is no answer, unless it belongs to the option's text. Else the text of exactly one option.
    """
    for said in (final_answer(text), text.strip().rsplit("\n", 1)[-1]):
        found = _named(said.strip(), options) if said else None
        if found is not None:
            return found
    return None


def _named(said: str, options: Mapping[str, str]) -> str | None:
    bare = said.strip(string.punctuation + " ")
    if bare.upper() in options and len(bare) == 1:
        return bare.upper()
    lead = re.match(r"[\W_]*([A-Z])([\W_]+)(.*)", said, re.S)
    if lead and lead[1] in options:
        letter, between, rest = lead[1], lead[2], lead[3]
        if plain(rest) == plain(options[letter]):
            return letter
        others = set(re.findall(r"\b[A-Z]\b", rest)) & set(options) - {letter}
        if not others and (between.strip() or letter not in "AI"):
            return letter
    same = [letter for letter, other in options.items() if plain(other) == plain(said)]
    return same[0] if len(same) == 1 else None


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

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-−+])?[$€£]?"
    r"(?P<value>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?|\.\d+)"
    r"(?:\s*/\s*(?P<below>[1-9]\d*))?"
    r"(?:\s*(?P<scale>thousand|million|billion|trillion)s?\b)?"
    r"(?:\s*(?P<unit>%|percent\b|[°a-zA-Zµ²³]+))?")
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_UNITS: dict[str, tuple[str, float]] = {
    "mm": ("length", 1e-3), "cm": ("length", 1e-2), "m": ("length", 1.0), "km": ("length", 1e3),
    "mg": ("mass", 1e-6), "g": ("mass", 1e-3), "kg": ("mass", 1.0), "t": ("mass", 1e3),
    "ms": ("time", 1e-3), "s": ("time", 1.0), "min": ("time", 60.0), "h": ("time", 3600.0),
    "ml": ("volume", 1e-3), "cl": ("volume", 1e-2), "l": ("volume", 1.0), "%": ("share", 1.0)}
_SPELT = {"millimeter": "mm", "centimeter": "cm", "meter": "m", "kilometer": "km",
          "milligram": "mg", "gram": "g", "kilogram": "kg", "tonne": "t", "second": "s",
          "sec": "s", "minute": "min", "hour": "h", "milliliter": "ml", "liter": "l",
          "percent": "%"}


def quantities(text: str) -> list[tuple[float, str]]:
    """All numbers of a text with the word after each: "1,200 km" is (1200.0, "km").

    Fractions are divided, scale words multiplied ("1.5 million"), spelt-out units abbreviated; a
    word that is no unit known here is given as it is. Percentages stay as said: 14 % is 14.
    """
    found = []
    for m in _NUMBER.finditer(text):
        value = float(m["value"].replace(",", "")) / float(m["below"] or 1)
        value *= _SCALES.get(m["scale"] or "", 1.0) * (-1 if m["sign"] in ("-", "−") else 1)
        unit = (m["unit"] or "").lower().replace("metre", "meter").replace("litre", "liter")
        found.append((value, _SPELT.get(unit.removesuffix("s"), unit)))
    return found


def number(text: str) -> float | None:
    """The last number of the final answer; None where there is none."""
    found = quantities(final_answer(text) or "")
    return found[-1][0] if found else None


def same_quantity(text: str, gold: str, *, relative: float = 0.0, absolute: float = 1e-9
                  ) -> bool | None:
    """Whether an answer's last number is the gold one, within the larger of both tolerances.

    Units of one kind are converted (5 cm is 0.05 m), units of two kinds differ, and a missing or
    unknown one is taken as the other's. None where the gold text holds no number.
    """
    golds, said = quantities(gold), quantities(final_answer(text) or "")
    if not golds:
        return None
    if not said:
        return False
    (value, unit), (target, wanted) = said[-1], golds[-1]
    if unit in _UNITS and wanted in _UNITS:
        if _UNITS[unit][0] != _UNITS[wanted][0]:
            return False
        value, target = value * _UNITS[unit][1], target * _UNITS[wanted][1]
    return abs(value - target) <= max(absolute, relative * abs(target))


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


def relaxed(said: str, gold: str, *, tolerance: float = 0.05) -> bool:
    """Relaxed accuracy as tools compute it: numbers within 5 %, else the same text but for case.

    "14%" is 0.14, so it is not "14"; a gold of 0 is compared as text; "1,200" is no number. From
    pix2struct, used alike by lmms-eval and VLMEvalKit. ChartQA (arXiv 2203.10244), section 5.1.
    """
    value, target = _float(said), _float(gold)
    if value is not None and target:
        return abs(value - target) / abs(target) <= tolerance
    return said.lower() == gold.lower()


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


# -- texts -----------------------------------------------------------------------------------------

def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements that make `a` into `b` (Levenshtein 1966)."""
    short, long = sorted((a, b), key=len)
    row = list(range(len(short) + 1))
    for i, c in enumerate(long, 1):
        above, row = row, [i]
        for j, d in enumerate(short, 1):
            row.append(above[j - 1] if c == d else 1 + min(above[j - 1], above[j], row[-1]))
    return row[-1]


def anls(said: str, golds: Sequence[str], *, threshold: float = 0.5, raw_lengths: bool = False
         ) -> float:
    """Average normalised Levenshtein similarity of one answer: its best over `golds`, in 0..1.

    Case and runs of white space do not count; below `threshold` it is 0. Biten et al. 2019 (arXiv
    1905.13648), section 4; at exactly the threshold the value counts, as in the tools and on the
    official server. `raw_lengths`: divide by the lengths before white space went, as lmms-eval.
    """
    best, text = 0.0, " ".join(said.lower().split())
    for gold in golds:
        target = " ".join(gold.lower().split())
        longest = max(len(gold), len(said)) if raw_lengths else max(len(target), len(text))
        best = max(best, 1 - edit_distance(text, target) / longest if longest else 1.0)
    return best if best >= threshold else 0.0


# -- formulas --------------------------------------------------------------------------------------

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
