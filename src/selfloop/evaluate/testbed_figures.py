"""What the scenes testbed counts beside accuracy: exact CHAIR, POPE and the pull of the prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfloop.evaluate.benchmark import Marked, Tally, added, mean_score
from selfloop.testbeds.scenes_measures import Chair, Existence, chair, existence, stereotyped
from selfloop.testbeds.scenes_objects import PLACES, Thing
from selfloop.types import Sample


def count(marked: Sequence[Marked]) -> Tally:
    """`accuracy` of all questions; of captions `chair_i`, `chair_s`, `recall` and `words`; of
    existence questions `pope`, `pope_f1` and `yes_rate`; of colour questions `misled`, the share
    of unusual colours for which the usual one is said. See docs/scenes.md."""
    found = [mean_score(marked)]
    for sample, answer in marked:
        task = str(sample.meta.get("task") or "")
        if task == "caption":
            found.append(_caption(chair(answer.text, _things(sample))))
        elif sample.answer in ("yes", "no"):
            found.append(_existence(existence(answer.text, str(sample.answer))))
        elif task == "colour":
            told = stereotyped(answer.text, {"task": task, "answer": sample.answer,
                                             "id": sample.id, "prompt": sample.context.text})
            found.append({"misled": (told.misled, told.unusual)})
    return added(found)


def _things(sample: Sample) -> list[Thing]:
    objects: Any = sample.meta["objects"]
    return [Thing(colour, kind, PLACES.index(place)) for colour, kind, place in objects]


def _caption(found: Chair) -> Tally:
    return {"chair_i": (found.invented, found.mentions),
            "chair_s": (found.hallucinating, found.captions),
            "recall": (found.found, found.objects), "words": (found.words, found.captions)}


def _existence(found: Existence) -> Tally:
    missed = found.false_no + found.unread_true
    return {"pope": (found.true_yes + found.true_no, found.asked),
            "pope_f1": (2 * found.true_yes, 2 * found.true_yes + found.false_yes + missed),
            "yes_rate": (found.true_yes + found.false_yes, found.asked)}
