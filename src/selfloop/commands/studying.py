"""study: questions about a method that need many runs: what labels it saves, what losses do."""

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
    from selfloop.loss_study.design import Budget, LossStudy

study = typer.Typer(rich_markup_mode=None, help="Questions about a method that need many runs.")
KEPT = ("summary.json", "table.md", "curve.html", "facts.json", "answers.parquet")
KEPT_LOSSES = ("summary.json", "table.md", "gains.html", "facts.json", "tallies.parquet")


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
            _copied(made.folder, out, KEPT)
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


@study.command()
def losses(
    given: Annotated[list[str] | None, typer.Argument(
        metavar="[RUN.YAML] [KEY=VALUE]...",
        help="The run's file and changes to it; without one the embedded testbeds.")] = None,
    on: Annotated[str, typer.Option(
        help="Testbeds with commas between.")] = "digits,scenes",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of every run.")] = 4,
    samples: Annotated[int, typer.Option(help="Problems a step.")] = 256,
    draws: Annotated[int, typer.Option(help="Answers a problem.")] = 4,
    updates: Annotated[int, typer.Option(help="Optimizer updates a step.")] = 12,
    batch: Annotated[int, typer.Option(help="Drawn answers an update; a pair is two.")] = 64,
    rates: Annotated[str, typer.Option(
        help="Learning rates tried on dev at the first seed.")] = "3e-5,1e-4,3e-4",
    folder: Annotated[Path | None, typer.Option(
        help="Where the study is kept and goes on from.")] = None,
    out: Annotated[Path | None, typer.Option(
        help="Also copy the results (not the weights) here.")] = None,
    recompute: Annotated[Path | None, typer.Option(
        help="Only compute the figures again, from results kept in this folder.")] = None,
    json: AsJson = False,
) -> None:
    """Eight losses under one budget, beside every arm."""
    from selfloop.loss_study.design import Budget
    from selfloop.loss_study.running import study_losses
    from selfloop.loss_study.summary import write_summary
    from selfloop.progress import Shown

    summaries = {}
    names = tuple(dict.fromkeys(part.strip() for part in on.split(",")))
    if recompute is not None:
        summaries = {name: write_summary(recompute / name) for name in names}
    else:
        budget = Budget(steps, samples, draws, updates, batch, _rates(rates))
        for made in _loss_studies(given, names, budget, tuple(range(seeds)), folder):
            name = made.bed.name
            tell(f"studying in {made.folder}: {len(made.ways)} losses x {seeds} seeds")
            with Shown() as shown:
                summaries[name] = study_losses(made, watch=shown, tell=tell)
            if out is not None:
                _copied(made.folder, out / name, KEPT_LOSSES)
    if json:
        put_json(summaries)
        return
    for name, summary in summaries.items():
        print_losses(name, summary)


def _rates(text: str) -> tuple[float, ...]:
    from selfloop.roles import SelfloopError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SelfloopError(f"--rates {text!r}: expected learning rates with commas between, such "
                            "as 1e-6,5e-6,2e-5") from None


def _loss_studies(given: list[str] | None, names: tuple[str, ...], budget: Budget,
                  seeds: tuple[int, ...], folder: Path | None) -> list[LossStudy]:
    if given:
        from selfloop.config import load_config
        from selfloop.loss_study.own import own_study

        return [own_study(load_config(*split_args(given)), budget=budget, seeds=seeds,
                          folder=folder)]
    from selfloop.loss_study.beds import bed_study

    place = folder or Path("runs/losses")
    return [bed_study(name, place, seeds=seeds, budget=budget) for name in names]


def _copied(folder: Path, out: Path, names: tuple[str, ...]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(folder / name, out / name)


def print_losses(name: str, summary: Mapping[str, Any]) -> None:
    """Every loss with its gain over every arm, then the words."""
    from selfloop.loss_study.telling import AGAINST, differing

    def gap(found: Mapping[str, Any] | None) -> str:
        if found is None:
            return ""
        low, high = found["interval"]
        return f"{found['gain']:+.1f} [{low:+.1f}, {high:+.1f}]{'*' if found['shown'] else ''}"

    table([(loss["name"], f"{loss['rate']:g}",
            f"{loss['figures'][summary['main']]['accuracy'][0]:.1f} %",
            *(gap(loss["gains"][a]) for a in summary["against"]),
            f"{loss['tokens']['learn_trained']:,}") for loss in summary["losses"]],
          (name, "rate", f"of {summary['questions']} questions",
           *(f"minus {AGAINST[a]}" for a in summary["against"]), "tokens trained"))
    say(f"intervals over {summary['units']}; *: shown, at 5 % after Holm's correction over the "
        "losses")
    for line in (*summary["words"], differing(summary)):
        say(f"- {line}")
    if summary["missing"]:
        say(f"not finished, left out: {len(summary['missing'])} points, from "
            f"{summary['missing'][0]} on")
