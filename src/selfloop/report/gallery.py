"""Pictures with what was said about them: won, lost, and a sample of what was learned from.

Which questions are shown is drawn by key and not picked, and the page says so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from selfloop import keys
from selfloop.data import load
from selfloop.evaluate.answers import Answer
from selfloop.pictures import Library
from selfloop.report.facts import Findings
from selfloop.roles import SelfloopError
from selfloop.types import Group, Media, Sample

SIDE = 288
"""Longest side of a picture on the page, in pixels."""
SHOWN = 9
"""Questions shown as won and as lost."""
GROUPS = 3
"""Training questions shown from the first and from the last step."""
_MOST = 4
_LETTERS = 700


@dataclass(frozen=True)
class Picture:
    """One picture as a data URL, or the reason why there is none."""

    url: str
    width: int
    height: int
    why: str = ""
    seen: str = ""
    """Operations it was seen through, in words."""


class Album:
    """Opens pictures from a run's own folder, from the proof's, or from where they came."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._libraries = [Library(folder) for folder in folders] or [Library()]
        self._made: dict[str, Picture] = {}

    def show(self, media: Sequence[Media]) -> list[Picture]:
        """Each as a small picture; those that cannot be opened say why."""
        return [self._one(medium) for medium in media]

    def _one(self, medium: Media) -> Picture:
        if medium.identity not in self._made:
            self._made[medium.identity] = self._opened(medium)
        return self._made[medium.identity]

    def _opened(self, medium: Media) -> Picture:
        seen = ", ".join(f"{op.name} {op.severity:g}" for op in medium.ops if op.name != "page")
        if medium.kind != "image":
            return Picture("", 0, 0, f"{medium.kind} is not shown on this page", seen)
        why = ""
        for library in self._libraries:
            try:
                return _encoded(library.open(medium), seen)
            except (SelfloopError, OSError, ValueError, KeyError, TypeError) as error:
                why = str(error)
        return Picture("", 0, 0, why, seen)


def _encoded(image: Image.Image, seen: str) -> Picture:
    image.thumbnail((SIDE, SIDE))
    sink = io.BytesIO()
    if image.width * image.height <= 96 * 96:  # small ones stay exact: JPEG would smear them
        image.save(sink, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(sink, "JPEG", quality=80)
        kind = "jpeg"
    text = base64.b64encode(sink.getvalue()).decode()
    return Picture(f"data:image/{kind};base64,{text}", image.width, image.height, "", seen)


def questions(found: Findings, given: Sequence[Sample] = ()) -> tuple[dict[str, Sample], str]:
    """The dev questions by id, and, where they are not all found, why.

    A run keeps their ids; the questions are those given, or a dev.jsonl near the run.
    """
    wanted = {a.sample for answers in found.dev.values() for a in answers}
    known = {s.id: s for s in given if s.id in wanted}
    for path in _near(found) if len(known) < len(wanted) else ():
        try:
            known |= {s.id: s for s in load(path, on_bad="report") if s.id in wanted}
        except (SelfloopError, OSError) as error:
            return known, f"{path} cannot be read: {error}"
        if len(known) == len(wanted):
            break
    if wanted and not known:
        return known, ("the dev questions were not found near the run (it keeps their ids only), "
                       "so answers are shown without picture and question")
    return known, ""


def _near(found: Findings) -> Iterator[Path]:
    run = found.run.path.absolute()
    for folder in dict.fromkeys((run, found.folder.absolute(), *run.parents[:4])):
        for name in ("dev.jsonl", "dev.parquet", "data/dev.jsonl", "data/dev/dev.jsonl"):
            if (folder / name).is_file():
                yield folder / name


def changed(found: Findings, known: Mapping[str, Sample], album: Album
            ) -> dict[str, dict[str, Any]]:
    """"won" and "lost" between seed and final on dev: how many there are, and some of them."""
    final = found.final
    before = {a.sample: a for a in found.greedy(-1)}
    after = {a.sample: a for a in found.greedy(final)} if final is not None else {}
    both = [(before[i], after[i]) for i in before if i in after]
    won = [pair for pair in both if pair[0].right is False and pair[1].right]
    lost = [pair for pair in both if pair[0].right and pair[1].right is False]
    return {name: {"count": len(pairs), "of": len(both), "items": [
        _card(*pairs[i], known, album) for i in keys.shuffled(len(pairs), f"report/{name}")[:SHOWN]
    ]} for name, pairs in (("won", won), ("lost", lost))}


def _card(before: Answer, after: Answer, known: Mapping[str, Sample], album: Album
          ) -> dict[str, Any]:
    sample = known.get(before.sample)
    return {
        "id": before.sample, "task": before.task, "gold": before.gold,
        "question": cut(sample.context.text) if sample else None,
        "pictures": album.show(sample.media[:_MOST]) if sample else [],
        "before": cut(before.text), "after": cut(after.text),
    }


def learned_from(found: Findings, album: Album) -> list[dict[str, Any]]:
    """A few training questions of the first and the last step, each with answers and verdicts."""
    if not found.manifests:
        return []
    cards = []
    for step in dict.fromkeys((0, len(found.manifests) - 1)):
        groups = [g for g in found.groups(step) if g.rollouts]
        order = keys.shuffled(len(groups), f"report/step{step}")
        # Questions with both right and wrong answers first: those are what a method learns from.
        order.sort(key=lambda i: len({v.right for v in groups[i].verdicts}) < 2)
        cards += [_group(groups[i], step, album) for i in order[:GROUPS]]
    return cards


def _group(group: Group, step: int, album: Album) -> dict[str, Any]:
    verdicts = [*group.verdicts, *(None,) * (len(group.rollouts) - len(group.verdicts))]
    drawn = []
    # Of equal answers with equal verdicts one is shown, with how often it was drawn.
    counted: dict[tuple[object, ...], int] = {}
    for rollout, verdict in zip(group.rollouts, verdicts, strict=True):
        mark = (rollout.text, rollout.role, verdict and (verdict.score, verdict.error))
        counted[mark] = counted.get(mark, 0) + 1
        if counted[mark] == 1:
            drawn.append((mark, rollout, verdict))
    return {
        "id": group.sample.id, "step": step, "question": cut(group.sample.context.text),
        "gold": group.sample.answer, "pictures": album.show(group.sample.media[:_MOST]),
        "drawn": len(group.rollouts), "shown": sum(counted[mark] for mark, _, _ in drawn[:_MOST]),
        "rollouts": [{
            "text": cut(rollout.text), "role": rollout.role, "times": counted[mark],
            "tokens": rollout.tokens, "cut": rollout.finish_reason == "length",
            "score": verdict.score if verdict else None, "right": bool(verdict and verdict.right),
            "error": bool(verdict and verdict.error), "rationale": cut(
                verdict.rationale if verdict else "", 200),
            "verifier": verdict.verifier if verdict else "",
        } for mark, rollout, verdict in drawn[:_MOST]],
    }


def cut(text: str, most: int = _LETTERS) -> str:
    """The text, or its beginning and how much was left out."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more letters)"
