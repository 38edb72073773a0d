"""What `selfloop run` shows while it runs: stages, rates, time left, and decisions in words."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from selfloop.durations import time_of
from selfloop.interrupting import Interruption

QUIET = 10.0
"""Seconds between two lines of one stage where there is no terminal."""


class Shown:
    """A Watch (see running.py) that shows the run on a console, by default stderr.

    On a terminal one live line below the finished ones; elsewhere plain lines. Use it as a
    context manager, so that the live line is taken down whatever happens; inside it a Ctrl-C
    ends the run at its next event at the latest.
    """

    def __init__(self, console: Console | None = None, *, budget: float | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True)
        self.budget, self.clock = budget, clock
        self.began = self._stage_began = clock()
        self._stage = ""
        self._told = -math.inf
        self._steps = self._left = 0
        self._spent: list[float] = []
        self._gathering = 0.0
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._interruption = Interruption()

    def __enter__(self) -> Shown:
        self._interruption.__enter__()
        if self.console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"),
                console=self.console, transient=True)
            self._live.start()
            self._task = self._live.add_task("starting", total=None, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        self._interruption.__exit__()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """One event of the run; events that are not known are passed over."""
        self._interruption.check()
        how = getattr(self, f"_on_{event}", None)
        if how is not None:
            how(facts)

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    # -- the moving line ----------------------------------------------------------------------

    def _moves(self, stage: str, done: int, of: int, unit: str) -> None:
        """Progress inside a stage, with its rate and what is left of the run."""
        now = self.clock()
        if stage != self._stage:
            # The first report comes when its part is already done: count from the last event.
            self._stage, self._told = stage, now
        rate = done / max(1e-6, now - self._stage_began)
        words = f"{rate:.1f} {unit}/s" if rate < 100 else f"{rate:.0f} {unit}/s"
        left = self.left()
        if unit == "updates" and not self._spent:
            each = self._gathering + of / max(1e-6, rate)
            left = self._capped((of - done) / max(1e-6, rate) + (self._left - 1) * each)
        words += f", about {time_of(left)} left" if left is not None else ""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, description=escape(stage), completed=done, total=of,
                              rate=words)
        elif now - self._told >= QUIET:
            self._told = now
            self.say(f"{stage}: {done} of {of} {unit}, {words}")

    def _next_stage(self) -> None:
        self._stage_began = self.clock()
        self._stage = ""

    def left(self) -> float | None:
        """Seconds to the end by the steps so far, the budget heeded; None = unknown."""
        if not self._spent:
            return None
        recent = self._spent[-5:]
        return self._capped(self._left * sum(recent) / len(recent))

    def _capped(self, left: float) -> float:
        """The budget may end a run sooner."""
        if self.budget is None:
            return left
        return min(left, max(0.0, self.budget - (self.clock() - self.began)))

    # -- events -------------------------------------------------------------------------------

    def _on_opened(self, facts: Mapping[str, Any]) -> None:
        self._steps = self._left = facts["iterations"] * facts["steps"]
        steps = f" of {facts['steps']} steps" if facts["steps"] > 1 else ""
        self.say(f"{facts['loop']}: {facts['samples']} train and {facts['dev']} dev samples, "
                 f"{facts['iterations']} iterations{steps}")
        self._next_stage()

    def _on_evaluated(self, facts: Mapping[str, Any]) -> None:
        self.say(f"seed: {_figures(facts)} on dev")
        self._next_stage()

    def _on_drawn(self, facts: Mapping[str, Any]) -> None:
        self._moves(f"step {facts['step'] + 1} of {self._steps}: collect and verify",
                    facts["done"], facts["of"], "problems")

    def _on_gathered(self, facts: Mapping[str, Any]) -> None:
        counts, took = facts["counts"], facts["seconds"]
        self._gathering = took
        drawn, right = counts.get("drawn", 0), counts.get("right", 0)
        signals = sum(n for name, n in counts.items() if name.startswith("signals_"))
        rate = counts.get("problems", 0) / max(1e-6, took)
        if drawn:
            unjudged = counts.get("unjudged", 0)
            about = f"{drawn} answers to {counts['problems']} problems, "
            if unjudged < drawn:  # where nobody judges, none is known to be wrong
                about += f"{100 * right / drawn:.0f} % right, "
            if unjudged:
                about += f"{100 * unjudged / drawn:.0f} % unjudged, "
        else:
            about = ""
        self.say(f"step {facts['step'] + 1}: {about}{signals} signals "
                 f"({time_of(took)}, {rate:.1f} problems/s)")
        self._next_stage()

    def _on_acted(self, facts: Mapping[str, Any]) -> None:
        if facts["action"] not in ("Hold", "RollBack"):  # the decision has said so
            self.say(f"action: {facts['action']}: {facts['why']}")

    def _on_update(self, facts: Mapping[str, Any]) -> None:
        role = "" if facts["role"] == "solver" else f" {facts['role']}"
        self._moves(f"step {facts['step'] + 1} of {self._steps}: learn{role}", facts["done"],
                    facts["of"], "updates")

    def _on_learned(self, facts: Mapping[str, Any]) -> None:
        for role, found in facts["metrics"].items():
            updates = int(found.get("updates", 0))
            if not updates:
                self.say(f"step {facts['step'] + 1}: nothing to learn from for the {role}: no "
                         "answer made a signal")
                continue
            losses = ", ".join(f"{n} {v:.3g}" for n, v in found.items()
                               if n not in ("updates",) and not n.startswith("tokens_"))
            self.say(f"step {facts['step'] + 1}: {updates} updates ({time_of(facts['seconds'])}, "
                     f"{updates / max(1e-6, facts['seconds']):.1f}/s): {losses}")
        self._spent.append(facts["seconds"] + self._gathering)
        self._gathering = 0.0
        self._left = max(0, self._steps - facts["step"] - 1)
        self._next_stage()

    def _on_decided(self, facts: Mapping[str, Any]) -> None:
        left = self.left()
        rest = f" (about {time_of(left)} left)" if self._left and left is not None else ""
        self.say(f"iteration {facts['iteration'] + 1}: {facts['why']}{rest}")
        self._next_stage()

    def _on_stopped(self, facts: Mapping[str, Any]) -> None:
        self.say(f"stopped: {facts['why']}; the same command goes on from here")

    def _on_finished(self, facts: Mapping[str, Any]) -> None:
        took = time_of(self.clock() - self.began)
        best = f"best is version {facts['best']}" if facts["best"] else "nothing was promoted"
        self.say(f"finished {facts['iterations']} iterations in {took}: {best}")
        if facts.get("why"):
            self.say(f"stopped early: {facts['why']}")


def _figures(facts: Mapping[str, Any]) -> str:
    names = {"greedy": "right", "no_image": "right without the picture"}
    return ", ".join(f"{100 * facts[name]:.1f} % {words}" for name, words in names.items()
                     if name in facts) or "nothing could be judged"
