"""Picture operations at a place that is asked for: a part enlarged, framed or erased.

They have no randomness. `ImageOp.key` says where, as "x0,y0,x1,y1" in thousandths of the sides, so
that a tool's view of a picture is stored as two words and re-derived whenever it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from selfloop.keys import generator
from selfloop.roles import SelfloopError
from selfloop.types import ImageOp

Corners = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""


def corners_of(image: Image.Image, op: ImageOp) -> Corners:
    """The part that a key "x0,y0,x1,y1" names, in thousandths of the sides.

    Severity 1 is that part; below, it lies between the whole picture and the part. Raises
    SelfloopError for a key that names no part.
    """
    try:
        x0, y0, x1, y1 = (int(part) / 1000 for part in op.key.split(","))
    except ValueError:
        x0 = y0 = x1 = y1 = -1.0
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise SelfloopError(
            f"the picture operation {op.name!r} has the key {op.key!r}; expected four whole "
            'numbers "x0,y0,x1,y1" from 0 to 1000 with x0 < x1 and y0 < y1')
    s = op.severity
    return (s * x0 * image.width, s * y0 * image.height,
            (1 - s * (1 - x1)) * image.width, (1 - s * (1 - y1)) * image.height)


def region(image: Image.Image, corners: Corners) -> Image.Image:
    """A part of the picture, enlarged as far as it fits into the size, on grey; not stretched."""
    left, top, right, bottom = corners
    scale = min(image.width / (right - left), image.height / (bottom - top))
    size = (min(image.width, max(1, round((right - left) * scale))),
            min(image.height, max(1, round((bottom - top) * scale))))
    found = Image.new("RGB", image.size, (128, 128, 128))
    part = image.resize(size, Image.Resampling.BILINEAR, box=corners)
    found.paste(part, ((image.width - size[0]) // 2, (image.height - size[1]) // 2))
    return found


def box(image: Image.Image, corners: Corners) -> Image.Image:
    """The picture with a red frame around a part; the frame is a hundredth of the short side."""
    left, top, right, bottom = (round(c) for c in corners)
    found = image.copy()
    ImageDraw.Draw(found).rectangle(
        (left, top, max(left, right - 1), max(top, bottom - 1)), outline=(255, 0, 0),
        width=max(1, min(image.size) // 100))
    return found


def erase(image: Image.Image, corners: Corners) -> Image.Image:
    """The picture without a part: filled with pixels from the rest that are most like its ground.

    The ground is the median colour; the two fifths of all pixels nearest to it are laid over the
    part in an order drawn from the picture itself, so that paper keeps its grain. It is no
    inpainting: what stands before a varied ground leaves a patch.
    """
    left, top, right, bottom = (round(c) for c in corners)
    values = np.asarray(image).copy()
    flat = values.reshape(-1, values.shape[-1])
    away = np.abs(flat.astype(np.int16) - np.median(flat, axis=0)).sum(axis=1)
    ground = flat[away <= np.quantile(away, 0.4)]
    rng = generator(hashlib.sha256(values.tobytes()).hexdigest())
    shape = values[top:bottom, left:right].shape
    values[top:bottom, left:right] = ground[
        rng.integers(len(ground), size=shape[0] * shape[1])].reshape(shape)
    return Image.fromarray(values)


PLACED: dict[str, Callable[[Image.Image, Corners], Image.Image]] = {
    "region": region, "box": box, "erase": erase}
"""Operations without randomness: their key is where, as "x0,y0,x1,y1" in thousandths."""
