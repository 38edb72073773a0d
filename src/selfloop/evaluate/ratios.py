"""Figures that are ratios of sums (accuracy, F1, CHAIR, recall): intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from selfloop.evaluate.statistics import Interval, bootstrap, unit_weights, wilson
from selfloop.keys import generator
from selfloop.roles import SelfloopError

Array = np.ndarray[Any, Any]
_CHUNK = 4_000_000  # numbers held at once while resampling: 32 MB


def ratio_bootstrap(tops: Array, bottoms: Array, *, minus: tuple[Array, Array] | None = None,
                    n: int = 2000, key: str = "ratio", level: float = 0.95) -> Interval:
    """Percentile interval of sum(tops) / sum(bottoms), whole clusters resampled.

    `tops`, `bottoms`: (C,) one entry a cluster. `minus`: the same of a second model on the same
    clusters; the interval is then of the difference, with both drawn together (paired bootstrap).
    One cluster says nothing: the interval is infinite. Efron and Tibshirani 1993, chapter 6.
    """
    sums = np.stack([tops, bottoms, *(minus or ())], axis=1).astype(float)
    if not len(sums) or sums[:, 1].sum() <= 0 or (minus and sums[:, 3].sum() <= 0):
        raise SelfloopError("ratio_bootstrap: nothing was counted, so there is no ratio")
    estimate = float(_ratio(sums.sum(0)[None])[0])
    units = f"{len(sums)} clusters"
    if len(sums) == 1:
        return Interval(-math.inf, math.inf, estimate, math.inf, units)
    drawn = _resampled(sums, n, key)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), estimate, float(drawn.std(ddof=1)), units)


def share_bootstrap(values: Sequence[float], clusters: Sequence[Any],
                    seeds: Sequence[Any] | None = None, *, key: str = "bootstrap") -> Interval:
    """statistics.bootstrap of values in [0, 1]. Where all are 0, or all 1, every resample is the
    same and its interval would have no width: it is Wilson's then, a cluster counting as one."""
    found = bootstrap(values, clusters, seeds, key=key)
    if found.estimate not in (0.0, 1.0) or not math.isfinite(found.low):
        return found
    many = len({str(cluster) for cluster in clusters})
    low, high = wilson(round(found.estimate * many), many)
    return replace(found, low=low, high=high)


def crossed_ratio_bootstrap(tops_SC: Array, bottoms_SC: Array, *,
                            minus: tuple[Array, Array] | None = None, n: int = 2000,
                            key: str = "crossed", level: float = 0.95) -> Interval:
    """`ratio_bootstrap` over seeds and clusters as two crossed factors, both resampled.

    (S, C): one entry a seed and cluster; `minus` likewise. As in statistics.bootstrap (Owen 2007)
    a lone seed is held fixed. Raises SelfloopError where nothing was counted.
    """
    sums_SCK = np.stack([tops_SC, bottoms_SC, *(minus or ())], axis=2).astype(float)
    seeds, clusters, width = sums_SCK.shape
    totals_K = sums_SCK.sum((0, 1))
    if totals_K[1] <= 0 or totals_K[-1] <= 0:
        raise SelfloopError("crossed_ratio_bootstrap: nothing was counted, so there is no ratio")
    estimate = float(_ratio(totals_K[None])[0])
    units = f"{clusters} clusters, one seed" if seeds == 1 else f"{seeds} seeds x {clusters} " \
        "clusters"
    if seeds == clusters == 1:
        return Interval(-math.inf, math.inf, estimate, math.inf, units)
    found = []
    sums_CX = sums_SCK.transpose(1, 0, 2).reshape(clusters, -1)
    for seeds_RS, clusters_RC in _crossed(key, n, seeds, clusters, width):
        by_seed = (clusters_RC @ sums_CX).reshape(len(seeds_RS), seeds, width)
        totals = (by_seed * seeds_RS[:, :, None]).sum(1)
        found.append(_ratio(totals[(totals[:, 1] > 0) & (totals[:, -1] > 0)]))
    drawn = np.concatenate(found)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), estimate, float(drawn.std(ddof=1)), units)


def ratio_p_value(first: tuple[Array, Array], second: tuple[Array, Array], *, n: int = 10_000,
                  key: str = "ratio_p") -> float:
    """Two-sided p-value of the difference of two ratios on the same clusters.

    Under the null the models' names can be swapped within a cluster; `n` random swaps of whole
    clusters, the one that was seen counted among them (Phipson and Smyth 2010).
    """
    a, b = np.stack(first, axis=1).astype(float), np.stack(second, axis=1).astype(float)
    if np.array_equal(a, b):
        return 1.0
    seen = abs(float(_ratio(np.hstack([a.sum(0), b.sum(0)])[None])[0]))
    beyond, total, gap = 0, a + b, a - b
    for swap in _swaps(key, n, len(a)):
        ours = b.sum(0) + swap @ gap
        flipped = np.hstack([ours, total.sum(0)[None] - ours])
        beyond += int((np.abs(_ratio(flipped)) >= seen - 1e-12).sum())
    return (1 + beyond) / (1 + n)


def _ratio(sums: Array) -> Array:
    """(N,) of (N, 2) sums, or of (N, 4): the first ratio minus the second. NaN becomes 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = sums[:, 0] / sums[:, 1]
        if sums.shape[1] == 4:
            found = found - sums[:, 2] / sums[:, 3]
    return np.asarray(np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0))


def _resampled(sums: Array, n: int, key: str) -> Array:
    rng, found, size = generator(key), [], len(sums)
    for rows in _chunks(n, size):
        # size - 1 draws of size, as in statistics.bootstrap: an unbiased variance of the mean
        index = rng.integers(size, size=(rows, size - 1)) + size * np.arange(rows)[:, None]
        weights = np.bincount(index.ravel(), minlength=rows * size).reshape(rows, size)
        totals = weights @ sums
        kept = (totals[:, 1] > 0) & (totals[:, -1] > 0)
        found.append(_ratio(totals[kept]))
    return np.concatenate(found)


# A study asks for hundreds of intervals under one key: what is drawn for the first serves all.

def _crossed(key: str, n: int, seeds: int, clusters: int, width: int
             ) -> Iterator[tuple[Array, Array]]:
    """How often each seed (R, S) and each cluster (R, C) is drawn, in chunks."""
    if n * clusters * width <= _CHUNK:
        yield _crossed_at_once(key, n, seeds, clusters)
        return
    rng = generator(key)
    for rows in _chunks(n, clusters * width):
        yield unit_weights(rng, rows, seeds), unit_weights(rng, rows, clusters)


@lru_cache(maxsize=4)
def _crossed_at_once(key: str, n: int, seeds: int, clusters: int) -> tuple[Array, Array]:
    rng = generator(key)
    return unit_weights(rng, n, seeds), unit_weights(rng, n, clusters)


def _swaps(key: str, n: int, clusters: int) -> Iterator[Array]:
    """Whether each cluster is swapped (R, C), in chunks."""
    if n * clusters <= _CHUNK:
        yield _swaps_at_once(key, n, clusters)
        return
    rng = generator(key)
    for rows in _chunks(n, clusters):
        yield rng.integers(0, 2, size=(rows, clusters)).astype(float)


@lru_cache(maxsize=4)
def _swaps_at_once(key: str, n: int, clusters: int) -> Array:
    return generator(key).integers(0, 2, size=(n, clusters)).astype(float)


def _chunks(n: int, width: int) -> list[int]:
    size = max(1, _CHUNK // max(width, 1))
    return [min(size, n - start) for start in range(0, n, size)]


def benjamini_hochberg(p_values: list[float]) -> list[float]:
    """Adjusted p-values that bound the false discovery rate (Benjamini and Hochberg 1995)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i], reverse=True)
    adjusted, ceiling = [1.0] * len(p_values), 1.0
    for place, i in enumerate(order):
        rank = len(p_values) - place
        ceiling = min(ceiling, p_values[i] * len(p_values) / rank)
        adjusted[i] = ceiling
    return adjusted
