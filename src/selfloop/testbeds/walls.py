"""Walls of four digit pictures, too small to read at once: one has to look closer.

A wall is two by two pictures of `digits`; the embedded model's processor keeps a quarter of its
pixels. The question names one of the four and asks about its digits. Seen alone, that part is a
picture of the kind which the embedded model was trained on, so what is to be learned is where to
look, and to answer from what was shown last. `Peek` is an environment in which a digit from 1 to 4
is a look; `collect.tools.PictureTool` offers crops by coordinates on the same walls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from selfloop.keys import generator
from selfloop.pictures import Library
from selfloop.testbeds import digits
from selfloop.types import Sample

PLACES = ("up left", "up right", "down left", "down right")
"""The parts of a wall in the order of their numbers, 1 to 4."""
BOXES = ("[0,0,500,500]", "[500,0,1000,500]", "[0,500,500,1000]", "[500,500,1000,1000]")
"""The same parts as coordinates, as collect.tools.read_brackets reads them."""


def question(task: str, place: str) -> str:
    """The question about one part: "what is the sum up left ?"."""
    return digits.prompts[task].replace("?", f"{place} ?")


def rows(split: digits.Split, n: int, seed: int, tasks: Sequence[str] = tuple(digits.prompts)
         ) -> list[dict[str, Any]]:
    """`n` rows, one wall each; places and `tasks` take turns in a keyed order.

    `answer` is the gold; `parts` are the walls' four digit strings, for `picture`'s makers and for
    checks, never for a policy.
    """
    items = digits.items(split, 4 * n, seed)
    found = []
    for i in range(n):
        four = [digits.row(item) for item in items[4 * i:4 * i + 4]]
        rng = generator(f"walls/{split}/{seed}/{i}")
        at, task = int(rng.integers(4)), tasks[int(rng.integers(len(tasks)))]
        found.append({
            "id": f"wall-{split}-{seed}-{i:05d}", "images": [f"walls/{split}-{seed}-{i:05d}.png"],
            "prompt": question(task, PLACES[at]), "task": task, "place": at + 1,
            "answer": digits.answer_to(task, four[at]["digits"]),
            "chain": digits.chain_for(task, four[at]["digits"]),
            "parts": [r["digits"] for r in four], "cluster": four[at]["cluster"],
        })
    return found


def picture(items: Sequence[digits.Item]) -> Image.Image:
    """The wall of four items: 2 * digits.SIDE pixels a side."""
    side = digits.SIDE
    wall = Image.new("RGB", (2 * side, 2 * side))
    for i, item in enumerate(items):
        wall.paste(digits.picture(item), (i % 2 * side, i // 2 * side))
    return wall


def write(folder: str | Path, split: digits.Split, n: int, seed: int,
          tasks: Sequence[str] = tuple(digits.prompts)) -> Path:
    """Write `folder`/walls/*.png and `folder`/walls-`split`.jsonl; return the latter's path."""
    folder = Path(folder)
    (folder / "walls").mkdir(parents=True, exist_ok=True)
    records, items = rows(split, n, seed, tasks), digits.items(split, 4 * n, seed)
    for i, record in enumerate(records):
        picture(items[4 * i:4 * i + 4]).save(folder / record["images"][0])
    path = folder / f"walls-{split}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def part(wall: Image.Image, number: int) -> Image.Image:
    """Part 1 to 4 of a wall, as the picture that it was made of."""
    side = wall.width // 2
    left, top = (number - 1) % 2 * side, (number - 1) // 2 * side
    return wall.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class Peek:
    """`EnvSampler(Peek())`: say which part to see, see it, answer. The reward is left to verifiers.

    The first digit from 1 to 4 that the model writes is its look; with none, part 1 is shown. The
    observation is a new picture, which the run stores, and the question without its place.
    """

    def __call__(self) -> PeekEpisode:
        """A fresh episode."""
        return PeekEpisode()


@dataclass
class PeekEpisode:
    """One play of two turns."""

    sample: Sample | None = field(default=None, init=False)
    looked: int = field(default=0, init=False)

    def reset(self, sample: Sample, key: str) -> Any:
        """The wall and its question."""
        self.sample = sample
        return sample.context

    def step(self, text: str) -> tuple[Sequence[Any], float, bool]:
        """The part that was asked for; after the second turn the play is over."""
        assert self.sample is not None  # reset comes first
        if self.looked:
            return (), 0.0, True
        self.looked = next((int(c) for c in text if c in "1234"), 1)
        wall = Library().open(self.sample.media[0])
        asked = digits.prompts[str(self.sample.meta["task"])]
        return (part(wall, self.looked), asked), 0.0, False
