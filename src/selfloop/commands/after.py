"""show, export and report: what came of a run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from selfloop.commands.output import AsJson, put_json, run_folder, say, stdout, tell
from selfloop.roles import SelfloopError

Run = Annotated[str, typer.Argument(help="A run folder, or its name under runs/.")]


def show(
    run: Run,
    sample: Annotated[str | None, typer.Argument(
        metavar="[ID]", help="A sample, or the start of its id: from picture to signal.")] = None,
    json: AsJson = False,
) -> None:
    """The decision in one sentence, the iterations; or one sample from picture to signal."""
    path = run_folder(run)
    from selfloop.report.showing import describe_run, render, show_sample

    described = describe_run(path) if sample is None else show_sample(path, sample)
    if json:
        put_json(described)
    else:
        render(stdout(), described)


def export(
    run: Run,
    merge: Annotated[bool, typer.Option(
        "--merge", help="Full weights, adapters merged in.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to; by default RUN/export.")] = None,
    version: Annotated[int | None, typer.Option(
        help="A version that was not promoted, from its checkpoint.")] = None,
    model: Annotated[str | None, typer.Option(
        help="The base model, where the run does not name it.")] = None,
    form: Annotated[str | None, typer.Option(
        "--format", help="Not the model but what it learned from, for another trainer: trl, "
        "ms-swift, llama-factory, verl or datasets.")] = None,
    kind: Annotated[str | None, typer.Option(
        "--as", help="With --format: sft, dpo, kto or grpo rows; by default the signals' own.",
    )] = None,
    step: Annotated[str | None, typer.Option(
        help="With --format: the step, a range such as 2-5, or all; by default the last.")] = None,
    role: Annotated[str, typer.Option(help="Whose weights or signals.")] = "solver",
    json: AsJson = False,
) -> None:
    """The best model as a folder that plain transformers loads, or a run's data (--format)."""
    found = run_folder(run)
    if form is not None:
        if merge or version is not None or model is not None:
            raise SelfloopError("--format exports data: leave out --merge, --version and --model")
        _export_data(found, out or found / f"export-{form}", form, kind, step, role, json)
        return
    if kind is not None or step is not None:
        raise SelfloopError("--as and --step choose among a run's data: give --format as well "
                            "(trl, ms-swift, llama-factory, verl or datasets)")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers loads
    from selfloop.export import export as write

    path = write(found, out or found / "export", merge=merge, model=model, version=version,
                 role=role)
    put_json({"folder": str(path)}) if json else say(f"wrote {path}")


def _export_data(run: Path, out: Path, form: str, kind: str | None, step: str | None, role: str,
                 json: bool) -> None:
    from selfloop.exporting.writing import export_data

    made = export_data(run, out, form, kind=kind, step=step, role=role)
    if json:
        put_json({**dataclasses.asdict(made), "folder": str(made.folder)})
        return
    which = f"step {made.step}" if len(made.steps) == 1 else \
        f"steps {made.steps[0]} to {made.step}"
    say(f"wrote {made.rows} {made.kind} rows of {which} to {made.folder} (how to load them: "
        "export.json)")
    for note in made.notes:
        tell(f"note: {note}")
    for what, rows in made.left_out.items():
        tell(f"note: {made.format} cannot carry {what}: left out of {rows} rows")


def report(run: Run, json: AsJson = False) -> None:
    """One self-contained HTML page of a run, with its pictures."""
    found = run_folder(run)
    from selfloop.report.page import write_report

    path = write_report(found)
    put_json({"report": str(path)}) if json else say(f"wrote {path}")
