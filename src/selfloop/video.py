"""Video in: when each frame of a file is shown, and one frame as a picture.

Animations (GIF, WebP, PNG) are read by Pillow; MP4, MOV, WebM, MKV, AVI and MPEG by PyAV, an extra:
pip install selfloop[video]. The container is told by its first bytes and named to the reader, so
that no file is ever taken for a playlist, which could make FFmpeg open other files or addresses.
"""

from __future__ import annotations

import io
import math
from typing import Any

from PIL import Image

from selfloop.roles import SelfloopError

SUFFIXES = {"mov": ".mp4", "matroska": ".mkv", "avi": ".avi", "mpeg": ".mpg", "mpegts": ".ts",
            "flv": ".flv"}
"""Containers by FFmpeg's name, with the suffix that bytes without a name are stored under."""
NAMES = (*SUFFIXES.values(), ".mov", ".m4v", ".webm", ".mpeg", ".gif")
"""Suffixes that tell a video in a list from one of its frames."""
_STILL = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
_SLACK = 0.5
"""Seconds by which a header may be wrong about the length."""
_MOV = (b"ftyp", b"moov", b"mdat", b"wide")


def container(data: bytes) -> str | None:
    """FFmpeg's name of the container, by the file's first bytes; None where it is none of these."""
    if data[4:8] in _MOV:
        return None if data[8:12] in _STILL else "mov"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[:4] == b"\0\0\1\xba":
        return "mpeg"
    if data[:3] != b"GIF" and data[:377:188] == b"GGG":  # packets of 188 bytes, each begun by a G
        return "mpegts"
    return "flv" if data[:3] == b"FLV" else None


def spread(count: int, n: int) -> list[int]:
    """Which of `count` frames to show, at most n: the middles of n equal stretches, in order."""
    return list(range(count)) if count <= n else [(2 * i + 1) * count // (2 * n) for i in range(n)]


def times(data: bytes, name: str, *, frames: int, pixels: int) -> list[float | None]:
    """Seconds from the first frame at which each frame is shown, in order, read without decoding.

    None for each frame of an animation that does not say how long it shows them. At most `frames`
    frames of at most `pixels` pixels; raises SelfloopError beyond, and for a file that is no
    video, or ends before its last frame. `name` is for the error message.
    """
    if container(data) is None:
        return _animated(data, name, frames)
    with _opened(data, name) as box:
        stream = _stream(box, name)
        wide, high = stream.codec_context.width, stream.codec_context.height
        if wide * high > pixels:
            raise SelfloopError(f"{name}: {wide:,} x {high:,} = {wide * high:,} pixels a frame are "
                                f"over the limit of {pixels:,}; make it smaller")
        shown = _shown(box, stream, name, frames)
        return [float((pts - shown[0]) * stream.time_base) for pts in shown]


def frame(data: bytes, name: str, index: int) -> Image.Image:
    """The index-th frame in the order of showing, RGB and upright. Raises SelfloopError."""
    with _opened(data, name) as box:
        shown = _shown(box, _stream(box, name), name, None)
    if index >= len(shown):
        raise SelfloopError(f"{name}: no frame {index}; it has {len(shown)}")
    # Where a container has no index a jump may land behind the frame: then from the start.
    found = _decoded(data, name, shown[index], jump=True) \
        or _decoded(data, name, shown[index], jump=False)
    if found is None:
        raise SelfloopError(f"{name}: frame {index} is missing; save or copy it again, or leave it "
                            "out")
    try:
        picture: Image.Image = found.to_image()
    except errors() as error:
        raise SelfloopError(f"{name}: frame {index} is broken ({error}); save or copy it again, or "
                            "leave it out") from error
    turned = getattr(found, "rotation", 0)
    return picture.rotate(turned, expand=True) if turned else picture


# -- inside ---------------------------------------------------------------------------------------


def _animated(data: bytes, name: str, frames: int) -> list[float | None]:
    from selfloop.decoding import Limits, header  # it decodes single frames through this module

    _, count = header(data, name, limits=Limits(frames=frames))
    lasts: list[float] = []
    with Image.open(io.BytesIO(data)) as image:
        for index in range(count):
            image.seek(index)
            image.load()  # WebP knows a frame's duration only then
            lasts.append(float(image.info.get("duration") or 0) / 1000)
    if not all(lasts):
        return [None] * count
    return [sum(lasts[:index]) for index in range(count)]


def _decoded(data: bytes, name: str, when: int, *, jump: bool) -> Any:
    """The frame that is shown at this time; None where decoding starts after it."""
    with _opened(data, name) as box:
        stream = _stream(box, name)
        try:
            if jump:
                box.seek(when, stream=stream, backward=True)
            for found in box.decode(stream):
                if found.pts is not None and found.pts >= when:
                    return found if found.pts == when else None
        except errors() as error:
            raise SelfloopError(f"{name}: broken or cut off ({error}); save or copy it again, or "
                                "leave it out") from error
    return None


def _opened(data: bytes, name: str) -> Any:
    form = container(data)
    if form is None:
        raise SelfloopError(f"{name}: not a video that can be read; expected MP4, MOV, WebM, MKV, "
                            "AVI, MPEG, or an animation")
    return opened(data, name, form)


def opened(data: bytes, name: str, form: str) -> Any:
    """PyAV's container over bytes in memory, of this format and no other. Raises SelfloopError."""
    av = _av()
    try:
        return av.open(io.BytesIO(data), format=form)
    except errors() as error:
        raise SelfloopError(f"{name}: broken or cut off ({error}); save or copy it again, or leave "
                            "it out") from error


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise SelfloopError("videos and sounds are read by PyAV, which is not installed: "
                            "pip install 'selfloop[video]'") from None
    return av


def errors() -> tuple[type[Exception], ...]:
    """What PyAV raises on damaged files."""
    return _av().FFmpegError, OSError, ValueError, IndexError, AttributeError


def _stream(box: Any, name: str) -> Any:
    if not box.streams.video:
        raise SelfloopError(f"{name}: it has no pictures; is it a sound?")
    stream = box.streams.video[0]
    if stream.codec_context is None:
        raise SelfloopError(f"{name}: its pictures are in a codec that is not known here; convert "
                            "it to H.264 in MP4, or leave it out")
    stream.thread_type = "NONE"  # frames come out in one order on every machine
    return stream


def _shown(box: Any, stream: Any, name: str, limit: int | None) -> list[int]:
    """Every frame's time in units of the stream, ascending."""
    found: list[int] = []
    first, last = math.inf, -math.inf
    try:
        for packet in box.demux():
            if packet.pts is None or packet.is_discard:
                continue
            first = min(first, float(packet.pts * packet.time_base))
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == stream.index:
                found.append(packet.pts)
            if limit is not None and len(found) > limit:
                raise SelfloopError(f"{name}: more than {limit:,} frames; cut it into pieces, or "
                                    "pass limits=Limits(video_frames=...)")
    except errors() as error:
        raise SelfloopError(f"{name}: broken or cut off ({error}); save or copy it again, or leave "
                            "it out") from error
    told = (box.duration or 0) / 1e6
    if not found or len(found) < stream.frames or last - first < told - _SLACK:
        have = f"{last - first:.1f} of {told:.1f} seconds" if found else "no frame"
        raise SelfloopError(f"{name}: cut off ({have}, {len(found)} frames are there); save or "
                            "copy it again, or leave it out")
    return sorted(found)
