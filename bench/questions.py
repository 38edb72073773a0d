"""Prompts of an exact length: random pictures and a text that fills up to P tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
from PIL import Image

from bench.models import PATCH
from selfloop.types import Context, Media, Message, Part

_LETTERS = "how many things are there in the picture and which of them is the largest "


def layout(prompt: int) -> tuple[int, int]:
    """(pictures, side): side * side tokens a picture, leaving some two dozen for the text."""
    return max(1, prompt // 600), min(24, math.isqrt(prompt - 24))


def pixels(kind: str, side: int) -> int:
    """Height and width of a picture that becomes side * side tokens (LLaVA alone does not merge
    2 x 2)."""
    return side * PATCH * (1 if kind == "llava" else 2)


@dataclass(frozen=True)
class Question:
    """One prompt, in the form that each library wants it."""

    pictures: tuple[Image.Image, ...]
    text: str
    media: tuple[Media, ...]

    @property
    def context(self) -> Context:
        """For selfloop."""
        parts = (*(Part(type="image") for _ in self.media), Part(text=self.text))
        return Context(prompt=(Message(role="user", content=parts),), media=self.media)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """For chat templates, pictures first, as TRL puts them."""
        parts = [*({"type": "image"} for _ in self.pictures), {"type": "text", "text": self.text}]
        return [{"role": "user", "content": parts}]

    @property
    def row(self) -> dict[str, Any]:
        """For TRL's data sets."""
        return {"prompt": [{"role": "user", "content": self.text}], "images": list(self.pictures)}


def ask(kind: str, processor: Any, prompt: int, count: int = 1) -> list[Question]:
    """`count` different questions of exactly `prompt` tokens. Raises ValueError if impossible."""
    pictures, side = layout(prompt)
    empty = _question(kind, side, pictures, "", 0)
    spare = prompt - len(tokens(processor, empty))
    if spare < 0:
        raise ValueError(f"{pictures} pictures of {side} x {side} tokens leave no room in {prompt}")
    letters: Iterator[str] = cycle(_LETTERS)
    return [_question(kind, side, pictures, "".join(islice(letters, spare)), n)
            for n in range(count)]


def tokens(processor: Any, question: Question) -> list[int]:
    """Prompt ids with the pictures' placeholders expanded."""
    text = processor.apply_chat_template(question.messages, add_generation_prompt=True)
    out = processor(text=[text], images=[list(question.pictures)])
    return list(out["input_ids"][0])


def _question(kind: str, side: int, pictures: int, text: str, number: int) -> Question:
    edge = pixels(kind, side)
    names = [f"{edge}/{number}/{i}" for i in range(pictures)]
    return Question(tuple(_picture(edge, name) for name in names), text,
                    tuple(Media(sha256=_hash(name)) for name in names))


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _picture(edge: int, name: str) -> Image.Image:
    noise = np.random.default_rng(int(_hash(name)[:8], 16)).integers(0, 255, (edge, edge, 3))
    return Image.fromarray(noise.astype(np.uint8))
