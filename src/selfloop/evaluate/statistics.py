"""Paired, cluster-aware statistics: whether a model got better, and how sure that is.

Questions that share a picture are not independent, so clusters are resampled and not questions.
Accuracies and gains are fractions in [0, 1], never percent. Everything is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from selfloop.evaluate.answers import (
    Answer,
    expected_calibration_error,
    maj_at_k,
    pair,
    pass_at_k,
)
from selfloop.keys import generator
from selfloop.roles import SelfloopError

__all__ = [
    "Gain", "Interval", "SequentialAlpha", "alpha_at", "bootstrap", "expected_calibration_error",
    "holm", "maj_at_k", "mcnemar", "paired_gain", "pass_at_k", "permutation",
    "questions_needed", "smallest_detectable_gain", "wilson",
]

Alternative = Literal["greater", "less", "two-sided"]
_CHUNK = 4_000_000  # numbers held at once while resampling: 32 MB


@dataclass(frozen=True)
class Interval:
    """A percentile interval, what it is around, and what was resampled."""

    low: float
    high: float
    estimate: float
    se: float
    units: str
    """"200 clusters, one seed" or "3 seeds x 200 clusters": what the width speaks of."""


def _labels(labels: Sequence[Any]) -> tuple[np.ndarray[Any, Any], int]:
    names, index = np.unique(np.asarray([str(label) for label in labels]), return_inverse=True)
    return index, len(names)


def unit_weights(rng: np.random.Generator, rows: int, size: int) -> np.ndarray[Any, Any]:
    """(rows, size) how often each unit is drawn; a lone unit is held fixed."""
    if size == 1:
        return np.ones((rows, 1))
    # size - 1 draws of size: the variance of a resampled mean is then unbiased (McCarthy and
    # Snowden 1985). It hardly matters for clusters and doubles the variance of two seeds.
    index = rng.integers(size, size=(rows, size - 1)) + size * np.arange(rows)[:, None]
    return np.bincount(index.ravel(), minlength=rows * size).reshape(rows, size).astype(float)


def bootstrap(
    values: Sequence[float] | np.ndarray[Any, Any], clusters: Sequence[Any],
    seeds: Sequence[Any] | None = None, n: int = 2000, key: str = "bootstrap",
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval of a mean, resampling seeds and clusters as two crossed factors.

    `values`, `clusters`, `seeds`: (N,) one entry an observation. A drawn cluster brings all its
    observations, at every drawn seed: the pigeonhole bootstrap (Owen 2007, Ann. Appl. Stat. 1(2)).
    With one seed only clusters are resampled, and `units` says so; with one cluster and one seed
    nothing is known and the interval is infinite. Raises SelfloopError for no or unequal input.
    """
    x = np.asarray(values, dtype=float)
    if not len(x) or len(clusters) != len(x) or (seeds is not None and len(seeds) != len(x)):
        raise SelfloopError(
            f"bootstrap: {len(x)} values, {len(clusters)} clusters and "
            f"{'no' if seeds is None else len(seeds)} seeds: give one of each a value, at least 1")
    c, many = _labels(clusters)
    s, runs = _labels(seeds) if seeds is not None else (np.zeros(len(x), dtype=int), 1)
    units = f"{runs} seeds x {many} clusters" if runs > 1 else f"{many} clusters, one seed"
    estimate = float(x.mean())
    if many == runs == 1:
        return Interval(-math.inf, math.inf, estimate, math.inf, units)
    sums_SC = np.bincount(s * many + c, weights=x, minlength=runs * many).reshape(runs, many)
    counts_SC = np.bincount(s * many + c, minlength=runs * many).reshape(runs, many)
    rng, means = generator(key), []
    for rows in _chunks(n, many):
        seeds_RS, clusters_RC = unit_weights(rng, rows, runs), unit_weights(rng, rows, many)
        total = ((seeds_RS @ sums_SC) * clusters_RC).sum(1)
        weight = ((seeds_RS @ counts_SC) * clusters_RC).sum(1)
        means.append(total[weight > 0] / weight[weight > 0])
    drawn = np.concatenate(means)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), estimate, float(drawn.std(ddof=1)), units)


def _chunks(n: int, width: int) -> list[int]:
    size = max(1, _CHUNK // max(width, 1))
    return [min(size, n - start) for start in range(0, n, size)]


def permutation(
    differences: Sequence[float] | np.ndarray[Any, Any], clusters: Sequence[Any],
    alternative: Alternative = "two-sided", n: int = 10_000, key: str = "permutation",
) -> float:
    """P-value of a mean paired difference, by flipping the signs of whole clusters.

    Under the null the models' names can be swapped within a cluster. Where the sums are multiples
    of 1/k, k <= 24 (greedy answers: always), all flips are counted by the shift algorithm
    (Streitberg and Roehmel 1986), else `n` are drawn. Clusters of one: McNemar's exact test.
    """
    index, many = _labels(clusters)
    sums = np.bincount(index, weights=np.asarray(differences, dtype=float), minlength=many)
    sums = sums[np.abs(sums) > 1e-12]
    seen = float(sums.sum())
    if not len(sums) or (alternative == "two-sided" and abs(seen) < 1e-12):
        return 1.0
    seen = {"greater": seen, "less": -seen, "two-sided": abs(seen)}[alternative] - 1e-9
    scale = next((k for k in range(1, 25) if np.allclose(sums * k, np.rint(sums * k))), None)
    if scale and len(sums) * np.abs(sums).sum() * scale <= 20_000_000:
        support, chances = _all_flips(np.rint(np.abs(sums) * scale).astype(int))
        tail = float(chances[support >= seen * scale].sum())
        return min(1.0, 2 * tail if alternative == "two-sided" else tail)
    rng, beyond = generator(key), 0
    for rows in _chunks(n, len(sums)):
        flipped = rng.choice([-1.0, 1.0], size=(rows, len(sums))) @ sums
        reached = np.abs(flipped) if alternative == "two-sided" else flipped
        beyond += int((reached >= seen).sum())
    return (1 + beyond) / (1 + n)


def _all_flips(sizes: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(values, chances) of the sum of `sizes` with fair random signs."""
    total = int(sizes.sum())
    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    for size in sizes.tolist():
        moved = np.zeros_like(chances)
        moved[size:] += chances[:-size] / 2
        moved[:-size] += chances[size:] / 2
        chances = moved
    return np.arange(-total, total + 1), chances


@dataclass(frozen=True)
class Gain:
    """How much better the first model is than the second on the same questions."""

    gain: float
    low: float
    high: float
    se: float
    p_value: float
    """Two-sided, by sign flips of clusters (see `paired_gain` for several seeds)."""
    p_better: float
    """One-sided: how surprising the gain would be if the first were no better."""
    p_worse: float
    p_mcnemar: float
    """Exact and two-sided, as if questions were independent; shown for comparison."""
    n: int
    """Distinct questions compared."""
    better: int
    """Discordant (seed, question) pairs that the first won."""
    worse: int
    unjudged: int
    a: float
    b: float
    units: str

    @property
    def discordant(self) -> int:
        """Pairs on which the two models differ."""
        return self.better + self.worse


def paired_gain(a: Sequence[Answer], b: Sequence[Answer], n: int = 2000,
                key: str = "paired_gain", level: float = 0.95) -> Gain:
    """Accuracy of `a` minus accuracy of `b`: interval over seeds x clusters, and p-values.

    Sign flips of clusters know nothing of the spread between seeds. With several seeds a p-value
    is therefore the larger of theirs and a z-test with the crossed bootstrap's standard error.
    Raises SelfloopError when the two did not answer the same questions or none was judged.
    """
    pairs = pair(a, b)
    if not len(pairs.a):
        raise SelfloopError(
            f"no question was judged for both models ({pairs.unjudged} unjudged): see the "
            "verifier's errors, or give it questions that it can judge")
    rise = pairs.a - pairs.b
    interval = bootstrap(rise, pairs.clusters, pairs.seeds, n=n, key=key, level=level)
    z = interval.estimate / max(interval.se, 1e-12)
    several = len(set(pairs.seeds)) > 1

    def p(alternative: Alternative, normal: float) -> float:
        flips = permutation(rise, pairs.clusters, alternative, key=key)
        return max(flips, normal) if several else flips

    better, worse = int((rise > 1e-12).sum()), int((rise < -1e-12).sum())
    return Gain(
        gain=interval.estimate, low=interval.low, high=interval.high, se=interval.se,
        p_value=p("two-sided", math.erfc(abs(z) / math.sqrt(2))),
        p_better=p("greater", math.erfc(z / math.sqrt(2)) / 2),
        p_worse=p("less", math.erfc(-z / math.sqrt(2)) / 2),
        p_mcnemar=mcnemar(better, worse), n=len(set(pairs.samples)), better=better, worse=worse,
        unjudged=pairs.unjudged, a=float(pairs.a.mean()), b=float(pairs.b.mean()),
        units=interval.units)


def mcnemar(b: int, c: int) -> float:
    """McNemar's exact two-sided p: `b` and `c` discordant pairs, Binomial(b + c, 1/2).

    Source: Agresti, Categorical Data Analysis, section on matched pairs. 1.0 without any.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5))) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the given order: compare each with alpha."""
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's (1927) interval of a share k / n of independent answers; (0, 1) for n = 0."""
    if not n:
        return 0.0, 1.0
    z, share = NormalDist().inv_cdf((1 + level) / 2), k / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((share + z * z / (2 * n) + s * half) / (1 + z * z / n) for s in (-1, 1))
    return max(0.0, low), min(1.0, high)


def _needed(gain: float, discordant: float, alpha: float, power: float) -> float:
    z_alpha, z_beta = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)
    share = max(discordant, gain)  # a gain of g needs at least a share g of discordant pairs
    return (z_alpha * math.sqrt(share) + z_beta * math.sqrt(share - gain**2)) ** 2 / gain**2


def questions_needed(gain: float, *, discordant: float = 0.25, alpha: float = 0.05,
                     power: float = 0.8, design_effect: float = 1.0) -> int:
    """Questions that a one-sided paired test at `alpha` needs to see `gain` with `power`.

    n = deff (z_alpha sqrt(psi) + z_beta sqrt(psi - gain^2))^2 / gain^2 with psi = the share of
    discordant pairs (Connor 1987, Biometrics 43:207). For two sides give alpha / 2; for the gate's
    first look, `alpha_at(0)`. `design_effect` = 1 + (questions a cluster - 1) * correlation.
    """
    if not 0 < gain <= 1 or not 0 < discordant <= 1:
        raise SelfloopError(f"gain={gain} and discordant={discordant} must be fractions in (0, 1]")
    return math.ceil(design_effect * _needed(gain, discordant, alpha, power) * (1 - 1e-9))


def smallest_detectable_gain(n: int, *, discordant: float = 0.25, alpha: float = 0.05,
                             power: float = 0.8, design_effect: float = 1.0) -> float:
    """The gain (a fraction) that `n` questions detect with `power`; inf when none can be.

    The inverse of `questions_needed`, found by bisection: its formula falls strictly in the gain.
    """
    low, high = 0.0, 1.0
    if design_effect * _needed(high, discordant, alpha, power) > n:
        return math.inf
    while high - low > 1e-13:
        middle = (low + high) / 2
        enough = design_effect * _needed(middle, discordant, alpha, power) <= n
        low, high = (low, middle) if enough else (middle, high)
    return high


@dataclass(frozen=True)
class SequentialAlpha:
    """One error rate spent over a run of unknown length: alpha / ((k+1)(k+2)) at look k = 0, 1, ...

    K looks spend alpha K / (K + 1) < alpha whatever K is, so by the union bound the chance of any
    false positive stays below `alpha`, and three iterations may become five. Against halving
    (alpha / 2^(k+1)) it gives away 0.14 of a z-score at the third look and gains 0.6 at the tenth.
    """

    alpha: float = 0.05

    def at(self, look: int) -> float:
        """The level of look `look`, counted from 0 like iterations."""
        if look < 0:
            raise SelfloopError(f"look {look}: looks are counted from 0, like iterations")
        return self.alpha / ((look + 1) * (look + 2))

    def spent(self, look: int) -> float:
        """What looks 0 to `look` have spent together."""
        return self.alpha * (look + 1) / (look + 2)


def alpha_at(look: int, alpha: float = 0.05) -> float:
    """`SequentialAlpha(alpha).at(look)`."""
    return SequentialAlpha(alpha).at(look)
