"""Boxes in answers: one box, matched boxes, average precision (primitives V4 and V5).

A box is (x1, y1, x2, y2), corners, in whatever unit the gold boxes have; `written_boxes` says which
formats are read. A written box whose corners are swapped overlaps nothing and still counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.calling import SelfloopError
from selfloop.organize.verify.written_boxes import Box, Corners, boxes_in, gold_boxes
from selfloop.types import Rollout, Verdict

__all__ = ["Box", "BoxConfidence", "Corners", "Detection", "MatchedBoxes", "OneBox",
           "average_precision", "boxes_in", "gold_boxes", "iou", "matches"]

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""COCO's: 0.50, 0.55, ..., 0.95."""
MOST = 300
"""Boxes read from one text; a text with more is judged by the first ones and its count."""

def iou(a: Corners, b: Corners) -> float:
    """Intersection over union, in [0, 1]; 0 for boxes without area (PASCAL VOC, 2010)."""
    areas = [max(0.0, x2 - x1) * max(0.0, y2 - y1) for x1, y1, x2, y2 in (a, b)]
    if not all(areas):
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (sum(areas) - shared)


def matches(said: Sequence[Box], gold: Sequence[Box]) -> list[tuple[int, int, float]]:
    """(index in said, index in gold, IoU) of the pairs of one label, the best IoU first, each box
    at most once. A gold box without a label takes any."""
    pairs = sorted(((iou(s.corners, g.corners), -i, -j) for i, s in enumerate(said[:MOST])
                    for j, g in enumerate(gold) if g.label in ("", s.label)), reverse=True)
    found: list[tuple[int, int, float]] = []
    for value, i, j in pairs:
        free = all(-i != a and -j != b for a, b, _ in found)
        if free and value > 0:
            found.append((-i, -j, value))
    return found


def average_precision(said: Sequence[Box], gold: Sequence[Box],
                      thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Mean over gold labels and IoU thresholds of the average precision of one picture, in [0, 1].

    COCO's rule: the surest boxes first (without a confidence: in the order written), each takes
    the best free gold box, precision read off at 101 recalls (arXiv 1405.0312). `gold` not empty.
    """
    values = []
    for label in sorted({g.label for g in gold}):
        mine = [s for s in said[:MOST] if label in ("", s.label)]
        mine.sort(key=lambda s: -(1.0 if s.confidence is None else s.confidence))
        wanted = [g for g in gold if g.label == label]
        values += [_precision(mine, wanted, threshold) for threshold in thresholds]
    return sum(values) / len(values)


def _precision(said: Sequence[Box], gold: Sequence[Box], threshold: float) -> float:
    free, hits, curve = set(range(len(gold))), 0, []
    for n, box in enumerate(said, 1):
        best = max(free, key=lambda j: iou(box.corners, gold[j].corners), default=None)
        if best is not None and iou(box.corners, gold[best].corners) >= threshold:
            free.discard(best)
            hits += 1
        curve.append((hits / len(gold), hits / n))
    levels = [max((p for recall, p in curve if recall >= i / 100 - 1e-12), default=0.0)
              for i in range(101)]
    return sum(levels) / 101


def _judged(rollout: Rollout, answer: Any, score: Callable[[list[Box], list[Box]], float | None]
            ) -> Verdict:
    gold, said = gold_boxes(answer), boxes_in(rollout.text)
    if gold is None:
        return Verdict(rationale="the gold answer holds no box")
    value = float(not said) if not gold else score(said, gold)
    return Verdict(score=value, parts={"said": float(len(said)), "gold": float(len(gold))},
                   rationale=" ".join(str(list(b.corners)) for b in said[:MOST]))


@dataclass(frozen=True)
class OneBox:
    """The IoU of the one box that the answer writes and the gold one; 0 for none or several.

    With a `threshold`, 1 at or above it and 0 below. VLM-R1's REC reward (arXiv 2504.07615).
    Abstains where gold is not exactly one box.
    """

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise SelfloopError(f"OneBox(threshold={self.threshold}): expected more than 0, which "
                                "even no box reaches, and at most 1")

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """`answer`: see `gold_boxes`."""
        return _judged(rollout, answer, self._score)

    def _score(self, said: list[Box], gold: list[Box]) -> float | None:
        if len(gold) != 1:
            return None
        value = iou(said[0].corners, gold[0].corners) if len(said) == 1 else 0.0
        return value if self.threshold is None else float(value >= self.threshold)


@dataclass(frozen=True)
class MatchedBoxes:
    """The sum of the matched IoUs over max(gold boxes, written boxes), in [0, 1].

    Visual-RFT (arXiv 2503.01785, released code, second version): so many boxes too many, or too
    few, lower the mean. Nothing to find and nothing written is 1.
    """

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """`answer`: see `gold_boxes`."""
        return _judged(rollout, answer, self._score)

    def _score(self, said: list[Box], gold: list[Box]) -> float:
        return sum(v for _, _, v in matches(said, gold)) / max(len(gold), len(said))


@dataclass(frozen=True)
class Detection:
    """Average precision, times gold / written boxes where more are written than there are.

    VLM-R1's odLength reward for open-vocabulary detection (arXiv 2504.07615, released code):
    without the factor the policy learns to write boxes by the dozen.
    """

    thresholds: tuple[float, ...] = THRESHOLDS

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """`answer`: see `gold_boxes`."""
        return _judged(rollout, answer, self._score)

    def _score(self, said: list[Box], gold: list[Box]) -> float:
        penalty = min(1.0, len(gold) / len(said)) if said else 1.0
        return average_precision(said, gold, self.thresholds) * penalty


@dataclass(frozen=True)
class BoxConfidence:
    """Mean over written boxes of c where the box overlaps a gold one of its own, else 1 - c.

    Visual-RFT's confidence reward (arXiv 2503.01785). Boxes without a confidence are left out; an
    answer that writes boxes but no confidence abstains, and so does one without boxes.
    """

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """`answer`: see `gold_boxes`."""
        gold, said = gold_boxes(answer), boxes_in(rollout.text)
        if gold is None:
            return Verdict(rationale="the gold answer holds no box")
        hit = {i for i, _, _ in matches(said, gold)}
        values = [c if i in hit else 1 - c for i, b in enumerate(said[:MOST])
                  if (c := b.confidence) is not None]
        return Verdict(score=sum(values) / len(values) if values else None)
