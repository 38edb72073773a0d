"""The figures of a study, from answers.parquet and facts.json alone: points, worths and words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from selfloop.evaluate.answers import Answer, read
from selfloop.label_study.equivalent import Resamples, Worth, over, resampled, worth
from selfloop.report.label_curve import bounded, curve_page
from selfloop.roles import SelfloopError
from selfloop.store import put, put_json

NAMES = {"supervised": "supervised alone", "vote": "supervised, voting at test time",
         "agreement": "supervised + agreement loop", "star": "supervised + rule-checked loop"}


def write_summary(folder: Path) -> dict[str, Any]:
    """summary.json, table.md and curve.html from the folder's answers and facts; the first back.

    Raises SelfloopError when they are missing or do not belong together.
    """
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SelfloopError(f"{folder}/facts.json: no such file: it is written when a study's "
                            "first seed is done; run the study") from None
    summary = summarised(facts, read(folder / "answers.parquet"))
    put_json(folder / "summary.json", summary)
    put(folder / "table.md", markdown(summary).encode())
    put(folder / "curve.html", curve_page(summary).encode())
    return summary


def summarised(facts: Mapping[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    """Points with intervals, the worth of every other arm in labels, and what may be said."""
    by_point: dict[tuple[str, int], list[Answer]] = {}
    for answer in answers:
        arm, _, labels = answer.arm.rpartition("@")
        by_point.setdefault((arm, int(labels)), []).append(answer)
    drawn = resampled(by_point)
    worths = [_worth(drawn, arm, b, facts) for arm, b in sorted(by_point) if arm != "supervised"]
    points = [_point(drawn, arm, b, facts) for arm, b in sorted(by_point, key=lambda p: p[::-1])]
    kept = ("model", "budgets", "seeds", "missing", "pool", "bare", "dev", "test_sha256", "loops",
            "supervision", "vote")
    return {
        **{name: facts[name] for name in kept}, "units": drawn.units,
        "test": len({a.sample for a in answers}), "points": points, "worth": worths,
        "words": [_words(w) for w in worths if w["arm"] != "vote"],
    }


def _point(drawn: Resamples, arm: str, budget: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    value, low, high = drawn.interval(arm, budget)
    told = [a for a in facts["accounts"] if a["arm"] == arm and a["labels"] == budget]
    return {
        "arm": arm, "name": NAMES.get(arm, arm), "labels_full": budget,
        "labels_answer_only": round(fmean(a["labels_answer_only"] for a in told)),
        "accuracy": round(100 * value, 2),
        "interval": [round(100 * low, 2), round(100 * high, 2)],
        "by_seed": {str(a["seed"]): round(100 * a["accuracy"], 2) for a in told},
        "tokens": {k: round(fmean(a["tokens"][k] for a in told)) for k in told[0]["tokens"]},
        "flops": fmean(a["flops"] for a in told), "updates": fmean(a["updates"] for a in told),
        "seconds": round(fmean(a["seconds"] for a in told), 1),
    }


def _worth(drawn: Resamples, arm: str, budget: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    budgets = facts["budgets"]
    own = drawn.labels(arm, budget, budgets)
    found: dict[str, Any] = {
        "arm": arm, "name": NAMES.get(arm, arm), "labels_full": budget,
        "labels_answer_only": _point(drawn, arm, budget, facts)["labels_answer_only"],
        "reads_answers": facts["reads"].get(arm, False),
        "equivalent": rounded(worth(*own)), "times": rounded(worth(*own).times(1 / budget)),
    }
    if arm != "vote":
        found["over_vote"] = rounded(over(own, drawn.labels("vote", budget, budgets)))
    return found


def rounded(found: Worth) -> dict[str, Any]:
    """As JSON, three digits."""
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in asdict(found).items()}


def _words(found: Mapping[str, Any]) -> str:
    read = found["labels_answer_only"]
    more = f" and {read} answer-only labels" if read else ""
    return (f"{found['labels_full']} labels{more}: {found['name']} is where supervised training "
            f"alone is with {bounded(found['equivalent'])} labels: {bounded(found['times'])} times "
            f"its full labels; {bounded(found['over_vote'])} times what the vote is worth")


def markdown(summary: Mapping[str, Any]) -> str:
    """Both tables: accuracy by budget and arm with the cost, and the worth in labels."""
    lines = ["| labels, full | labels, answer only | arm | % of test [95 %] | tokens | FLOPs | "
             "seconds |", "|---|---|---|---|---|---|---|"]
    for p in summary["points"]:
        low, high = p["interval"]
        lines.append(f"| {p['labels_full']} | {p['labels_answer_only']} | {p['name']} | "
                     f"{p['accuracy']:.1f} [{low:.1f}, {high:.1f}] | {sum(p['tokens'].values()):,} "
                     f"| {p['flops']:.2g} | {p['seconds']:.0f} |")
    lines += ["", "| labels, full | labels, answer only | arm | worth in labels | times its full "
              "labels | times the vote's worth |", "|---|---|---|---|---|---|"]
    for w in sorted(summary["worth"], key=lambda w: (w["arm"], w["labels_full"])):
        vote = bounded(w["over_vote"]) if "over_vote" in w else "–"
        lines.append(f"| {w['labels_full']} | {w['labels_answer_only']} | {w['name']} | "
                     f"{bounded(w['equivalent'])} | {bounded(w['times'])} | {vote} |")
    return "\n".join([*lines, ""])
