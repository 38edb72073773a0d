"""Two models on the same questions: paired differences, corrected for how many were looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfloop.evaluate.answers import Answer
from selfloop.evaluate.benchmark import Benchmark, Tally
from selfloop.evaluate.ratios import benjamini_hochberg, ratio_bootstrap, ratio_p_value
from selfloop.evaluate.scoring import GREEDY, tallies
from selfloop.evaluate.statistics import holm, permutation
from selfloop.roles import SelfloopError
from selfloop.types import Sample

ADJUSTMENTS = ("holm", "bh")


@dataclass(frozen=True)
class Difference:
    """The first model's main figure minus the second's, on one benchmark."""

    benchmark: str
    figure: str
    a: float
    b: float
    gain: float
    """In the benchmark's own unit; see `better` for its direction."""
    low: float
    high: float
    se: float
    p_value: float
    """Two-sided, whole clusters swapped between the models."""
    p_adjusted: float
    better: str
    """"first", "second" or "not shown": at the asked level, after the adjustment."""
    questions: int
    clusters: int
    detectable: float
    """The smallest difference that these questions show four times in five, by its own standard
    error: (z_{1 - alpha/2} + z_{0.8}) SE."""

    def needed(self, gain: float) -> int:
        """Questions like these that would show a difference of `gain` four times in five."""
        if not math.isfinite(self.detectable) or not self.detectable:
            return self.questions
        return math.ceil(self.questions * (self.detectable / gain) ** 2)


def compare(benchmark: Benchmark, samples: Mapping[str, Sample], a: Sequence[Answer],
            b: Sequence[Answer], *, alpha: float = 0.05) -> Difference:
    """One benchmark, two models' marked answers. Raises SelfloopError when they differ in what
    was asked. `p_adjusted` is the p-value itself until `adjusted` has seen all benchmarks."""
    ours, theirs = ([x for x in found if x.arm == GREEDY] for found in (a, b))
    asked, others = {x.sample for x in ours}, {x.sample for x in theirs}
    if asked != others or not asked:
        missing = next(iter(asked ^ others), "")
        raise SelfloopError(f"{benchmark.name}: question {missing} was asked of one model only: "
                            "evaluate both on the same data")
    first, second = tallies(benchmark, samples, ours), tallies(benchmark, samples, theirs)
    clusters = list(first)
    x, y = _sums(first, clusters, benchmark.main), _sums(second, clusters, benchmark.main)
    key = f"compare/{benchmark.name}"
    if x[1].sum() <= 0 or y[1].sum() <= 0:  # captions that name no object have no CHAIR
        return _nothing(benchmark, len(asked), len(clusters))
    interval = ratio_bootstrap(*x, minus=y, key=key)
    p_value = _p_value(x, y, clusters, key)
    return Difference(
        benchmark=benchmark.name, figure=benchmark.main, a=float(x[0].sum() / x[1].sum()),
        b=float(y[0].sum() / y[1].sum()), gain=interval.estimate, low=interval.low,
        high=interval.high, se=interval.se, p_value=p_value, p_adjusted=p_value,
        better=_better(interval.estimate, p_value, alpha, benchmark.lower_is_better),
        questions=len(asked), clusters=len(clusters), detectable=_detectable(interval.se, alpha))


def _nothing(benchmark: Benchmark, questions: int, clusters: int) -> Difference:
    """What is said where a model's answers gave nothing to count."""
    unknown = math.nan
    return Difference(benchmark.name, benchmark.main, unknown, unknown, unknown, -math.inf,
                      math.inf, math.inf, 1.0, 1.0, "not shown", questions, clusters, math.inf)


def _sums(found: Mapping[str, Tally], clusters: Sequence[str], name: str
          ) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array([found[c].get(name, (0.0, 0.0)) for c in clusters], dtype=float)
    return pairs[:, 0], pairs[:, 1]


def _p_value(x: tuple[np.ndarray, np.ndarray], y: tuple[np.ndarray, np.ndarray],
             clusters: Sequence[str], key: str) -> float:
    # Equal denominators (accuracies): the difference is linear, so the exact test applies.
    if np.array_equal(x[1], y[1]):
        return permutation(x[0] - y[0], clusters, key=key)
    return ratio_p_value(x, y, key=key)


def _better(gain: float, p_value: float, alpha: float, lower: bool) -> str:
    if p_value >= alpha or gain == 0:
        return "not shown"
    return "first" if (gain < 0) == lower else "second"


def _detectable(se: float, alpha: float) -> float:
    from statistics import NormalDist

    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(0.8)
    return z * se if math.isfinite(se) else math.inf


def adjusted(found: Sequence[Difference], benchmarks: Mapping[str, Benchmark], *,
             how: str = "holm", alpha: float = 0.05) -> list[Difference]:
    """The differences with p-values corrected over all of them: Holm's (any false claim at most
    alpha) or Benjamini and Hochberg's (a share of at most alpha of the claims is false)."""
    if how not in ADJUSTMENTS:
        raise SelfloopError(f"adjust={how!r}: expected one of {', '.join(ADJUSTMENTS)}")
    from dataclasses import replace

    p_values = [d.p_value for d in found]
    corrected = holm(p_values) if how == "holm" else benjamini_hochberg(p_values)
    return [replace(d, p_adjusted=p, better=_better(
        d.gain, p, alpha, benchmarks[d.benchmark].lower_is_better))
        for d, p in zip(found, corrected, strict=True)]
