"""study: questions about a method that need many runs. So far one: what labels it saves."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfloop.commands.before import split_args
from selfloop.commands.output import AsJson, put_json, say, table, tell

if TYPE_CHECKING:
    from selfloop.label_study.design import LabelStudy

study = typer.Typer(rich_markup_mode=None, help="Questions about a method that need many runs.")
KEPT = ("summary.json", "table.md", "curve.html", "facts.json", "answers.parquet")


@study.command()
def labels(
    given: Annotated[list[str] | None, typer.Argument(
        metavar="[RUN.YAML] [KEY=VALUE]...",
        help="The run's file and changes to it; without one the embedded digits.")] = None,
    budgets: Annotated[str, typer.Option(
        help="Label budgets as shares of the labelled pool.")] = "0.01,0.05,0.15,0.4,1",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Points made at the same time.")] = 1,
    folder: Annotated[Path | None, typer.Option(
        help="Where the study is kept and goes on from.")] = None,
    out: Annotated[Path | None, typer.Option(
        help="Also copy the results (not the weights) here.")] = None,
    recompute: Annotated[Path | None, typer.Option(
        help="Only compute the figures again, from results kept in this folder.")] = None,
    json: AsJson = False,
) -> None:
    """How many labels a loop is worth: supervised alone beside supervised plus loop."""
    from selfloop.label_study.running import study_labels
    from selfloop.label_study.summary import write_summary
    from selfloop.progress import Shown

    if recompute is not None:
        summary = write_summary(recompute)
    else:
        made = _study(given, _shares(budgets), tuple(range(seeds)), folder)
        tell(f"studying in {made.folder}: {len(made.budgets)} budgets "
             f"({', '.join(str(b) for b in made.budgets)} labels) x {seeds} seeds")
        with Shown() as shown:
            summary = study_labels(made, workers=workers, watch=shown, tell=tell)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for name in KEPT:
                shutil.copyfile(made.folder / name, out / name)
    if json:
        put_json(summary)
        return
    print_study(summary)
    if recompute is None:
        say(f"plot: {made.folder / 'curve.html'}")


def _shares(text: str) -> tuple[float, ...]:
    from selfloop.roles import SelfloopError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SelfloopError(f"--budgets {text!r}: expected shares of the pool in (0, 1] with "
                            "commas between, such as 0.01,0.1,1") from None


def _study(given: list[str] | None, shares: tuple[float, ...], seeds: tuple[int, ...],
           folder: Path | None) -> LabelStudy:
    if given:
        from selfloop.commands.running import settled_config
        from selfloop.config import load_config
        from selfloop.label_study.own import own_study

        config = settled_config(load_config(*split_args(given)))
        return own_study(config, shares=shares, seeds=seeds, folder=folder)
    from selfloop.label_study.on_digits import digits_study

    return digits_study(folder or Path("runs/labels"), shares=shares, seeds=seeds)


def print_study(summary: Mapping[str, Any]) -> None:
    """Points, worths, and what is not finished."""
    from selfloop.report.label_curve import bounded

    table([(str(p["labels_full"]), str(p["labels_answer_only"]), p["name"],
            f"{p['accuracy']:.1f} % [{p['interval'][0]:.1f}, {p['interval'][1]:.1f}]",
            f"{sum(p['tokens'].values()):,}", f"{p['flops']:.2g}", f"{p['seconds']:.0f}")
           for p in summary["points"]],
          ("full labels", "answer-only", "arm", f"of {summary['test']} test questions [95 %]",
           "tokens", "FLOPs", "seconds"))
    table([(str(w["labels_full"]), str(w["labels_answer_only"]), w["name"],
            bounded(w["equivalent"]), bounded(w["times"]),
            bounded(w["over_vote"]) if "over_vote" in w else "")
           for w in sorted(summary["worth"], key=lambda w: (w["arm"], w["labels_full"]))],
          ("full labels", "answer-only", "arm", "worth in labels [95 %]", "times its full labels",
           "times the vote's worth"))
    say(f"dev: {summary['dev']} labels, the same for every arm; intervals over {summary['units']}")
    if summary["missing"]:
        say(f"not finished, left out: {'; '.join(summary['missing'])}")
