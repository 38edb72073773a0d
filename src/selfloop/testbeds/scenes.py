"""Scenes of one to four coloured digits and shapes: captions, existence, colours, places, counts.

The sibling of `digits`, for what digits cannot show: hallucinated objects, answers given without
looking, and pictures from elsewhere. The scans, their splits and their blocks are those of
`digits`. What is in a picture is known exactly, so every answer and every measure of
hallucination (scenes_measures.py) is exact too. Everything is drawn from generators keyed by
strings.

The **dial** is `prior`: the share of objects that have the stereotyped colour of their kind. With
0.25 colours say nothing about kinds; with 1.0 the question alone gives every colour away.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from selfloop.keys import generator, shuffled
from selfloop.testbeds import digits
from selfloop.testbeds.digits import Split as ScanSplit
from selfloop.testbeds.digits import augment
from selfloop.testbeds.scenes_drawing import PLAIN, SHIFTED, Domain, compose
from selfloop.testbeds.scenes_objects import (
    COLOURS,
    DIGITS,
    KINDS,
    PLACES,
    SHAPE_SHARES,
    SHAPES,
    Mention,
    Thing,
    caption,
    mentioned,
    stereotype,
    things_of,
)
from selfloop.testbeds.scenes_questions import (
    DESCRIBE,
    EXISTENCE,
    HOW_MANY,
    TASKS,
    question,
    related,
)

__all__ = [
    "CHANCE", "COLOURS", "DESCRIBE", "DIGITS", "EXISTENCE", "FEWEST", "HOW_MANY", "KINDS", "MOST",
    "PLACES", "PRIOR", "SEED_LABELS", "SHAPES", "SPLITS", "TASKS", "TOKENS", "WORDS", "Item",
    "Mention", "Split", "Thing", "augment", "caption", "compose", "items", "mentioned", "picture",
    "row", "rows", "seed_items", "seed_rows", "stereotype", "things_of", "write",
]

Split = Literal["train", "dev", "test", "broken", "shifted"]

PRIOR, CHANCE = 0.7, 1 / len(COLOURS)
"""Share of stereotyped colours in training, and the share at which there is no stereotype."""
FEWEST, MOST = 1, 4
"""Objects in a picture, both ends included."""
SEED_LABELS = 840
"""Labelled questions that the shipped seed weights have seen; every other one asks for a caption,
which is the only kind that shows every object's name."""
TOKENS = 26
"""Longest right answer in tokens with its end: four objects of five words, three times "and"."""

WORDS = [
    "a", "above", "and", "answer", "are", "below", "beside", *COLOURS, "colour", "count",
    "describe", "digit", "digits", "how", "image", "in", "is", "it", "left", "lower", "many", "no",
    "not", "nothing", "object", "objects", "of", "on", "picture", "right", "see", "shape", "shapes",
    *SHAPES, "the", "there", "this", "upper", "what", "which", "yes", "you",
]
"""What the seed's tokenizer knows beside digits and marks."""


class _Source(NamedTuple):
    """Where a split's pictures come from."""

    scans: ScanSplit
    prior: float
    domain: Domain


SPLITS: dict[Split, _Source] = {
    "train": _Source("train", PRIOR, PLAIN),
    "dev": _Source("dev", PRIOR, PLAIN),
    "test": _Source("test", PRIOR, PLAIN),
    "broken": _Source("test", 0.0, PLAIN),
    "shifted": _Source("test", PRIOR, SHIFTED),
}
"""`broken` and `shifted` show the same scans in the same places as `test`, in never the usual
colours and in another domain: question by question they differ from it in that alone."""


class Item(NamedTuple):
    """One question before its picture is drawn."""

    id: str
    task: str
    prompt: str
    answer: str
    things: tuple[Thing, ...]
    """In reading order."""
    cluster: str
    domain: Domain
    key: str
    """What sizes, spots, inks and noise are drawn by; equal in test, broken and shifted."""


def items(split: Split, n: int, seed: int, *, prior: float | None = None,
          tasks: Sequence[str] = TASKS) -> list[Item]:
    """`n` questions, each about its own picture; the first k do not depend on n.

    Tasks take turns, the existence questions of each kind are true every other time, and the
    blocks of dev and test are visited evenly. `prior` turns the dial, by default as SPLITS says;
    it changes colours and nothing else of a scene. Raises ValueError on a bad argument.
    """
    _check(split, n, prior, tasks)
    source = SPLITS[split]
    share = source.prior if prior is None else prior
    dial = "" if prior is None else f"-prior{prior:g}"
    found = []
    for i in range(n):
        turn, place = divmod(i, len(tasks))
        task = tasks[place]
        key = f"{source.scans}-{seed}-{i:05d}"
        scans, cluster = _scans(source.scans, i, seed)
        things = _things(scans, share, key)
        rng = generator(f"scenes/question/{task}/{key}")
        prompt, answer = question(task, things, rng, true=turn % 2 == 0)
        found.append(Item(f"{split}-{seed}-{i:05d}{dial}", task, prompt, answer, things,
                          cluster or key, source.domain, key))
    return found


def _check(split: str, n: int, prior: float | None, tasks: Sequence[str]) -> None:
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    if n < 0:
        raise ValueError(f"n must not be negative, not {n}")
    if prior is not None and not 0.0 <= prior <= 1.0:
        raise ValueError(f"prior must be a share from 0 to 1, not {prior}")
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"no task {unknown[0]!r}; there are {', '.join(TASKS)}" if unknown else
                         f"tasks is empty; give some of {', '.join(TASKS)}")


def _scans(split: ScanSplit, i: int, seed: int) -> tuple[Sequence[int], str]:
    """The scans that question i may show, and its cluster: "" where the picture is its own."""
    if split == "train":
        return digits.split_scans()["train"], ""
    groups = digits.blocks(split)
    # Every pass over the blocks in a new order, so that tasks and blocks do not align.
    turn, place = divmod(i, len(groups))
    order = shuffled(len(groups), f"scenes/blocks/{split}/{seed}/{turn}")
    return groups[order[place]], f"{split}-{order[place]:03d}"


def _things(scans: Sequence[int], prior: float, key: str) -> tuple[Thing, ...]:
    """At least one digit, no two of a kind; about half of the others are shapes."""
    rng = generator(f"scenes/scene/{key}")
    count = int(rng.integers(FEWEST, MOST + 1))
    wanted = 1 + int(rng.binomial(count - 1, 0.5))
    chosen: dict[str, int] = {}
    for index in rng.permutation(len(scans)):
        if len(chosen) < wanted:
            chosen.setdefault(str(digits.load_scans().digits[scans[index]]), scans[index])
    shapes = rng.choice(len(SHAPES), size=count - len(chosen), replace=False, p=SHAPE_SHARES)
    kinds = [*chosen, *(SHAPES[int(s)] for s in shapes)]
    places = rng.permutation(len(PLACES))[:count]
    hues = generator(f"scenes/colours/{key}")
    found = [Thing(_colour(kind, prior, hues), kind, int(place), chosen.get(kind, -1))
             for kind, place in zip(kinds, places, strict=True)]
    return tuple(sorted(found, key=lambda thing: thing.place))


def _colour(kind: str, prior: float, rng: np.random.Generator) -> str:
    """The usual colour with probability `prior`, else one of the others, all as likely."""
    usual = stereotype(kind)
    other = [c for c in COLOURS if c != usual][int(rng.integers(len(COLOURS) - 1))]
    return usual if rng.random() < prior else other


def picture(item: Item) -> Image.Image:
    """The item's picture; the same item gives the same pixels."""
    return compose(item.things, generator(f"scenes/picture/{item.key}"), item.domain)


def row(item: Item) -> dict[str, Any]:
    """The item as a JSON-able row; `answer` is the gold.

    Answers show no work, so `chain`, the full text of a right answer, is the answer again.
    `objects` lists [colour, kind, place] in reading order, for the measures.
    """
    return {
        "id": item.id,
        "images": [f"images/{item.id}.png"],
        "prompt": item.prompt,
        "answer": item.answer,
        "chain": item.answer,
        "task": item.task,
        "objects": [[t.colour, t.kind, PLACES[t.place]] for t in item.things],
        "cluster": item.cluster,
        "related": list(dict.fromkeys([item.prompt, *related()])),
    }


def rows(split: Split, n: int, seed: int, *, prior: float | None = None,
         tasks: Sequence[str] = TASKS) -> list[dict[str, Any]]:
    """`n` rows of `split`, without writing pictures (see `write`). Raises as `items` does."""
    return [row(item) for item in items(split, n, seed, prior=prior, tasks=tasks)]


def seed_rows() -> list[dict[str, Any]]:
    """The SEED_LABELS labelled rows of the train split that the shipped weights learned from."""
    return [row(item) for item in seed_items()]


def seed_items() -> list[Item]:
    """The items behind `seed_rows`. Their seed is kept from `rows`, so pictures never repeat."""
    others = [task for task in TASKS if task != "caption"]
    return items("train", SEED_LABELS, -1, tasks=[t for o in others for t in ("caption", o)])


def write(folder: str | Path, split: Split, n: int, seed: int, *, prior: float | None = None,
          tasks: Sequence[str] = TASKS) -> Path:
    """Write `folder`/images/*.png and `folder`/`split`.jsonl; return the path of the latter.

    Raises as `items` does, and OSError when the folder cannot be written.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for item in items(split, n, seed, prior=prior, tasks=tasks):
        record = row(item)
        picture(item).save(folder / record["images"][0])
        lines.append(json.dumps(record) + "\n")
    path = folder / f"{split}.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path
