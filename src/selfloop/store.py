"""A run is a folder: numbered shards, manifests written last, and an append-only event log.

Every file is put in one piece (written aside, flushed, renamed). A stage is done when its
manifest is there; readers trust only manifests. Whatever a kill leaves half-done is redone from
the same keys, so it comes out the same.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfloop.roles import SelfloopError
from selfloop.types import SIGNALS, AnySignal, Group, Iteration, Verdict

_boundaries = 0


def boundary(name: str) -> None:
    """Called before and after every write. The kill tests die here, at the k-th call."""
    global _boundaries
    _boundaries += 1
    if os.environ.get("SELFLOOP_KILL_AT") == str(_boundaries):
        os.kill(os.getpid(), signal.SIGKILL)
    trace = os.environ.get("SELFLOOP_TRACE_WRITES")
    if trace:
        with open(trace, "a", encoding="utf-8") as log:
            log.write(f"{_boundaries} {name}\n")


def put(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    boundary(f"before {path.name}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        boundary(f"within {path.name}")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _readable(error, path) from error
    boundary(f"after {path.name}")


def _readable(error: OSError, path: Path) -> SelfloopError:
    if error.errno == errno.ENOSPC:
        return SelfloopError(
            f"disk full while writing {path}: free some space and give the same command again; "
            "everything collected so far is kept and the run goes on from there"
        )
    return SelfloopError(f"cannot write {path}: {error.strerror or error}")


def put_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values are equal bytes."""
    put(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def put_folder(path: Path, fill: Any) -> None:
    """`fill(folder)` writes files into a folder that appears at `path` whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    boundary(f"before {path.name}/")
    try:
        fill(aside)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise _readable(error, path) from error
        if "os error 28" in str(error):  # how safetensors reports a full disk
            raise _readable(OSError(errno.ENOSPC, "No space left on device"), path) from error
        raise
    boundary(f"within {path.name}/")
    if path.exists():
        shutil.rmtree(path)
    os.replace(aside, path)
    boundary(f"after {path.name}/")


def put_table(path: Path, columns: dict[str, list[Any]], metadata: dict[str, str]) -> None:
    """Write a parquet shard; equal columns give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    put(path, sink.getvalue().to_pybytes())


def read_table(path: Path) -> tuple[dict[str, list[Any]], dict[str, str]] | None:
    """A shard's columns and metadata, or None when it is missing or torn."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (FileNotFoundError, pa.ArrowInvalid, OSError):
        return None
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return table.to_pydict(), metadata


class RunFolder:
    """The files of one run, by name. Knows the layout and nothing about methods."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def images(self) -> Path:
        """Where pictures that have no stable path of their own are stored, by hash."""
        return self.path / "images"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder: two processes in one run would overwrite each other's shards.

        The lock goes with the process, however it ends. Raises SelfloopError when it is taken.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            try:
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass  # not on this system
            except OSError:
                raise SelfloopError(f"{self.path} is being run by another process: wait for it, "
                                    "or give this run another name") from None
            yield

    def step(self, step: int) -> Path:
        """steps/000012."""
        return self.path / "steps" / f"{step:06d}"

    def checkpoint(self, version: int) -> Path:
        """checkpoints/000012: the weights after 12 steps."""
        return self.path / "checkpoints" / f"{version:06d}"

    def iteration(self, index: int | str) -> Path:
        """iterations/003, or iterations/seed."""
        return self.path / "iterations" / (index if isinstance(index, str) else f"{index:03d}")

    def json(self, *parts: str) -> Any | None:
        """A JSON file of the run, or None when it is not there."""
        try:
            return json.loads(self.path.joinpath(*parts).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def manifest(self, step: int) -> dict[str, Any] | None:
        """A step's manifest: its presence means that the step's data are complete."""
        found = self.json("steps", f"{step:06d}", "manifest.json")
        return found if isinstance(found, dict) else None

    def iterations(self) -> list[Iteration]:
        """The finished iterations, in order."""
        found: list[Iteration] = []
        while (path := self.iteration(len(found)) / "iteration.json").exists():
            found.append(Iteration.from_json(path.read_bytes()))
        return found

    def checkpoints(self) -> list[int]:
        """Versions that have a complete checkpoint, ascending."""
        folder = self.path / "checkpoints"
        if not folder.exists():
            return []
        return sorted(
            int(p.name) for p in folder.iterdir()
            if p.name.isdigit() and (p / "manifest.json").exists()
        )

    # -- shards -----------------------------------------------------------------------------

    def put_rollouts(self, step: int, shard: int, plan: str, groups: Sequence[Group]) -> None:
        """Stage 1's output: samples and what was drawn for them, before any verdict."""
        put_table(self.step(step) / f"rollouts-{shard:04d}.parquet", {
            "sample": [g.sample.id for g in groups],
            "prompt": [g.sample.context.text for g in groups],
            "images": [[m.sha256 for m in g.sample.media] for g in groups],
            "answers": [[r.text for r in g.rollouts] for g in groups],
            "json": [g.model_copy(update={"verdicts": ()}).to_json() for g in groups],
        }, {"plan": plan})

    def put_verdicts(self, step: int, shard: int, plan: str, groups: Sequence[Group],
                     extra: dict[str, int]) -> None:
        """Stage 2's output: one verdict a rollout, and annotations of the group in their order."""
        put_table(self.step(step) / f"verdicts-{shard:04d}.parquet", {
            "sample": [g.sample.id for g in groups],
            "scores": [[v.score for v in g.verdicts] for g in groups],
            "json": [[v.to_json() for v in g.verdicts] for g in groups],
            "annotations": [json.dumps(g.annotations) for g in groups],
        }, {"plan": plan, **{k: str(v) for k, v in extra.items()}})

    def rollouts(self, step: int, shard: int, plan: str) -> list[Group] | None:
        """Collected groups of a shard, if it was written whole and for this very plan."""
        found = read_table(self.step(step) / f"rollouts-{shard:04d}.parquet")
        if found is None or found[1].get("plan") != plan:
            return None
        return [Group.from_json(text) for text in found[0]["json"]]

    def judged(self, step: int, shard: int, plan: str, groups: Sequence[Group]
               ) -> tuple[list[Group], dict[str, int]] | None:
        """The groups with their stored verdicts, and the counts stored with them."""
        found = read_table(self.step(step) / f"verdicts-{shard:04d}.parquet")
        if found is None or found[1].get("plan") != plan:
            return None
        columns, metadata = found
        judged = [
            g.model_copy(update={
                "verdicts": tuple(Verdict.from_json(text) for text in texts),
                "annotations": json.loads(notes),
            })
            for g, texts, notes in zip(groups, columns["json"], columns["annotations"], strict=True)
        ]
        return judged, {k: int(v) for k, v in metadata.items() if k != "plan"}

    def groups(self, step: int) -> list[Group]:
        """All judged groups of a finished step."""
        manifest = self.manifest(step) or {"shards": []}
        found: list[Group] = []
        for shard, (drawing, plan) in enumerate(manifest["shards"]):
            drawn = self.rollouts(step, shard, drawing) or []
            judged = self.judged(step, shard, plan, drawn)
            found += judged[0] if judged else drawn
        return found

    def put_signals(self, step: int, role: str, signals: Sequence[AnySignal]) -> None:
        """What stage 3 will learn from."""
        put_table(self.step(step) / f"signals-{role}-0000.parquet", {
            "kind": [s.kind for s in signals],
            "sample": [s.sample for s in signals],
            "rollouts": [list(s.rollouts) for s in signals],
            "weight": [s.weight for s in signals],
            "why": [s.why for s in signals],
            "json": [s.to_json() for s in signals],
        }, {"role": role})

    def signals(self, step: int, role: str) -> list[AnySignal]:
        """The signals of a finished step."""
        found = read_table(self.step(step) / f"signals-{role}-0000.parquet")
        if found is None:
            raise SelfloopError(f"{self.step(step)}: signals-{role} is missing or torn")
        columns = found[0]
        return [
            SIGNALS[kind].from_json(text)  # type: ignore[misc]
            for kind, text in zip(columns["kind"], columns["json"], strict=True)
        ]

    # -- events -----------------------------------------------------------------------------

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to events.jsonl: clocks, rates and memory live here and only here."""
        self.path.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **facts}, default=str)
        try:
            with open(self.path / "events.jsonl", "a", encoding="utf-8") as log:
                log.write(line + "\n")
        except OSError as error:
            raise _readable(error, self.path / "events.jsonl") from error

    def events(self) -> list[dict[str, Any]]:
        """All events; a torn last line is cut off."""
        try:
            text = (self.path / "events.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        found: list[dict[str, Any]] = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found


def mend_log(path: Path) -> None:
    """Cut a torn last line, so that the next append starts on a line of its own."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
