"""The gate: whether the candidate takes the place of the last promoted model.

The comparison is always with the last promoted model, so slow progress adds up until it can be
shown. What is promoted, and what is rolled back as harmful, is decided by one-sided paired tests;
guards (guards.py) catch models that score better without being better, and acting.py says what
follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.evaluate.acting import Acting
from selfloop.evaluate.answers import Answer, pair
from selfloop.evaluate.forgetting import Forgetting
from selfloop.evaluate.guards import (
    AnswerEntropy,
    Blind,
    DistinctAnswers,
    EmptyAnswers,
    Figures,
    Guard,
    LengthRatio,
    ParseRate,
    PassAtK,
    Unjudged,
    YesRate,
)
from selfloop.evaluate.looks import joint_p
from selfloop.evaluate.rewarding import Disagreement, RewardParting
from selfloop.evaluate.statistics import Gain, SequentialAlpha, paired_gain
from selfloop.roles import SelfloopError
from selfloop.types import Decision

GUARDS: tuple[Guard, ...] = (
    EmptyAnswers(), ParseRate(), LengthRatio(), DistinctAnswers(), AnswerEntropy(), PassAtK(),
    YesRate(), Blind(), Unjudged(), Disagreement(), RewardParting(), Forgetting(),
)
"""All of them, at their defaults."""

JOINTLY = 0.9
"""Share of alpha that looks taken together may spend. The rest is kept back because their exactness
rests on differences that are symmetric over all looks, which drifting candidates are not quite."""


@dataclass(frozen=True)
class Gate:
    """Promote, hold or roll back, with one alpha spent over all looks of the run.

    A look may use what `SequentialAlpha(alpha)` has spent up to it and earlier looks have not
    used (see looks.py), and never less than `SequentialAlpha(alpha).at(look)`. The chance that a
    run ever promotes a model that is no better stays below `alpha`; a budget of the same size is
    kept for harm, so the chance that it ever rolls back a model that is no worse stays below
    `alpha` too. (The second is a little optimistic after a promotion: the promoted model was
    chosen on the same questions.)
    """

    alpha: float = 0.05
    min_gain: float = 0.0
    """Also required of the estimated gain, as a fraction: 0.02 is two points."""
    guards: tuple[Guard, ...] = GUARDS
    acting: Acting = Acting()
    """What follows when a guard fires, and when the run has tried often enough."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5 or not 0 <= self.min_gain < 1:
            raise SelfloopError(
                f"Gate(alpha={self.alpha}, min_gain={self.min_gain}): alpha must be in (0, 0.5) "
                "and min_gain a fraction in [0, 1)")

    def __call__(self, candidate: Sequence[Answer], best: Sequence[Answer], look: int,
                 monitors: Figures | None = None, before: Figures | None = None,
                 earlier: Sequence[Sequence[Answer]] = ()) -> Decision:
        """Decide on `candidate` against `best`, the last promoted model, at look 0, 1, ...

        Both answered the same questions, one arm each; SelfloopError names the first that one of
        them did not. `monitors` and `before` are their figures, for the guards. `earlier` holds
        the answers of the candidates that were looked at since `best`, oldest first. The
        decision's `p_value` is that of the test that decided: for harm when rolled back as worse,
        else for better. `interval` is the 95 % bootstrap interval of the gain over clusters.
        """
        fired = [(type(guard).__name__, why) for guard in self.guards
                 if (why := guard(monitors or {}, before or {})) is not None]
        names = tuple(name for name, _ in fired)
        reasons = "; ".join(f"guard {name}: {why}" for name, why in fired)
        instead = self.acting.action(names)
        done = {"roll back": "rolled back", "hold": "held"}[instead]
        spent = SequentialAlpha(self.alpha).spent(look)
        if not len(pair(candidate, best).a):
            why = "no dev question was judged for both models"
            return Decision.model_validate({
                "action": instead, "alpha_spent": spent, "guards": names,
                "why": f"{done}: {reasons}; {why}" if fired else f"held: {why}"})
        gain = paired_gain(candidate, best, key=f"gate/{look}")
        action, why, p_value = self._weigh(gain, SequentialAlpha(self.alpha).at(look))
        if action == "hold" and gain.p_better < spent and earlier:
            action, why, p_value = self._jointly(gain, candidate, best, look, earlier)
        if fired and action != "roll back":
            action, p_value = instead, gain.p_better
            why = f"{done}: {_figures(gain)}, but {reasons}"
        elif fired:
            why = f"{why}; {reasons}"
        finite = math.isfinite(gain.low) and math.isfinite(gain.high)
        return Decision.model_validate({
            "action": action, "why": why, "gain": gain.gain, "p_value": p_value,
            "interval": (gain.low, gain.high) if finite else None,
            "alpha_spent": spent, "guards": names,
        })

    def _weigh(self, gain: Gain, level: float) -> tuple[str, str, float]:
        """(action, why, p) by this look's own tests alone."""
        if gain.p_worse < level:
            return ("roll back", f"rolled back: {_figures(gain)}, "
                    f"{_compared(gain.p_worse, level)} that it is no worse", gain.p_worse)
        return self._shown(gain, gain.p_better, level, "")

    def _jointly(self, gain: Gain, candidate: Sequence[Answer], best: Sequence[Answer], look: int,
                 earlier: Sequence[Sequence[Answer]]) -> tuple[str, str, float]:
        """(action, why, p) with the alpha that earlier, similar candidates have not used."""
        budget, first = SequentialAlpha(self.alpha), look - len(earlier)
        before = budget.spent(first - 1) if first else 0.0
        together = [JOINTLY * (budget.spent(k) - before) for k in range(first, look + 1)]
        levels = [max(budget.at(first), level) for level in together]
        p_value = joint_p([*earlier, candidate], best, levels, key=f"gate/{look}/joint")
        return self._shown(gain, p_value, levels[-1],
                           f" over {len(levels)} looks at the same model")

    def _shown(self, gain: Gain, p_value: float, level: float, over: str
               ) -> tuple[str, str, float]:
        """Promote or hold, by one p-value that it is no better."""
        text, compared = _figures(gain), _compared(p_value, level) + over
        if p_value >= level:
            return ("hold", f"held: {text}, {compared}: not shown to be better than the last "
                    "promoted", p_value)
        if gain.gain < self.min_gain:
            return ("hold", f"held: {text}, {compared}, but less than the required "
                    f"{100 * self.min_gain:.1f} points", p_value)
        return "promote", f"promoted: {text}, {compared}", p_value


def _figures(gain: Gain) -> str:
    return (f"{100 * gain.b:.1f} -> {100 * gain.a:.1f} on {gain.n} dev questions, "
            f"{100 * gain.gain:+.1f} points [{100 * gain.low:.1f}, {100 * gain.high:.1f}]")


def _compared(p: float, level: float) -> str:
    shown = f"p={p:.2g}" if p >= 0.0001 else "p<0.0001"
    return f"{shown} {'<' if p < level else '>='} {level:.2g}"
