"""What a run or a proof left on disk, read once, with what is missing said in words.

Everything that the page, the terminal view and the model card tell comes from here, so that they
cannot contradict one another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from selfloop.evaluate.answers import Answer, accuracy, read
from selfloop.evaluate.statistics import Gain, bootstrap, paired_gain
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder
from selfloop.types import Iteration

ARMS = ("final_accuracy", "seed_accuracy", "control_steps", "control_flops", "testtime_vote",
        "shuffled", "supervised_on_answers", "no_image", "skyline")
"""Arms in the order in which they are shown."""


@dataclass(frozen=True)
class Estimate:
    """An accuracy as a fraction, with its 95 % interval where one could be computed."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    """Questions behind it; 0 when only the figure itself is known."""


@dataclass(frozen=True)
class Findings:
    """One run's record: `run` is its folder, `summary` the proof's figures if there is a proof."""

    folder: Path
    run: RunFolder
    about: dict[str, Any]
    """loop.json, or {} when it is missing."""
    summary: dict[str, Any] | None
    iterations: list[Iteration]
    manifests: list[dict[str, Any]]
    learned: list[dict[str, dict[str, float]]]
    """For each step, role -> figures; {} where the step was collected and not learned."""
    events: list[dict[str, Any]]
    dev: dict[int, list[Answer]]
    """Dev answers: -1 is the seed, then by iteration."""
    arms: dict[str, list[Answer]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Parts that are not there or cannot be read, in words."""

    @property
    def name(self) -> str:
        """The method's name."""
        loop = self.about.get("loop")
        named = loop.get("name") if isinstance(loop, dict) else None
        return str((self.summary or {}).get("method") or named or self.folder.name)

    @property
    def steps_per_iteration(self) -> int:
        """Steps between two gates."""
        loop = self.about.get("loop")
        return int(loop.get("steps", 1)) if isinstance(loop, dict) else 1

    @property
    def final(self) -> int | None:
        """The iteration whose model is the outcome: the last promoted one, or else the last."""
        if not self.iterations:
            return None
        best = self.iterations[-1].best
        return next((i.index for i in self.iterations if i.version == best), len(
            self.iterations) - 1)

    @property
    def stopped(self) -> str | None:
        """Why the run ended early, or None when it ran to its end."""
        last = next((e for e in reversed(self.events)
                     if e["event"] in ("finished", "stopped", "opened")), None)
        if last is None or last["event"] == "finished":
            return None if last else "it has no event log"
        if last["event"] == "stopped":
            return str(last.get("why", "it was stopped"))
        return "it was interrupted, or is still running"

    @cached_property
    def dev_gain(self) -> Gain | None:
        """Final over seed on the dev questions, paired; None when one of them is missing."""
        if self.final is None:
            return None
        return gain_between(self.greedy(self.final), self.greedy(-1))

    def greedy(self, iteration: int) -> list[Answer]:
        """Greedy dev answers of an iteration (-1: the seed)."""
        return [a for a in self.dev.get(iteration, ()) if a.arm == "greedy"]


def gather(folder: str | Path) -> Findings:
    """Read a run folder or a proof folder. Raises SelfloopError when it is neither."""
    folder = Path(folder)
    run, home = _located(folder)
    missing: list[str] = []
    about = _json(run.path / "loop.json", missing)
    iterations = run.iterations()
    manifests = _manifests(run)
    learned = [_json(run.step(i) / "learned.json", []) for i in range(len(manifests))]
    dev: dict[int, list[Answer]] = {}
    for index, place in [(-1, "seed"), *((i.index, i.index) for i in iterations)]:
        path = run.iteration(place) / "answers.parquet"
        if path.exists():
            dev[index] = _answers(path, missing)
    summary = (_json(home / "summary.json", missing) or None) if home else None
    arms = {}
    for arm in ARMS if home else ():
        path = home / "answers" / f"{arm}.parquet"
        if path.exists():
            arms[arm] = _answers(path, missing)
    return Findings(
        folder=home or folder, run=run, about=about, summary=summary, iterations=iterations,
        manifests=manifests, learned=learned, events=run.events(), dev=dev,
        arms={k: v for k, v in arms.items() if v}, missing=missing)


def _located(folder: Path) -> tuple[RunFolder, Path | None]:
    """The run, and the proof folder around it (None when it stands alone)."""
    if (folder / "loop.json").exists():
        # A proof keeps its run in <proof>/loop: asked about the run, tell the whole story.
        within = folder.name == "loop" and (folder.parent / "summary.json").exists()
        return RunFolder(folder), folder.parent if within else None
    if (folder / "loop" / "loop.json").exists() or (folder / "summary.json").exists():
        return RunFolder(folder / "loop"), folder
    raise SelfloopError(
        f"{folder} is neither a run folder (no loop.json) nor a proof folder (no summary.json): "
        "give the folder that a run wrote, such as runs/demo")


def _json(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        missing.append(f"{path.name} is missing")
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} cannot be read ({error})")
    return {}


def _manifests(run: RunFolder) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while (manifest := run.manifest(len(found))) is not None:
        found.append(manifest)
    return found


def _answers(path: Path, missing: list[str]) -> list[Answer]:
    try:
        return read(path)
    except SelfloopError as error:
        missing.append(str(error))
        return []


# -- figures --------------------------------------------------------------------------------------

def estimate(answers: Sequence[Answer]) -> Estimate | None:
    """Accuracy with a bootstrap interval over clusters (and seeds); None when none is judged."""
    draws: dict[tuple[int, str], tuple[str, list[bool]]] = {}
    for a in answers:
        if a.right is not None:
            draws.setdefault((a.seed, a.sample), (a.cluster, []))[1].append(a.right)
    if not draws:
        return None
    found = bootstrap([sum(r) / len(r) for _, r in draws.values()],
                      [cluster for cluster, _ in draws.values()],
                      [seed for seed, _ in draws], key="report")
    bounded = math.isfinite(found.low) and math.isfinite(found.high)
    return Estimate(accuracy(answers), found.low if bounded else None,
                    found.high if bounded else None, len({s for _, s in draws}))


def gain_between(ours: Sequence[Answer], theirs: Sequence[Answer]) -> Gain | None:
    """Paired gain, or None when the two cannot be compared."""
    if not ours or not theirs:
        return None
    try:
        return paired_gain(ours, theirs, key="report")
    except SelfloopError:
        return None


def account(found: Findings) -> dict[str, Any]:
    """Labels, tokens, FLOPs and seconds of the whole run, also of one that stopped early."""
    full = {i for m in found.manifests for i in m["labels"]["full"]}
    answers = {i for m in found.manifests for i in m["labels"]["answer_only"]} - full
    tokens = {k: sum(m["tokens"][k] for m in found.manifests) for k in ("read", "drawn")}
    for what in ("read", "trained"):
        tokens[f"learn_{what}"] = int(sum(
            role.get(f"tokens_{what}", 0) for step in found.learned for role in step.values()))
    seconds = {kind: sum(float(e.get("seconds", 0)) for e in found.events if e["event"] == kind)
               for kind in ("gathered", "learned")}
    dev = {a.sample for answers_ in found.dev.values() for a in answers_}
    return {
        "labels_full": len(full), "labels_answer_only": len(answers), "labels_dev": len(dev),
        "tokens": tokens, "flops": found.iterations[-1].flops if found.iterations else None,
        "seconds": {"collecting": seconds["gathered"], "learning": seconds["learned"],
                    "all": _elapsed(found.events)},
    }


def _elapsed(events: Sequence[dict[str, Any]]) -> float:
    """Seconds from each opening to the last event before the next: pauses do not count."""
    total, start, last = 0.0, None, 0.0
    for event in events:
        now = float(event["time"])
        if event["event"] == "opened":
            total += last - start if start is not None else 0.0
            start = now
        last = now
    return total + (last - start if start is not None else 0.0)


# -- words ----------------------------------------------------------------------------------------

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
        return f"{found.name} promoted nothing in {many}: {last.decision.why}."
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
    """Seconds in words: "4.2 s", "3 min 20 s", "1 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
