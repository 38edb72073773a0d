"""How far a verifier can be believed, on answers that are known to be right or wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np

from selfloop import keys, probed
from selfloop.evaluate.answers import expected_calibration_error
from selfloop.roles import SelfloopError
from selfloop.types import Sample, Verdict


@dataclass(frozen=True)
class Known:
    """An answer to a sample, and whether it is right."""

    sample: Sample
    said: str
    right: bool


class Share(probed.Share):
    """k of n with its interval, as JSON and to one decimal: an audit has hundreds of answers."""

    def to_json(self) -> dict[str, float | int | None]:
        """Counts, value (None for n = 0) and interval."""
        low, high = self.interval
        return {"k": self.k, "n": self.n, "value": self.value if self.n else None,
                "low": low, "high": high}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.n}" \
            if self.n else "unknown"


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % bootstrap interval over samples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Calibrated:
    """Precision, recall, calibration, biases, abstentions and failures over known answers."""

    source: str
    """"probe", or "constructed": gold answers against those of other samples."""
    answers: int
    precision: Share
    """Right among those paid (score >= 0.5)."""
    recall: Share
    """Paid among the right ones that were judged."""
    abstained: Share
    errors: Share
    calibration_error: Measured | None
    """Guo et al. 2017, ten bins; None when a score lies outside [0, 1]."""
    length_bias: Measured | None
    """Share paid among the longer half of the answers less that among the shorter half, right and
    wrong answers apart, averaged by their counts. 0: length does not matter."""


def calibrate(known: Sequence[Known], verdicts: Sequence[Verdict], source: str) -> Calibrated:
    """Compare the verdicts (N,) on known answers (N,). Unjudged ones only count as such."""
    judged = [(k, v.score) for k, v in zip(known, verdicts, strict=True) if v.score is not None]
    right = [k.right for k, _ in judged]
    scores = [s for _, s in judged]
    paid = [s >= 0.5 for s in scores]
    both = sum(p and r for p, r in zip(paid, right, strict=True))
    names = [k.sample.id for k, _ in judged]
    lengths = [len(k.said) for k, _ in judged]
    bounded = bool(scores) and min(scores) >= 0 and max(scores) <= 1

    def miscalibration(at: Sequence[int]) -> float:
        return expected_calibration_error([scores[i] for i in at], [right[i] for i in at])

    def longer(at: Sequence[int]) -> float | None:
        return _longer([lengths[i] for i in at], [right[i] for i in at], [paid[i] for i in at])

    errors = sum(v.error for v in verdicts)
    return Calibrated(
        source, len(known), Share(both, sum(paid)), Share(both, sum(right)),
        Share(sum(v.score is None and not v.error for v in verdicts), len(verdicts)),
        Share(errors, len(verdicts)),
        resampled(miscalibration, names) if bounded else None, resampled(longer, names))


def _longer(lengths: Sequence[int], right: Sequence[bool], paid: Sequence[bool]) -> float | None:
    found: list[tuple[int, float]] = []
    for truth in (True, False):
        own = [(n, p) for n, r, p in zip(lengths, right, paid, strict=True) if r == truth]
        middle = median(n for n, _ in own) if own else 0
        long = [p for n, p in own if n > middle]
        short = [p for n, p in own if n <= middle]
        if long and short:
            found.append((len(own), fmean(long) - fmean(short)))
    total = sum(n for n, _ in found)
    return sum(n * d for n, d in found) / total if total else None


def resampled(measure: Callable[[Sequence[int]], float | None], names: Sequence[str],
              draws: int = 300) -> Measured | None:
    """The measure over all places and its bootstrap interval, drawing samples by name whole.

    None when it is not defined on all of them, or there is but one sample.
    """
    value = measure(range(len(names))) if names else None
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    if value is None or len(places) < 2:
        return None
    own, rng = list(places.values()), keys.generator("audit")
    found = [measure([i for j in rng.integers(len(own), size=len(own)) for i in own[int(j)]])
             for _ in range(draws)]
    low, high = np.quantile([f for f in found if f is not None] or [value], [0.025, 0.975])
    return Measured(value, float(low), float(high))


def read_probe(path: Path, samples: Sequence[Sample]) -> list[Known]:
    """Rows {"row": 3, "said": "the model's answer", "right": true} of a JSON Lines file.

    `row` counts the samples from 1. Raises SelfloopError naming file, line and field.
    """
    known = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            at, said, right = row["row"], row["said"], row["right"]
        except (ValueError, KeyError, TypeError) as error:
            raise SelfloopError(f"{where}: {error}; expected "
                                '{"row": 3, "said": "...", "right": true}') from None
        if not isinstance(at, int) or not 1 <= at <= len(samples):
            raise SelfloopError(f"{where}, field 'row': {at!r}; expected 1 to {len(samples)}")
        if not isinstance(said, str) or not isinstance(right, bool):
            raise SelfloopError(f"{where}: 'said' must be a text and 'right' true or false")
        known.append(Known(samples[at - 1], said, right))
    return known
