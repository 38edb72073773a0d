"""export_data(): a step's signals or judged answers as a folder that another trainer reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfloop.exporting import shapes
from selfloop.exporting.picture_files import PictureFiles
from selfloop.exporting.rows import KINDS, Found, Kind, Row, rows_of
from selfloop.exporting.signals_table import as_bytes, signal_features, signal_rows
from selfloop.pictures import Library
from selfloop.report.facts import gather
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder, put_folder, put_json
from selfloop.types import Branch

FORMATS = ("trl", "ms-swift", "llama-factory", "verl", "datasets")
_PARQUET = ("trl", "verl", "datasets")
_USE = {
    "trl": 'load_dataset("parquet", data_files="train.parquet"), then {trainer}',
    "ms-swift": "ROOT_IMAGE_DIR=. swift {command} --dataset train.jsonl, in this folder",
    "llama-factory": "dataset_dir: (this folder), media_dir: (this folder), dataset: selfloop",
    "verl": "data.train_files=train.parquet",
    "datasets": 'load_dataset("parquet", data_files="train.parquet")',
}
_TRAINERS = {"sft": "SFTTrainer", "dpo": "DPOTrainer", "kto": "KTOTrainer", "grpo": "GRPOTrainer"}
_COMMANDS = {"sft": "sft", "dpo": "rlhf --rlhf_type dpo", "kto": "rlhf --rlhf_type kto",
             "grpo": "rlhf --rlhf_type grpo"}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    format: str
    kind: str
    """sft, dpo, kto, grpo; "signals" for --format datasets."""
    rows: int
    step: int
    """The last of `steps`."""
    steps: tuple[int, ...]
    left_out: dict[str, int]
    """What the format cannot carry, and how many rows lost it."""
    notes: tuple[str, ...] = ()
    """Questions that were left out, and where the truth of grpo rows comes from."""


def export_data(folder: str | Path, out: str | Path, form: str, *, kind: str | None = None,
                step: int | str | None = None, role: str = "solver") -> Exported:
    """Write what `role` learned at `step` in `form`: a number, "all" or a range such as "2-5"; by
    default the last finished one. Several steps make one set of files.

    `kind` is that of the signals unless named: demonstrations are sft rows, pairs dpo, and for
    advantages grpo rows, the questions with what their reward compared with (truths.py); kto rows
    are judged answers. Both hold only what the signals name. `out` appears whole or not at all.
    Raises SelfloopError for an unknown format, step or role, for a folder that is not empty, and
    for signals that the format cannot carry.
    """
    out = Path(out)
    if form not in FORMATS:
        raise SelfloopError(f"format {form!r}: expected one of {', '.join(FORMATS)}")
    if kind is not None and kind not in KINDS:
        raise SelfloopError(f"as {kind!r}: expected one of {', '.join(KINDS)}")
    if form == "datasets" and kind is not None:
        raise SelfloopError("--format datasets writes the signals themselves, of every kind: "
                            "leave out --as")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SelfloopError(f"{out} is not empty: give another folder, or empty it first")
    if form in _PARQUET and find_spec("datasets") is None:
        raise SelfloopError(f"--format {form} needs the package datasets: "
                            "pip install 'selfloop[datasets]'")
    run = gather(folder).run  # also of a proof folder
    steps = chosen_steps(run, step)
    for one in steps:
        _must_learn(run, one, role)
    files = PictureFiles(Library(run.images))
    if form == "datasets":
        count, heard = 0, 0
        for one in steps:
            signals = run.signals(one, role)
            count += len(signals)
            heard += sum(any(map(sounding, s.branches.values())) for s in signals)
        made = Exported(out, form, "signals", count, steps[-1], steps,
                        {"sounds, which json names by their files": heard} if heard else {})
        put_folder(out.absolute(), lambda aside: _finish(aside, made, lambda: _parquet(
            aside, signal_rows((s for one in steps for s in run.signals(one, role)), files),
            signal_features())))
        return made
    found = rows_of(run, steps, role, kind)
    _leave_out(found, "questions with sound", sounding)
    if form in shapes.MARKING:
        _leave_out(found, "answers that say <image>, <video> or <audio>", lambda row: any(
            map(shapes.marker_in, (row.answer, row.rejected))))
    if not found.rows:
        raise SelfloopError(f"{run.step(steps[-1])}: there is nothing to write as {found.kind} "
                            f"rows{''.join(f' ({note})' for note in found.notes)}: give another "
                            "--step or --as")
    made = Exported(out, form, found.kind, len(found.rows), steps[-1], steps,
                    dict(found.left_out), tuple(found.notes))
    put_folder(out.absolute(), lambda aside: _finish(
        aside, made, lambda: _rows(aside, form, found, files)))
    return made


def sounding(shown: Row | Branch) -> bool:
    """Whether what is asked has anything but pictures, which no row can hold."""
    return any(medium.kind != "image" for medium in shown.context.media)


def _leave_out(found: Found, what: str, cannot: Callable[[Row], bool]) -> None:
    """Without the rows that the format cannot carry: models write <image>, too."""
    kept = [row for row in found.rows if not cannot(row)]
    if len(kept) < len(found.rows):
        found.left_out[what] = len(found.rows) - len(kept)
        found.rows = kept


def chosen_steps(run: RunFolder, step: int | str | None) -> tuple[int, ...]:
    """The finished steps that `step` names, ascending. Raises SelfloopError for none."""
    there = sorted(int(p.name) for p in (run.path / "steps").glob("[0-9]*")
                   if run.manifest(int(p.name)) is not None)
    if step is None:
        chosen = there[-1:]
    elif step == "all":
        chosen = there
    else:
        first, dash, last = str(step).partition("-")
        if not first.isdecimal() or not (last.isdecimal() if dash else not last):
            raise SelfloopError(f"step {step!r}: expected a number, a range such as 2-5, or all")
        chosen = [s for s in there if int(first) <= s <= int(last or first)]
    if not chosen:
        held = f"{there[0]} to {there[-1]}" if there else "none"
        raise SelfloopError(f"{run.path} has no finished step"
                            f"{'' if step in (None, 'all') else f' {step}'}: there are {held}")
    return tuple(chosen)


def _must_learn(run: RunFolder, step: int, role: str) -> None:
    roles = sorted(p.name[len("signals-"):-len("-0000.parquet")]
                   for p in run.step(step).glob("signals-*-0000.parquet"))
    if role not in roles:
        raise SelfloopError(f"{run.step(step)} has no signals of the role {role!r}: there are "
                            f"{', '.join(roles) or 'none'}")


def _finish(folder: Path, made: Exported, write: Any) -> None:
    """The rows, and export.json beside them."""
    write()
    use = _USE[made.format].format(trainer=_TRAINERS.get(made.kind, ""),
                                   command=_COMMANDS.get(made.kind, ""))
    put_json(folder / "export.json", {
        "format": made.format, "kind": made.kind, "rows": made.rows, "step": made.step,
        "steps": list(made.steps), "left_out": made.left_out, "notes": list(made.notes),
        "use": use})


def _rows(folder: Path, form: str, found: Found, files: PictureFiles) -> None:
    """train.parquet with pictures inside (trl, verl), or train.jsonl beside images/."""
    if form in ("trl", "verl"):
        shape = shapes.trl if form == "trl" else shapes.verl
        rows = _numbered(shape(row, found.kind, lambda m: as_bytes(m, files))
                         for row in found.rows)
        pictured = any(row.context.media for row in found.rows)
        _parquet(folder, rows, _features(form, found.kind, pictured))
        return
    shape = shapes.ms_swift if form == "ms-swift" else shapes.llama_factory
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for row in found.rows:
            columns = shape(row, found.kind, lambda m: files.path_in(folder, m))
            file.write(json.dumps(columns, ensure_ascii=False) + "\n")
    if form == "llama-factory":
        put_json(folder / "dataset_info.json", shapes.dataset_info(found.kind))


def _numbered(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, each with its number where verl keeps it."""
    for index, row in enumerate(rows):
        if "extra_info" in row:
            row["extra_info"]["index"] = index
        yield row


def _features(form: str, kind: Kind, pictured: bool) -> Any:
    from datasets import Features, Image, List, Value

    text = Value("string")
    typed = List({"role": text, "content": List({"type": text, "text": text})})
    marked = List({"role": text, "content": text})
    columns: dict[str, Any] = {"images": List(Image())} if pictured else {}
    if form == "verl" and kind == "sft":
        return Features({"messages": marked, **columns})
    if form == "verl":
        return Features({
            "data_source": text, "prompt": marked, **columns, "ability": text,
            "reward_model": {"style": text, "ground_truth": text},
            "extra_info": {"split": text, "index": Value("int64"), "sample": text,
                           "truth_from": text}})
    more: dict[str, dict[str, Any]] = {
        "sft": {"completion": typed}, "dpo": {"chosen": typed, "rejected": typed},
        "kto": {"completion": typed, "label": Value("bool")},
        "grpo": {"solution": text, "truth_from": text}}
    return Features({"prompt": typed, **columns, **more[kind]})


SHARD = 1000
"""Rows that are held in memory at once, pictures included."""


def _parquet(folder: Path, rows: Iterable[dict[str, Any]], features: Any) -> None:
    """train.parquet, row group by row group, with the schema that `datasets` reads back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = features.arrow_schema
    with pq.ParquetWriter(folder / "train.parquet", schema, compression="zstd") as writer:
        for part in _parts(rows, SHARD):
            columns = {name: [row.get(name) for row in part] for name in schema.names}
            writer.write_table(pa.table(columns, schema=schema))


def _parts(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
