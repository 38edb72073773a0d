"""Whether a model's confidence says how often it is right.

A confidence is a number in [0, 1] beside an answer: a probability, a verifier's score, or the
share of draws that agree. `answers.expected_calibration_error` belongs here too. Where there are no
labels the most frequent answer of several draws is the label: `vote_precision` says how often it
is right, by how many of the draws say it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop.evaluate.answers import Answer
from selfloop.evaluate.statistics import wilson
from selfloop.roles import SelfloopError


def _given(confidence: Sequence[float], right: Sequence[bool], what: str
           ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    sure, hit = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    if len(sure) != len(hit) or not len(sure):
        raise SelfloopError(f"{what}: {len(sure)} confidences and {len(hit)} verdicts; give one of "
                            "each an answer, at least 1")
    if not np.isin(hit, (0.0, 1.0)).all():
        raise SelfloopError(f"{what}: a verdict is neither true nor false; leave such answers "
                            "out")
    if not np.isfinite(sure).all():
        raise SelfloopError(f"{what}: a confidence is not a number; leave such answers out")
    return sure, hit


def brier(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Mean squared distance of confidence (N,) in [0, 1] and verdict (N,): 0 is best, always
    saying 0.5 gives 0.25. Brier 1950 (Monthly Weather Review 78). Raises SelfloopError."""
    sure, hit = _given(confidence, right, "brier")
    if sure.min() < 0 or sure.max() > 1:
        raise SelfloopError("brier: a confidence is outside [0, 1]; give probabilities")
    return float(np.mean((sure - hit) ** 2))


def auroc(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Chance that a right answer is held surer than a wrong one, ties counting half, in [0, 1].

    0.5 says that confidence tells nothing. NaN when all answers are right, or all wrong. Any
    numbers that rise with confidence will do. Hanley and McNeil 1982 (Radiology 143).
    """
    from scipy.stats import rankdata

    sure, hit = _given(confidence, right, "auroc")
    yes = int(hit.sum())
    no = len(hit) - yes
    if not yes or not no:
        return math.nan
    ranks = rankdata(sure)
    return float((ranks[hit == 1].sum() - yes * (yes + 1) / 2) / (yes * no))


@dataclass(frozen=True)
class Bin:
    """The answers whose confidence lies in (`above`, `upto`]; the first bin holds 0 too."""

    above: float
    upto: float
    count: int
    confidence: float
    """Mean confidence."""
    accuracy: float
    """Share of right answers."""
    low: float
    high: float
    """Wilson's 95 % interval of `accuracy`; of independent answers."""


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[Bin]:
    """The reliability curve: accuracy against confidence over equal-width bins, empty ones left
    out. Guo et al. 2017 (arXiv 1706.04599), section 2; its bins are those of
    `answers.expected_calibration_error`. Raises SelfloopError."""
    sure, hit = _given(confidence, right, "reliability")
    if sure.min() < 0 or sure.max() > 1 or bins < 1:
        raise SelfloopError("reliability: needs confidences in [0, 1] and at least one bin")
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for i in sorted(set(place.tolist())):
        own = place == i
        count, good = int(own.sum()), int(hit[own].sum())
        low, high = wilson(good, count)
        found.append(Bin(i / bins, (i + 1) / bins, count, float(sure[own].mean()),
                         good / count, low, high))
    return found


# -- pseudo-labels --------------------------------------------------------------------------------

@dataclass(frozen=True)
class VotePrecision:
    """How often a vote's winner is right, by the share of the draws that say it."""

    bins: tuple[Bin, ...]
    """`confidence` is the mean vote share, `accuracy` the precision of the winners as labels."""
    ties: int
    """Questions whose lead is shared by several answers: no pseudo-label, in no bin."""
    silent: int
    """Questions to which no draw gave an answer that could be read: none either."""
    unjudged: int
    """Questions without a verdict on the winner (no gold answer, or the metric abstained)."""

    @property
    def questions(self) -> int:
        """Those in the bins."""
        return sum(part.count for part in self.bins)


def vote_precision(answers: Iterable[Answer], bins: int = 10) -> VotePrecision | None:
    """Pseudo-label precision per vote-share bin, of questions that were drawn at least twice.

    The vote share is that of the answer read most often among all draws of its question, unread
    ones included, as MajorityVote counts and compares them (organize/verify/vote.py). Wilson's
    intervals take questions as independent. Arms and seeds vote apart. None when nothing was drawn
    twice.
    """
    drawn: dict[tuple[str, int, str], list[Answer]] = {}
    for one in answers:
        drawn.setdefault((one.arm, one.seed, one.sample), []).append(one)
    several = [group for group in drawn.values() if len(group) > 1]
    if not several:
        return None
    left: Counter[str] = Counter()
    shares: list[float] = []
    right: list[bool] = []
    for group in several:
        counts = Counter(said for a in group if (said := a.vote) is not None).most_common(2)
        if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
            left["ties" if counts else "silent"] += 1
            continue
        winner, count = counts[0]
        told = next((a.right for a in group if a.vote == winner and a.right is not None), None)
        if told is None:
            left["unjudged"] += 1
            continue
        shares.append(count / len(group))
        right.append(told)
    found = tuple(reliability(shares, right, bins)) if shares else ()
    return VotePrecision(found, left["ties"], left["silent"], left["unjudged"])


def between_shares(part: Bin) -> str:
    """A bin's edges as percentages, "50 to 60"; the lower edge itself belongs to the bin below."""
    return f"{100 * part.above:.0f} to {100 * part.upto:.0f}"


def not_counted(found: VotePrecision) -> str:
    """What is in no bin, in words; "" when all questions are in one."""
    told = {"tied": found.ties, "without a readable answer": found.silent,
            "without a verdict": found.unjudged}
    return ", ".join(f"{count:,} {what}" for what, count in told.items() if count)
