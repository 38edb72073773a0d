"""How well a verifier's scores tell right answers, or right steps, from wrong ones.

For reward models and judges: the share of pairs of one problem that are ordered as the rule orders
them, the area under the ROC curve over all, and how often the best-scored answer is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from selfloop.evaluate.ratios import share_bootstrap
from selfloop.evaluate.statistics import unit_weights
from selfloop.keys import generator
from selfloop.roles import SelfloopError
from selfloop.types import Group


@dataclass(frozen=True)
class Share:
    """A figure in [0, 1] with its 95 % interval over clusters, and how many things it is over."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pair_accuracy(rule: Sequence[Group], scored: Sequence[Group]) -> Share:
    """Of the pairs (right, wrong) of one problem, the share that `scored` puts in that order.

    A tie counts half. `rule` and `scored` are the same answers with the verdicts of two verifiers;
    answers that either abstained on take no part. Raises SelfloopError where no pair is left.
    """
    found: list[float] = []
    clusters: list[str] = []
    for group, scores in _both(rule, scored):
        right = [s for r, s in scores if r]
        wrong = [s for r, s in scores if not r]
        wins = [float(a > b) + 0.5 * (a == b) for a, b in product(right, wrong)]
        found += wins
        clusters += [group.sample.cluster] * len(wins)
    if not found:
        raise SelfloopError("pair_accuracy: no problem has right and wrong answers that both "
                            "verifiers judged; draw more answers")
    return _mean(found, clusters)


def best_of(rule: Sequence[Group], scored: Sequence[Group]) -> Share:
    """How often the answer with the highest score is right (ties count their mean).

    Raises SelfloopError where no answer was judged by both.
    """
    found: list[float] = []
    clusters: list[str] = []
    for group, scores in _both(rule, scored):
        if scores:
            top = max(s for _, s in scores)
            best = [r for r, s in scores if s == top]
            found.append(sum(best) / len(best))
            clusters.append(group.sample.cluster)
    if not found:
        raise SelfloopError("best_of: no answer was judged by both verifiers")
    return _mean(found, clusters)


def answer_auc(rule: Sequence[Group], scored: Sequence[Group]) -> Share:
    """`auc` over all answers of all problems, clusters resampled."""
    rows = [(s, r, g.sample.cluster) for g, scores in _both(rule, scored) for r, s in scores]
    return auc([s for s, _, _ in rows], [r for _, r, _ in rows], [c for _, _, c in rows])


def step_auc(rule: Sequence[Group], scored: Sequence[Group]) -> Share:
    """`auc` over all steps: spans of two verifiers of steps, which must stand in equal places.

    Raises SelfloopError naming the first answer whose steps stand elsewhere.
    """
    rows: list[tuple[float, bool, str]] = []
    for group, other in zip(rule, scored, strict=True):
        for rollout, a, b in zip(group.rollouts, group.verdicts, other.verdicts, strict=True):
            if not b.spans:  # it abstained
                continue
            if [s[:2] for s in a.spans] != [s[:2] for s in b.spans]:
                raise SelfloopError(f"step_auc: the two verifiers cut answer {rollout.id} "
                                    f"({rollout.text[:40]!r}) into other steps: give both "
                                    "the same split")
            rows += [(theirs, ours >= 0.5, group.sample.cluster) for (_, _, ours), (_, _, theirs)
                     in zip(a.spans, b.spans, strict=True)]
    return auc([s for s, _, _ in rows], [r for _, r, _ in rows], [c for _, _, c in rows])


def auc(scores: Sequence[float], right: Sequence[bool], clusters: Sequence[Any], n: int = 1000
        ) -> Share:
    """The chance that a right one scores above a wrong one, ties being half (Mann and Whitney
    1947), with a percentile interval over `n` resamplings of the clusters.

    Raises SelfloopError unless there are right and wrong ones.
    """
    hit = np.asarray(right, dtype=bool)
    if not 0 < hit.sum() < len(hit):
        raise SelfloopError(f"auc: {int(hit.sum())} of {len(hit)} are right; it needs some of each")
    rank = np.unique(np.asarray(scores, dtype=float), return_inverse=True)[1]
    names, cluster = np.unique([str(c) for c in clusters], return_inverse=True)
    weights = unit_weights(generator("ranking/auc"), n, len(names))[:, cluster]
    drawn = [_auc(rank, hit, w) for w in weights if (w * hit).any() and (w * ~hit).any()]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Share(_auc(rank, hit, np.ones(len(hit))), float(low), float(high), len(hit))


def _auc(rank: Any, hit: Any, weight: Any) -> float:
    """Weighted, from ranks 0, 1, ... in which equal scores share one."""
    size = int(rank.max()) + 1
    good = np.bincount(rank, weight * hit, size)
    bad = np.bincount(rank, weight * ~hit, size)
    below = np.cumsum(bad) - bad
    return float((good * (below + bad / 2)).sum() / (good.sum() * bad.sum()))


def _both(rule: Sequence[Group], scored: Sequence[Group]
          ) -> list[tuple[Group, list[tuple[bool, float]]]]:
    """For each problem, (right by the rule, score) of the answers that both verifiers judged."""
    return [(group, [(a.right, b.score) for a, b in zip(group.verdicts, other.verdicts, strict=True)
                     if a.score is not None and b.score is not None])
            for group, other in zip(rule, scored, strict=True)]


def _mean(found: Sequence[float], clusters: Sequence[str]) -> Share:
    interval = share_bootstrap(found, clusters)
    return Share(sum(found) / len(found), interval.low, interval.high, len(found))
