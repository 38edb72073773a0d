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
from selfloop.evaluate.ratios import share_bootstrap
from selfloop.evaluate.statistics import Gain, paired_gain
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder
from selfloop.types import Group, Iteration

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
    def promoted(self) -> bool:
        """Whether any version was promoted."""
        return bool(self.iterations and self.iterations[-1].best)

    @property
    def stopped(self) -> str | None:
        """Why the run ended early, or None when it ran to its end."""
        last = next((e for e in reversed(self.events)
                     if e["event"] in ("finished", "stopped", "opened")), None)
        if last is None or last["event"] == "finished":
            return last.get("why") if last else "it has no event log"
        if last["event"] == "stopped":
            return str(last.get("why", "it was stopped"))
        return "it was interrupted, or is still running"

    @cached_property
    def dev_gain(self) -> Gain | None:
        """Final over seed on the dev questions; None when one of them is missing."""
        if self.final is None:
            return None
        return gain_between(self.greedy(self.final), self.greedy(-1))

    def groups(self, step: int) -> list[Group]:
        """A step's judged groups; [] with a line in `missing` when they cannot be read."""
        try:
            return self.run.groups(step)
        except (SelfloopError, ValueError, KeyError, TypeError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            said = f"the answers of step {step} cannot be read ({line})"
            if said not in self.missing:
                self.missing.append(said)
            return []

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
    for index in (-1, *(i.index for i in iterations)):
        path = run.iteration("seed" if index < 0 else index) / "answers.parquet"
        if path.exists():
            dev[index] = _answers(path, missing)
    summary = (_json(home / "summary.json", missing) or None) if home else None
    asked = {arm: home / "answers" / f"{arm}.parquet" for arm in ARMS} if home else {}
    arms = {arm: _answers(path, missing) for arm, path in asked.items() if path.exists()}
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
    found = share_bootstrap([sum(r) / len(r) for _, r in draws.values()],
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
