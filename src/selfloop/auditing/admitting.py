"""The audit as a gate: a verifier that pays for what deserves nothing trains nobody.

`selfloop run` admits a loop's verifier before the first draw. The attacks alone are tried, on few
samples; `selfloop audit` does the whole. Refused is what pays wrongly: that is what a model would
learn. A verifier that pays too little (not for gold answers, because it wants a worked solution, or
because it hides exceptions in zeros), or scores what has no gold value, is doubted aloud: what it
does to a run shows in the run. What was found is kept in the run folder as audit.json,
and tried again only when verifier, samples or attacks have changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import selfloop
from selfloop.auditing.attacks import ATTACKS, CONTROLS
from selfloop.auditing.audit import Audited, Limits, audit
from selfloop.auditing.setting import AuditConfig
from selfloop.calling import closest
from selfloop.loop import Loop
from selfloop.pictures import Library
from selfloop.roles import Engine, SelfloopError, name_of, parameters
from selfloop.store import RunFolder, put_json
from selfloop.types import Sample, digest

FILE = "audit.json"
SAMPLES, ASKED = 20, 3
"""Samples that rules are tried on, and those for verifiers that ask a model, which are put one
answer of each attack: every answer costs a call or more."""
GRACE = 0.1
"""Share of an attack's answers that a verifier that asks a model may pay: models are noisy."""


def admit(loop: Loop, samples: Sequence[Sample], engines: Mapping[str, Engine],
          folder: RunFolder, setting: Literal["off"] | AuditConfig | None = None
          ) -> dict[str, Any]:
    """Attack the loop's verifier; what is found is stored in the run folder and returned.

    `samples` are labelled ones, best those of dev; `engines` are asked by verifiers that ask a
    model, and must be bound. Raises SelfloopError, naming the attack and an example, for a
    verifier that fails and is not allowed by name.
    """
    verifier = loop.verifier
    record: dict[str, Any] = {"verifier": name_of(verifier) if verifier else "",
                              "key": "", "status": "", "why": "", "faults": [], "allowed": [],
                              "doubts": []}
    if verifier is None:
        record |= {"status": "not audited", "why": "the loop has no verifier"}
    elif setting == "off":
        record |= {"status": "off", "why": "switched off: audit: off"}
    else:
        record |= _tried(loop, samples, engines, folder)
        _decide(record, setting or AuditConfig(), {record["verifier"],
                                                      record["verifier"].rpartition(":")[2]})
    put_json(folder.path / FILE, record)
    if record["status"] == "failed":
        raise SelfloopError(_refusal(record, folder))
    return record


def _tried(loop: Loop, samples: Sequence[Sample], engines: Mapping[str, Engine],
           folder: RunFolder) -> dict[str, Any]:
    """What the attacks found: now, or before on the very same."""
    verifier = loop.verifier
    assert verifier is not None
    labelled = [s for s in samples if s.answer is not None]
    asks = "generate" in parameters(verifier)
    most, limits = (ASKED, Limits(paid=GRACE)) if asks else (SAMPLES, Limits())
    key = digest([loop.described()["verifier"], [s.id for s in labelled], most, asdict(limits),
                  [a.name for a in ATTACKS], [*CONTROLS], selfloop.__version__])
    stored = folder.json(FILE)
    if isinstance(stored, dict) and stored.get("key") == key:
        return {n: stored[n] for n in ("key", "why", "faults", "doubts", "found") if n in stored}
    if len(labelled) < 2:
        return {"key": key, "why": "fewer than 2 labelled samples to attack it with"}
    found = audit(verifier, labelled, engines=engines, limits=limits, most=most, quick=True,
                  open_picture=Library(folder.path / "images").open)
    faults, doubts = _split(found)
    scored = any(c.paid.n - c.unknown - c.errors for c in found.cases)
    why = "" if scored else "it gives no score to text alone, so it cannot be attacked with texts"
    return {"key": key, "why": why, "faults": faults, "doubts": doubts, "found": found.to_json()}


def _split(found: Audited) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(what is paid wrongly, what else is wrong)."""
    told = [(c, {"attack": c.name, "fault": c.fault}) for c in found.cases if c.fault]
    wrongly = [c.name != "gold answer" and c.paid.k > 0 for c, _ in told]
    return ([t for (_, t), w in zip(told, wrongly, strict=True) if w],
            [t for (_, t), w in zip(told, wrongly, strict=True) if not w])


def _decide(record: dict[str, Any], setting: AuditConfig, names: set[str]) -> None:
    known = {*(a.name for a in ATTACKS), *CONTROLS}
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
            f"{first['fault']}{more}; mend it and look again with `selfloop audit {name}`, or "
            f'accept it by name in run.yaml: audit: {{allow: ["{allow}"]}}')
