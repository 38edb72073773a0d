"""demo, doctor and init: from nothing to a run.yaml."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from selfloop.commands.output import AsJson, put_json, say, table, tell


def demo(
    folder: Annotated[Path, typer.Argument(help="Where the run is kept.")] = Path("runs/demo"),
    json: AsJson = False,
) -> None:
    """The whole loop on the embedded model and data: a few minutes, no download."""
    from selfloop.demo import demo as demonstrate
    from selfloop.progress import Shown
    from selfloop.roles import SelfloopError

    if folder.exists() and not folder.is_dir():
        raise SelfloopError(f"{folder} is a file: `selfloop demo` takes the folder to keep its run "
                            "in; `selfloop run run.yaml` is for data of your own")
    with Shown() as shown:
        summary = dict(demonstrate(folder, watch=shown))
    if json:
        put_json(summary)
        return
    from selfloop.commands.proving import print_summary

    print_summary(summary)
    say(f"report: {folder / 'report.html'}")


def doctor(
    model: Annotated[str | None, typer.Argument(help="A model folder or hub id.")] = None,
    json: AsJson = False,
) -> None:
    """What is installed, what is used and why; what is wrong with a model folder."""
    from selfloop.config import SEED
    from selfloop.doctor import diagnose, worst

    found = diagnose(str(SEED) if model == "embedded" else model)
    if json:
        put_json({"worst": worst(found), "findings": [dataclasses.asdict(f) for f in found]})
    else:
        table([(f.level, f.what, f.mend) for f in found], ("", "what", "mend"))
    if worst(found) == "error":
        raise typer.Exit(1)


def _as_options(text: str, images: Path, labels: Path | None) -> str:
    """A message of `prepare` in the words of the command line, with the columns that are there."""
    text = text.replace("labels=", "--labels").replace("task=", "--task")
    if "has a label" in text:
        from selfloop.formats import ANSWERS
        from selfloop.sources import source_of

        _, row = next(iter(source_of(str(labels or images), None).rows()))
        columns = sorted(row) if isinstance(row, dict) else []
        if set(columns) & set(ANSWERS):
            return text
        return (f"{labels or images}: no column holds the labels (there are: "
                f"{', '.join(columns)}): name it label or answer")
    return text


def init(
    images: Annotated[Path, typer.Argument(help="A folder of pictures, or a table of rows.")],
    labels: Annotated[Path | None, typer.Option(help="Rows: a file name and its label.")] = None,
    task: Annotated[str | None, typer.Option(help="The question, where a row has none.")] = None,
    out: Annotated[Path, typer.Option(help="Where data/ and run.yaml are written.")] = Path("."),
    model: Annotated[str, typer.Option(
        help='A from_pretrained folder, a hub id, or "embedded".')] = "embedded",
    seed: Annotated[int, typer.Option(help="Another seed splits another way.")] = 0,
    frames: Annotated[int, typer.Option(
        min=1, help="At most so many frames of a video, at even distances.")] = 8,
    force: Annotated[bool, typer.Option(help="Overwrite an existing run.yaml.")] = False,
    json: AsJson = False,
) -> None:
    """From your pictures and labels to train, dev and test sets and a run.yaml."""
    from selfloop.initialize import prepare, write_run_yaml
    from selfloop.roles import SelfloopError

    path = out / "run.yaml"
    if path.exists() and not force:
        raise SelfloopError(f"{path} is already there: give --force to overwrite it and its data, "
                            "or another folder with --out")
    for what, given in (("IMAGES", images), ("--labels", labels)):
        if given is not None and not given.exists():
            raise SelfloopError(f"{what}: {given}: no such file or folder: check the path")
    local = Path(model).expanduser()
    named = str(local.absolute()) if local.is_dir() else model
    try:
        prepared = prepare(images, labels, task=task, out=out, seed=seed, frames=frames)
    except SelfloopError as error:
        raise SelfloopError(_as_options(str(error), images, labels)) from None
    write_run_yaml(prepared, path, model=named)
    if json:
        put_json({**dataclasses.asdict(prepared), "verifier": prepared.verifier, "run": path})
        return
    say(prepared.summary().replace("give task=", "give --task"))
    tell(f"wrote {path}; next: selfloop probe" + ("" if out == Path(".") else f" {path}"))
