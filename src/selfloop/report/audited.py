"""What the audit of the run's verifier found, as the report shows it."""

from __future__ import annotations

from typing import Any

from selfloop.report.facts import Findings

SAYS = {
    "passed": "It was attacked before the first draw and paid for nothing that deserves nothing.",
    "allowed": "It was attacked before the first draw, failed, and was accepted by name.",
    "off": "The audit was switched off: nobody knows what this verifier pays for.",
    "failed": "It was attacked before the first draw, failed, and was refused.",
    "not audited": "It could not be attacked.",
}


def audited(found: Findings) -> dict[str, Any]:
    """The stored audit.json in words and rows; says so where there is none."""
    stored = found.run.json("audit.json")
    if not isinstance(stored, dict):
        return {"verifier": "", "says": "No audit is stored: the run was started from Python, or "
                                        "by an older version.", "well": False, "rows": []}
    faults = {f["attack"]: f["fault"] for f in (*stored["faults"], *stored["doubts"])}
    rows = [(c["name"], f"{c['paid']['k']:,} of {c['paid']['n']:,}",
             f"{c['unknown']:,} / {c['errors']:,}",
             faults.get(c["name"], "") + (" (accepted)" if c["name"] in stored["allowed"] else ""))
            for c in stored.get("found", {}).get("cases", ()) if c["paid"]["n"]]
    rows += _known(stored, faults)
    why = f" Why: {stored['why']}." if stored["why"] else ""
    why += "".join(f" Doubt: {d['attack']}: {d['fault']}." for d in stored["doubts"])
    return {"verifier": stored["verifier"], "says": SAYS[stored["status"]] + why,
            "well": stored["status"] == "passed" and not stored["doubts"],
            "rows": rows}


def _known(stored: dict[str, Any], faults: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """What the calibration on a probe found, by the names that its limits have."""
    found = stored.get("found", {}).get("calibrated")
    if not found:
        return []
    shares = [(n, f"{found[n]['k']:,} of {found[n]['n']:,}") for n in ("precision", "recall")]
    figures = [(n, f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]")
               for n in ("calibration error", "length bias")
               if (value := found[n.replace(" ", "_")])]
    left = f"{found['abstained']['k']:,} / {found['errors']['k']:,}"
    return [(f"{name}, on {found['answers']:,} {found['source']} answers", value, left,
             faults.get(name, "") + (" (accepted)" if name in stored["allowed"] else ""))
            for name, value in (*shares, *figures)]
