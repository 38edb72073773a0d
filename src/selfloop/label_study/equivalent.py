"""The label-equivalent: how many labels supervised training needs to get where another arm is.

The supervised curve is made rising (isotonic regression), is taken as straight between budgets in
the logarithm of labels, and is inverted. Beyond its ends it says nothing: an arm above the whole
curve is worth "at least" its last budget, one below it "at most" its first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop.evaluate.answers import Answer
from selfloop.keys import generator
from selfloop.roles import SelfloopError

Array = np.ndarray[Any, Any]


def rising(curves_RK: Array) -> Array:
    """Each row's least-squares non-decreasing fit, equal weights: (R, K) -> (R, K).

    By the min-max formula, max over j <= i of min over k >= i of mean(y_j .. y_k) (Robertson,
    Wright and Dykstra 1988, section 1.4): all rows at once, and K is small.
    """
    y = np.asarray(curves_RK, dtype=float)
    many = y.shape[1]
    sums = np.concatenate([np.zeros((len(y), 1)), np.cumsum(y, axis=1)], axis=1)
    fitted = np.empty_like(y)
    for i in range(many):
        lowest = [np.min([(sums[:, k + 1] - sums[:, j]) / (k + 1 - j) for k in range(i, many)],
                         axis=0) for j in range(i + 1)]
        fitted[:, i] = np.max(lowest, axis=0)
    return fitted


def labels_for(reached_R: Array, curves_RK: Array, budgets: Sequence[int]) -> tuple[Array, Array]:
    """(labels, side) at which each row's rising curve reaches a value; both (R,).

    side: 0 inside the curve, +1 above it (labels = the last budget, a lower bound), -1 below it
    (labels = the first budget, an upper bound). Where the curve is flat: its first such budget.
    """
    rows, last = np.arange(len(reached_R)), len(budgets) - 1
    logs_K = np.log(np.asarray(budgets, dtype=float))
    at_R = (curves_RK < reached_R[:, None] - 1e-12).sum(axis=1)  # first budget that gets there
    side_R = np.where(at_R > last, 1, 0)
    side_R[reached_R < curves_RK[:, 0] - 1e-12] = -1
    above_R = np.clip(at_R, 1, last) if last else np.zeros_like(at_R)
    below_R = np.maximum(above_R - 1, 0)
    step_R = curves_RK[rows, above_R] - curves_RK[rows, below_R]
    part_R = (reached_R - curves_RK[rows, below_R]) / np.where(step_R > 0, step_R, 1.0)
    inside_R = np.exp(logs_K[below_R] + np.clip(part_R, 0, 1) * (logs_K[above_R] - logs_K[below_R]))
    labels_R = np.where(at_R == 0, budgets[0], np.where(at_R > last, budgets[-1], inside_R))
    return labels_R, side_R


@dataclass(frozen=True)
class Worth:
    """A number of labels, or a ratio of two, with its 95 % interval."""

    value: float
    low: float
    high: float
    at_least: bool = False
    """The value is a lower bound: the arm is above the whole supervised curve."""
    at_most: bool = False
    """The value is an upper bound: the arm is below the whole supervised curve."""
    low_open: bool = False
    """`low` itself is only an upper bound of where the interval starts."""
    high_open: bool = False
    """`high` itself is only a lower bound of where the interval ends."""

    def times(self, factor: float) -> Worth:
        """The same in other units: by 1 / labels it becomes a multiple of the labels used."""
        return Worth(self.value * factor, self.low * factor, self.high * factor, self.at_least,
                     self.at_most, self.low_open, self.high_open)


def worth(labels_R: Array, side_R: Array) -> Worth:
    """Row 0 is the estimate, the others are resamples; bounds stay bounds."""
    low, high = np.quantile(labels_R[1:], [0.025, 0.975])
    n = len(side_R) - 1
    return Worth(float(labels_R[0]), float(low), float(high),
                 at_least=bool(side_R[0] > 0), at_most=bool(side_R[0] < 0),
                 low_open=bool((side_R[1:] < 0).sum() > 0.025 * n),
                 high_open=bool((side_R[1:] > 0).sum() > 0.025 * n))


def over(first: tuple[Array, Array], second: tuple[Array, Array]) -> Worth:
    """How many times the labels of the second the first is worth, resample by resample.

    A bound in the second turns round: what is divided by "at least" is "at most".
    """
    (a_R, side_a), (b_R, side_b) = first, second
    bound = np.sign(side_a - side_b)
    bound[(side_a == side_b) & (side_a != 0)] = 2  # both beyond the same end: unknown either way
    found = worth(a_R / b_R, np.where(bound == 2, 0, bound))
    n, unknown = len(bound) - 1, int((bound[1:] == 2).sum())
    lost = bool(bound[0] == 2)
    return Worth(found.value, found.low, found.high,
                 at_least=found.at_least or lost, at_most=found.at_most or lost,
                 low_open=found.low_open or unknown > 0.025 * n,
                 high_open=found.high_open or unknown > 0.025 * n)


# -- the paired bootstrap -------------------------------------------------------------------------

@dataclass(frozen=True)
class Resamples:
    """Accuracies of every (arm, budget); entry 0 is the plain estimate, then the resamples."""

    accuracy: Mapping[tuple[str, int], Array]
    units: str

    def interval(self, arm: str, budget: int) -> tuple[float, float, float]:
        """(estimate, low, high) of one point, fractions."""
        found = self.accuracy[arm, budget]
        low, high = np.quantile(found[1:], [0.025, 0.975])
        return float(found[0]), float(low), float(high)

    def labels(self, arm: str, budget: int, budgets: Sequence[int]) -> tuple[Array, Array]:
        """What supervised training needs to be where an arm is: (labels, side), each (1 + n,)."""
        curves = np.stack([self.accuracy["supervised", b] for b in budgets], axis=1)
        return labels_for(self.accuracy[arm, budget], rising(curves), budgets)


def resampled(answers: Mapping[tuple[str, int], Sequence[Answer]], n: int = 2000,
              key: str = "label_study") -> Resamples:
    """Seeds x clusters, drawn once for all points, so that differences are paired.

    The crossed bootstrap of evaluate.statistics.bootstrap (Owen 2007; units - 1 draws of units);
    a lone seed is held fixed. Raises SelfloopError when points differ in seeds or questions.
    """
    first = next(iter(answers.values()))
    seeds = sorted({a.seed for a in first})
    clusters = sorted({a.cluster for a in first})
    asked = {(a.seed, a.sample) for a in first}
    for (arm, budget), found in answers.items():
        if {(a.seed, a.sample) for a in found} != asked:
            raise SelfloopError(f"{arm} at {budget} labels answered other questions or seeds than "
                                "the other points: finish the study, or start it in a new folder")
    rng = generator(key)
    seed_RS, cluster_RC = _weights(rng, n, len(seeds)), _weights(rng, n, len(clusters))
    accuracy = {}
    for where, found in answers.items():
        right, count = np.zeros((2, len(seeds), len(clusters)))
        for a in found:
            if a.right is not None:
                at = seeds.index(a.seed), clusters.index(a.cluster)
                right[at] += a.right
                count[at] += 1
        got, of = (((seed_RS @ x) * cluster_RC).sum(1) for x in (right, count))
        accuracy[where] = got / np.maximum(of, 1e-9)
    units = f"{len(clusters)} clusters"
    return Resamples(accuracy, f"{len(seeds)} seeds x {units}" if len(seeds) > 1
                     else f"{units}, one seed")


def _weights(rng: np.random.Generator, n: int, size: int) -> Array:
    """(1 + n, size) how often each unit is drawn: once each in row 0, the estimate."""
    plain = np.ones((1, size))
    if size == 1:
        return np.repeat(plain, n + 1, axis=0)
    return np.concatenate([plain, rng.multinomial(size - 1, np.full(size, 1 / size), size=n)])
