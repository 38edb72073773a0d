"""audit: attack a verifier before it may gate training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfloop.commands.before import split_args
from selfloop.commands.output import AsJson, put_json, say, table, tell

if TYPE_CHECKING:
    from selfloop.auditing.audit import Audited
    from selfloop.auditing.calibrating import Known
    from selfloop.config import Data, RunConfig
    from selfloop.loop import Loop
    from selfloop.roles import Engine
    from selfloop.types import Sample

FULL = "audit-full.json"
"""What `selfloop audit --out FOLDER` writes, beside the gate's audit.json."""


def audit(
    verifier: Annotated[str, typer.Argument(
        metavar="VERIFIER", help="exact, number, choice, yes_no, text, another that ships, "
        "{use: NAME, option: value}, module:name or outside:module:name.")],
    given: Annotated[list[str] | None, typer.Argument(
        metavar="[RUN.YAML] [KEY=VALUE]...", help="Whose dev samples (else train) it is tried "
        "on, and whose model it may ask.")] = None,
    probe: Annotated[Path | None, typer.Option(
        help='Known answers, one {"row": 3, "said": "...", "right": true} a line; row counts '
             "those samples from 1.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="How many samples.")] = 100,
    paid: Annotated[float, typer.Option(
        min=0, max=1, help="Share of an attack's answers that may be paid.")] = 0.0,
    out: Annotated[Path | None, typer.Option(
        help="Also write what was found to this file, or into this (run) folder as "
             "audit-full.json.")] = None,
    json: AsJson = False,
) -> None:
    """Attack a verifier with answers that deserve nothing; exits with 1 when it pays for them."""
    from selfloop.auditing.audit import Limits
    from selfloop.auditing.audit import audit as run_audit
    from selfloop.config import load_config, load_data
    from selfloop.egress import only
    from selfloop.methods import verifier_named
    from selfloop.store import put_json as store_json

    config = load_config(*split_args(given))
    judged = verifier_named(verifier, config.home)
    data = load_data(config)
    on = data.dev if data.dev is not None and len(data.dev) else data.train
    known = _probe(probe, on, "--probe")
    with only(config.network):
        found = run_audit(judged, on, probe=known, engines=_engines(judged, config),
                          limits=Limits(paid=paid), most=samples)
    found = replace(found, verifier=verifier)  # as it was named, so that it can be named again
    if out is not None:
        store_json(out / FULL if out.is_dir() else out, found.to_json())
    if json:
        put_json(found.to_json())
    else:
        print_audit(found)
    raise typer.Exit(0 if found.ok else 1)


def _probe(path: Path | None, on: Sequence[Sample], key: str) -> list[Known]:
    """The known answers of a file, if one is given."""
    from selfloop.auditing.calibrating import read_probe
    from selfloop.roles import SelfloopError

    if path is not None and not path.exists():
        raise SelfloopError(f"{key} {path}: no such file: check the path")
    return read_probe(path, on) if path is not None else []


def _named(config: RunConfig, loop: Loop) -> str:
    """How run.yaml names the loop's verifier; "" where a recipe brings its own."""
    if config.reward is not None:
        from selfloop.config_sections import spelled

        return str(spelled(config.reward))
    if config.method == "agreement":
        return str(config.options.get("verifier", ""))
    metric = loop.evaluation.metric if loop.evaluation is not None else None
    if loop.verifier is metric:  # a recipe is given one object as both
        return config.verifier
    if config.verifier.startswith("outside:"):  # to build it anew would start a process
        outside = getattr(loop.verifier, "verifier", None)
        own = config.verifier.removeprefix("outside:").split()[:1]
        return config.verifier if own == [outside] else ""
    from selfloop.methods import verifier_named

    named = verifier_named(config.verifier, config.home)
    same = type(named) is type(loop.verifier) and named == loop.verifier
    return config.verifier if same else ""


def _engines(verifier: Any, config: RunConfig) -> dict[str, Any]:
    """Who plays in the run, only where the verifier asks somebody."""
    from selfloop.calling import asks_a_model

    if not asks_a_model(verifier):
        return {}
    from selfloop.casting import cast
    from selfloop.config import build_engine
    from selfloop.pictures import Library

    engine = build_engine(config)
    engines = {**dict.fromkeys(("solver", "judge", "critic"), engine), **cast(config, engine)}
    for played in engines.values():
        played.bind(Library().open)
    return engines


def admitted(config: RunConfig, loop: Loop, data: Data, engines: Mapping[str, Engine],
             folder: Path | None = None) -> None:
    """Before the first draw of a run: attack its verifier, store what is found, refuse a failing
    one. What its dev samples (else train) have as answers is used to write the attacks.

    `folder` is the run's, by default where the config has it."""
    from selfloop.auditing.admitting import admit
    from selfloop.egress import only
    from selfloop.pictures import Library
    from selfloop.store import RunFolder

    for engine in engines.values():
        engine.bind(Library((folder or config.folder) / "images").open)
    on = data.dev if data.dev is not None and len(data.dev) else data.train
    known = [] if config.audit == "off" else _probe(config.audit.probe, on, "audit.probe:")
    with only(config.network):
        found = admit(loop, on, engines, RunFolder(folder or config.folder), config.audit,
                      _named(config, loop), known)
    accepted = f": accepted: {', '.join(found['allowed'])}" if found["allowed"] else ""
    why = f": {found['why']}" if found["why"] else ""
    for doubt in found["doubts"]:
        tell(f"note: the audit doubts {found['verifier']}: {doubt['attack']}: {doubt['fault']}")
    tell(f"audit of {found['verifier'] or 'no verifier'}: {found['status']}{accepted}{why}")


def print_audit(found: Audited) -> None:
    """The cases, the calibration, and the verdict with its reasons."""
    table(found.rows(), ("attack or control", "paid [95 %]", "abstained / failed", "fault"))
    known = found.calibrated
    if known is not None:
        table([("precision", str(known.precision)), ("recall", str(known.recall)),
               ("calibration error", str(known.calibration_error or "unknown")),
               ("length bias", str(known.length_bias or "unknown")),
               ("abstained", str(known.abstained)), ("failed", str(known.errors))],
              (f"on {known.answers} {known.source} answers", "[95 %]"))
    if found.position_bias is not None:
        say(f"position bias: {found.position_bias}")
    labels = f"reads {', '.join(found.reads)}" if found.reads else "reads no labels"
    tell(f"{found.verifier} ({labels}), on {found.samples} samples")
    say("passed" if found.ok else "failed:\n" + "\n".join(f"- {r}" for r in found.reasons))
