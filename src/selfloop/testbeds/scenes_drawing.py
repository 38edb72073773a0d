"""Scenes as pixels: coloured scans and drawn shapes on dark paper, or in another domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from selfloop.testbeds.digits import GRID, SIDE, load_scans
from selfloop.testbeds.scenes_objects import Thing

HUES = {"red": (1.0, 0.1, 0.1), "green": (0.1, 0.9, 0.1), "blue": (0.15, 0.25, 1.0),
        "yellow": (0.95, 0.9, 0.1)}
"""Red, green and blue of each full colour, from 0 to 1."""
SMALLEST, BIGGEST = 10, 13
"""Height and width of an object in pixels, both ends included; a cell has 16."""
STROKE = 0.17
"""Width of a shape's line, as a share of the shape's."""
FINE = 8
"""Shapes are drawn so many times larger and then made smaller, for soft edges."""
Array = np.ndarray


@dataclass(frozen=True)
class Domain:
    """How pictures come about; all from 0 (black, none) to 1 (white, full)."""

    paper: tuple[float, float]
    """Darkest and brightest paper."""
    saturation: tuple[float, float]
    """Palest and strongest ink; pale ink is nearly white."""
    noise: float
    """Standard deviation of each pixel and channel."""
    turned: float = 0.0
    """How far each hue has moved towards the next channel, and the paper with it."""


PLAIN = Domain(paper=(0.0, 0.15), saturation=(0.25, 1.0), noise=0.05)
SHIFTED = Domain(paper=(0.2, 0.35), saturation=(0.25, 0.8), noise=0.09, turned=0.3)


def compose(things: Sequence[Thing], rng: np.random.Generator, domain: Domain = PLAIN
            ) -> Image.Image:
    """An RGB picture of SIDE x SIDE pixels with each thing inside the cell of its place.

    Sizes, spots, inks, paper and noise are drawn from `rng`, the same numbers in every domain.
    """
    cell = SIDE // GRID
    paper = _paper(rng, domain)
    canvas = np.ones((SIDE, SIDE, 3)) * paper
    for thing in things:
        size = int(rng.integers(SMALLEST, BIGGEST + 1))
        free = cell - size
        inside = np.round(free / 2 + rng.uniform(-1.0, 1.0, size=2) * min(1.0, free / 2))
        top, left = cell * np.array(divmod(thing.place, GRID)) + inside.astype(int)
        mask = _mask(thing, size, rng)[..., None]
        ink = _ink(thing.colour, rng, domain)
        canvas[top:top + size, left:left + size] += (ink - paper) * mask
    canvas += rng.normal(0.0, domain.noise, size=canvas.shape)
    return Image.fromarray(np.round(np.clip(canvas, 0.0, 1.0) * 255.0).astype(np.uint8))


def _paper(rng: np.random.Generator, domain: Domain) -> Array:
    """(3,) its colour: grey, or tinted where hues have moved."""
    level, tint = rng.uniform(*domain.paper), rng.uniform(-1.0, 1.0, size=3)
    return np.clip(level * (1.0 + domain.turned * tint), 0.0, 1.0)


def _ink(colour: str, rng: np.random.Generator, domain: Domain) -> Array:
    """(3,) the colour as it is drawn: darker or lighter, paler or stronger."""
    hue = np.array(HUES[colour])
    hue = (1.0 - domain.turned) * hue + domain.turned * np.roll(hue, 1)
    strength, saturation = rng.uniform(0.65, 1.0), rng.uniform(*domain.saturation)
    return strength * (saturation * hue + (1.0 - saturation))


def _mask(thing: Thing, size: int, rng: np.random.Generator) -> Array:
    """(size, size) from 0 (paper) to 1 (ink)."""
    angle = rng.uniform(-12.0, 12.0)  # drawn for scans too, so that all things use up as much
    if thing.scan >= 0:
        scan = Image.fromarray(load_scans().pixels[thing.scan])
    else:
        scan = Image.new("L", (size * FINE, size * FINE))
        _SHAPE[thing.kind](ImageDraw.Draw(scan), size * FINE)
        scan = scan.rotate(angle, Image.Resampling.BILINEAR)
    way = Image.Resampling.BICUBIC if thing.scan >= 0 else Image.Resampling.BOX
    return np.asarray(scan.resize((size, size), way), dtype=np.float64) / 255.0


def _circle(pen: ImageDraw.ImageDraw, side: int) -> None:
    pen.ellipse((0.1 * side, 0.1 * side, 0.9 * side, 0.9 * side), outline=255,
                width=round(STROKE * side))


def _square(pen: ImageDraw.ImageDraw, side: int) -> None:
    pen.rectangle((0.14 * side, 0.14 * side, 0.86 * side, 0.86 * side), outline=255,
                  width=round(STROKE * side))


def _triangle(pen: ImageDraw.ImageDraw, side: int) -> None:
    corners = [(0.5 * side, 0.1 * side), (0.92 * side, 0.86 * side), (0.08 * side, 0.86 * side)]
    pen.line([*corners, *corners[:2]], fill=255, width=round(STROKE * side), joint="curve")


def _cross(pen: ImageDraw.ImageDraw, side: int) -> None:
    low, high, width = 0.14 * side, 0.86 * side, round(STROKE * side)
    pen.line([(low, low), (high, high)], fill=255, width=width)
    pen.line([(low, high), (high, low)], fill=255, width=width)


_SHAPE: dict[str, Callable[[ImageDraw.ImageDraw, int], None]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross,
}
