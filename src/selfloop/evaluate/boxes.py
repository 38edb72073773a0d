"""Boxes: how much two overlap, and the mean average precision of detections as COCO defines it.

Boxes are (x1, y1, x2, y2) in pixels, corners in any unit as long as it is one. IoU: Everingham et
al. 2010 (PASCAL VOC); GIoU: Rezatofighi et al. 2019 (arXiv 1902.09630); mAP: COCO detection
evaluation (Lin et al. 2014, arXiv 1405.0312; cocodataset.org/#detection-eval).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop.roles import SelfloopError

Array = np.ndarray[Any, Any]

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""COCO's: 0.50, 0.55, ..., 0.95."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Where precision is read off: 101 points."""
MOST = 100
"""Detections counted a picture and category, the surest first."""


def _checked(boxes: Any, what: str) -> Array:
    found = np.asarray(boxes, dtype=float).reshape(-1, 4)
    bad = ~np.isfinite(found).all(1) | (found[:, 2] < found[:, 0]) | (found[:, 3] < found[:, 1])
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise SelfloopError(f"{what}, box {i}: {found[i].tolist()} is not (x1, y1, x2, y2) with "
                            "x1 <= x2 and y1 <= y2; a box as (x, y, width, height) must be turned "
                            "into corners first")
    return found


def _areas(boxes: Array) -> Array:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _intersections(a: Array, b: Array) -> Array:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.asarray(np.clip(high - low, 0.0, None).prod(2))


def _share(part: Array, whole: Array) -> Array:
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))


def iou(a: Any, b: Any, crowd: Any = None) -> Array:
    """(N, M) intersection over union of boxes `a` (N, 4) and `b` (M, 4), in [0, 1].

    `crowd`: (M,) true where `b` is a region of many objects; there the intersection is divided by
    the area of `a` alone, as COCO does. Two boxes without area have 0. Raises SelfloopError for
    boxes that are not corners.
    """
    a, b = _checked(a, "iou, first boxes"), _checked(b, "iou, second boxes")
    shared = _intersections(a, b)
    union = _areas(a)[:, None] + _areas(b)[None] - shared
    if crowd is not None:
        union = np.where(np.asarray(crowd, dtype=bool)[None], _areas(a)[:, None], union)
    return _share(shared, union)


def giou(a: Any, b: Any) -> Array:
    """(N, M) generalized IoU in (-1, 1]: IoU minus the empty share of the smallest box around both.

    Boxes apart get less the farther they are, where IoU is 0 for all of them.
    """
    a, b = _checked(a, "giou, first boxes"), _checked(b, "giou, second boxes")
    shared = _intersections(a, b)
    union = _areas(a)[:, None] + _areas(b)[None] - shared
    sides = (np.maximum(a[:, None, 2:], b[None, :, 2:])
             - np.minimum(a[:, None, :2], b[None, :, :2]))
    around = sides.prod(2)
    return np.asarray(iou(a, b) - _share(around - union, around))


@dataclass(frozen=True)
class Boxes:
    """What is in one picture, or what was detected there."""

    boxes: Any
    """(N, 4) corners."""
    labels: Sequence[str]
    """(N,) categories."""
    scores: Sequence[float] | None = None
    """(N,) how sure a detection is; needed for detections, unused for what is there."""
    crowd: Sequence[bool] | None = None
    """(N,) for what is there: a region of many objects. Detections on it count neither way."""

    def of(self, label: str) -> tuple[Array, Array, Array]:
        """Boxes (n, 4), scores (n,) and crowd (n,) of one category."""
        own = np.array([name == label for name in self.labels], dtype=bool)
        boxes = np.asarray(self.boxes, dtype=float).reshape(-1, 4)[own]
        scores = np.zeros(len(own)) if self.scores is None else np.asarray(self.scores, dtype=float)
        crowd = np.zeros(len(own), bool) if self.crowd is None else np.asarray(self.crowd, bool)
        return boxes, scores[own], crowd[own]


@dataclass(frozen=True)
class Precision:
    """Mean average precision, in [0, 1]; NaN where no object was there to be found."""

    mean: float
    """Over thresholds and categories: COCO's "AP"."""
    by_threshold: dict[float, float]
    """Over categories at one threshold: [0.5] is COCO's AP50."""
    by_label: dict[str, float]
    """Over thresholds, for one category."""


def mean_average_precision(found: Sequence[Boxes], there: Sequence[Boxes],
                           thresholds: Sequence[float] = THRESHOLDS) -> Precision:
    """mAP of detections against what is there, picture by picture, all areas together.

    Precision is made falling from right to left and read at 101 recalls; categories without an
    object are left out. Raises SelfloopError for lists of unequal length or missing scores.
    """
    _same_pictures(found, there)
    labels = sorted({label for picture in there for label in picture.labels})
    table = np.array([[_average_precision(found, there, label, t) for t in thresholds]
                      for label in labels]).reshape(len(labels), len(thresholds))
    known = ~np.isnan(table).all(1) if len(labels) else np.zeros(0, bool)
    table, kept = table[known], [name for name, k in zip(labels, known, strict=True) if k]
    if not kept:
        return Precision(float("nan"), dict.fromkeys(thresholds, float("nan")), {})
    return Precision(float(table.mean()),
                     dict(zip(thresholds, table.mean(0).tolist(), strict=True)),
                     dict(zip(kept, table.mean(1).tolist(), strict=True)))


def _same_pictures(found: Sequence[Boxes], there: Sequence[Boxes]) -> None:
    if len(found) != len(there):
        raise SelfloopError(f"mean_average_precision: detections of {len(found)} pictures and "
                            f"objects of {len(there)}: give one of each a picture, empty ones too")
    for which, pictures in (("detections", found), ("objects", there)):
        for i, picture in enumerate(pictures):
            boxes = _checked(picture.boxes, f"{which} of picture {i}")
            for name, values in (("labels", picture.labels), ("scores", picture.scores),
                                 ("crowd", picture.crowd)):
                if values is not None and len(values) != len(boxes):
                    raise SelfloopError(f"{which} of picture {i}: {len(boxes)} boxes and "
                                        f"{len(values)} {name}; give one a box")
            if which == "detections" and picture.scores is None and len(boxes):
                raise SelfloopError(f"detections of picture {i}: no scores; their order decides "
                                    "average precision, so give one a box")


def _average_precision(found: Sequence[Boxes], there: Sequence[Boxes], label: str, threshold: float
                       ) -> float:
    """One category at one threshold; NaN when no object of it is there (crowds do not count)."""
    scores, right, counted, objects = [], [], [], 0
    for ours, theirs in zip(found, there, strict=True):
        boxes, sure, _ = ours.of(label)
        gold, _, crowd = theirs.of(label)
        order = np.argsort(-sure, kind="stable")[:MOST]
        hit, ignored = _matched(boxes[order], gold, crowd, threshold)
        objects += int((~crowd).sum())
        scores.append(sure[order])
        right.append(hit & ~ignored)
        counted.append(~ignored)
    if not objects:
        return float("nan")
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits = np.concatenate(right)[order][np.concatenate(counted)[order]]
    return interpolated(hits, objects)


def interpolated(hits: Array, objects: int) -> float:
    """101-point average precision of detections in falling order of score.

    `hits`: (N,) whether each found an object; `objects`: how many there are. COCO's rule: at each
    recall the best precision at that recall or a higher one; 0 beyond the last.
    """
    if not len(hits):
        return 0.0
    right = np.cumsum(hits)
    recall, precision = right / objects, right / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(best, 0.0)[np.minimum(at, len(best))].mean())


def _matched(boxes: Array, gold: Array, crowd: Array, threshold: float) -> tuple[Array, Array]:
    """(n,) which detections, surest first, found an object, and which fell on a crowd.

    Each takes the object that it overlaps most among those still free; a crowd only where there
    is none, and as often as it likes. Of equal overlaps the later object is taken, as in COCO.
    """
    overlap = iou(boxes, gold, crowd)
    hit, ignored = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
    free, reach = ~crowd, min(threshold, 1 - 1e-10)
    for i, row in enumerate(overlap):
        for candidates in (np.flatnonzero(free), np.flatnonzero(crowd)):
            near = candidates[row[candidates] >= reach]
            if len(near):
                best = near[row[near] == row[near].max()][-1]
                hit[i], ignored[i] = True, bool(crowd[best])
                free[best] = False
                break
    return hit, ignored
