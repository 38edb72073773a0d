"""Picture operations: what a picture looks like worse, elsewhere, or not at all.

Each operation is a plain function `(picture, severity, rng) -> picture` on RGB pictures. Severity
0 leaves the picture alone and 1 is the strongest; the same key gives the same pixels. The size
never changes, so a processor that derives its image tokens from the size counts the same number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from selfloop.keys import generator
from selfloop.places import PLACED, corners_of
from selfloop.roles import SelfloopError
from selfloop.types import ImageOp

Pixels = np.ndarray[Any, np.dtype[Any]]
Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]

GREY = 128
_BILINEAR = Image.Resampling.BILINEAR


def apply(image: Image.Image, op: ImageOp) -> Image.Image:
    """The picture after one operation: RGB, of the same size, drawn from `op.key` alone.

    `page` does nothing here, because the page is chosen when the file is decoded. Raises
    SelfloopError for a name that is not in `OPERATIONS`.
    """
    operation, placed = OPERATIONS.get(op.name), PLACED.get(op.name)
    if operation is None and placed is None:
        raise SelfloopError(
            f"no picture operation {op.name!r}; there are: "
            f"{', '.join(sorted({*OPERATIONS, *PLACED}))}"
        )
    if image.mode != "RGB":
        image = image.convert("RGB")
    if op.severity == 0:
        return image
    if placed is not None:
        return placed(image, corners_of(image, op))
    assert operation is not None  # one of the two is there
    return operation(image, op.severity, generator(op.key))


def _page(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    return image


# -- pixels -------------------------------------------------------------------------------------


def _floats(image: Image.Image) -> Pixels:
    return np.asarray(image).astype(np.float32)


def _picture(values: Pixels) -> Image.Image:
    """Float pixels in [0, 255], shape (H, W, 3), as a picture: clipped, then rounded.

    Both steps happen in float: clipping noise in uint8 wraps around, and truncating instead of
    rounding darkens every noisy picture by half a level.
    """
    np.clip(values, 0.0, 255.0, out=values)
    np.rint(values, out=values)
    return Image.fromarray(values.astype(np.uint8))


def blank(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Blend towards plain grey; at severity 1 nothing of the picture is left."""
    return Image.blend(image, Image.new("RGB", image.size, (GREY, GREY, GREY)), severity)


def noise(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise with a standard deviation of `severity` of the range (Sherlock: .15-.25)."""
    values = _floats(image)
    values += rng.standard_normal(values.shape, dtype=np.float32) * np.float32(255 * severity)
    return _picture(values)


def _alpha_bar() -> Pixels:
    ramp = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000)))
    return np.asarray(np.cumprod(1 - (ramp * (0.005 - 0.00001) + 0.00001)))


def diffusion(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """The forward diffusion process at step 1000 * severity, on [0, 1] pixels, clamped.

    sqrt(a) x + sqrt(1 - a) eps with the 1,000-step sigmoid schedule of SeVa, POVID and
    NoisyRollout (arXiv 2504.13055); severity .5 is their step 500.
    """
    kept = float(_alpha_bar()[min(999, round(1000 * severity))])
    values = _floats(image) * np.float32(math.sqrt(kept))
    drawn = rng.standard_normal(values.shape, dtype=np.float32)
    return _picture(values + drawn * np.float32(255 * math.sqrt(1 - kept)))


def mask(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Black patches, each with probability `severity` (PAPO: .6).

    Patches are 14 px, or an eighth of the short side for pictures under 112 px.
    """
    values = np.array(image)
    patch = max(1, min(14, min(image.size) // 8))
    rows, columns = -(-image.height // patch), -(-image.width // patch)
    hidden = rng.random((rows, columns)) < severity
    full = hidden.repeat(patch, axis=0).repeat(patch, axis=1)[: image.height, : image.width]
    values[full] = 0
    return Image.fromarray(values)


# -- sharpness ----------------------------------------------------------------------------------


def _shrunk(image: Image.Image, short_side: float) -> tuple[int, int]:
    share = short_side / min(image.size)
    return max(1, round(image.width * share)), max(1, round(image.height * share))


def lowres(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Shrink and enlarge again; at severity 1 the short side had 20 px (STIC).

    A picture whose short side is under 80 px shrinks to a quarter of it instead.
    """
    side = min(image.size)
    least = max(1.0, min(20.0, side / 4))
    small = image.resize(_shrunk(image, side * (least / side) ** severity), _BILINEAR)
    return small.resize(image.size, _BILINEAR)


def blur(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur with a radius of up to a sixteenth of the short side."""
    return image.filter(ImageFilter.GaussianBlur(severity * min(image.size) / 16))


def pixelate(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Square blocks of one colour; at severity 1 there are eight along the short side."""
    side = min(image.size)
    blocks = side * (min(8, side) / side) ** severity
    small = image.resize(_shrunk(image, blocks), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


# -- colour -------------------------------------------------------------------------------------


def _around_one(rng: np.random.Generator, reach: float) -> float:
    return 1.0 + reach * (2.0 * float(rng.random()) - 1.0)


def _contrasted(image: Image.Image, factor: float) -> Image.Image:
    values = _floats(image)
    middle = values.mean()
    return _picture((values - middle) * np.float32(factor) + middle)


def contrast(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Contrast times a factor within 1 +- .8 severity."""
    return _contrasted(image, _around_one(rng, 0.8 * severity))


def brightness(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Brightness times a factor within 1 +- .5 severity."""
    return _picture(_floats(image) * np.float32(_around_one(rng, 0.5 * severity)))


def jitter(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Brightness within +- .5 and hue within +- .3 of a turn, times severity (STIC)."""
    bright = brightness(image, severity, rng)
    turn = round(256 * 0.3 * severity * (2 * float(rng.random()) - 1)) % 256
    hue, saturation, value = bright.convert("HSV").split()
    turned = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


# -- geometry -----------------------------------------------------------------------------------


def _corner_colour(image: Image.Image) -> tuple[int, int, int]:
    """The mean of the four corners: what to paint where the picture has moved away."""
    right, bottom = image.width - 1, image.height - 1
    corners = [image.getpixel(xy) for xy in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
    red, green, blue = (sum(c[i] for c in corners) // 4 for i in range(3))  # type: ignore[index,misc]
    return red, green, blue


def _moved(
    image: Image.Image, angle: float = 0.0, zoom: float = 1.0, dx: float = 0.0, dy: float = 0.0
) -> Image.Image:
    """Rotated (degrees), enlarged and shifted (pixels) about the centre, in one resampling."""
    cosine = math.cos(math.radians(angle)) / zoom
    sine = math.sin(math.radians(angle)) / zoom
    x, y = image.width / 2, image.height / 2
    # PIL wants the map from output to input: undo the shift, then turn and scale back.
    matrix = (
        cosine, -sine, x - cosine * (x + dx) + sine * (y + dy),
        sine, cosine, y - sine * (x + dx) - cosine * (y + dy),
    )
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=_BILINEAR,
                           fillcolor=_corner_colour(image))


def rotate(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Rotate by up to 15 degrees either way; corners are filled with the corners' mean colour."""
    return _moved(image, angle=15 * severity * (2 * float(rng.random()) - 1))


def shift(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Move by up to a fifth of each side, either way."""
    across, down = 0.2 * severity * (2 * rng.random(2) - 1)
    return _moved(image, dx=float(across) * image.width, dy=float(down) * image.height)


def zoom(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Enlarge or shrink about the centre, by a factor within 1 +- .3 severity."""
    return _moved(image, zoom=_around_one(rng, 0.3 * severity))


def crop(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """A random window, enlarged to the full size; at severity 1 it has 1-20 % of the area (mDPO).

    In between, the area falls linearly from all of it.
    """
    area, left, top = rng.random(3)
    side = math.sqrt(1 - severity * (1 - (0.01 + 0.19 * float(area))))
    width, height = side * image.width, side * image.height
    x, y = float(left) * (image.width - width), float(top) * (image.height - height)
    return image.resize(image.size, _BILINEAR, box=(x, y, x + width, y + height))


def view(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """A gentle mixture that leaves the answer alone: moved, turned, zoomed, re-toned, noisy.

    At severity 1: shift 6 % of each side, rotation 8 degrees, zoom 10 %, contrast 30 %, and
    grey noise with a standard deviation of 5 % of the range.
    """
    u = (2 * rng.random(5) - 1).tolist()
    moved = _moved(
        image, angle=8 * severity * u[0], zoom=1 + 0.1 * severity * u[1],
        dx=0.06 * severity * u[2] * image.width, dy=0.06 * severity * u[3] * image.height,
    )
    factor = 1 + 0.3 * severity * u[4]
    values = _floats(moved)
    # The noise is the same in all three channels: a third of the draws, which is most of the time.
    drawn = rng.standard_normal((image.height, image.width, 1), dtype=np.float32)
    drawn *= np.float32(255 * 0.05 * severity)
    drawn += np.float32((1 - factor) * float(values.mean()))
    values *= np.float32(factor)
    values += drawn
    return _picture(values)


OPERATIONS: dict[str, Operation] = {
    "page": _page, "blank": blank, "noise": noise, "diffusion": diffusion, "mask": mask,
    "lowres": lowres, "blur": blur, "pixelate": pixelate, "contrast": contrast,
    "brightness": brightness, "jitter": jitter, "rotate": rotate, "shift": shift, "zoom": zoom,
    "crop": crop, "view": view,
}
"""Every operation by the name that `ImageOp.name` uses."""


def refuse_operation(owner: object, name: str, severity: float, besides: Collection[str] = ()
                     ) -> None:
    """Raise SelfloopError for an operation that no draw could show, when `owner` is built.

    `besides`: names that the owner also knows. Not for `page`, and those that need a place.
    """
    known = {*OPERATIONS, *besides} - {"page"}
    if name not in known:
        raise SelfloopError(f"{type(owner).__name__}(op={name!r}): no such picture operation; "
                            f"there are: {', '.join(sorted(known))}")
    if not 0 <= severity <= 1:
        raise SelfloopError(f"{type(owner).__name__}(severity={severity}): expected a number from "
                            "0 to 1")
