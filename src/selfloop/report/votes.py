"""How often the draws' majority is right on dev: the precision of pseudo-labels, by vote share."""

from __future__ import annotations

from typing import Any

from selfloop.evaluate.calibration import between_shares, not_counted, vote_precision
from selfloop.report.facts import Findings, account


def pseudo_labels(found: Findings) -> dict[str, Any] | None:
    """Rows for the seed and for the outcome; for a label-free run without them, why not.

    None for a run that read labels and drew no dev question several times.
    """
    models = []
    for label, index in (("seed", -1), ("final" if found.promoted else "last", found.final)):
        if index is None:
            continue
        told = vote_precision(a for a in found.dev.get(index, ()) if a.arm == "draws")
        if told is not None:
            rows = [(between_shares(part), part.count, f"{100 * part.accuracy:.1f} % "
                     f"[{100 * part.low:.1f}, {100 * part.high:.1f}]") for part in told.bins]
            models.append({"label": label, "rows": rows, "left": not_counted(told)})
    if models:
        return {"models": models, "says": ""}
    cost = account(found)
    if cost["labels_full"] + cost["labels_answer_only"] or not found.manifests:
        return None
    return {"models": [], "says": "This run read no labels, and how often its majority answers "
            "are right is not known: no dev question was drawn several times "
            "(Evaluation(draws=8))."}
