"""Numbers with units and tolerances, and ChartQA's relaxed accuracy (primitives V2)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.final import final_answer, gold_texts
from selfloop.organize.verify.measures import converted, same_unit
from selfloop.organize.verify.numbers import Said, the_number
from selfloop.types import Rollout, Verdict

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-−+])?[$€£]?"
    r"(?P<value>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?|\.\d+)"
    r"(?:\s*/\s*(?P<below>[1-9]\d*))?"
    r"(?:\s*(?P<scale>thousand|million|billion|trillion)s?\b)?"
    r"(?:\s*(?P<unit>%|percent\b|[°a-zA-Zµ²³]+))?")
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_SPELT = {"millimeter": "mm", "centimeter": "cm", "meter": "m", "kilometer": "km",
          "milligram": "mg", "gram": "g", "kilogram": "kg", "tonne": "t", "second": "s",
          "sec": "s", "minute": "min", "hour": "h", "milliliter": "ml", "liter": "l",
          "percent": "%"}


def quantities(text: str) -> list[tuple[float, str]]:
    """All numbers of a text with the word after each: "1,200 km" is (1200.0, "km").

    Fractions are divided, scale words multiplied ("1.5 million"), spelt-out units abbreviated; a
    word that is no unit known here is given as it is. Percentages stay as said: 14 % is 14. For
    searching in text; answers are judged by `numbers.the_number`, which hedges cannot fool.
    """
    found = []
    for m in _NUMBER.finditer(text):
        value = float(m["value"].replace(",", "")) / float(m["below"] or 1)
        value *= _SCALES.get(m["scale"] or "", 1.0) * (-1 if m["sign"] in ("-", "−") else 1)
        unit = (m["unit"] or "").lower().replace("metre", "meter").replace("litre", "liter")
        found.append((value, _SPELT.get(unit.removesuffix("s"), unit)))
    return found


def same_quantity(text: str, gold: str, *, relative: float = 1e-9, absolute: float = 0.0
                  ) -> bool | None:
    """Whether an answer's number is the gold one, within the larger of both tolerances.

    Units of one kind are converted (5 cm is 0.05 m), units of two kinds differ, and a missing one
    is taken as the other's. Several different numbers are wrong, and so is one that is denied or
    hedged; see `numbers.the_number`. None where the gold text is no single finite number, and where
    both have a unit and one of them is unknown.
    """
    target, said = the_number(gold), the_number(text)
    if target is None or not math.isfinite(target.value) or target.mark == "not":
        return None
    if said is None or said.mark != target.mark or not math.isfinite(said.value):
        return False
    return _near(said, target, relative, absolute)


def _near(said: Said, target: Said, relative: float, absolute: float) -> bool | None:
    """In the gold unit, so that a tolerance on degrees Celsius is none on kelvins."""
    value, base = said.value, 1.0
    if said.unit and target.unit and not same_unit(said.unit, target.unit):
        found = converted(said.value, said.unit, target.unit)
        if found is None:
            return None
        value, base = found
        if math.isnan(value):
            return False
    elif unit := target.unit or said.unit:
        base = (converted(1.0, unit, unit) or (1.0, 1.0))[1]
    room = max(1e-12, relative) * abs(target.value)
    return abs(value - target.value) <= max(room, absolute / base)


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


@dataclass(frozen=True)
class Quantity:
    """The final number, in its unit, is within `relative` (of gold) or `absolute` (in the base
    unit: m, kg, s, l) of the gold one, whichever is larger. Abstains on a gold without a number,
    and on units of which one is unknown ("5 apples" for 5 cm). Currencies are never converted."""

    relative: float = 1e-6
    absolute: float = 0.0

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """See `same_quantity`."""
        right = None if answer is None else same_quantity(
            rollout.text, str(answer), relative=self.relative, absolute=self.absolute)
        return Verdict(score=None if right is None else float(right),
                       rationale=final_answer(rollout.text) or "")


@dataclass(frozen=True)
class Relaxed:
    """ChartQA's relaxed accuracy of the final answer: |a - l| <= .05 |l|, or equal texts; a list of
    texts holds alternatives. Abstains on a blank gold."""

    tolerance: float = 0.05

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """See `relaxed`."""
        said, golds = final_answer(rollout.text) or "", gold_texts(answer)
        if not golds:
            return Verdict(rationale=said)
        right = any(relaxed(said, gold, tolerance=self.tolerance) for gold in golds)
        return Verdict(score=float(right), rationale=said)
