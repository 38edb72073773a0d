"""The gate: whether the candidate takes the place of the last promoted model.

The comparison is always with the last promoted model, so slow progress adds up until it can be
shown. What is promoted, and what is rolled back as harmful, is decided by one-sided paired tests;
guards catch models that score better by answering less, the same, or without looking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from selfloop.evaluate.answers import Answer, pair
from selfloop.evaluate.statistics import Gain, SequentialAlpha, paired_gain
from selfloop.roles import SelfloopError
from selfloop.types import Decision

Figures = Mapping[str, float]
"""What `selfloop.evaluate.monitors.of_answers` returns."""


class Guard(Protocol):
    """Reads the candidate's figures and those of the last promoted model.

    Returns why it fires, or None. A figure that is absent or NaN makes it abstain.
    """

    def __call__(self, monitors: Figures, before: Figures) -> str | None: ...


def _figure(figures: Figures, name: str) -> float | None:
    value = figures.get(name)
    return None if value is None or not math.isfinite(value) else value


def _both(name: str, monitors: Figures, before: Figures) -> tuple[float, float] | None:
    now, then = _figure(monitors, name), _figure(before, name)
    return None if now is None or then is None else (now, then)


@dataclass(frozen=True)
class EmptyAnswers:
    """Fires when more than `max_share` of the answers are empty, and more than before."""

    max_share: float = 0.2

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `empty`. A model that was already empty may become less so."""
        now = _figure(monitors, "empty")
        if now is None or now <= self.max_share or now <= (_figure(before, "empty") or 0.0):
            return None
        return f"{now:.0%} of the answers are empty (at most {self.max_share:.0%})"


@dataclass(frozen=True)
class ParseRate:
    """Fires when the share of parsed answers is below `min` and falling, or fell by > `drop`."""

    min: float = 0.5
    drop: float = 0.1

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `parsed`."""
        now, then = _figure(monitors, "parsed"), _figure(before, "parsed")
        if now is None:
            return None
        if then is not None and then - now > self.drop:
            return f"parsed answers fell from {then:.0%} to {now:.0%} (by at most {self.drop:.0%})"
        if now < self.min and (then is None or now < then):
            return f"{now:.0%} of the answers can be parsed (at least {self.min:.0%})"
        return None


@dataclass(frozen=True)
class LengthRatio:
    """Fires when answers became `max_ratio` times longer, or shorter than `min_ratio` times."""

    max_ratio: float = 3.0
    min_ratio: float = 0.25

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `mean_tokens`."""
        found = _both("mean_tokens", monitors, before)
        if found is None or found[1] <= 0:
            return None
        ratio = found[0] / found[1]
        if self.min_ratio <= ratio <= self.max_ratio:
            return None
        return (f"answers went from {found[1]:.1f} to {found[0]:.1f} tokens, {ratio:.2g} times "
                f"(allowed {self.min_ratio:g} to {self.max_ratio:g})")


@dataclass(frozen=True)
class DistinctAnswers:
    """Fires when distinct answers over all questions fall below `min_ratio` of what is normal.

    Normal is what the last promoted model gave, or the variety of the gold answers if smaller: a
    model that stops inventing wrong answers has not collapsed.
    """

    min_ratio: float = 0.5

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `distinct`, and `distinct_gold` where it is known."""
        found = _both("distinct", monitors, before)
        if found is None:
            return None
        gold = _figure(monitors, "distinct_gold")
        normal = found[1] if gold is None else min(found[1], gold)
        if found[0] >= self.min_ratio * normal:
            return None
        return (f"distinct answers fell to {found[0]:.3g} a question where {normal:.3g} is normal "
                f"(at least {self.min_ratio:g} of it)")


@dataclass(frozen=True)
class PassAtK:
    """Fires when pass@1 does not fall but pass@k falls by more than `max_drop`.

    The model then grew surer without being able to solve more: monitor M12, and the collapse
    that voting rewards show (MM-UPT, arXiv 2505.22453).
    """

    max_drop: float = 0.03

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `pass@1` and the largest `pass@k` that both have."""
        single = _both("pass@1", monitors, before)
        ks = [int(n[5:]) for n in monitors if n.startswith("pass@") and n[5:].isdigit()
              and _both(n, monitors, before) is not None]
        if single is None or max(ks) == 1 or single[0] < single[1]:
            return None
        k = max(ks)
        now, then = monitors[f"pass@{k}"], before[f"pass@{k}"]
        if then - now <= self.max_drop:
            return None
        return (f"pass@{k} fell from {100 * then:.1f} to {100 * now:.1f} while pass@1 went from "
                f"{100 * single[1]:.1f} to {100 * single[0]:.1f}")


@dataclass(frozen=True)
class Blind:
    """Fires when the picture matters less: answers without it got better by more than `max_rise`
    (monitor M13), and what the picture adds (accuracy with it minus without) fell.

    Both have to exceed `z` standard errors over the dev questions, so that small splits do not
    roll back by luck. A model that merely learns to guess in the right form, while it gains as
    much from looking as before, passes.
    """

    max_rise: float = 0.05
    z: float = 1.645

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `no_image`, `visual_gain`, and `questions` for the standard errors."""
        blind = _both("no_image", monitors, before)
        added = _both("visual_gain", monitors, before)
        n = _figure(monitors, "questions")
        if blind is None:
            return None
        noise = self.z * math.sqrt(sum(p * (1 - p) for p in blind) / n) if n else 0.0
        if blind[0] - blind[1] <= self.max_rise + noise:
            return None
        if added is not None and added[0] - added[1] >= -noise:
            return None
        return (f"accuracy without the picture rose from {100 * blind[1]:.1f} to "
                f"{100 * blind[0]:.1f} (by at most {100 * self.max_rise:g} points), and what the "
                "picture adds fell")


@dataclass(frozen=True)
class Unjudged:
    """Fires when the share that the verifier cannot judge rose by more than `max_rise`.

    Unjudged answers leave the mean, so a model must not gain by becoming unjudgeable.
    """

    max_rise: float = 0.02

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `unjudged`."""
        found = _both("unjudged", monitors, before)
        if found is None or found[0] - found[1] <= self.max_rise:
            return None
        return (f"answers that the verifier cannot judge rose from {found[1]:.1%} to "
                f"{found[0]:.1%} (by at most {self.max_rise:.0%})")


@dataclass(frozen=True)
class Gate:
    """Promote, hold or roll back, with one alpha spent over all looks of the run.

    A look spends `SequentialAlpha(alpha).at(look)`. The chance that a run ever promotes a model
    that is no better stays below `alpha`; a budget of the same size is kept for harm, so the
    chance that it ever rolls back a model that is no worse stays below `alpha` too. (The second
    is a little optimistic after a promotion: the promoted model was chosen on the same questions.)
    """

    alpha: float = 0.05
    min_gain: float = 0.0
    """Also required of the estimated gain, as a fraction: 0.02 is two points."""
    guards: tuple[Guard, ...] = (
        EmptyAnswers(), ParseRate(), LengthRatio(), DistinctAnswers(), PassAtK(), Blind(),
        Unjudged(),
    )

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5 or not 0 <= self.min_gain < 1:
            raise SelfloopError(
                f"Gate(alpha={self.alpha}, min_gain={self.min_gain}): alpha must be in (0, 0.5) "
                "and min_gain a fraction in [0, 1)")

    def __call__(self, candidate: Sequence[Answer], best: Sequence[Answer], look: int,
                 monitors: Figures | None = None, before: Figures | None = None) -> Decision:
        """Decide on `candidate` against `best`, the last promoted model, at look 0, 1, ...

        Both answered the same questions, one arm each; SelfloopError names the first that one of
        them did not. `monitors` and `before` are their figures, for the guards. The decision's
        `p_value` is that of the test that decided: for harm when rolled back as worse, else for
        better. `interval` is the 95 % bootstrap interval of the gain over clusters.
        """
        budget = SequentialAlpha(self.alpha)
        level, spent = budget.at(look), budget.spent(look)
        fired = [(type(guard).__name__, why) for guard in self.guards
                 if (why := guard(monitors or {}, before or {})) is not None]
        names = tuple(name for name, _ in fired)
        reasons = "; ".join(f"guard {name}: {why}" for name, why in fired)
        if not len(pair(candidate, best).a):
            why = "no dev question was judged for both models"
            return Decision(
                action="roll back" if fired else "hold", alpha_spent=spent, guards=names,
                why=f"rolled back: {reasons}; {why}" if fired else f"held: {why}")
        gain = paired_gain(candidate, best, key=f"gate/{look}")
        action, why, p_value = self._weigh(gain, level)
        if fired:
            action, why = "roll back", f"rolled back: {_figures(gain)}, but {reasons}"
            p_value = gain.p_better
        finite = math.isfinite(gain.low) and math.isfinite(gain.high)
        return Decision.model_validate({
            "action": action, "why": why, "gain": gain.gain, "p_value": p_value,
            "interval": (gain.low, gain.high) if finite else None,
            "alpha_spent": spent, "guards": names,
        })

    def _weigh(self, gain: Gain, level: float) -> tuple[str, str, float]:
        """(action, why, p) by the tests alone."""
        text = _figures(gain)
        if gain.p_worse < level:
            return ("roll back", f"rolled back: {text}, {_compared(gain.p_worse, level)} that it "
                    "is no worse", gain.p_worse)
        compared = _compared(gain.p_better, level)
        if gain.p_better >= level:
            return ("hold", f"held: {text}, {compared}: not shown to be better than the last "
                    "promoted", gain.p_better)
        if gain.gain < self.min_gain:
            return ("hold", f"held: {text}, {compared}, but less than the required "
                    f"{100 * self.min_gain:.1f} points", gain.p_better)
        return "promote", f"promoted: {text}, {compared}", gain.p_better


def _figures(gain: Gain) -> str:
    return (f"{100 * gain.b:.1f} -> {100 * gain.a:.1f} on {gain.n} dev questions, "
            f"{100 * gain.gain:+.1f} points [{100 * gain.low:.1f}, {100 * gain.high:.1f}]")


def _compared(p: float, level: float) -> str:
    shown = f"p={p:.2g}" if p >= 0.0001 else "p<0.0001"
    return f"{shown} {'<' if p < level else '>='} {level:.2g}"
