"""Figures and their differences from what was counted: one table of sums, seeds x clusters.

Every figure is a ratio of sums (accuracy, CHAIR, recall, F1), so one test serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop.evaluate.ratios import crossed_ratio_bootstrap, ratio_p_value
from selfloop.evaluate.statistics import holm
from selfloop.roles import SelfloopError

Array = np.ndarray[Any, Any]
Sums = tuple[Array, Array]
"""Numerators and denominators, (S, C) each."""


@dataclass(frozen=True)
class Gap:
    """A figure of one arm minus that of another, a fraction, on the same seeds and questions."""

    gain: float
    low: float
    high: float
    p_value: float
    """Two-sided."""
    p_holm: float = 1.0
    """Corrected over the losses that are compared with the same arm."""

    @property
    def shown(self) -> bool:
        """Whether there is a difference, at 5 % after the correction."""
        return self.p_holm <= 0.05


@dataclass(frozen=True)
class Table:
    """What every arm's answers to one set of questions count."""

    seeds: tuple[int, ...]
    clusters: tuple[str, ...]
    sums: Mapping[str, Mapping[str, Sums]]
    """{arm: {figure: sums}}; a lone row stands for every seed (an arm that has no seed)."""

    @property
    def figures(self) -> list[str]:
        """The figures that were counted, in the order of the first arm."""
        return list(next(iter(self.sums.values())))

    def value(self, arm: str, figure: str) -> tuple[float, float, float]:
        """(estimate, low, high), fractions; NaN where nothing was counted."""
        tops, bottoms = self.sums[arm][figure]
        if bottoms.sum() <= 0:
            return math.nan, math.nan, math.nan
        found = crossed_ratio_bootstrap(tops, bottoms, key=f"loss_study/{figure}")
        return found.estimate, found.low, found.high

    def gap(self, arm: str, other: str, figure: str = "accuracy") -> Gap | None:
        """The paired difference; None where one of the two counted nothing.

        Interval over seeds x clusters. Where there are several seeds the p-value is the larger of
        two: swaps of whole clusters, which know nothing of the spread between seeds, and a z-test
        with the bootstrap's standard error (as statistics.paired_gain).
        """
        ours, theirs = self._alike(self.sums[arm][figure], self.sums[other][figure])
        if ours[1].sum() <= 0 or theirs[1].sum() <= 0:
            return None
        key = f"loss_study/{figure}"
        found = crossed_ratio_bootstrap(*ours, minus=theirs, key=key)
        p = ratio_p_value((ours[0].sum(0), ours[1].sum(0)), (theirs[0].sum(0), theirs[1].sum(0)),
                          key=key)
        if len(ours[0]) > 1:
            p = max(p, math.erfc(abs(found.estimate) / max(found.se, 1e-12) / math.sqrt(2)))
        return Gap(found.estimate, found.low, found.high, p)

    def _alike(self, ours: Sums, theirs: Sums) -> tuple[Sums, Sums]:
        rows = max(len(ours[0]), len(theirs[0]))
        both = [(np.repeat(top, rows, 0), np.repeat(bottom, rows, 0)) if len(top) < rows
                else (top, bottom) for top, bottom in (ours, theirs)]
        return both[0], both[1]


def corrected(gaps: Sequence[Gap | None]) -> list[Gap | None]:
    """Holm's correction over the losses; what could not be compared is no test."""
    from dataclasses import replace

    known = [g for g in gaps if g is not None]
    adjusted = iter(holm([g.p_value for g in known]))
    return [None if g is None else replace(g, p_holm=next(adjusted)) for g in gaps]


def weakest(gaps: Sequence[Gap]) -> float:
    """P-value of "above every one of these arms": the largest of the one-sided p-values.

    The intersection-union test (Berger 1982): the claim needs every single one.
    """
    if not gaps:
        raise SelfloopError("no arm to be above of")
    return max(g.p_value / 2 if g.gain > 0 else 1 - g.p_value / 2 for g in gaps)


# -- on disk --------------------------------------------------------------------------------------

def columns_of(tables: Mapping[str, Table]) -> dict[str, list[Any]]:
    """{set: table} as columns for a file, one row a set, arm, figure and seed."""
    rows = [(name, arm, figure, seed, top.tolist(), bottom.tolist())
            for name, table in tables.items() for arm, figures in table.sums.items()
            for figure, (tops, bottoms) in figures.items()
            for seed, top, bottom in zip(table.seeds, tops, bottoms, strict=False)]
    names = ("set", "arm", "figure", "seed", "top", "bottom")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def tables_of(columns: Mapping[str, Sequence[Any]], seeds: Sequence[int],
              clusters: Mapping[str, Sequence[str]]) -> dict[str, Table]:
    """The inverse of `columns_of`."""
    found: dict[str, dict[str, dict[str, tuple[list[Any], list[Any]]]]] = {}
    rows = zip(*(columns[n] for n in ("set", "arm", "figure", "top", "bottom")), strict=True)
    for name, arm, figure, top, bottom in rows:
        both = found.setdefault(name, {}).setdefault(arm, {}).setdefault(figure, ([], []))
        both[0].append(top)
        both[1].append(bottom)
    return {name: Table(tuple(seeds), tuple(clusters[name]), {
        arm: {f: (np.array(t, dtype=float), np.array(b, dtype=float))
              for f, (t, b) in figures.items()} for arm, figures in arms.items()})
        for name, arms in found.items()}
