"""audit: attack a verifier before it may gate training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfloop.commands.before import split_args
from selfloop.commands.output import AsJson, put_json, say, table, tell

if TYPE_CHECKING:
    from selfloop.auditing.audit import Audited
    from selfloop.config import Data, RunConfig
    from selfloop.loop import Loop
    from selfloop.roles import Engine


def audit(
    verifier: Annotated[str, typer.Argument(
        metavar="VERIFIER", help="exact, number, choice, yes_no, text, or module:name.")],
    given: Annotated[list[str] | None, typer.Argument(
        metavar="[RUN.YAML] [KEY=VALUE]...", help="Whose dev samples (else train) it is tried "
        "on, and whose model it may ask.")] = None,
    probe: Annotated[Path | None, typer.Option(
        help='Known answers, one {"row": 3, "said": "...", "right": true} a line; row counts '
             "those samples from 1.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="How many samples.")] = 100,
    paid: Annotated[float, typer.Option(
        min=0, max=1, help="Share of an attack's answers that may be paid.")] = 0.0,
    json: AsJson = False,
) -> None:
    """Attack a verifier with answers that deserve nothing; exits with 1 when it pays for them."""
    from selfloop.auditing.audit import Limits
    from selfloop.auditing.audit import audit as run_audit
    from selfloop.auditing.calibrating import read_probe
    from selfloop.config import load_config, load_data
    from selfloop.egress import only
    from selfloop.methods import verifier_named
    from selfloop.roles import SelfloopError

    config = load_config(*split_args(given))
    judged = verifier_named(verifier, config.home)
    data = load_data(config)
    on = data.dev if data.dev is not None and len(data.dev) else data.train
    if probe is not None and not probe.exists():
        raise SelfloopError(f"--probe {probe}: no such file: check the path")
    known = read_probe(probe, on) if probe is not None else []
    with only(config.network):
        found = run_audit(judged, on, probe=known, engines=_engines(judged, config),
                          limits=Limits(paid=paid), most=samples)
    if json:
        put_json(found.to_json())
    else:
        print_audit(found)
    raise typer.Exit(0 if found.ok else 1)


def _engines(verifier: Any, config: RunConfig) -> dict[str, Any]:
    """Who plays in the run, only where the verifier asks somebody."""
    from selfloop.roles import parameters

    if "generate" not in parameters(verifier):
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
    with only(config.network):
        found = admit(loop, on, engines, RunFolder(folder or config.folder), config.audit)
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
