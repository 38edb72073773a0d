"""run: collect, verify, learn, decide; the same command goes on after a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfloop.commands.before import Given, split_args
from selfloop.commands.output import AsJson, put_json, say, table, tell

if TYPE_CHECKING:
    from selfloop.config import RunConfig
    from selfloop.running import Watch
    from selfloop.types import Iteration


_NO_DEV = ("data.dev is missing, but the gate decides on it: give one, or make the splits with "
           "`selfloop init`")


def run(
    given: Given = None,
    budget: Annotated[str | None, typer.Option(
        help="Start no new step after this time: 90s, 10m, 2h.")] = None,
    name: Annotated[str | None, typer.Option(help="Keep the run in runs/NAME.")] = None,
    sink: Annotated[list[str] | None, typer.Option(
        help="Also log to tensorboard, trackio or wandb.")] = None,
    json: AsJson = False,
) -> None:
    """Run the loop (or go on with it): live progress, and every decision in words."""
    from selfloop.casting import cast
    from selfloop.commands.auditing import admitted
    from selfloop.config import build_engine, build_loop, load_config, load_data
    from selfloop.data import load as load_samples
    from selfloop.egress import only
    from selfloop.elsewhere import keep_records
    from selfloop.engines.launching import launched
    from selfloop.evaluate.sealed import Sealed
    from selfloop.judging_costs import unplayed
    from selfloop.progress import Shown
    from selfloop.roles import SelfloopError
    from selfloop.running import run as go
    from selfloop.store import put

    path, overrides = split_args(given)
    if name is not None and (not name or Path(name).name != name or name == ".."):
        raise SelfloopError(f"--name {name}: expected a plain name, as the run is kept in "
                            "runs/NAME; any other folder is out=FOLDER")
    overrides += [f"budget={budget}"] if budget is not None else []
    overrides += [f"out=runs/{name}"] if name is not None else []
    config = settled_config(load_config(path, overrides))
    loop, data = build_loop(config), load_data(config)
    if loop.gate is not None and not data.dev:
        raise SelfloopError(f"{path}: {_NO_DEV}")
    if lacking := unplayed(loop, config, data.train):
        raise SelfloopError(lacking)
    if config.data.test is not None and config.data.test.exists():
        Sealed(config.data.test, load_samples)  # no component of the run can read it
    for note in data.notes:
        tell(f"note: {note}")
    watches = [_sink(s, config) for s in sink or ()]
    by = max(config.processes, launched())
    tell(f"loading {config.model}" + (f" in {by} processes" if by > 1 else ""))
    engines = cast(config, build_engine(config))
    keep_records(engines.items(), config.folder)  # those of the audit, too
    put(config.folder / "run.yaml", config.as_yaml().encode())
    admitted(config, loop, data, engines)
    with Shown(budget=config.budget) as shown, only(config.network):
        done = go(loop, data.train, engines, config.folder, dev=data.dev or (),
                  budget=config.budget, watch=_all([shown, *watches]))
    if json:
        put_json(_summary(config, done))
        return
    _print(config, done)


def settled_config(config: RunConfig) -> RunConfig:
    """With method auto: the plan's method and options, probing first if nobody has. A method
    that is named gets the options that suit the probed model, where run.yaml sets none."""
    from selfloop.methods import METHODS, build_loop, open_to
    from selfloop.planning import labels_of, plan, settled, suggested

    if config.method == "supervised" and "labels" not in config.options:
        return settled(config, config.method, labels_of(config))
    from selfloop.probing import probe, stored
    from selfloop.roles import SelfloopError

    probed = stored(config)
    if config.method != "auto":
        if probed is None or config.method not in METHODS:
            return config
        options = suggested(config, config.method, probed)
        tell("options by the probe: " + (", ".join(f"{k}={v}" for k, v in options.items())
                                         or "none"))
        return settled(config, config.method, options)
    if probed is None:
        if build_loop(open_to(config)).gate is not None and config.data.dev is None:
            raise SelfloopError(_NO_DEV)
        tell("method: auto, and no probe of this model and data yet: probing first")
        probed = probe(config, tell=tell)
    made = plan(config, probed)
    if not made.method:
        raise SelfloopError(f"no method fits: {made.why}; method=star (or another) runs it anyway")
    tell(f"{made.method}: {made.why}")
    for note in made.notes:
        tell(f"note: {note}")
    if made.options:
        tell("options: " + ", ".join(f"{k}={v}" for k, v in made.options.items()))
    return settled(config, made.method, made.options)


def _sink(name: str, config: RunConfig) -> Watch:
    from selfloop.roles import SelfloopError
    from selfloop.sinks import sink

    if name == "wandb" and config.network == "none":  # it sends from a process of its own
        raise SelfloopError("--sink wandb sends figures to its servers, and run.yaml has network: "
                            "none; write `network: [api.wandb.ai]`, or use tensorboard or trackio")
    return sink(name, config.folder, config.folder.name, config.model_dump(mode="json"))


def _all(watches: Sequence[Watch]) -> Watch:
    def watch(event: str, facts: Mapping[str, Any]) -> None:
        for one in watches:
            one(event, facts)

    return watch


def _summary(config: RunConfig, done: Sequence[Iteration]) -> dict[str, Any]:
    return {"run": str(config.folder), "method": config.method, "wanted": config.iterations,
            "iterations": [i.model_dump(mode="json") for i in done],
            "best": done[-1].best if done else 0}


def _print(config: RunConfig, done: Sequence[Iteration]) -> None:
    rows = []
    for one in done:
        dev = one.dev.get("greedy")
        blind = one.dev.get("no_image")
        rows.append((str(one.index + 1), one.decision.action,
                     "" if dev is None else f"{100 * dev:.1f} %",
                     "" if blind is None else f"{100 * blind:.1f} %",
                     str(one.labels_full + one.labels_answer_only),
                     f"{sum(one.tokens.get(k, 0) for k in ('read', 'drawn')):,}"))
    table(rows, ("iteration", "decision", "dev", "no image", "labels read", "tokens"))
    where = _near(config.folder)
    if done and not done[-1].best:
        say("nothing was promoted, so `selfloop export` would need "
            f"--version {done[-1].version} to take the last weights")
    say(f"kept in {where}; next: selfloop show {where}, selfloop report {where}")


def _near(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
