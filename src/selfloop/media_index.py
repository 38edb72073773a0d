"""Each medium of a data set is hashed once: the hashes are kept in a cache beside the data."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfloop import sound, video
from selfloop.pictures import (
    LIMITS,
    Library,
    Limits,
    Pages,
    as_media,
    bytes_of,
    header,
    read,
    refuse_remote,
)
from selfloop.pictures import write_whole as put
from selfloop.roles import SelfloopError
from selfloop.types import ImageOp, Media, digest

Frames = list[Media]
"""Frames of a video in order; `meta["seconds"]` is when each is shown, if that is known."""


def _at(frame: Media, seconds: float | None) -> Media:
    """The frame with the time at which it is shown."""
    return frame if seconds is None else frame.model_copy(
        update={"meta": {**frame.meta, "seconds": seconds}})


class MediaIndex:
    """Turns whatever a row calls a picture into Media, hashing each file once.

    `root` is where relative paths start; `home` is the data's folder, whose `.selfloop/` holds the
    cache (`media.json`: path, size, time of change -> hash, pages) and pictures that came as bytes
    (`images/`). A home that cannot be written to costs only the cache; bytes then go to the
    user's cache folder (XDG_CACHE_HOME/selfloop), because they must be somewhere.
    """

    def __init__(
        self, root: Path, home: Path | None, *, images: Path | None = None,
        pages: Pages = "all", frames: int = 8, limits: Limits = LIMITS,
    ) -> None:
        self.root, self.pages, self.most, self.limits = root, pages, frames, limits
        writable = home is not None and os.access(home, os.W_OK)
        self._cache = home / ".selfloop" / "media.json" if home and writable else None
        at = images or (home / ".selfloop" / "images" if home and writable else _user_cache())
        self._library = Library(at, limits=limits, keep_pixels=0)
        self._known: dict[str, list[Any]] = _load(self._cache)
        self._new = False

    def media(self, picture: Any) -> list[Media]:
        """The Media (one a page) of a path, bytes, base64 text, {"bytes", "path"} or PIL picture.

        Raises SelfloopError saying what is wrong with the picture.
        """
        if isinstance(picture, Mapping):
            return self._of_mapping(picture)
        if isinstance(picture, bytes | bytearray):
            return self._of_bytes(bytes(picture))
        if isinstance(picture, Path):
            return self._of_path(picture)
        if isinstance(picture, str):
            data = _from_base64(picture)
            return self._of_path(_path(picture)) if data is None else self._of_bytes(data)
        if hasattr(picture, "save") and hasattr(picture, "mode"):
            sink = io.BytesIO()
            picture.save(sink, format="PNG")
            return self._of_bytes(sink.getvalue())
        raise SelfloopError(
            f"a picture given as {type(picture).__name__}; expected a path, bytes, base64 text, "
            '{"bytes": ..., "path": ...} or a PIL picture'
        )

    def sound(self, given: Any) -> Media:
        """The Media of a sound: a path, bytes, base64 text or {"bytes", "path"}.

        Raises SelfloopError when it is none, or longer than the limit.
        """
        data, path = self._found(given, "sound")

        def looked(data: bytes, name: str) -> list[Any]:
            return [round(sound.decode(data, name, seconds=self.limits.seconds).seconds, 3)]

        sha256, uri, size, (seconds,) = self._looked_at(data, path, "sound", looked)
        return Media(kind="audio", sha256=sha256,
                     meta={"uri": uri, "size": size, "seconds": seconds})

    def frames(self, given: Any, fps: float | None = None) -> tuple[Frames, int]:
        """The frames of a video that are shown, and how many it has.

        A file, bytes, base64 text or {"bytes", "path"}: at most `frames` at even distances, each
        the page of the file that it is, so that no frame is stored. A list of pictures: all of
        them, `fps` a second. Raises SelfloopError saying what is wrong with it.
        """
        if isinstance(given, list | tuple):
            return self._listed(given, fps)
        data, path = self._found(given, "video")

        def looked(data: bytes, name: str) -> list[Any]:
            times = video.times(data, name, frames=self.limits.video_frames,
                                pixels=self.limits.pixels)
            return [len(times), [[k, times[k]] for k in video.spread(len(times), self.most)]]

        what = f"{self.most} frames"
        sha256, uri, size, (count, chosen) = self._looked_at(data, path, what, looked)
        told = {"uri": uri, "size": size, "frames": count}
        return [_at(Media(sha256=sha256, meta={**told, "frame": k},
                          ops=(ImageOp(name="page", key=str(k)),) if k else ()), seconds)
                for k, seconds in chosen], count

    def _listed(self, given: Sequence[Any], fps: float | None) -> tuple[Frames, int]:
        if not 0 < len(given) <= self.limits.frames:
            raise SelfloopError(
                f"a video of {len(given)} pictures; expected 1 to {self.limits.frames}: leave some "
                "out, or give its file")
        pictures = [self.media(picture) for picture in given]
        if any(len(pages) != 1 for pages in pictures):
            raise SelfloopError("a frame of a video with several pages; expected one picture each")
        of = digest([pages[0].sha256 for pages in pictures])
        frames = [one.model_copy(update={"meta": {**one.meta, "video": of, "place": k}})
                  for k, (one,) in enumerate(pictures)]
        return [_at(frame, None if fps is None else k / fps)
                for k, frame in enumerate(frames)], len(frames)

    def _found(self, given: Any, what: str) -> tuple[bytes | None, Path | None]:
        """The bytes or the path of a video or sound."""
        if isinstance(given, Mapping):
            given = next((given[name] for name in ("bytes", "path", "url", what, f"{what}_url")
                          if given.get(name) is not None), given)
        if isinstance(given, bytes | bytearray):
            return bytes(given), None
        if isinstance(given, Path):
            return None, given
        if isinstance(given, str):
            data = _from_base64(given)
            return data, _path(given) if data is None else None
        raise SelfloopError(f"a {what} given as {type(given).__name__}; expected a path, bytes, "
                            'base64 text or {"bytes": ..., "path": ...}')

    def _looked_at(self, data: bytes | None, path: Path | None, what: str,
                   look: Callable[[bytes, str], list[Any]]) -> tuple[str, str, int, list[Any]]:
        """(sha256, uri, size, what `look` finds), each file being looked at once."""
        if data is not None:
            if len(data) > self.limits.bytes:
                raise SelfloopError(f"{len(data):,} bytes are over the limit of "
                                    f"{self.limits.bytes:,}; in Python, pass "
                                    f"limits=Limits(bytes={len(data)})")
            found = look(data, "what is given as bytes")
            stored = self._library.add_bytes(data)
            return stored.sha256, str(stored.meta["uri"]), len(data), found
        assert path is not None
        where, stat, name = self._place(path, what)
        if stat is None:
            raise SelfloopError(f"{where}: no such file; check the path and the root")
        known = self._known.get(name)
        if not known or known[:2] != [stat.st_size, stat.st_mtime_ns]:
            data = bytes_of(where, self.limits)
            found = look(data, str(where))
            known = [stat.st_size, stat.st_mtime_ns, hashlib.sha256(data).hexdigest(), found]
            self._known[name], self._new = known, True
        return known[2], str(where), known[0], known[3]

    def save(self) -> None:
        """Write the cache, if anything is new. Losing it would only cost time."""
        if self._cache is None or not self._new:
            return
        try:
            put(self._cache, json.dumps(self._known, indent=0, sort_keys=True).encode())
        except OSError:
            self._cache = None

    def _of_mapping(self, picture: Mapping[str, Any]) -> list[Media]:
        if picture.get("bytes") is not None:
            return self.media(picture["bytes"])
        for name in ("path", "image", "url", "image_url", "file_name"):
            if picture.get(name) is not None:
                return self.media(picture[name])
        raise SelfloopError(
            f"a picture with the fields {sorted(picture)}, none of which holds one; "
            'expected "bytes" or "path"'
        )

    def _of_bytes(self, data: bytes) -> list[Media]:
        if len(data) > self.limits.bytes:
            raise SelfloopError(f"a picture of {len(data):,} bytes, over the limit of "
                                f"{self.limits.bytes:,}; in Python, pass "
                                f"limits=Limits(bytes={len(data)})")
        _, count = header(data, "a picture given as bytes", pages=self.pages, limits=self.limits)
        first = self._library.add_bytes(data)
        return as_media(first.sha256, Path(str(first.meta["uri"])), len(data), count)

    def _of_path(self, path: Path) -> list[Media]:
        where, stat, name = self._place(path, self.pages)
        if stat is None:
            return read(where)  # raises, saying what is wrong
        known = self._known.get(name)
        if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return as_media(known[2], where, stat.st_size, known[3])
        found = read(where, pages=self.pages, limits=self.limits)
        self._known[name] = [stat.st_size, stat.st_mtime_ns, found[0].sha256, len(found)]
        self._new = True
        return found

    def _place(self, path: Path, how: str) -> tuple[Path, os.stat_result | None, str]:
        """The file, what the disk says of it (None: it is not there), and its name in the cache."""
        refuse_remote(str(path))
        where = Path(self.root, str(path).removeprefix("file://")).absolute()
        # Relative to the cache, so that a data folder may be moved; how it is read matters, too.
        base = self._cache.parent.parent if self._cache else self.root
        try:
            stat = where.stat()
        except OSError:
            stat = None
        return where, stat, f"{os.path.relpath(where, base)}|{how}"


def _path(given: str) -> Path:
    """A file's name. Refused as text: a Path would write an address with one slash."""
    refuse_remote(given)
    if not given.strip():
        raise SelfloopError("an empty name; name its file, or leave the column out of the row")
    return Path(given)


def _load(cache: Path | None) -> dict[str, list[Any]]:
    """The cache, or nothing when it is missing or damaged: then everything is hashed again."""
    try:
        known = json.loads(cache.read_bytes()) if cache else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, list) and len(v) == 4}


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfloop" / "images"


def _from_base64(text: str) -> bytes | None:
    """The bytes of a data: address or of a long base64 text; None when it looks like a path."""
    body = text
    if text.startswith(("data:image/", "data:video/", "data:audio/")):
        body = text.partition(",")[2]
    elif len(text) < 64 or "." in text[-6:] or "://" in text[:16]:
        return None
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return None
