"""Boxes as models and data write them. A box is (x1, y1, x2, y2), corners.

Read in answers: four numbers in [], () or <>; (x1,y1),(x2,y2) and [[x1,y1],[x2,y2]], with or
without Qwen-VL's <|box_start|>; records of any quoting, {"bbox_2d": [...], "label": ...,
"confidence": ...} or x1, y1, x2, y2 or xmin, ymin, xmax, ymax by name; four numbers in LaTeX's
box. Two formats are y-first, unmistakably, and are turned: Gemini's `box_2d` records and four
of PaliGemma's <loc0000>. Their units (thousandths, 1024ths) stay as they are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.final import tagged, unthought

_CORNER = r"([-+]?(?:\d{1,12}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][-+]?\d{1,3})?)"
_GAP = r"\s{0,20}"
_COMMA = rf"{_GAP},{_GAP}"
_ROW = _COMMA.join([_CORNER] * 4)
_PAIR = rf"[\[(]{_GAP}{_CORNER}{_COMMA}{_CORNER}{_GAP}[\])]"
_FOUR = re.compile(rf"[\[(<]{_GAP}{_ROW}{_GAP}[\])>]")
_BRACED = re.compile(rf"\\boxed{_GAP}\{{{_GAP}{_ROW}{_GAP}\}}")
_TWO = re.compile(rf"(?<![\])],)(?<![\])], ){_PAIR}{_COMMA}{_PAIR}(?!{_COMMA}[\[(])")
_PLACES = re.compile(r"<loc(\d{4})>" * 4)
_RECORD = re.compile(r"\{[^{}]{1,500}\}")
_NAMES = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"),
          ("x_min", "y_min", "x_max", "y_max"), ("left", "top", "right", "bottom"))
_LABEL = re.compile(r"['\"](?:label|category|class|name)['\"]\s*:\s*['\"]([^'\"]*)['\"]", re.I)
_SURE = re.compile(r"['\"](?:confidence|score)['\"]\s*:\s*['\"]?([01](?:\.\d+)?)(?![\d.])", re.I)
_Y_FIRST = re.compile(r"['\"]box_2d['\"]\s*:\s*$")

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """One box with what it is said to hold and how surely."""

    corners: Corners
    label: str = ""
    confidence: float | None = None
    """In [0, 1], where the text gives one."""


def boxes_in(text: str) -> list[Box]:
    """The boxes that a text writes, in order; broken JSON around them is no matter.

    Only what `<answer>` holds is read where a text has that tag (the last one), and no thought. []
    for none.
    """
    text = unthought(text)
    answers = tagged(text)
    text = answers[-1] if answers else text
    records = [(m.start(), m.end(), m[0]) for m in _RECORD.finditer(text)]
    found: list[Box] = []
    end = 0
    for start, stop, corners in sorted(_written(text, records), key=lambda w: (w[0], -w[1])):
        if start < end:
            continue
        end = stop
        around = next((s for a, b, s in records if a <= start < b), "")
        label, sure = _LABEL.search(around), _SURE.search(around)
        found.append(Box(corners, label[1].strip().lower() if label else "",
                         min(1.0, float(sure[1])) if sure else None))
    return found


def _written(text: str, records: list[tuple[int, int, str]]
             ) -> Iterator[tuple[int, int, Corners]]:
    for shape in (_FOUR, _BRACED, _TWO):
        for m in shape.finditer(text):
            a, b, c, d = (float(x) for x in m.groups())
            turned = _Y_FIRST.search(text[max(0, m.start() - 20):m.start()])
            yield m.start(), m.end(), (b, a, d, c) if turned else (a, b, c, d)
    for m in _PLACES.finditer(text):
        a, b, c, d = (float(x) for x in m.groups())
        yield m.start(), m.end(), (b, a, d, c)
    for start, stop, record in records:
        for names in _NAMES:
            values = [re.search(rf"['\"]?\b{name}\b['\"]?\s*[:=]\s*['\"]?{_CORNER}", record)
                      for name in names]
            if all(values):
                x1, y1, x2, y2 = (float(v[1]) for v in values if v)
                yield start, stop, (x1, y1, x2, y2)
                break


def gold_boxes(answer: Any) -> list[Box] | None:
    """A gold value as boxes: a text, [x1, y1, x2, y2], or a list of boxes or of records.

    An empty list says that there is nothing to find; None where the value, or any part of it, is no
    box, or one without area (corners swapped, a side of 0).
    """
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            found = boxes_in(answer)
            return found if found and all(_has_area(b.corners) for b in found) else None
    if isinstance(answer, list | tuple):
        if not answer:
            return []
        one = _corners(answer)
        boxes = [Box(one)] if one else [_gold_box(part) for part in answer]
    else:
        boxes = [_gold_box(answer)]
    whole = [box for box in boxes if box is not None and _has_area(box.corners)]
    return whole if len(whole) == len(boxes) else None


def _gold_box(part: Any) -> Box | None:
    if isinstance(part, str):
        found = boxes_in(part)
        return found[0] if len(found) == 1 else None
    if isinstance(part, Mapping):
        return _gold_record(part)
    corners = _corners(part)
    return Box(corners) if corners else None


def _gold_record(part: Mapping[Any, Any]) -> Box | None:
    held = [(k, c) for k, v in part.items() if (c := _corners(v)) is not None]
    named = [c for names in _NAMES if (c := _corners([part.get(n) for n in names])) is not None]
    if len(held) + len(named) != 1:
        return None
    corners = named[0] if named else held[0][1]
    if held and held[0][0] == "box_2d":
        corners = (corners[1], corners[0], corners[3], corners[2])
    label = next((part[k] for k in ("label", "category", "class", "name") if k in part), "")
    sure = next((part[k] for k in ("confidence", "score") if k in part), None)
    confidence = float(sure) if isinstance(sure, int | float) and _number(sure) else None
    return Box(corners, str(label).strip().lower(), confidence and min(1.0, confidence))


def _corners(value: Any) -> Corners | None:
    """[x1, y1, x2, y2] or [[x1, y1], [x2, y2]] of finite numbers."""
    if not isinstance(value, list | tuple):
        return None
    if len(value) == 2 and all(isinstance(p, list | tuple) and len(p) == 2 for p in value):
        value = [*value[0], *value[1]]
    if len(value) != 4 or not all(_number(x) for x in value):
        return None
    x1, y1, x2, y2 = (float(x) for x in value)
    return x1, y1, x2, y2


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _has_area(corners: Corners) -> bool:
    return corners[2] > corners[0] and corners[3] > corners[1]
