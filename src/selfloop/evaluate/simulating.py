"""What the gate does over whole runs: simulated candidates, judged by the real `Gate`.

A run is a few looks at candidates that grow out of each other. Each candidate has a hidden
inclination on every question: it answers a question that the promoted model got wrong if the
inclination is high enough, and loses one that it got right if it is low enough. Inclinations are
shared within a picture's questions (`together`) and from one candidate to the next (`alike`), so
that differences are correlated as they are in a run. Under the null hypothesis the candidates
drift, with no gain on average over questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from selfloop.evaluate.answers import Answer
from selfloop.evaluate.gate import Gate
from selfloop.evaluate.statistics import SequentialAlpha, smallest_detectable_gain
from selfloop.keys import generator

_Array = np.ndarray[Any, Any]
_NORMAL = NormalDist()


@dataclass(frozen=True)
class World:
    """What is asked and how candidates differ. Shares are fractions."""

    questions: int = 200
    per_cluster: int = 1
    """Questions about one picture."""
    looks: int = 5
    accuracy: float = 0.55
    """Of the promoted model."""
    discordant: float = 0.25
    """Share of questions on which a candidate differs from it."""
    alike: float = 0.7
    """Correlation of one candidate's inclinations with the next one's."""
    together: float = 0.3
    """Correlation within a picture's questions."""
    gains: tuple[float, ...] = ()
    """True gain at each look; empty = none, the null hypothesis."""

    def gaining(self, gain: float) -> World:
        """The same world where every candidate is better by `gain`."""
        return replace(self, gains=(gain,) * self.looks)

    def slowly(self, gain: float) -> World:
        """The same world where the gain grows by equal steps to `gain` at the last look."""
        return replace(self, gains=tuple(gain * (k + 1) / self.looks for k in range(self.looks)))


@dataclass(frozen=True)
class Outcome:
    """Shares of runs that ever promoted, and that ever rolled back; bounds are one-sided 95 %."""

    runs: int
    promoted: float
    rolled_back: float
    promoted_low: float
    promoted_high: float
    rolled_back_high: float


def detectable(gate: Gate, world: World) -> float:
    """The gain that `selfloop plan` calls detectable: at the gate's first look, with 80 % power,
    questions of one cluster counting as one."""
    return smallest_detectable_gain(
        world.questions, discordant=world.discordant, alpha=SequentialAlpha(gate.alpha).at(0),
        design_effect=float(world.per_cluster))


def simulate(gate: Gate, world: World, runs: int = 2000, key: str = "simulate") -> Outcome:
    """Play `runs` runs, each until its first promotion or its last look.

    A candidate that is rolled back is followed by one that grows out of the promoted model anew.
    Deterministic in `key`.
    """
    promoted = rolled_back = 0
    for number in range(runs):
        actions = _play(gate, world, generator(f"{key}/{number}"))
        promoted += "promote" in actions
        rolled_back += "roll back" in actions
    return Outcome(runs, promoted / runs, rolled_back / runs, _bound(promoted, runs, 0.05),
                   _bound(promoted, runs, 0.95), _bound(rolled_back, runs, 0.95))


def _bound(hits: int, runs: int, at: float) -> float:
    """Clopper and Pearson's (1934) one-sided bound of a share: `at` 0.95 upper, 0.05 lower."""
    from scipy.stats import beta

    if (hits == 0 and at < 0.5) or (hits == runs and at > 0.5):
        return float(hits == runs)
    more = 1 if at > 0.5 else 0
    return float(beta.ppf(at, hits + more, runs - hits + 1 - more))


def _play(gate: Gate, world: World, rng: np.random.Generator) -> list[str]:
    """The actions of one run's looks, up to its first promotion."""
    best_N = rng.random(world.questions) < world.accuracy
    actions: list[str] = []
    earlier: list[_Array] = []
    inclined_N = _inclinations(world, rng)
    for look in range(world.looks):
        if look:
            kept = 0.0 if actions[-1] == "roll back" else world.alike
            inclined_N = kept * inclined_N + (1 - kept**2) ** 0.5 * _inclinations(world, rng)
        gain = world.gains[look] if world.gains else 0.0
        right_N = _candidate(world, best_N, inclined_N, gain)
        actions.append(_decide(gate, world, best_N, right_N, look, earlier))
        if actions[-1] == "promote":
            break
        earlier.append(right_N)
    return actions


def _decide(gate: Gate, world: World, best_N: _Array, right_N: _Array, look: int,
            earlier: Sequence[_Array]) -> str:
    """What the gate does. It is not asked where it would surely hold: no level of it is above
    alpha, and |z| is so small that p is above 1.6 alpha."""
    change_N = right_N.astype(float) - best_N
    sums_C = np.bincount(np.arange(len(best_N)) // world.per_cluster, weights=change_N)
    z = change_N.sum() / max(1.0, float(np.square(sums_C).sum())) ** 0.5
    if abs(z) < _NORMAL.inv_cdf(1 - 1.6 * min(gate.alpha, 0.3)):
        return "hold"
    decision = gate(_answers(right_N, world), _answers(best_N, world), look,
                    earlier=[_answers(e, world) for e in earlier])
    return decision.action


def _inclinations(world: World, rng: np.random.Generator) -> _Array:
    """(questions,) standard normal, correlated within clusters."""
    clusters = -(-world.questions // world.per_cluster)
    shared = rng.standard_normal(clusters).repeat(world.per_cluster)[:world.questions]
    own = rng.standard_normal(world.questions)
    return np.asarray(world.together**0.5 * shared + (1 - world.together) ** 0.5 * own)


def _candidate(world: World, best_N: _Array, inclined_N: _Array, gain: float) -> _Array:
    """(questions,) whether the candidate is right: it wins (psi + gain) / 2 of all questions from
    those that the promoted model got wrong, and loses (psi - gain) / 2 of the others."""
    psi = max(world.discordant, gain)
    wins = min(1 - 1e-9, (psi + gain) / 2 / (1 - world.accuracy))
    loses = max(1e-9, (psi - gain) / 2 / world.accuracy)
    won = inclined_N > _NORMAL.inv_cdf(1 - wins)
    lost = inclined_N < _NORMAL.inv_cdf(loses)
    return np.where(best_N, ~lost, won)


def _answers(right_N: _Array, world: World) -> list[Answer]:
    return [Answer.model_construct(sample=f"q{i}", cluster=f"c{i // world.per_cluster}",
                                   right=bool(right), draw=0, seed=0)
            for i, right in enumerate(right_N)]
