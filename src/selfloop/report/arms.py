"""The arms beside the final model: what each is, and whether it is beaten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfloop.evaluate.answers import accuracy
from selfloop.report import figures
from selfloop.report.facts import ARMS, Estimate, Findings, estimate
from selfloop.report.words import between, percent, points

SAYS = {
    "final_accuracy": ("The loop’s final model", "the last promoted version, answering once"),
    "seed_accuracy": ("Seed", "the model before the loop"),
    "control_steps": ("Control, same steps", "as many updates on the seed’s own labels only"),
    "control_flops": ("Control, same FLOPs", "the same, with the loop’s whole compute"),
    "testtime_vote": ("Seed with vote", "the seed answering many times and voting"),
    "shuffled": ("Shuffled verdicts", "the same loop with its verdicts dealt out at random"),
    "supervised_on_answers": ("Supervised on answers", "trained on all gold answers that it read"),
    "no_image": ("Without pictures", "the final model, every picture taken out"),
    "skyline": ("Skyline", "trained on full labels for every question; an upper reference"),
}
"""Arm -> its name and what it is."""
REFERENCES = ("no_image", "skyline")
"""Arms that are shown for scale; beating them or not is no claim."""


def arms(found: Findings) -> dict[str, Any] | None:
    """Every arm with its interval and how the final model compares; None without a proof."""
    summary = found.summary
    if not summary or "final_accuracy" not in summary:
        return None
    shown = [arm for arm in ARMS if isinstance(summary.get(arm), int | float)]
    known = {arm: estimate(found.arms.get(arm, [])) or Estimate(summary[arm] / 100)
             for arm in shown}
    scale = figures.axis([v for e in known.values() for v in (e.value, e.low, e.high)],
                         ticks=5, inside=(0.0, 1.0))
    mark = known["final_accuracy"].value
    rows = []
    for arm in shown:
        what, about = SAYS[arm]
        e = known[arm]
        state, compared = _against(arm, summary)
        kind = {"final_accuracy": "solid"}.get(arm, "dot" if arm in REFERENCES else "dash")
        rows.append({
            "name": what, "about": about, "value": percent(e.value), "ends": (
                f"{100 * e.low:.1f} to {100 * e.high:.1f}"
                if e.low is not None and e.high is not None else "no interval stored"),
            "state": state, "gain": compared[0], "within": compared[1], "key": arm,
            "chart": figures.interval_row(e.value, e.low, e.high, scale, mark, kind),
        })
    absent = [SAYS[arm][0] for arm in ARMS if arm not in shown]
    return {"rows": rows, "ticks": figures.ticks_row(scale), "n": summary.get("heldout_n"),
            "absent": absent, "doubts": _doubts(found, known)}


def _against(arm: str, summary: Mapping[str, Any]) -> tuple[str, tuple[str, str]]:
    """Whether the final model is above an arm, in words; the difference and its interval."""
    if arm == "final_accuracy":
        return "", ("", "")
    gain = summary.get("gains", {}).get(arm)
    if gain is None:
        return ("reference" if arm in REFERENCES else "not compared"), ("", "")
    low, high = gain["interval"]
    said = points(gain["gain"] / 100), between(low / 100, high / 100)
    if arm in REFERENCES:
        return "reference", said
    return ("beaten" if low > 0 else "not beaten" if high >= 0 else "the arm is better"), said


def claim(found: Findings) -> str:
    """The proof's own verdict, with the arms by the names that the page uses."""
    summary = found.summary or {}
    said = str(summary.get("words", ""))
    if any(arm not in summary for arm in ARMS if arm not in REFERENCES):
        said = said.replace("above every arm,", "above every arm that was run,")
    for arm in ("control_steps", "control_flops", "shuffled", "supervised_on_answers"):
        said = said.replace(f"beat {arm} ", f"beat “{SAYS[arm][0]}” ")
    return said.replace(" -> ", " → ").replace(" -", " −").replace("[-", "[−")


def _doubts(found: Findings, known: Mapping[str, Estimate]) -> list[str]:
    """Arms whose stored answers do not give the figure of summary.json."""
    summary = found.summary or {}
    return [f"{SAYS[arm][0]}: summary.json says {summary[arm]:.2f}, its stored answers give "
            f"{100 * accuracy(found.arms[arm]):.2f}"
            for arm in known if arm in found.arms
            and abs(100 * accuracy(found.arms[arm]) - summary[arm]) > 0.011]
