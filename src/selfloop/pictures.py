"""Pictures in: found, checked, hashed, and opened again whenever they are needed; sounds too.

A picture is named by the hash of its file's bytes. Whatever is wrong with a file is said in one
line that names the file; nothing is repaired silently, and nothing is ever fetched from a network.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from PIL import Image

from selfloop import sound, video
from selfloop.corruptions import OPERATIONS, apply
from selfloop.decoding import LIMITS, SUFFIXES, Limits, Pages, decode, header
from selfloop.likeness import near_duplicates, perceptual_hash
from selfloop.roles import SelfloopError
from selfloop.types import ImageOp, Media

__all__ = [
    "LIMITS", "OPERATIONS", "SUFFIXES", "Library", "Limits", "Pages", "apply", "as_media",
    "decode", "find", "header", "is_remote", "near_duplicates", "perceptual_hash", "read",
    "refuse_remote", "write_whole",
]

NAMES = (*SUFFIXES.values(), ".jpeg", ".tiff", ".pgm", ".pbm", ".pnm")
_TIMED = {**video.SUFFIXES, **sound.SUFFIXES}


def is_remote(path: str) -> bool:
    """Whether this is an address and not a file: http, https, s3, ..."""
    # One slash is enough: pathlib turns "https://x" into "https:/x". Drive letters are no scheme.
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", path)
    return found is not None and found[1].lower() != "file"


def refuse_remote(path: str) -> None:
    """Raise SelfloopError for an address. Fetching would let a data file reach into a network."""
    if is_remote(path):
        raise SelfloopError(f"{path}: download it first; selfloop never fetches pictures")


def find(folder: Path) -> list[Path]:
    """Every picture file below a folder, sorted; hidden files and folders are passed over."""
    return sorted(
        path for path in folder.rglob("*")
        if path.suffix.lower() in NAMES and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read(
    path: str | Path, *, root: str | Path | None = None, pages: Pages = "all",
    limits: Limits = LIMITS,
) -> list[Media]:
    """The pictures in a file: one, or every page of a TIFF and frame of an animation, in order.

    All pages are given unless `pages="first"`: a document with its later pages left out would be
    a silent loss. The first page is the file itself; page k > 0 carries ImageOp("page", key="k").
    `meta` has `uri` (absolute path) and `size` (bytes), and `page` and `pages` if there are more.
    Raises SelfloopError for a missing, broken, remote or too large file.
    """
    refuse_remote(str(path))
    where = Path(root or ".", str(path).removeprefix("file://")).absolute()
    data = bytes_of(where, limits)
    count = header(data, str(where), pages=pages, limits=limits)[1]
    return as_media(hashlib.sha256(data).hexdigest(), where, len(data), count)


def as_media(sha256: str, path: Path, size: int, pages: int) -> list[Media]:
    """The Media of a file that is already hashed, one a page."""
    meta: dict[str, Any] = {"uri": str(path), "size": size}
    if pages == 1:
        return [Media(sha256=sha256, meta=meta)]
    return [
        Media(sha256=sha256, meta={**meta, "page": page, "pages": pages},
              ops=(ImageOp(name="page", key=str(page)),) if page else ())
        for page in range(pages)
    ]


def bytes_of(path: Path, limits: Limits) -> bytes:
    """A file's bytes within the limit. Raises SelfloopError naming the file."""
    try:
        size = path.stat().st_size
        if size > limits.bytes:
            raise SelfloopError(
                f"{path}: {size:,} bytes are over the limit of {limits.bytes:,}; make it smaller, "
                f"or, in Python, pass limits=Limits(bytes={size})"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise SelfloopError(f"{path}: no such picture; check the path and the root") from None
    except IsADirectoryError:
        raise SelfloopError(f"{path}: a folder where a file should be; name the file") from None
    except OSError as error:
        raise SelfloopError(f"{path}: cannot be read: {error.strerror or error}") from error


class Library:
    """Opens Media as RGB pictures, from the files they came from or from a run's `images/`.

    `folder` holds pictures that have no stable path of their own, as <sha256><suffix>; it may be
    None where nothing is ever added. Opened pictures are kept, up to `keep_pixels` in all, least
    recently used first out. Safe to share between threads.
    """

    def __init__(
        self, folder: str | Path | None = None, *, limits: Limits = LIMITS,
        keep_pixels: int = 20_000_000,
    ) -> None:
        self.folder = Path(folder).absolute() if folder is not None else None
        self.limits = limits
        self.keep_pixels = keep_pixels
        self._kept: OrderedDict[str, Image.Image] = OrderedDict()
        self._pixels = 0
        self._lock = threading.Lock()

    def open(self, media: Media) -> Any:
        """The picture (PIL.Image) with all its operations applied: RGB, and the caller's to change;
        of audio the `sound.Sound`.

        Raises SelfloopError when the file is missing or remote, when its bytes are no longer
        those that were hashed, or when it cannot be decoded.
        """
        if media.kind == "audio":
            return self._sound(media)
        if media.kind != "image":
            raise SelfloopError(f"{_name(media)}: {media.kind} cannot be opened as a picture; load "
                                "gives a video as its frames")
        if not media.ops:
            return self._plain(media, 0).copy()
        # Written out, not `media.identity`, so that a key can never outlive a change of the ops.
        name = media.sha256 + "".join(op.to_json() for op in media.ops)
        kept = self._look_up(name)
        if kept is None:
            page = next((int(op.key) for op in media.ops if op.name == "page"), 0)
            kept = self._plain(media, page)
            for op in media.ops:
                kept = apply(kept, op)
            self._keep(name, kept)
        return kept.copy()

    def _sound(self, media: Media) -> sound.Sound:
        if media.ops:
            raise SelfloopError(f"{_name(media)}: {media.ops[0].name} is an operation on pictures, "
                                "and this is a sound")
        return sound.decode(self.bytes_of(media), _name(media), seconds=self.limits.seconds)

    def bytes_of(self, media: Media) -> bytes:
        """The stored bytes, as they were hashed. Raises like `open`."""
        path = self._stored(media.sha256)
        if path is None:
            uri = media.meta.get("uri")
            if not isinstance(uri, str):
                raise SelfloopError(
                    f"{_name(media)}: it has no uri and is not in {self.folder or 'any folder'}; "
                    "add it with Library.add_bytes, or open it with the library of its run"
                )
            refuse_remote(uri)
            path = Path(uri)
        data = bytes_of(path, self.limits)
        if hashlib.sha256(data).hexdigest() != media.sha256:
            raise SelfloopError(
                f"{path}: the file has changed since it was indexed (its hash was "
                f"{media.sha256[:12]}...); put the old file back, or load the data again"
            )
        return data

    def add_bytes(self, data: bytes, suffix: str = "") -> Media:
        """Store a picture's bytes as <sha256><suffix>, and return its Media (the first page).

        The suffix is that of the format found in the bytes unless a usual one is given; those of
        videos and sounds are stored alike. Raises SelfloopError when the bytes are none of these,
        or when the library has no folder.
        """
        if self.folder is None:
            raise SelfloopError("this library has no folder to add to: Library(folder)")
        sha256 = hashlib.sha256(data).hexdigest()
        found = _TIMED.get(sound.form(data) or "") or SUFFIXES[
            header(data, f"picture {sha256[:12]}", pages="first", limits=self.limits)[0]]
        suffix = suffix.lower() if suffix.lower() in NAMES else found
        path = self._stored(sha256) or self.folder / f"{sha256}{suffix}"
        if not path.exists():
            write_whole(path, data)
        return Media(sha256=sha256, meta={"uri": str(path), "size": len(data)})

    def keep(self, picture: Image.Image) -> Media:
        """Store a picture that was drawn here and not found in a file, as PNG. See add_bytes."""
        file = io.BytesIO()
        picture.convert("RGB").save(file, "PNG")
        return self.add_bytes(file.getvalue(), ".png")

    def _stored(self, sha256: str) -> Path | None:
        if self.folder is None:
            return None
        usual = (self.folder / f"{sha256}{suffix}" for suffix in (*NAMES, *_TIMED.values()))
        return next((path for path in usual if path.exists()), None)

    def _plain(self, media: Media, page: int) -> Image.Image:
        name = f"{media.sha256}/{page}"
        kept = self._look_up(name)
        if kept is None:
            data = self.bytes_of(media)
            kept = decode(data, _name(media), page=page, limits=self.limits)
            self._keep(name, kept)
        return kept

    def _look_up(self, name: str) -> Image.Image | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def _keep(self, name: str, image: Image.Image) -> None:
        with self._lock:
            if name in self._kept:
                return
            self._kept[name] = image
            self._pixels += image.width * image.height
            while self._pixels > self.keep_pixels and self._kept:
                old = self._kept.popitem(last=False)[1]
                self._pixels -= old.width * old.height


def _name(media: Media) -> str:
    return str(media.meta.get("uri") or f"picture {media.sha256[:12]}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, whoever else writes the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        aside.write_bytes(data)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
