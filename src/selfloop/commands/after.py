"""show, export and report: what came of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from selfloop.commands.output import AsJson, put_json, run_folder, say, stdout

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
    json: AsJson = False,
) -> None:
    """The best model as a folder that plain transformers loads, with a model card."""
    found = run_folder(run)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers loads
    from selfloop.export import export as write

    path = write(found, out or found / "export", merge=merge, model=model, version=version)
    put_json({"folder": str(path)}) if json else say(f"wrote {path}")


def report(run: Run, json: AsJson = False) -> None:
    """One self-contained HTML page of a run, with its pictures."""
    found = run_folder(run)
    from selfloop.report.page import write_report

    path = write_report(found)
    put_json({"report": str(path)}) if json else say(f"wrote {path}")
