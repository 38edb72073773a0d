"""What happened, in sentences, and figures as people write them."""

from __future__ import annotations

import math
from typing import Any

from selfloop.report.facts import Findings


def decision(found: Findings) -> str:
    """What came of it, in one sentence."""
    if found.summary and "final_accuracy" in found.summary:
        return _proven(found.name, found.summary)
    if not found.iterations:
        steps = len(found.manifests)
        return (f"{found.name} has not decided anything yet: {steps} step{'s' * (steps != 1)} "
                f"collected, no iteration finished ({found.stopped or 'it has no iterations'}).")
    last, n = found.iterations[-1], len(found.iterations)
    many = f"{n} iteration{'s' * (n != 1)}"
    gain = found.dev_gain
    if not last.best:
        if last.decision.why.startswith("no gate"):
            return f"{found.name} was trained for {many} without a gate, so nothing was decided."
        return f"{found.name} promoted nothing in {many}; the last was {last.decision.why}."
    said = f"{found.name} promoted version {last.best} in {many}"
    if gain is None:
        return f"{said}; its gain over the seed cannot be computed from what is stored."
    return (f"{said}: {percent(gain.b)} to {percent(gain.a)} on {gain.n:,} dev questions, "
            f"{points(gain.gain)} over the seed ({between(gain.low, gain.high)}).")


def _proven(name: str, summary: dict[str, Any]) -> str:
    seed, final, n = summary["seed_accuracy"], summary["final_accuracy"], summary["heldout_n"]
    change = "raised" if final > seed else "lowered" if final < seed else "left"
    ends = [percent(value / 100) for value in (seed, final)]
    figures = f"from {ends[0]} to {ends[1]}" if final != seed else f"at {ends[1]}"
    said = f"{name} {change} held-out accuracy {figures} on {n:,} questions that it never read"
    if not summary.get("promoted", 1):
        said = (f"{name} promoted nothing, so its final model is the seed: {ends[1]} on "
                f"{n:,} questions that it never read")
    low, high = (value / 100 for value in summary["interval"])
    gain = summary["gain_over_control"] / 100
    where = ("above the steps-matched control" if gain >= 0 and low > 0 else
             "below the steps-matched control" if high < 0 else None)
    if where is None:
        return (f"{said}; it is not shown to be above the steps-matched control "
                f"({points(gain)}, {between(low, high)}).")
    return f"{said}, {points(abs(gain), sign=False)} {where} ({between(low, high)})."


def percent(share: float) -> str:
    """A fraction as "47.0 %", which no line break parts."""
    return f"{100 * share:.1f}\u00a0%"


def points(share: float, *, sign: bool = True) -> str:
    """A difference of fractions as points, with a true minus sign."""
    text = f"{100 * share:+.1f}" if sign else f"{100 * share:.1f}"
    return f"{text.replace('-', '−')}\u00a0points"


def between(low: float, high: float) -> str:
    """A 95 % interval of a difference, in words."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "too few clusters for an interval"
    ends = [f"{100 * v:.1f}".replace("-", "−") for v in (low, high)]
    return f"95\u00a0% interval {ends[0]} to {ends[1]}"


def short(number: float) -> str:
    """1234567 as "1.23 M"; FLOPs in G, T, P, E."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            return f"{number / (1e3 if unit == 'k' else size):.3g}\u00a0{unit}"
    return f"{number:,.0f}"


def lasting(seconds: float) -> str:
    """Seconds in words: "12 ms", "4.2 s", "3 min 20 s", "1 h 05 min"."""
    if 0 < seconds < 0.1:
        return f"{1e3 * seconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def times(ratio: float) -> str:
    """A ratio as "3.4x", "120x"."""
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:,.0f}x"


def of_machine(machine: dict[str, Any]) -> str:
    """What a machine can do at most, and how that is known."""
    return (f"the least that arithmetic allows on {machine['name']}, "
            f"{machine['flops'] / 1e12:.3g} TFLOP/s and {machine['bandwidth'] / 1e9:,.0f} GB/s "
            f"({machine['source']})")
