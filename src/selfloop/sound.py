"""Sound in: a file's samples, in one channel. Read by PyAV, an extra: pip install selfloop[video].
"""

from __future__ import annotations

import io
import math
import wave
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop import video
from selfloop.roles import SelfloopError

SUFFIXES = {"wav": ".wav", "flac": ".flac", "ogg": ".ogg", "mp3": ".mp3", "aac": ".aac"}
"""Sound formats by FFmpeg's name, with the suffix that bytes without a name are stored under."""


@dataclass(frozen=True)
class Sound:
    """Samples [T] float32 in [-1, 1], one channel, and how many there are a second."""

    samples: np.ndarray[Any, np.dtype[np.float32]]
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate

    def wav(self) -> bytes:
        """As a WAV file of 16 bits."""
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setparams((1, 2, self.rate, len(self.samples), "NONE", ""))
            whole = np.rint(np.clip(self.samples, -1, 1) * 32767)
            out.writeframes(whole.astype("<i2").tobytes())
        return file.getvalue()

    def at(self, rate: int) -> Sound:
        """The same at another rate, by a polyphase filter (scipy.signal.resample_poly)."""
        if rate == self.rate:
            return self
        from scipy.signal import resample_poly

        shared = math.gcd(rate, self.rate)
        found = resample_poly(self.samples.astype(np.float64), rate // shared, self.rate // shared)
        return Sound(np.asarray(found, dtype=np.float32), rate)


def form(data: bytes) -> str | None:
    """FFmpeg's name of the format, by the file's first bytes; None where it is none of these."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    for name, start in (("flac", b"fLaC"), ("ogg", b"OggS"), ("mp3", b"ID3")):
        if data.startswith(start):
            return name
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:  # a frame's first bits
        return "aac" if data[1] & 0x06 == 0 else "mp3"
    return video.container(data)


def decode(data: bytes, name: str, *, seconds: float) -> Sound:
    """The whole sound, its channels averaged, at its own rate; never cut.

    Raises SelfloopError for what is no sound, is broken, or lasts longer than `seconds`.
    """
    kind = form(data)
    if kind is None:
        raise SelfloopError(f"{name}: not a sound that can be read; expected WAV, FLAC, OGG, MP3, "
                            "AAC, or a video with sound")
    with video.opened(data, name, kind) as box:
        if not box.streams.audio:
            raise SelfloopError(f"{name}: it has no sound")
        stream = box.streams.audio[0]
        if stream.codec_context is None:
            raise SelfloopError(f"{name}: its sound is in a codec that is not known here; convert "
                                "it to WAV, or leave it out")
        rate, found, held = stream.rate, list[Any](), 0
        try:
            for part in box.decode(stream):
                found.append(_one_channel(part))
                held += len(found[-1])
                if held > seconds * rate:
                    raise SelfloopError(f"{name}: longer than the limit of {seconds:g} seconds; "
                                        "cut it into pieces, or pass limits=Limits(seconds=...)")
        except video.errors() as error:
            raise SelfloopError(f"{name}: broken or cut off ({error}); save or copy it again, or "
                                "leave it out") from error
    if not held:
        raise SelfloopError(f"{name}: it has no samples")
    return Sound(np.concatenate(found), rate)


def _one_channel(part: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A decoded stretch as the mean of its channels, integers scaled to [-1, 1]."""
    values = part.to_ndarray()  # planar: [channels, T]; packed: [1, T * channels]
    if not part.format.is_planar:
        values = values.reshape(-1, part.layout.nb_channels).T
    if values.dtype.kind == "u":  # 8-bit samples are centred on 128
        values = (values.astype(np.float64) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float64) / -float(np.iinfo(values.dtype).min)
    return np.asarray(values.mean(axis=0), dtype=np.float32)
