"""Whether two formulas or quantities have the same value. True, False, or None: cannot tell."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations

import numpy as np

from selfloop.evaluate.latex.claims import Side
from selfloop.evaluate.latex.expression import SIGN, Array, Formula
from selfloop.organize.verify.units import ONE, Unit

POINTS = 9
"""Points at which formulas are compared. A difference that vanishes at all of them by chance has
probability zero for analytic functions, and no more than rounding in practice."""
EXACT, ROUNDED = 1e-7, 1e-2
"""Relative tolerance of formulas, and of numbers that were worked out by hand."""
WIDEST = 0.05
"""However few digits the key gives, numbers further apart than this are different."""
RENAMED = 3
"""Symbols that are tried under other names."""


def points(symbols: Iterable[str], shift: int = 0) -> dict[str, Array]:
    """The same positive numbers for the same names in every run: (POINTS,) each."""
    found: dict[str, Array] = {}
    for name in symbols:
        seed = [ord(ch) for ch in name] + [shift]
        found[name] = np.random.default_rng(seed).uniform(0.4, 1.7, POINTS).astype(complex)
    return found


def at(formula: Formula, values: dict[str, Array], sign: float = 1.0) -> Array:
    """(POINTS,) values of a formula; NaN and infinities where it has none."""
    with np.errstate(all="ignore"):
        try:
            found = formula.value({**values, SIGN: np.asarray(sign, dtype=complex)})
        except RecursionError:  # a product of hundreds of factors
            found = np.asarray(np.nan)
    return np.broadcast_to(np.asarray(found, dtype=complex), (POINTS,))


def close(a: Array, b: Array, tolerance: float) -> bool | None:
    """Whether the values agree wherever both are finite; None where fewer than three are."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 3:
        return None
    a, b = a[known], b[known]
    return bool((np.abs(a - b) <= tolerance * np.maximum(np.abs(a), np.abs(b)) + 1e-300).all())


def same_side(gold: Side, said: Side) -> bool | None:
    """Whether two sides can be read so that they agree."""
    if not gold.readings or not said.readings:
        return True if gold.text.replace(" ", "") == said.text.replace(" ", "") else None
    found = [_same_reading(g, s) for g in gold.readings for s in said.readings]
    if any(found):
        differ = gold.comment != said.comment and bool(gold.comment)
        return None if differ else True
    # None only where no pair of readings could be decided, or one was right but for its unit
    return None if None in found else False


def _same_reading(gold: tuple[Formula, Unit | None], said: tuple[Formula, Unit | None]
                  ) -> bool | None:
    (g, gold_unit), (s, said_unit) = gold, said
    if g.symbols - {SIGN} or s.symbols - {SIGN}:
        if gold_unit and said_unit and gold_unit.dimension != said_unit.dimension:
            return False
        if bool(gold_unit) != bool(said_unit):
            return None if same_formula(g, s) else False
        scale = said_unit.factor / gold_unit.factor if gold_unit and said_unit else 1.0
        return same_formula(g, s) if scale == 1.0 else False
    return same_number(g, gold_unit, s, said_unit)


def same_number(g: Formula, gold_unit: Unit | None, s: Formula, said_unit: Unit | None
                ) -> bool | None:
    """Quantities agree within 1 %, or when rounding to the key's digits makes them equal.

    A unit that only the key has leaves the answer undecided where the numbers agree; one that only
    the answer has is taken as the key's. Other dimensions are wrong.
    """
    gold_values = {_quantity(g, gold_unit, sign) for sign in _signs(g)}
    said_values = {_quantity(s, said_unit, sign) for sign in _signs(s)}
    bare_gold = {_quantity(g, None, sign) for sign in _signs(g)}
    bare_said = {_quantity(s, None, sign) for sign in _signs(s)}
    if gold_unit and said_unit:
        if gold_unit.dimension != said_unit.dimension:
            return False
        slack = _slack(g)
        return _same_set(gold_values, said_values, slack)
    same = _same_set(bare_gold, bare_said, _slack(g))
    if same is not False and gold_unit and not said_unit and gold_unit is not ONE:
        return None if bare_gold != {0} else True
    if same is not True and (unit := gold_unit or said_unit) and unit.dimension == ONE.dimension:
        same = same or _same_set(gold_values, said_values, _slack(g))  # 2 % and 0.02
    return same


def _signs(formula: Formula) -> tuple[float, ...]:
    return (1.0, -1.0) if SIGN in formula.symbols else (1.0,)


def _quantity(formula: Formula, unit: Unit | None, sign: float) -> complex:
    value = complex(at(formula, {}, sign)[0])
    return value * unit.factor + unit.offset if unit else value


def _slack(gold: Formula) -> float:
    """The relative rounding that the key's own digits allow: half a unit of its last digit."""
    digits = gold.literal.lstrip("-").replace(".", "").lstrip("0")[:15]
    if not digits or "." not in gold.literal:
        return ROUNDED
    return min(WIDEST, max(ROUNDED, 0.5 / int(digits)))


def _same_set(gold: set[complex], said: set[complex], slack: float) -> bool | None:
    """Equal sets; None where an answer gives one of the two signs of the key."""
    def near(a: complex, b: complex) -> bool:
        if not (np.isfinite(a) and np.isfinite(b)):
            return bool(a == b)
        return bool(abs(a - b) <= slack * max(abs(a), abs(b)) * (1 + 1e-9))

    met = [any(near(g, s) for s in said) for g in gold]
    if not all(any(near(g, s) for g in gold) for s in said):
        return False
    return True if all(met) else None if any(met) else False


def same_formula(g: Formula, s: Formula) -> bool | None:
    """Whether two formulas agree at all points.

    None where they would agree if some symbols were renamed: that may be another notation.
    """
    values = points(g.symbols | s.symbols)
    found = _agree(g, s, values)
    if found is not False:
        return found
    only_gold, only_said = (sorted(x - {SIGN}) for x in (g.symbols - s.symbols,
                                                          s.symbols - g.symbols))
    if not only_gold or len(only_gold) != len(only_said) or len(only_gold) > RENAMED:
        return False
    for order in permutations(only_said):
        renamed = values | {name: values[to] for name, to in zip(order, only_gold, strict=True)}
        if _agree(g, s, values, renamed):
            return None
    return False


def _agree(g: Formula, s: Formula, values: dict[str, Array],
           renamed: dict[str, Array] | None = None) -> bool | None:
    tolerance = ROUNDED if g.rounded or s.rounded else EXACT
    other = values if renamed is None else renamed
    plus, minus = ([at(x, v, sign) for sign in _signs(x)]
                   for x, v in ((g, values), (s, other)))
    met = [[close(a, b, tolerance) for b in minus] for a in plus]
    if all(one is None for row in met for one in row):
        return None
    rows, columns = [any(row) for row in met], [any(c) for c in zip(*met, strict=True)]
    if all(rows) and all(columns):
        return True
    return None if any(rows) and all(columns) else False


def proportional(g: Formula, s: Formula, *, constant: bool = False) -> bool | None:
    """Whether the ratio of the formulas is one number wherever they are evaluated.

    None where it is while the symbols that only the answer has are held: they may be constants.
    With `constant`, of conserved quantities, so may those that only the key has.
    """
    values = points(g.symbols | s.symbols)
    extra = (g.symbols ^ s.symbols if constant else s.symbols - g.symbols) - {SIGN}
    values |= {name: np.full(POINTS, values[name][0]) for name in extra}
    if not g.symbols - {SIGN}:
        return False
    a, b = at(g, values), at(s, values)
    with np.errstate(all="ignore"):
        ratio = a / b
    known = np.isfinite(ratio) & (np.abs(ratio) > 0)
    if known.sum() < 3:
        return None
    found = close(ratio, np.broadcast_to(ratio[known][:1], ratio.shape), EXACT)
    return None if found and extra else found
