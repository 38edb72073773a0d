"""The audit as a gate: a verifier that pays for what deserves nothing trains nobody.

`selfloop run` admits a loop's verifier before the first draw. The attacks are tried on few
samples, and it is calibrated if `audit: {probe: FILE}` gives known answers; `selfloop audit` does
the whole. Refused is what pays wrongly (that is what a model would learn), what reads gold answers
and pays for none of them, what looks at nothing but the place of an answer, and what misses a limit
on the probe. A verifier that pays for some gold answers only, or scores what has no gold value, is
doubted aloud: what it does to a run shows in the run. One that tells nothing of what it pays for
(paying.py) is not audited, and never passed. What was found is kept in the run folder as
audit.json, and tried again only when verifier, samples, probe, limits or attacks have changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from shlex import quote
from typing import Any, Literal

import selfloop
from selfloop.auditing.attacks import ATTACKS, CONTROLS, GOLD
from selfloop.auditing.audit import Audited, audit, labelled
from selfloop.auditing.calibrating import Known
from selfloop.auditing.cases import CALIBRATION, Limits
from selfloop.auditing.setting import AuditConfig
from selfloop.calling import asks_a_model, closest
from selfloop.loop import Loop
from selfloop.pictures import Library
from selfloop.roles import Engine, SelfloopError, name_of, reads
from selfloop.store import RunFolder, put_json
from selfloop.types import Sample, digest

FILE = "audit.json"
SAMPLES, ASKED = 20, 3
"""Samples that rules are tried on, and those for verifiers that ask a model, which are put one
answer of each attack, another for the next sample: every answer costs a call or more."""
GRACE = 0.1
"""Share of an attack's answers that a verifier that asks a model may pay: models are noisy."""
KEPT = ("key", "why", "faults", "doubts", "found")


def admit(loop: Loop, samples: Sequence[Sample], engines: Mapping[str, Engine],
          folder: RunFolder, setting: Literal["off"] | AuditConfig | None = None,
          named: str = "", probe: Sequence[Known] = ()) -> dict[str, Any]:
    """Attack the loop's verifier; what is found is stored in the run folder and returned.

    `samples` are labelled ones, best those of dev; `engines` are asked by verifiers that ask a
    model, and must be bound. `named` is how run.yaml names the verifier, `probe` what it is
    calibrated on. Raises SelfloopError, naming the attack and an example, for a verifier that
    fails and is not allowed by name.
    """
    verifier = loop.verifier
    name = named or (name_of(verifier) if verifier else "")
    record: dict[str, Any] = {"verifier": name, "key": "", "status": "", "why": "", "faults": [],
                              "allowed": [], "doubts": []}
    if verifier is None:
        record |= {"status": "not audited", "why": "the loop has no verifier"}
    elif setting == "off":
        record |= {"status": "off", "why": "switched off: audit: off"}
    else:
        how = setting or AuditConfig()
        record |= _tried(loop, samples, engines, folder, how, name, probe)
        short = name.split()[0]  # without the limits of outside:
        names = {name, short, short.removeprefix("outside:"), name_of(verifier)}
        _decide(record, how, names | {n.rpartition(":")[2] for n in names})
    put_json(folder.path / FILE, record)
    if record["status"] == "failed":
        raise SelfloopError(_refusal(record, folder))
    return record


def _tried(loop: Loop, samples: Sequence[Sample], engines: Mapping[str, Engine],
           folder: RunFolder, setting: AuditConfig, name: str, probe: Sequence[Known]
           ) -> dict[str, Any]:
    """What the attacks found: now, or before on the very same."""
    verifier = loop.verifier
    assert verifier is not None
    known = labelled(samples)
    most, own = (ASKED, Limits(paid=GRACE)) if asks_a_model(verifier) else (SAMPLES, Limits())
    limits = setting.limits(own)
    put = known if len(known) > 1 else list(samples)
    key = digest([loop.described()["verifier"], name, [s.id for s in put], most, asdict(limits),
                  [[k.sample.id, k.said, k.right] for k in probe],
                  [a.name for a in ATTACKS], [*CONTROLS], selfloop.__version__])
    stored = folder.json(FILE)
    if isinstance(stored, dict) and stored.get("key") == key:
        return {n: stored[n] for n in KEPT if n in stored}
    if len(known) < 2 and (reads(verifier) or not put):
        return {"key": key, "why": "fewer than 2 labelled samples to attack it with, and it reads "
                                   "gold answers"}
    found = audit(verifier, samples, probe=probe, engines=engines, limits=limits, most=most,
                  quick=True, open_picture=Library(folder.path / "images").open)
    faults, doubts = _split(found, "answer" in reads(verifier))
    return {"key": key, "why": found.untold, "faults": faults, "doubts": doubts,
            "found": found.to_json()}


def _split(found: Audited, reads_answers: bool
           ) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(what is paid wrongly, what else is wrong)."""
    faults = [{"attack": name, "fault": what} for name, what in found.against]
    doubts = []
    for case in found.cases:
        told = {"attack": case.name, "fault": case.fault}
        # Of no gold answer paid, those that were scored are the proof: failures tell nothing.
        none_paid = reads_answers and not case.paid.k and case.unknown + case.errors < case.paid.n
        if case.fault and (none_paid if case.name == GOLD else case.paid.k > 0):
            faults.append(told)
        elif case.fault:
            doubts.append(told)
    return faults, doubts


def _decide(record: dict[str, Any], setting: AuditConfig, names: set[str]) -> None:
    known = {*(a.name for a in ATTACKS), *CONTROLS, *CALIBRATION}
    for name in setting.allow:
        if name not in known | names:
            raise SelfloopError(f"audit.allow: {name!r} is neither this run's verifier nor an "
                                f"attack{closest(name, known | {record['verifier']})}")
    allowed = set(setting.allow)
    bare = [f for f in record["faults"] if not allowed & names and f["attack"] not in allowed]
    record["allowed"] = [f["attack"] for f in record["faults"] if f not in bare]
    record["status"] = "failed" if bare else "allowed" if record["allowed"] else \
        "not audited" if record["why"] else "passed"


def _refusal(record: Mapping[str, Any], folder: RunFolder) -> str:
    faults = [f for f in record["faults"] if f["attack"] not in record["allowed"]]
    first, name = faults[0], record["verifier"]
    more = f" (and {len(faults) - 1} more: {folder.path / FILE})" if len(faults) > 1 else ""
    allow = name if len(faults) > 1 else first["attack"]
    return (f"verifier {name} fails the audit and may train nobody: {first['attack']}: "
            f"{first['fault']}{more}; mend it and look again with `selfloop audit {quote(name)}`, "
            f'or accept it by name in run.yaml: audit: {{allow: ["{allow}"]}}')
