"""A gold value as a model would say it: one text, several accepted ones, or boxes and spans."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from selfloop.doors import Doors
from selfloop.organize.judging import judge
from selfloop.organize.verify.boxes import boxes_in, gold_boxes, iou
from selfloop.organize.verify.label_recovery import time_iou, time_spans
from selfloop.roles import Verifier, asks_a_model, parameters
from selfloop.types import Group, Message, Part, Rollout, Sample, Turn, Verdict

OVERLAP = 0.3
"""From this IoU on another sample's box or stretch of time is no wrong answer (chosen by us)."""
BARE = "GOLD"
SHAPES = ("<think>I look at it.</think><answer>GOLD</answer>", "\\boxed{GOLD}")
"""Forms in which some verifiers want an answer."""


def said_as_gold(answer: Any, verifier: Verifier) -> list[str]:
    """The texts that say a gold value, each of them enough; [] where there is no gold value.

    A list of texts holds alternatives, or a set for a verifier that pays for all of them together.
    A box, a stretch of time and records are one text: JSON, or "3 to 7"; boxes have a confidence
    where only that is paid for. Where a list of numbers may be either, what the verifier pays for
    most is taken; a verifier that cannot be asked here (it asks a model, or sees groups) gets JSON.
    """
    if answer is None:
        return []
    if not isinstance(answer, list | tuple | dict):
        return [str(answer)]
    forms = _forms(answer)
    return forms[0] if len(forms) == 1 else max(
        forms, key=lambda form: _paid(verifier, answer, form[0]))


def _forms(answer: Any) -> list[list[str]]:
    """The ways to say a gold value that is no single text, the most likely first."""
    boxes = [{"bbox_2d": b.corners, "label": b.label, "confidence": 1.0}
             for b in gold_boxes(answer) or ()]
    written = [[json.dumps(answer)], *([[json.dumps(boxes)]] if boxes else [])]
    if not answer or isinstance(answer, dict) or any(isinstance(v, list | dict) for v in answer):
        return written
    each = [str(v) for v in answer if v is not None]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in answer):
        return [each, *([[", ".join(each)]] if len(each) > 1 else [])]
    span = [[f"{answer[0]:g} to {answer[1]:g}"]] if len(answer) == 2 else []
    return [*written, *span, each]


def reads_structures(verifier: Verifier) -> bool:
    """Whether it reads boxes as boxes: then [] says that there is nothing to find, and is a label.

    Asked with a box written otherwise than its gold value is, which no rule of texts takes, and
    with another one that ends alike, which no rule of the last number tells from it."""
    gold = [[10, 20, 30, 40]]
    return _paid(verifier, gold, "[10.0,20.0,30.0,40.0]") >= 0.5 > \
        _paid(verifier, gold, "[1.0,2.0,3.0,40.0]")


def shape_for(verifier: Verifier, golds: Sequence[tuple[Any, str]]) -> str:
    """The form of SHAPES in which (gold value, its text) are paid for more often than bare; BARE
    where bare is as good, or it asks a model."""
    if asks_a_model(verifier) or "group" in parameters(verifier):
        return BARE

    def paid(shape: str) -> int:
        return sum(_paid(verifier, answer, shape.replace(BARE, text)) >= 0.5
                   for answer, text in golds)

    return max((BARE, *SHAPES), key=paid)


def overlapping(a: str, b: str) -> bool:
    """Whether two texts name boxes, or stretches of time, that share more than a little."""
    boxes = any(iou(x.corners, y.corners) >= OVERLAP for x in boxes_in(a) for y in boxes_in(b))
    return boxes or any(time_iou(x, y) >= OVERLAP for x in time_spans(a) for y in time_spans(b))


def said(sample: Sample, texts: Sequence[str]) -> Group:
    """Answers to a sample that nobody drew."""
    return Group(sample=sample, rollouts=tuple(
        Rollout(id=f"audit-{sample.id}-{i}", sample=sample.id, context=sample.context,
                turns=(Turn(token_ids=(1,)),), output=(Part(text=text),))
        for i, text in enumerate(texts)))


def _paid(verifier: Verifier, answer: Any, text: str) -> float:
    """The score of a text under a gold value; minus infinity for none."""
    sample = Sample(prompt=(Message(role="user", content=(Part(text="Which ?"),)),), answer=answer)
    verdicts: tuple[Verdict, ...] = judge(
        verifier, [said(sample, [text])], Doors({}, 0, "audit")).groups[0].verdicts
    score = verdicts[0].score if verdicts else None
    return float("-inf") if score is None else score
