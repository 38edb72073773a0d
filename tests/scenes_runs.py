"""Runs on the scenes testbed that other tests need: one that learns a shortcut, one that does not.

Both ask for colours only. With prior=1.0 every colour follows from the question ("the 3" is red),
so an honest verifier rewards answers that did not look; with prior=CHANCE looking is all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfloop.data import load
from selfloop.engines.hf import HFEngine
from selfloop.evaluate.answering import answer
from selfloop.evaluate.answers import Answer, accuracy, read
from selfloop.loop import Loop
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.recipes.star import star
from selfloop.roles import Sampling
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.testbeds import scenes
from selfloop.types import Iteration, Sample

SEED = Path(scenes.__file__).parent / "scenes_seed"
ASKED = ("colour",)


@dataclass(frozen=True)
class DialledRun:
    """What is left of a run: its decisions, its folder, and the engine as the run left it."""

    iterations: list[Iteration]
    folder: RunFolder
    engine: HFEngine

    @property
    def guards(self) -> set[str]:
        """Every guard that fired."""
        return {name for i in self.iterations for name in i.decision.guards}

    def accuracy(self, arm: str, iteration: int | str) -> float:
        """Dev accuracy in "greedy" or "no_image", of an iteration or of "seed"."""
        stored = read(self.folder.iteration(iteration) / "answers.parquet")
        return accuracy([a for a in stored if a.arm == arm])


def hard_star(iterations: int = 1, updates: int = 60) -> Loop:
    """STaR that trains hard on few questions."""
    return star(exact, n=4, max_new_tokens=3, iterations=iterations, updates=updates, batch=32,
                lr=1e-3, views=0.0, per_sample=1)


def dialled_run(folder: Path, prior: float, *, loop: Loop | None = None, pool: int = 240,
               dev: int = 400) -> DialledRun:
    """`loop` on colour questions whose colours follow the dial, judged on other ones."""
    train = load(scenes.write(folder / "pool", "train", pool, 1, prior=prior, tasks=ASKED))
    held = load(scenes.write(folder / "dev", "dev", dev, 1, prior=prior, tasks=ASKED))
    engine = HFEngine(str(SEED), threads=1)
    done = run(loop or hard_star(), train, engine, folder / "run", dev=held)
    return DialledRun(done, RunFolder(folder / "run"), engine)


def told(engine: HFEngine, samples: Sequence[Sample], arm: str = "greedy") -> list[Answer]:
    """Greedy answers of the engine's present weights, in the order of `samples`."""
    engine.bind(Library().open)
    engine.publish(engine.version, 0)
    sampling = Sampling(temperature=0.0, max_new_tokens=scenes.TOKENS)
    return answer(samples, {"solver": engine}, engine.version, exact, sampling, arm=arm)
