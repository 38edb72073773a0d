"""probe, plan and check: what can be known before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from selfloop.commands.output import AsJson, put_json, say, table, tell

Given = Annotated[list[str] | None, typer.Argument(
    metavar="[RUN.YAML] [KEY=VALUE]...",
    help="The run's file (run.yaml), and what to change in it: seed=1 options.n=4 ...")]


def split_args(given: list[str] | None) -> tuple[Path, list[str]]:
    """The file and the overrides among the arguments, in any order."""
    from selfloop.roles import SelfloopError

    files = [a for a in given or () if "=" not in a]
    if len(files) > 1:
        raise SelfloopError(f"unexpected argument {files[1]!r}: give one run.yaml, and changes as "
                            "key=value")
    path = Path(files[0]) if files else Path("run.yaml")
    if path.is_dir():
        path = path / "run.yaml"
    return path, [a for a in given or () if "=" in a]


def probe(
    given: Given = None,
    questions: Annotated[int, typer.Option(min=1, help="How many questions.")] = 20,
    draws: Annotated[int, typer.Option(min=2, help="Draws a question.")] = 8,
    json: AsJson = False,
) -> None:
    """Twenty answers on your own pictures: what a run can build on."""
    from selfloop.config import load_config
    from selfloop.probing import as_dict, place
    from selfloop.probing import probe as ask

    config = load_config(*split_args(given))
    probed = ask(config, questions=questions, draws=draws, tell=tell)
    if json:
        put_json(as_dict(probed))
        return
    table(probe_rows(probed), ("", f"of {probed.questions} questions", "what it means"))
    tell(f"kept in {place(config)}; next: selfloop plan")


def probe_rows(probed: Any) -> list[tuple[str, str, str]]:
    """The probe as rows of a table: what, figure with interval, meaning."""
    error = probed.calibration_error
    rows = [
        ("accuracy", str(probed.accuracy), "greedy answers"),
        (f"pass@{probed.draws}", str(probed.pass_at_draws), "at least one draw is right"),
        ("vote", str(probed.vote), "the draws' majority is right"),
        ("vote share", f"{100 * probed.vote_share:.0f} %", "draws that agree with the majority"),
        ("calibration error", "unknown" if error is None else f"{error:.2f}",
         "0: the vote's share says how often it is right"),
        ("parsed", str(probed.parsed), "answers that the verifier can read"),
        ("truncated", str(probed.truncated), "draws cut at max_new_tokens"),
        ("no image", str(probed.no_image), "right without seeing the picture"),
        ("zero variance", str(probed.zero_variance), "draws all right or all wrong"),
    ]
    for name, share in probed.structures.items():
        best = "best prompt" if name == probed.best_structure else ""
        rows.append((f'prompt "{name}"', str(share), best))
    return rows


def plan(
    given: Given = None,
    assume: Annotated[bool, typer.Option(
        "--assume", help="Without a probe: guess its figures, time a short slice.")] = False,
    json: AsJson = False,
) -> None:
    """Which method fits and why, what it will cost, and the smallest gain that could show."""
    from selfloop.config import load_config
    from selfloop.planning import assumed
    from selfloop.planning import plan as make_plan
    from selfloop.probing import stored

    config = load_config(*split_args(given))
    probed = stored(config)
    if probed is None and assume:
        probed = assumed(config, tell)
    made = make_plan(config, probed)
    if json:
        put_json(made.to_json())
        return
    print_plan(made)
    if made.method:
        tell("next: selfloop run")


def print_plan(made: Any) -> None:
    """The plan in words and a table."""
    say(f"{made.method or 'no method fits'}: {made.why}")
    for name, why in made.others.items():
        say(f"  not {name}: {why}")
    for note in made.notes:
        say(f"note: {note}")
    table(plan_rows(made))


def plan_rows(made: Any) -> list[tuple[str, str]]:
    """Costs as rows: what, how much."""
    from selfloop.durations import time_of

    gain = "none" if made.smallest_gain is None else f"{100 * made.smallest_gain:.1f} points"
    rows = [("smallest gain that the gate can see", f"{gain} (first look, {made.dev} dev samples)")]
    if not made.method:
        return rows
    parts = ", ".join(f"{name} {time_of(s)}" for name, s in made.seconds.items() if name != "total")
    tokens = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in made.tokens.items())
    rows += [
        ("time on this machine, about", f"{time_of(made.seconds['total'])} ({parts})"),
        ("tokens", tokens),
        ("FLOPs", f"{made.flops:.2g}"),
    ]
    if made.memory:
        each = ", ".join(f"{name} {_bytes(n)}" for name, n in made.memory.items()
                         if name != "total")
        rows.append(("memory, roughly", f"{_bytes(made.memory['total'])} ({each})"))
    if made.options:
        rows.append(("options it sets", ", ".join(f"{k}={v}" for k, v in made.options.items())))
    return rows


def _bytes(amount: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def check(given: Given = None, json: AsJson = False) -> None:
    """Build and print the loop, open every picture, try the verifier on gold; no model."""
    from selfloop.checking import check as look
    from selfloop.checking import shortened
    from selfloop.config import load_config

    checked = look(load_config(*split_args(given)))
    if json:
        put_json(checked.to_json())
    else:
        say(checked.loop)
        counts = ", ".join(f"{name} {n}" for name, n in checked.counts.items())
        say(f"{counts}; {checked.gold_checked} gold answers put to the verifier")
        for line in shortened(checked.found):
            say(line)
        say("all is well" if checked.ok else "mend these before a run")
    if not checked.ok:
        raise typer.Exit(1)
