"""Several looks at one question: the level that a look may use when earlier ones were alike.

The gate compares every candidate since the last promotion with the same model on the same dev
questions, and each candidate is the last one trained further. Their tests are therefore strongly
correlated, and adding up their levels (the union bound) gives away much of alpha. Lan and DeMets
(1983, Biometrika 70:659) spend alpha by a function of time and ask, at each look, for the level
that makes the chance of having crossed *by then* equal to what may be spent. Here that chance is
not a normal approximation: the signs of clusters are flipped for all looks together, which keeps
their correlation (Westfall and Young 1993), so it is exact under the null hypothesis that a
cluster's differences, taken over all looks, are as likely as their negatives.

It is never less powerful than the union bound with the same spending function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfloop.evaluate.answers import Answer, pair
from selfloop.keys import generator

DRAWS = 20_000
_TIE = 1e-9


def joint_p(looks: Sequence[Sequence[Answer]], best: Sequence[Answer], levels: Sequence[float],
            key: str = "looks", draws: int = DRAWS) -> float:
    """The p-value of the last look, to be compared with the last level.

    `looks`: the candidates' answers, oldest first; all but the last were not promoted. `levels`:
    what may be spent up to and with each look, rising. It is the share of joint sign flips that
    cross an earlier look's boundary or reach what the last look shows; (1 + hits) / (1 + draws),
    so that a finite number of flips never promotes by itself.
    """
    sums_KC = _sums(looks, best)
    rng, totals = generator(key), []
    rows = max(1, 4_000_000 // max(1, sums_KC.shape[1]))
    for start in range(0, draws, rows):
        size = (min(rows, draws - start), sums_KC.shape[1])
        signs = rng.integers(0, 2, size=size, dtype=np.int8) * np.int8(2) - np.int8(1)
        totals.append(signs.astype(float) @ sums_KC.T)
    totals_RK = np.concatenate(totals)
    crossed = np.zeros(draws, dtype=bool)
    for look, level in enumerate(levels[:-1]):
        crossed |= _beyond(totals_RK[:, look], crossed, level)
    reached = totals_RK[:, -1] >= sums_KC[-1].sum() - _TIE
    return (1 + int((crossed | reached).sum())) / (1 + draws)


def _sums(looks: Sequence[Sequence[Answer]], best: Sequence[Answer]
          ) -> np.ndarray[Any, np.dtype[Any]]:
    """(looks, clusters) summed differences to `best`; what was not judged counts for nothing."""
    pairs = [pair(look, best) for look in looks]
    index = {name: i for i, name in enumerate(sorted({c for p in pairs for c in p.clusters}))}
    sums_KC = np.zeros((len(pairs), max(1, len(index))))
    for k, found in enumerate(pairs):
        np.add.at(sums_KC[k], [index[c] for c in found.clusters], found.a - found.b)
    return sums_KC[:, np.any(sums_KC != 0, axis=0)] if index else sums_KC


def _beyond(total_R: np.ndarray[Any, np.dtype[Any]], crossed_R: np.ndarray[Any, np.dtype[Any]],
            level: float) -> np.ndarray[Any, np.dtype[Any]]:
    """Flips beyond the lowest boundary at which no more than `level` of all have crossed."""
    room = int(np.floor(level * len(total_R))) - int(crossed_R.sum())
    left = np.sort(total_R[~crossed_R])[::-1]
    if room <= 0 or not len(left):
        return np.zeros_like(crossed_R)
    if room >= len(left):
        return ~crossed_R
    boundary = left[room]  # those strictly above it are at most `room`, ties among them
    return np.asarray(~crossed_R & (total_R > boundary + _TIE))
