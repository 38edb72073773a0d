"""Numbers with units and tolerances, and ChartQA's relaxed accuracy (primitives V2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.rules import final_answer
from selfloop.types import Rollout, Verdict

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
    unit: m, kg, s, l) of the gold one, whichever is larger. Abstains on a gold without a number."""

    relative: float = 1e-6
    absolute: float = 1e-9

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """See `same_quantity`."""
        right = None if answer is None else same_quantity(
            rollout.text, str(answer), relative=self.relative, absolute=self.absolute)
        return Verdict(score=None if right is None else float(right),
                       rationale=final_answer(rollout.text) or "")


@dataclass(frozen=True)
class Relaxed:
    """ChartQA's relaxed accuracy of the final answer: |a - l| <= .05 |l|, or equal texts."""

    tolerance: float = 0.05

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """See `relaxed`."""
        said = final_answer(rollout.text) or ""
        if answer is None:
            return Verdict(rationale=said)
        return Verdict(score=float(relaxed(said, str(answer), tolerance=self.tolerance)),
                       rationale=said)
