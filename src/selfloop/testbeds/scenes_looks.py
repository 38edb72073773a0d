"""What scenes offer in the place of big models: claims by rule, and a text-picture likeness.

Neither reads what is really in a picture. `claims` splits a caption as a language model would,
`Looks` stands in for a dual encoder: it sees colours and places and is blind to kinds, so what it
rewards has to be checked against the exact measures, as with any encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from selfloop.testbeds.digits import GRID, SIDE
from selfloop.testbeds.scenes_drawing import HUES, Array
from selfloop.testbeds.scenes_objects import PLACES, Mention, mentioned

CHECK = "is there {claim} ?"
"""A claim as the existence question that the seed knows."""
INK = 0.15
"""How far a pixel must be from the paper, in [0, 1], to count as drawn on."""
LEAST = 0.04
"""Share of a cell's pixels with ink above which something is there."""


def claims(text: str) -> list[str] | None:
    """"a red 3" for each object of a caption that has a colour; None where nothing is named."""
    found = [f"a {m.colour} {m.kind}" for m in mentioned(text) if m.colour is not None]
    return list(dict.fromkeys(found)) or None


@dataclass(frozen=True)
class Looks:
    """How well texts fit a scene, in [0, 1]: the mean over the objects that each names.

    An object counts by the cosine of its cell's ink with the named colour, the paper taken off;
    without a place the best cell counts, without a colour whether there is ink. 0 for a text that
    names nothing.
    """

    def __call__(self, picture: Image.Image, texts: Sequence[str]) -> list[float]:
        """One number a text."""
        inks = _inks(picture)
        said = [mentioned(text) for text in texts]
        return [sum(_fit(m, inks) for m in ms) / len(ms) if ms else 0.0 for ms in said]


@dataclass(frozen=True)
class ColourWords:
    """How well single words fit a scene, in [0, 1]: a colour by the cell that is most like it, any
    other word 0. A stand-in for a dual encoder that is asked word by word."""

    def __call__(self, picture: Image.Image, texts: Sequence[str]) -> list[float]:
        """One number a word."""
        inks = [ink for ink in _inks(picture) if ink is not None]
        return [max((_like(ink, text) for ink in inks), default=0.0) if text in HUES else 0.0
                for text in texts]


def _inks(picture: Image.Image) -> list[Array | None]:
    """Each cell's mean ink colour less the paper, (3,); None where there is too little ink."""
    small = picture.convert("RGB").resize((SIDE, SIDE))
    pixels = np.asarray(small, dtype=np.float64) / 255.0
    paper = np.median(pixels.reshape(-1, 3), axis=0)
    cell = SIDE // GRID
    found: list[Array | None] = []
    for place in range(GRID * GRID):
        top, left = (cell * x for x in divmod(place, GRID))
        away = pixels[top:top + cell, left:left + cell].reshape(-1, 3) - paper
        drawn = away[np.abs(away).max(axis=1) > INK]
        found.append(drawn.mean(axis=0) if len(drawn) > LEAST * len(away) else None)
    return found


def _fit(mention: Mention, inks: Sequence[Array | None]) -> float:
    cells = [PLACES.index(mention.place)] if mention.place else range(len(inks))
    return max((_like(ink, mention.colour) for c in cells if (ink := inks[c]) is not None),
               default=0.0)


def _like(ink: Array, colour: str | None) -> float:
    """The cosine of two colours, each less its grey part."""
    if colour is None:
        return 1.0
    a, b = ink - ink.mean(), np.array(HUES[colour]) - np.mean(HUES[colour])
    return max(0.0, float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9)))
