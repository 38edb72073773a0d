"""Questions about pictures of real handwritten digits, with answers that can be checked.

The 1,797 scans of `sklearn.datasets.load_digits` (8 x 8 pixels, no writer ids) are split once and
for all into train, dev and test, and composed into pictures of two to four digits that are read
line by line from the top, each line from left to right. An answer shows its work: "3 5 2 = 10".
Everything is drawn from generators keyed by strings, nothing from global state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from selfloop.keys import generator, shuffled

Split = Literal["train", "dev", "test"]

SIDE = 32
"""Height and width of a composed picture in pixels."""
GRID = 2
"""Rows and columns of loose cells, one digit a cell: at most GRID squared digits a picture."""
SMALLEST, BIGGEST = 10, 13
"""Height and width of a digit in pixels, both ends included."""
JITTER = 1.0
"""How far in pixels a digit strays from the middle of its cell, down and across."""
PAPER = 0.15
"""Brightest paper, from 0 (black) to 1 (white); ink is at least 0.4 brighter than paper."""
FEWEST, MOST = 2, 4
"""Digits in a picture, both ends included."""
BLOCK = 4
"""Scans in a block. A dev or test picture never mixes blocks, so blocks are independent."""
SIZES: dict[Split, int] = {"train": 1000, "dev": 200, "test": 597}
SEED_LABELS = 300
"""Labelled pictures that the shipped seed weights have seen."""

prompts: dict[str, str] = {
    "sum": "what is the sum ?",
    "largest": "what is the largest ?",
    "smallest": "what is the smallest ?",
    "even": "how many are even ?",
    "read": "what are the digits ?",
}
"""Task name -> the text of its question."""

_ANSWER = re.compile(r"\s*([0-9](?:\s+[0-9])*)\s*=\s*([0-9]+)\s*")


class Scans(NamedTuple):
    """All scans of the data set, indexed by scan id."""

    pixels: np.ndarray
    """uint8 (1797, 8, 8); ink is 255, paper is 0."""
    digits: np.ndarray
    """int64 (1797,), 0 to 9."""


@cache
def load_scans() -> Scans:
    """The scans that ship inside scikit-learn. Raises ImportError where it is not installed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.round(data.images * (255.0 / 16.0)).astype(np.uint8)
    pixels.flags.writeable = False
    return Scans(pixels, data.target.astype(np.int64))


@cache
def split_scans() -> dict[Split, tuple[int, ...]]:
    """Scan ids of each split: disjoint, together all 1,797, the same in every process."""
    order = shuffled(sum(SIZES.values()), "digits/split")
    out: dict[Split, tuple[int, ...]] = {}
    start = 0
    for split, size in SIZES.items():
        out[split] = tuple(order[start : start + size])
        start += size
    return out


def blocks(split: Split) -> list[tuple[int, ...]]:
    """The split's scans in disjoint groups of BLOCK scan ids (a rest of fewer is left out)."""
    ids = split_scans()[split]
    return [ids[i : i + BLOCK] for i in range(0, len(ids) - BLOCK + 1, BLOCK)]


def compose(scan_ids: Sequence[int], rng: np.random.Generator) -> Image.Image:
    """An RGB picture of SIDE x SIDE pixels showing the scans in reading order: line by line from
    the top, each line from left to right, never overlapping.

    Cells, places in them, sizes, paper and ink are drawn from `rng`. Raises ValueError unless
    there are one to GRID squared scans.
    """
    n = len(scan_ids)
    if not 1 <= n <= GRID * GRID:
        raise ValueError(f"a picture holds one to {GRID * GRID} digits, not {n}")
    pixels = load_scans().pixels
    cell = SIDE // GRID
    paper = rng.uniform(0.0, PAPER)
    canvas = np.full((SIDE, SIDE), paper)
    places = sorted(rng.permutation(GRID * GRID)[:n])
    for scan, place in zip(scan_ids, places, strict=True):
        size = int(rng.integers(SMALLEST, BIGGEST + 1))
        stray = min(JITTER, (cell - size) / 2)
        inside = np.round((cell - size) / 2 + rng.uniform(-stray, stray, size=2)).astype(int)
        top, left = cell * np.array(divmod(place, GRID)) + inside
        ink = rng.uniform(paper + 0.4, 1.0)
        scaled = Image.fromarray(pixels[scan]).resize((size, size), Image.Resampling.BICUBIC)
        mask = np.asarray(scaled, dtype=np.float64) / 255.0
        canvas[top : top + size, left : left + size] += (ink - paper) * mask
    canvas += rng.normal(0.0, 0.03, size=canvas.shape)
    grey = np.round(np.clip(canvas, 0.0, 1.0) * 255.0).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same digits in the same order, seen a little differently: shift, zoom, rotation,
    contrast, noise. RGB in, RGB of the same size out; depends on `image` and `rng` alone."""
    image = image.convert("RGB")
    width, height = image.size
    zoom = rng.uniform(0.86, 1.08)
    # A shrunken picture has room to move; a grown one keeps to a pixel so that no digit is lost.
    reach = max(0.025, (1.0 - zoom) / 2.0)
    shift_x, shift_y = rng.uniform(-reach, reach, size=2) * (width, height)
    angle = np.deg2rad(rng.uniform(-10.0, 10.0))
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    mid_x, mid_y = width / 2.0, height / 2.0
    matrix = (
        cos, sin, mid_x - cos * (mid_x + shift_x) - sin * (mid_y + shift_y),
        -sin, cos, mid_y + sin * (mid_x + shift_x) - cos * (mid_y + shift_y),
    )
    paper = tuple(int(v) for v in np.median(np.asarray(image).reshape(-1, 3), axis=0))
    moved = image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=paper
    )
    values = np.asarray(moved, dtype=np.float64) / 255.0
    gain, offset = rng.uniform(0.65, 1.3), rng.uniform(-0.08, 0.08)
    noise = rng.normal(0.0, rng.uniform(0.0, 0.08), size=(height, width, 1))
    values = (values - values.mean()) * gain + values.mean() + offset + noise
    return Image.fromarray(np.round(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8))


def answer_to(task: str, digits: str) -> str:
    """The right answer when the picture reads `digits`. Raises ValueError on an unknown task."""
    values = [int(d) for d in digits]
    if task == "sum":
        return str(sum(values))
    if task == "largest":
        return str(max(values))
    if task == "smallest":
        return str(min(values))
    if task == "even":
        return str(sum(v % 2 == 0 for v in values))
    if task == "read":
        return digits
    raise ValueError(f"no task {task!r}; there are {', '.join(prompts)}")


def chain_for(task: str, digits: str) -> str:
    """The full text of a right answer: "3 5 2 = 10"."""
    return f"{' '.join(digits)} = {answer_to(task, digits)}"


def parse(text: str) -> tuple[str, str] | None:
    """(digits read, answer) of "3 5 2 = 10", here ("352", "10"); None for any other text."""
    found = _ANSWER.fullmatch(text)
    if found is None:
        return None
    return "".join(found.group(1).split()), found.group(2)


def chain_ok(text: str, task: str) -> bool | None:
    """Whether the answer follows from the digits that the text itself read; needs no gold.

    None when the text cannot be parsed. Raises ValueError on an unknown task.
    """
    if task not in prompts:
        raise ValueError(f"no task {task!r}; there are {', '.join(prompts)}")
    read = parse(text)
    return None if read is None else answer_to(task, read[0]) == read[1]


class Item(NamedTuple):
    """One question before its picture is drawn."""

    id: str
    task: str
    scan_ids: tuple[int, ...]
    cluster: str


def items(split: Split, n: int, seed: int) -> list[Item]:
    """`n` questions, each about its own picture; the first k do not depend on n. Tasks take
    turns and dev and test blocks are visited evenly. Raises ValueError on a bad split or n."""
    if split not in SIZES:
        raise ValueError(f"no split {split!r}; there are {', '.join(SIZES)}")
    if n < 0:
        raise ValueError(f"n must not be negative, not {n}")
    groups = blocks(split)
    names = list(prompts)
    out = []
    for i in range(n):
        name = f"{split}-{seed}-{i:05d}"
        rng = generator(f"digits/item/{name}")
        count = int(rng.integers(FEWEST, MOST + 1))
        if split == "train":
            source, cluster = split_scans()["train"], name
        else:
            # Every pass over the blocks in a new order, so that tasks and blocks do not align.
            turn, place = divmod(i, len(groups))
            order = shuffled(len(groups), f"digits/blocks/{split}/{seed}/{turn}")
            source, cluster = groups[order[place]], f"{split}-{order[place]:03d}"
        scans = rng.choice(len(source), size=count, replace=False)
        out.append(Item(name, names[i % len(names)], tuple(source[int(s)] for s in scans), cluster))
    return out


def picture(item: Item) -> Image.Image:
    """The item's picture; the same item gives the same pixels."""
    return compose(item.scan_ids, generator(f"digits/picture/{item.id}"))


def row(item: Item) -> dict[str, Any]:
    """The item as a JSON-able row; `answer` and `chain` are the gold."""
    digits = "".join(str(load_scans().digits[s]) for s in item.scan_ids)
    return {
        "id": item.id,
        "images": [f"images/{item.id}.png"],
        "prompt": prompts[item.task],
        "answer": answer_to(item.task, digits),
        "chain": chain_for(item.task, digits),
        "task": item.task,
        "digits": digits,
        "cluster": item.cluster,
        "related": list(prompts.values()),
    }


def rows(split: Split, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` rows of `split`, without writing pictures (see `write`). Raises as `items` does."""
    return [row(item) for item in items(split, n, seed)]


def seed_rows() -> list[dict[str, Any]]:
    """The SEED_LABELS labelled rows of the train split that the shipped weights learned from."""
    return [row(item) for item in seed_items()]


def seed_items() -> list[Item]:
    """The items behind `seed_rows`. Their seed is kept from `rows`, so pictures never repeat."""
    return items("train", SEED_LABELS, -1)


def write(folder: str | Path, split: Split, n: int, seed: int) -> Path:
    """Write `folder`/images/*.png and `folder`/`split`.jsonl; return the path of the latter.

    Raises as `items` does, and OSError when the folder cannot be written.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for item in items(split, n, seed):
        record = row(item)
        picture(item).save(folder / record["images"][0])
        lines.append(json.dumps(record) + "\n")
    path = folder / f"{split}.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path
