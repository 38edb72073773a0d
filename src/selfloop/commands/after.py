"""show, export and report: what came of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from selfloop.commands.output import AsJson, put_json, run_folder, say

Run = Annotated[str, typer.Argument(help="A run folder, or its name under runs/.")]


def show(
    run: Run,
    sample: Annotated[str | None, typer.Argument(
        metavar="[ID]", help="A sample, or the start of its id: from picture to signal.")] = None,
    json: AsJson = False,
) -> None:
    """The decision in one sentence, the iterations; or one sample from picture to signal."""
    path = run_folder(run)
    from selfloop.report.showing import show as shown

    found: Any = shown(path, sample)
    if json:
        put_json(found if isinstance(found, dict) else {"run": run, "shown": found})
        return
    say(found if isinstance(found, str) else _lines(found))


def _lines(value: Any, indent: str = "") -> str:
    """A nested value as indented lines."""
    if isinstance(value, dict):
        return "\n".join(
            f"{indent}{k}:\n{_lines(v, indent + '  ')}" if isinstance(v, dict | list) and v
            else f"{indent}{k}: {v}" for k, v in value.items())
    if isinstance(value, list):
        return "\n".join(_lines(v, indent + "- ") if not isinstance(v, dict | list)
                         else _lines(v, indent + "  ") for v in value)
    return f"{indent}{value}"


def export(
    run: Run,
    merge: Annotated[bool, typer.Option(
        "--merge", help="Full weights, adapters merged in.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to; by default RUN/export.")] = None,
    json: AsJson = False,
) -> None:
    """The best model as a folder that plain transformers loads, with a model card."""
    found = run_folder(run)
    from selfloop.export import export as write

    path = write(found, out or found / "export", merge=merge)
    put_json({"folder": str(path)}) if json else say(f"wrote {path}")


def report(run: Run, json: AsJson = False) -> None:
    """One self-contained HTML page of a run, with its pictures."""
    found = run_folder(run)
    from selfloop.report.page import write_report

    path = write_report(found)
    put_json({"report": str(path)}) if json else say(f"wrote {path}")
