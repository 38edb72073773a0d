"""eval: one model on benchmarks, or two models compared question by question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfloop.commands.output import AsJson, put_json, say, table, tell

if TYPE_CHECKING:
    from selfloop.evaluate.comparing import Difference
    from selfloop.evaluate.scoring import Figure, Score
    from selfloop.evaluating import Evaluated


def evaluate(
    models: Annotated[list[str], typer.Argument(
        metavar="MODEL [OTHER]", help="embedded, a run, or a model folder; two are compared. "
        "Without --on: folders of stored answers, marked again by the rules of --as.")],
    on: Annotated[list[str] | None, typer.Option(
        "--on", metavar="NAME=PATH", help="A benchmark and its files (pope=FILE), a testbed "
        "(digits), or a file of your own questions. Give it several times.")] = None,
    images: Annotated[Path | None, typer.Option(
        help="The folder of the pictures that the files name.")] = None,
    split: Annotated[str | None, typer.Option(help="The split, where files hold several.")] = None,
    rules: Annotated[str, typer.Option(
        "--as", help="Whose rules: selfloop, lmms-eval, vlmevalkit.")] = "selfloop",
    style: Annotated[list[str] | None, typer.Option(
        "--style", help="A structured prompt (direct, 'chain of thought', ...), or all. Its gain "
        "over the question as it is is reported.")] = None,
    draws: Annotated[int, typer.Option(min=0, help="Draws a question, for pass@k, maj@k.")] = 0,
    corrupt: Annotated[list[str] | None, typer.Option(
        "--corrupt", help="A picture operation (noise, blur, ...): accuracy by severity.")] = None,
    no_image: Annotated[bool, typer.Option(help="Also ask without the pictures.")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="The first questions only.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    verifier: Annotated[str | None, typer.Option(
        help="What marks your own questions: a rule's name or module:name.")] = None,
    adjust: Annotated[str, typer.Option(
        help="Correction over benchmarks: holm or bh.")] = "holm",
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Level of the tests.")] = 0.05,
    out: Annotated[Path, typer.Option(help="Where answers are kept.")] = Path("runs/eval"),
    json: AsJson = False,
) -> None:
    """Benchmarks with intervals; with two models a paired table. Goes on after a kill."""
    from selfloop.evaluate.asking import Plan
    from selfloop.evaluating import as_json, given, paired, style_gains
    from selfloop.evaluating import evaluate as run
    from selfloop.roles import SelfloopError

    if not on and all(Path(model, "score.json").exists() for model in models):
        _again([Path(model) for model in models], rules, json)
        return
    if not on or len(models) > 2:
        raise SelfloopError("give one or two models and at least one --on: `selfloop eval "
                            "embedded --on digits`, or --on pope=coco_pope_random.json")
    asked = _prompts(style or [], adjust)
    sets = [given(name, images=images, split=split, limit=limit, verifier=verifier,
                  folder=out / "data") for name in on]
    plan = Plan(rules=rules, no_image=no_image, draws=draws, corruptions=tuple(corrupt or ()),
                max_new_tokens=max_new_tokens)
    found = [run(model, sets, plan, out, tell) for model in models]
    differences = [] if len(found) == 1 else paired(
        found[0], found[1], sets, how=adjust, alpha=alpha)
    gains = style_gains(found, sets, plan, asked, out, tell, how=adjust, alpha=alpha)
    if json:
        put_json({**as_json(found, differences), "styles": as_json([], gains)["differences"]})
        return
    _print_all(found, differences, gains, adjust)
    say(f"kept in {out}")


def _prompts(style: Sequence[str], adjust: str) -> list[str]:
    """The structured prompts that are asked for. What is wrong with them, or with `adjust`, is
    said now, and not after hours of answers."""
    from selfloop.collect.guided import STRUCTURES
    from selfloop.evaluate.benchmark import as_it_is, styled
    from selfloop.evaluate.comparing import ADJUSTMENTS
    from selfloop.roles import SelfloopError

    asked = list(STRUCTURES) if "all" in style else list(style)
    for one in asked:
        styled(one, as_it_is)
    if adjust not in ADJUSTMENTS:
        raise SelfloopError(f"--adjust {adjust}: expected {' or '.join(ADJUSTMENTS)}")
    return asked


def _print_all(found: Sequence[Evaluated], differences: Sequence[Difference],
               gains: Sequence[Difference], adjust: str) -> None:
    for one in found:
        for score in one.scores.values():
            _print(one.model, score)
    if differences:
        print_differences(differences, found[0].model, found[1].model, adjust)
    if gains:
        print_differences(gains, "with the prompt", "as it is", adjust)


def _again(folders: Sequence[Path], rules: str, json: bool) -> None:
    from selfloop.evaluating import remarked

    scores = [remarked(folder, rules) for folder in folders]
    if json:
        put_json([score.to_json() for score in scores])
        return
    for folder, score in zip(folders, scores, strict=True):
        _print(str(folder), score)


def _print(model: str, score: Score) -> None:
    """One score: its figures, where they come from, and by task."""
    rows = [(name, shown(figure), f"{figure.n:g}" if figure.n else "")
            for name, figure in score.figures.items()]
    say(f"{score.benchmark}: {model}, {score.questions} questions, {score.units}")
    table(rows, ("figure", "value [95 % interval]", "of"))
    for field, values in score.by.items():
        table([(value, shown(figures[score.main]), f"{figures[score.main].n:g}")
               for value, figures in values.items() if score.main in figures],
              (field, score.main, "of"))
    for name, curve in score.robustness.items():
        table([(severity, shown(figure)) for severity, figure in curve.items()],
              (f"{name}, severity", score.main))
    how = score.how
    say(f"rules: {how.rules}; prompt: {how.style}; decoding: {how.decoding}; extractor: "
        f"{how.extractor}; judge: {how.judge}; fallback: {how.fallback}")
    say(f"data: {how.data}; {score.unjudged} unjudged, {score.errors} errors; {score.tokens:,} "
        f"tokens drawn greedily, {score.seconds:.1f} s, {score.flops:.2g} FLOPs")
    for note in score.notes:
        say(f"note: {note}")


def shown(figure: Figure) -> str:
    """A share in percent, anything else as it is, with its interval."""
    scale, sign = (100.0, " %") if abs(figure.value) <= 1 else (1.0, "")
    if figure.low is None or figure.high is None:
        return f"{scale * figure.value:.1f}{sign}"
    return (f"{scale * figure.value:.1f}{sign} [{scale * figure.low:.1f}, "
            f"{scale * figure.high:.1f}]")


def print_differences(found: Sequence[Difference], first: str, second: str, adjust: str) -> None:
    """The paired table."""
    rows = [(d.benchmark, d.figure, f"{100 * d.a:.1f}", f"{100 * d.b:.1f}",
             f"{100 * d.gain:+.1f} [{100 * d.low:.1f}, {100 * d.high:.1f}]",
             f"{d.p_adjusted:.2g}", {"first": first, "second": second}.get(d.better, d.better),
             f"{100 * d.detectable:.1f}", f"{d.needed(0.02):,}") for d in found]
    table(rows, ("benchmark", "figure", first, second, "difference, points [95 %]",
                 f"p ({adjust})", "better", "detectable", "questions for 2 points"))
