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
    rows[5:5] = _pseudo_labels(probed)
    for name, share in probed.structures.items():
        best = "best prompt" if name == probed.best_structure else ""
        rows.append((f'prompt "{name}"', str(share), best))
    return rows


def _pseudo_labels(probed: Any) -> list[tuple[str, str, str]]:
    """What a label-free run would take for labels: how often it is right, by the vote's share."""
    from selfloop.evaluate.calibration import between_shares, not_counted
    from selfloop.probed import Share

    found = probed.pseudo_labels
    if found is None or not found.bins:
        return []
    rows = [(f"vote of {between_shares(part)} %",
             str(Share(round(part.accuracy * part.count), part.count)),
             f"of {part.count} majority answers right") for part in found.bins]
    left = not_counted(found)
    return rows + ([("no vote", left, "in no row above")] if left else [])


def plan(
    given: Given = None,
    assume: Annotated[bool, typer.Option(
        "--assume", help="Without a probe: guess its figures, time a short slice.")] = False,
    machine: Annotated[str | None, typer.Option(
        help="Plan for another machine than the one that was probed: H200, A100, L40S ...")] = None,
    price_per_hour: Annotated[float | None, typer.Option(
        min=0, help="What an hour of the machine costs, in your money.")] = None,
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
    made = make_plan(config, probed, machine=machine, price_per_hour=price_per_hour)
    if json:
        put_json(made.to_json())
        return
    print_plan(made)
    if made.method:
        tell("next: selfloop run")


def print_plan(made: Any) -> None:
    """The plan in words, a table of its stages, and a table of the rest."""
    say(f"{made.method or 'no method fits'}: {made.why}")
    for name, why in made.others.items():
        say(f"  not {name}: {why}")
    for note in made.notes:
        say(f"note: {note}")
    if made.stages:
        table(stage_rows(made), ("stage", "tokens read", "drawn", "trained", "FLOPs", "floor",
                                 "expected", "memory"))
    table(plan_rows(made))


def stage_rows(made: Any) -> list[tuple[str, ...]]:
    """Stages as rows; "–": nothing, or not known."""
    return [(s.name, *(f"{n:,}" if n else "–" for n in (s.read, s.drawn, s.trained)),
             f"{s.flops:.2g}" if s.flops else "–",
             short_time(s.floor) if s.floor else "–",
             short_time(s.seconds) if s.seconds else "–",
             _bytes(s.memory) if s.memory else "–") for s in made.stages]


def short_time(seconds: float) -> str:
    """Seconds for people, also far below one: "12 ms"."""
    from selfloop.durations import time_of

    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else \
                f"{seconds / size:.0f} {unit}"
    return time_of(seconds)


def plan_rows(made: Any) -> list[tuple[str, str]]:
    """What the stages do not say, as rows: what, how much."""
    from selfloop.durations import time_of

    gain = "none" if made.smallest_gain is None else f"{100 * made.smallest_gain:.1f} points"
    rows = [("smallest gain that the gate can see", f"{gain} (first look, {made.dev} dev samples)")]
    if not made.method:
        return rows
    if made.seconds:
        parts = ", ".join(f"{name} {time_of(s)}" for name, s in made.seconds.items()
                          if name != "total")
        rows.append(("time on this machine, about",
                     f"{time_of(made.seconds['total'])} ({parts})"))
    rows += machine_rows(made)
    if made.saving > 1:
        n = made.lengths
        rows.append(("shared prefix saves in training", f"{made.saving:.2f} times fewer tokens "
                     f"({n['group']:.0f} answers of {n['answer']:.0f} tokens to a prompt of "
                     f"{n['prompt']:.0f})"))
    if made.memory:
        each = ", ".join(f"{name} {_bytes(n)}" for name, n in made.memory.items()
                         if name not in ("total", "cache"))
        rows.append(("memory while learning, roughly",
                     f"{_bytes(made.memory['total'])} ({each}), and the program itself"))
    if made.uncounted:
        rows.append(("not counted", "; ".join(made.uncounted)))
    if made.options:
        rows.append(("options it sets", ", ".join(f"{k}={v}" for k, v in made.options.items())))
    return rows


def machine_rows(made: Any) -> list[tuple[str, str]]:
    """The machine that the floors are of, and the cost in money."""
    machine = made.machine
    if machine is None:
        return []
    rows = [("floor: the least that arithmetic allows on", f"{machine.name}: "
             f"{machine.flops / 1e12:.3g} TFLOP/s, {machine.bandwidth / 1e9:,.0f} GB/s "
             f"({machine.source})")]
    if made.money is not None:
        least = "" if made.seconds else "at least "
        rows.append(("cost", f"{least}{made.money:.2g} at {machine.price_per_hour:g} an hour"))
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
