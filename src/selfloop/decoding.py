"""From a file's bytes to RGB pixels, within bounds that are checked before anything is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import (  # the plug-ins register themselves on import
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from selfloop import video
from selfloop.roles import SelfloopError

# Naming them keeps the imports that register them from looking unused.
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin,
            PpmImagePlugin, TiffImagePlugin, WebPImagePlugin)
SUFFIXES = {
    "PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "GIF": ".gif", "WEBP": ".webp",
    "TIFF": ".tif", "BMP": ".bmp", "PPM": ".ppm",
}
"""The formats that are read, with the suffix each is stored under."""

Pages = Literal["first", "all"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a single file may cost; checked before any pixel is decoded."""

    bytes: int = 100_000_000
    pixels: int = 50_000_000
    """Width times height of one page."""
    frames: int = 64
    """Pages of a TIFF, frames of an animation that is given as a picture."""
    video_frames: int = 200_000
    """Frames of a video, two hours at 25 a second; how many are shown is another matter."""
    seconds: float = 600
    """Of sound."""


LIMITS = Limits()


# What Pillow's readers raise on damaged files, as its own `Image.open` and a fuzzer know it.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError,
           AttributeError, AssertionError, ArithmeticError, MemoryError, RuntimeError,
           struct.error, zlib.error)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _opened(data: bytes, name: str) -> Image.Image:
    """The header, read by one of the known formats' readers.

    Not PIL.Image.open: that raises its own error for large pictures before their size is known,
    warns for others, and tries every format ever registered.
    """
    for form in SUFFIXES:
        if form not in Image.OPEN:
            continue  # MPO: opened by the reader of JPEG
        factory, accepts = Image.OPEN[form]
        if accepts is not None and accepts(data[:16]) is not True:
            continue
        try:
            return factory(io.BytesIO(data), "")
        except _BROKEN:
            continue
    what = "an empty file" if not data else "not a picture that can be read, or cut off"
    if video.container(data) is not None:
        what = "a video where a picture should be: give it in the column video"
    raise SelfloopError(f"{name}: {what}; expected {', '.join(SUFFIXES)}")


def header(
    data: bytes, name: str, *, pages: Pages = "all", limits: Limits = LIMITS
) -> tuple[str, int]:
    """(format, number of pages) from the header, without decoding; checks the limits."""
    image = _opened(data, name)
    _check_pixels(image, name, limits)
    form = image.format or ""
    # An MPO is a phone's JPEG with a preview or depth map behind it: one picture.
    try:
        one = pages == "first" or form == "MPO"
        count = 1 if one else int(getattr(image, "n_frames", 1))
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise SelfloopError(f"{name}: its pages cannot be counted ({_said(error)}); save or copy "
                            "it again, or leave it out") from error
    if count > limits.frames:
        raise SelfloopError(
            f"{name}: {count} pages are over the limit of {limits.frames}; pass "
            f'limits=Limits(frames={count}), or pages="first" for the first alone'
        )
    return form, count


def _check_pixels(image: Image.Image, name: str, limits: Limits) -> None:
    pixels = image.width * image.height
    if pixels > limits.pixels:
        raise SelfloopError(
            f"{name}: {image.width:,} x {image.height:,} = {pixels:,} pixels are over the limit "
            f"of {limits.pixels:,}; make it smaller, or, in Python, pass "
            f"limits=Limits(pixels={pixels})"
        )


def decode(data: bytes, name: str, *, page: int = 0, limits: Limits = LIMITS) -> Image.Image:
    """One page, or frame of a video, as an RGB picture: upright, transparency laid over white.

    Grey pictures of more than 8 bits (I;16, I, F) are stretched so that their darkest pixel is
    black and their brightest white, because scans seldom fill the range; a constant one is black.
    `name` is for the error message. Raises SelfloopError, always in one line.
    """
    if video.container(data) is not None:
        return video.frame(data, name, page)
    image = _opened(data, name)
    _check_pixels(image, name, limits)
    try:
        if page:
            image.seek(page)
            _check_pixels(image, name, limits)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except SelfloopError:
        raise
    except (*_BROKEN, Image.DecompressionBombError) as error:
        which = f" page {page}" if page else ""
        raise SelfloopError(
            f"{name}:{which} broken or cut off ({_said(error)}); "
            "save or copy it again, or leave it out"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_stretched(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        paper = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, clear).convert("RGB")
    return image.convert("RGB")


def _stretched(values: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = float(wide[finite].min()), float(wide[finite].max())
    level = (np.where(finite, wide, low) - low) / ((high - low) or 1.0)
    return np.asarray(np.rint(level * 255), dtype=np.uint8)
