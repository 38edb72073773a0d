"""A test split that the loop cannot read: opened only after a run is finished, and only whole.

Three things hold it. Whoever makes a `Sealed` hides its file from every run of the process
(hiding.py). `open` refuses while a run is unfinished. And `seal` keeps the questions encrypted at
rest, under a key that exists only where its owner puts it: what a run cannot know, no trick reads.
Afterwards the test pictures are compared with what the run was given, by the hash of their bytes
and by likeness, so that a leaked test picture is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfloop.evaluate import hiding
from selfloop.likeness import perceptual_hash
from selfloop.pictures import Library
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder, put
from selfloop.types import Media, Sample, digest

SUFFIX = ".sealed"
_MAGIC = b"selfloop sealed 1\n"


@dataclass(frozen=True)
class Sealed:
    """The test questions at `path`, read by `load` when every named run has finished.

    Making one hides the file from all runs of this process, in every process that gets a copy.
    """

    path: Path
    load: Callable[[Path], Sequence[Sample]]
    key: str | None = None
    """Of a file made by `seal`. Give it after the runs: a run must not have it."""
    look_alike: bool = True
    """Also refuse test pictures that are nearly the same as one that a run saw."""

    def __post_init__(self) -> None:
        hiding.hide(Path(self.path))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.load, self.key, self.look_alike)  # hidden there, too

    def commitment(self) -> str:
        """sha256 of the sealed file: published before the run, checked by whoever doubts."""
        with hiding.allowed():
            return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()

    def open(self, runs: Iterable[RunFolder], seen: Iterable[Sample]) -> Sequence[Sample]:
        """The questions. Refused while a run is unfinished, or if it saw a test picture.

        A run that was stopped by its budget is unfinished: it can go on. Every opening is noted
        in the runs' logs ("unsealed", with the commitment).
        """
        runs, shown = list(runs), {m.identity: m for sample in seen for m in sample.media}
        for run in runs:
            self._must_have_ended(run)
        questions = self._read()
        self._refuse_shown(questions, shown)
        mark = {"test": self.commitment(), "seen": digest(sorted(shown))}
        compared = any(e["event"] == "unsealed" and mark.items() <= e.items()
                       for run in runs for e in run.events())
        if self.look_alike and not compared:
            self._refuse_alike(questions, shown)
        for run in runs if not compared else ():
            run.event("unsealed", **mark)
        return questions

    def _must_have_ended(self, run: RunFolder) -> None:
        ends = [e for e in run.events() if e["event"] in ("opened", "finished", "stopped")]
        if not ends or ends[-1]["event"] == "opened" or ends[-1].get("resumable"):
            raise SelfloopError(
                f"the test split {self.path} is sealed until {run.path} has finished: "
                "a loop that can read its test questions proves nothing")

    def _read(self) -> Sequence[Sample]:
        path = Path(self.path)
        with open(path, "rb") as file:  # refused by hiding.py while a run is under way
            data = file.read()
        if not data.startswith(_MAGIC):
            return self.load(path)
        if self.key is None:
            raise SelfloopError(f"{path} is encrypted: give Sealed(key=...) the key that sealing "
                                "it returned")
        # In its own folder, because questions name their pictures relative to it.
        plain = path.with_name(f".{secrets.token_hex(8)}{Path(path.stem).suffix}")
        try:
            plain.touch(mode=0o600)
            plain.write_bytes(_decrypted(data, self.key, path))
            return self.load(plain)
        finally:
            plain.unlink(missing_ok=True)

    def _refuse_shown(self, questions: Sequence[Sample], shown: dict[str, Media]) -> None:
        hashes = {m.sha256 for m in shown.values()}
        leaked = [s for s in questions if any(m.sha256 in hashes for m in s.media)]
        if leaked:
            raise SelfloopError(
                f"{len(leaked)} of {len(questions)} test questions in {self.path} show a picture "
                f"that the run was trained or gated on (first: sample {leaked[0].id}): split "
                "again by picture")

    def _refuse_alike(self, questions: Sequence[Sample], shown: dict[str, Media]) -> None:
        asked = {m.identity: m for s in questions for m in s.media}
        pairs = alike(list(asked.values()), list(shown.values()))
        if not pairs:
            return
        test, train = pairs[0]
        first = next(s for s in questions if test in s.media)
        raise SelfloopError(
            f"{len(pairs)} of {len(asked)} test pictures in {self.path} are nearly the same as "
            f"one that the run was trained or gated on (first: {_name(test)} of sample "
            f"{first.id}, like {_name(train)}): split again by picture, or say "
            "Sealed(look_alike=False) where likeness is no leak")


def _name(media: Media) -> str:
    return str(media.meta.get("uri") or media.sha256[:16])


# -- likeness -------------------------------------------------------------------------------------

MAX_BITS, MAX_MEAN = 8, 9.0
"""Nearly the same: perceptual hashes within 8 of 64 bits, and thumbnails of 32 x 32 (RGB) that
differ by at most 9 of 255 levels on average. The hash alone takes synthetic pictures of one
layout for copies. On the digits testbed, 32 x 32 pixels: JPEG copies at quality 60 differ by 8.5
levels at most, different pictures by 11.7 at least."""


def alike(test: Sequence[Media], seen: Sequence[Media]) -> list[tuple[Media, Media]]:
    """(test, seen) pictures that are nearly the same: saved again, resized, cropped by a hair.

    One pair a test picture. Pictures that cannot be opened are passed over: nothing is known of
    them, and their bytes have been compared already. About 2 ms a picture.
    """
    ours, theirs = _looks(test), _looks(seen)
    if not ours or not theirs:
        return []
    hashes = np.stack([bits for _, bits, _ in theirs])
    thumbs = np.stack([thumb for _, _, thumb in theirs])
    found = []
    for media, bits, thumb in ours:
        near = np.flatnonzero((hashes != bits).sum(1) <= MAX_BITS)
        close = near[np.abs(thumbs[near] - thumb).mean((1, 2, 3)) <= MAX_MEAN]
        if len(close):
            found.append((media, theirs[int(close[0])][0]))
    return found


def _looks(media: Sequence[Media]
           ) -> list[tuple[Media, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """(medium, bits of its perceptual hash, thumbnail) of the pictures that can be opened."""
    library, found = Library(None, keep_pixels=0), []
    for medium in media:
        if medium.kind != "image":
            continue
        try:
            picture = library.open(medium)
        except (SelfloopError, OSError):
            continue
        small = picture.resize((32, 32), Image.Resampling.BOX)
        bits = np.frombuffer(perceptual_hash(picture).to_bytes(8, "big"), np.uint8)
        found.append((medium, np.unpackbits(bits), np.asarray(small, dtype=np.float32)))
    return found


# -- encryption at rest ---------------------------------------------------------------------------

def seal(path: str | Path) -> tuple[Path, str]:
    """Encrypt a file of questions; returns (the new file NAME.sealed, its key in hex).

    Keep the key where no run can read it, and delete the plain file. The key is random (256
    bits) and is written nowhere. Stream: SHAKE-256 of key and nonce; over it HMAC-SHA256, so that
    a changed file or a wrong key is refused. Pictures that the questions refer to stay as they
    are: only a file that holds its pictures (parquet with bytes) hides them, too.
    """
    path = Path(path)
    made, key, nonce = path.with_name(path.name + SUFFIX), secrets.token_bytes(32), os.urandom(16)
    hidden = _streamed(path.read_bytes(), key, nonce)
    put(made, _MAGIC + nonce + _tag(key, nonce, hidden) + hidden)
    return made, key.hex()


def _decrypted(data: bytes, key: str, path: Path) -> bytes:
    at = len(_MAGIC)
    nonce, tag, hidden = data[at:at + 16], data[at + 16:at + 48], data[at + 48:]
    try:
        secret = bytes.fromhex(key)
    except ValueError:
        secret = b""
    if not hmac.compare_digest(tag, _tag(secret, nonce, hidden)):
        raise SelfloopError(f"{path}: this key does not open it, or the file was changed: give "
                            "the key that sealing this very file returned")
    return _streamed(hidden, secret, nonce)


def _streamed(data: bytes, key: bytes, nonce: bytes) -> bytes:
    stream = hashlib.shake_256(b"stream" + key + nonce).digest(len(data))
    return (np.frombuffer(data, np.uint8) ^ np.frombuffer(stream, np.uint8)).tobytes()


def _tag(key: bytes, nonce: bytes, hidden: bytes) -> bytes:
    return hmac.digest(b"tag" + key, nonce + hidden, "sha256")
