"""Whether two claims say the same: values, equations, inequalities, words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import permutations

import numpy as np

from selfloop.evaluate.latex.claims import Claim, Side
from selfloop.evaluate.latex.expression import SIGN, Array, Formula
from selfloop.evaluate.latex.values import (
    EXACT,
    POINTS,
    RENAMED,
    at,
    close,
    points,
    proportional,
    same_side,
)

_NUMBER_WORDS = {"zero", "one", "two", "three", "four", "five", "six", "infinite", "infinity",
                 "none", "no", "not", "half", "twice", "double", "unity", "same", "equal",
                 "vanishes", "nothing", "constant", "independent", "unchanged", "proportional"}


def same_claim(gold: Claim, said: Claim) -> bool | None:
    """Whether the claim says what the key says; None where rules cannot tell."""
    if gold.words or said.words:
        return _same_words(gold, said)
    if gold.relation in "<>" or said.relation in "<>":
        return _same_bound(gold, said)
    found = _any(same_side(g, s) for g in gold.values for s in said.values)
    if found is True:
        return True if _names_agree(gold, said) else _same_equation(gold, said) or None
    if {"∝", "~", "c"} & {gold.relation, said.relation}:
        scaled = _proportional(gold, said)
        if scaled is not False:
            return True if scaled and gold.relation in "∝c" else None
    equal = _same_equation(gold, said)
    return found if equal is False else equal


def _any(found: Iterable[bool | None]) -> bool | None:
    """True if one is, else None if one is, else False."""
    listed = list(found)
    return True if True in listed else None if None in listed else False


def _same_words(gold: Claim, said: Claim) -> bool | None:
    """Equal words, equal option letters; yes against no is wrong, and so is prose for a formula."""
    option = re.match(r"\([a-h]\)", said.words)
    if gold.words == said.words or (option and option[0] == gold.words):
        return True
    if re.fullmatch(r"\([a-h]\)", gold.words):
        return False if option else None
    if gold.words and said.words:
        first = {gold.words.split()[0], said.words.split()[0]} if said.words.split() else set()
        return False if first == {"yes", "no"} else None
    if gold.words:
        return None
    told = set(said.words.split())
    return None if told & _NUMBER_WORDS or re.search(r"\d", said.words) else False


def _same_bound(gold: Claim, said: Claim) -> bool | None:
    """Inequalities: the bound and its direction; a bound given as a value is undecided."""
    found = _any(same_side(g, s) for g in gold.values for s in said.values)
    if found is not True:
        return found
    if gold.relation == said.relation:
        return True
    return False if {gold.relation, said.relation} == {"<", ">"} else None


def _proportional(gold: Claim, said: Claim) -> bool | None:
    constant = gold.relation == "c"
    return _any(proportional(g, s, constant=constant) for a in gold.values for b in said.values
                for g, _ in a.readings for s, _ in b.readings)


def _names_agree(gold: Claim, said: Claim) -> bool:
    """Whether equal right sides make equal claims: not for tan x = a beside cos x = a, and not for
    a bare 0 beside an equation of motion. Plain names may differ: one author's d is another's t.
    """
    if gold.name == said.name:
        return True
    if not gold.name or not said.name:
        return not _is_sum((gold if gold.name else said).sides[0].text)
    left = [_left(c.sides[0]) for c in (gold, said)]
    return all(side is None or (len(side.symbols) < 2 and _plain(c.sides[0]))
               for side, c in zip(left, (gold, said), strict=True))


def _is_sum(text: str) -> bool:
    """Whether terms are added at the top level."""
    depth = 0
    for place, sign in enumerate(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(sign, 0)
        if depth == 0 and place and sign in "+-":
            return True
    return False


def _plain(side: Side) -> bool:
    r"""One symbol, or one with its arguments: I(\theta)."""
    return re.search(r"\\(?:frac|sin|cos|tan|cot|ln|log|sqrt|exp)|[-+^/]", side.text) is None


def _left(side: Side) -> Formula | None:
    return next((f for f, unit in side.readings if unit is None), None)


# -- equations -------------------------------------------------------------------------------------

Equation = tuple[Formula, Formula]


def _same_equation(gold: Claim, said: Claim) -> bool | None:
    """Whether two equations hold for the same values of the same symbols.

    None where they would if the symbols that only one of them has were renamed.
    """
    first, second = _sides_of(gold), _sides_of(said)
    if first is None or second is None:
        return False
    here, there = (a.symbols | b.symbols for a, b in (first, second))
    if here == there:
        return _equal(first, second)
    mine, others = sorted(here - there), sorted(there - here)
    if len(mine) != len(others) or len(mine) > RENAMED or SIGN in {*mine, *others}:
        return False
    return None if any(_equal(first, _renamed(second, dict(zip(others, order, strict=True))))
                       for order in permutations(mine)) else False


def _renamed(equation: Equation, names: Mapping[str, str]) -> Equation:
    def one(formula: Formula) -> Formula:
        symbols = frozenset(names.get(name, name) for name in formula.symbols)
        return Formula(lambda values: formula.value(
            {**values, **{old: values[new] for old, new in names.items() if new in values}}),
            symbols, formula.rounded)

    return one(equation[0]), one(equation[1])


def _equal(first: Equation, second: Equation) -> bool:
    """The differences of both sides have a ratio that is a product of powers (one equation was
    multiplied through), or one is solved for a symbol and fulfils the other."""
    (a, b), (c, d) = first, second
    values = points(a.symbols | b.symbols)
    with np.errstate(all="ignore"):
        ratio = (at(a, values) - at(b, values)) / (at(c, values) - at(d, values))
        if _is_monomial(ratio, values):
            return True
    return _fulfils(first, second) or _fulfils(second, first)


def _sides_of(claim: Claim) -> Equation | None:
    if len(claim.sides) < 2:
        return None
    left, right = _left(claim.sides[0]), _left(claim.sides[-1])
    return None if left is None or right is None else (left, right)


def _is_monomial(ratio: Array, values: dict[str, Array]) -> bool:
    """Whether log |ratio| is linear in the logarithms of the symbols."""
    logs = np.log(np.abs(ratio))
    names = [name for name in values if name != SIGN]
    if not np.isfinite(logs).all() or len(names) + 1 >= POINTS - 1:
        return False
    signs = np.sign(ratio.real)
    if (np.abs(ratio.imag) > 1e-9 * np.abs(ratio)).any() or not (signs == signs[0]).all():
        return False
    table = np.stack([np.ones(POINTS), *(np.log(values[name].real) for name in names)], axis=1)
    weights, *_ = np.linalg.lstsq(table, logs, rcond=None)
    return bool(np.abs(table @ weights - logs).max() < 1e-10)


def _fulfils(solved: Equation, other: Equation) -> bool:
    """Whether `solved`, of the form symbol = formula, makes both sides of `other` equal."""
    symbol, formula = solved
    if len(symbol.symbols) != 1 or symbol.symbols & formula.symbols:
        return False
    name = next(iter(symbol.symbols))
    free = points(symbol.symbols | formula.symbols)
    if not close(at(symbol, free), free[name], EXACT):
        return False  # sin x = ... is not solved for x
    if close(at(other[0], free), at(other[1], free), EXACT) is not False:
        return False  # holds for any values: it says nothing
    held = free | {name: at(formula, free)}
    return close(at(other[0], held), at(other[1], held), EXACT) is True
