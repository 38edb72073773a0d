"""A bounded store of tensors by key: least recently used go first, in memory and on disk.

Files are safetensors with a checksum, written by a thread beside the work and put in place by a
rename; one that cannot be read, or holds other bytes than were written, is removed and counts as
missing. Several processes may share a folder.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

Kept = dict[str, torch.Tensor]
_WAITING = 64
"""Rows that may wait to be written; more are kept in memory only."""


class FeatureStore:
    """At most `memory_bytes` in memory and, with a `folder`, `disk_bytes` on disk."""

    def __init__(self, memory_bytes: int = 2**30, folder: str | Path | None = None,
                 disk_bytes: int = 20 * 2**30) -> None:
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self.folder = Path(folder) if folder is not None else None
        self.hits = self.misses = self.held = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._queue: Queue[tuple[str, Kept]] = Queue(_WAITING)
        self._writer: threading.Thread | None = None

    def get(self, key: str) -> Kept | None:
        """What was put under a key, if it is still held."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        elif self.folder is not None:
            found = self._read(key)
            if found is not None:
                self._hold(key, found)
        self.hits += found is not None
        self.misses += found is None
        return found

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> Kept:
        """Hold copies (on the CPU, without graph); returns them."""
        kept = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
        self._hold(key, kept)
        if self.folder is not None:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, daemon=True)
                self._writer.start()
            with suppress(Full):  # the disk is behind: the work goes on without it
                self._queue.put_nowait((key, kept))
        return kept

    def flush(self) -> None:
        """Wait until what was put is on disk."""
        self._queue.join()

    def stats(self) -> dict[str, int]:
        """Hits, misses, rows and bytes in memory."""
        return {"hits": self.hits, "misses": self.misses, "rows": len(self._kept),
                "bytes": self.held}

    def _hold(self, key: str, kept: Kept) -> None:
        self.held += _size(kept) - _size(self._kept.pop(key, {}))
        self._kept[key] = kept
        while self.held > self.memory_bytes and self._kept:
            self.held -= _size(self._kept.popitem(last=False)[1])

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> Kept | None:
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                written = (file.metadata() or {}).get("checksum")
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if written != _checksum(found):
                raise OSError(f"{path}: not what was written")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            path.unlink(missing_ok=True)
            return None
        return found

    def _write(self) -> None:
        while True:
            key, kept = self._queue.get()
            try:
                path = self._path(key)
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(f".{os.getpid()}.part")
                save_file(kept, part, {"checksum": _checksum(kept)})
                os.replace(part, path)
                self._evict()
            except OSError:  # a full disk costs time later, not the run
                pass
            finally:
                self._queue.task_done()

    def _evict(self) -> None:
        assert self.folder is not None
        files = []
        for path in self.folder.glob("*.safetensors"):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            files.append((about.st_mtime_ns, about.st_size, path))
        spent = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if spent <= self.disk_bytes:
                break
            path.unlink(missing_ok=True)
            spent -= size


def _checksum(kept: Kept) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(kept):
        x = kept[name].contiguous()
        digest.update(f"{name}{x.dtype}{tuple(x.shape)}".encode())
        digest.update(x.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _size(kept: Kept) -> int:
    return sum(x.numel() * x.element_size() for x in kept.values())
