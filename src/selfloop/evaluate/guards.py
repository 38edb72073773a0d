"""Guards: models that score better by answering less, the same, or without looking are not better.

A guard reads the candidate's figures and those of the last promoted model (see monitors.py) and
says why it fires, or None. A figure that is absent or NaN makes it abstain. Where shares are
compared, a change has to exceed a tolerance plus `z` standard errors of the difference of two
independent shares. The two models answer the same questions, so the true error is smaller, and
healthy runs are left alone. What follows when one fires is said in acting.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

Figures = Mapping[str, float]
"""What `selfloop.evaluate.monitors.of_answers` returns, and what the loop adds to it."""

Z = 1.645
"""One-sided 5 %: how many standard errors a change has to exceed beside its tolerance."""


class Guard(Protocol):
    """Reads the candidate's figures and those of the last promoted model.

    Returns why it fires, or None. A figure that is absent or NaN makes it abstain.
    """

    def __call__(self, monitors: Figures, before: Figures) -> str | None: ...


def figure(figures: Figures, name: str) -> float | None:
    """A figure that is there and finite, or None."""
    value = figures.get(name)
    return None if value is None or not math.isfinite(value) else value


def both(name: str, monitors: Figures, before: Figures) -> tuple[float, float] | None:
    """(now, then), or None where one of them is not known."""
    now, then = figure(monitors, name), figure(before, name)
    return None if now is None or then is None else (now, then)


def noise(z: float, n: float | None, *shares: float) -> float:
    """z standard errors of a difference of shares, each of n answers; 0 where n is not known."""
    if not n:
        return 0.0
    return z * math.sqrt(sum(max(0.0, p * (1 - p)) for p in shares) / n)


# -- less -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class EmptyAnswers:
    """Fires when more than `max_share` of the answers are empty, and more than before."""

    max_share: float = 0.2
    z: float = Z

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `empty`. A model that was already empty may become less so."""
        now, then = figure(monitors, "empty"), figure(before, "empty") or 0.0
        if now is None or now <= self.max_share:
            return None
        if now - then <= noise(self.z, figure(monitors, "questions"), now, then):
            return None
        return f"{now:.0%} of the answers are empty (at most {self.max_share:.0%})"


@dataclass(frozen=True)
class ParseRate:
    """Fires when the share of parsed answers is below `min` and falling, or fell by > `drop`."""

    min: float = 0.5
    drop: float = 0.1
    z: float = Z

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `parsed`."""
        now, then = figure(monitors, "parsed"), figure(before, "parsed")
        if now is None:
            return None
        error = noise(self.z, figure(monitors, "questions"), now, now if then is None else then)
        if then is not None and then - now > self.drop + error:
            return f"parsed answers fell from {then:.0%} to {now:.0%} (by at most {self.drop:.0%})"
        if now < self.min and (then is None or then - now > error):
            return f"{now:.0%} of the answers can be parsed (at least {self.min:.0%})"
        return None


@dataclass(frozen=True)
class Unjudged:
    """Fires when the share that the verifier cannot judge rose by more than `max_rise`.

    Unjudged answers leave the mean, so a model must not gain by becoming unjudgeable.
    """

    max_rise: float = 0.02
    z: float = Z

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `unjudged`."""
        found = both("unjudged", monitors, before)
        if found is None:
            return None
        error = noise(self.z, figure(monitors, "questions"), *found)
        if found[0] - found[1] <= self.max_rise + error:
            return None
        return (f"answers that the verifier cannot judge rose from {found[1]:.1%} to "
                f"{found[0]:.1%} (by at most {self.max_rise:.0%})")


@dataclass(frozen=True)
class LengthRatio:
    """Fires when answers became `max_ratio` times longer, or shorter than `min_ratio` times."""

    max_ratio: float = 3.0
    min_ratio: float = 0.25

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `mean_tokens`."""
        found = both("mean_tokens", monitors, before)
        if found is None or found[1] <= 0:
            return None
        ratio = found[0] / found[1]
        if self.min_ratio <= ratio <= self.max_ratio:
            return None
        return (f"answers went from {found[1]:.1f} to {found[0]:.1f} tokens, {ratio:.2g} times "
                f"(allowed {self.min_ratio:g} to {self.max_ratio:g})")


# -- the same -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class DistinctAnswers:
    """Fires when distinct answers over all questions fall below `min_ratio` of what is normal.

    Normal is what the last promoted model gave, or the variety of the gold answers if smaller: a
    model that stops inventing wrong answers has not collapsed.
    """

    min_ratio: float = 0.5

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `distinct`, and `distinct_gold` where it is known."""
        found = both("distinct", monitors, before)
        if found is None:
            return None
        gold = figure(monitors, "distinct_gold")
        normal = found[1] if gold is None else min(found[1], gold)
        if found[0] >= self.min_ratio * normal:
            return None
        return (f"distinct answers fell to {found[0]:.3g} a question where {normal:.3g} is normal "
                f"(at least {self.min_ratio:g} of it)")


@dataclass(frozen=True)
class AnswerEntropy:
    """Fires when the entropy of answers falls below `min_ratio` of what is normal, by more than
    `z` standard errors.

    Over questions, normal is the last promoted model's or that of the gold answers, if smaller.
    Over the draws for one question, falling entropy is what learning does; it fires only where
    pass@1 did not rise: surer, and no more often right (MM-UPT, arXiv 2505.22453).
    """

    min_ratio: float = 0.5
    z: float = Z

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `entropy`, `entropy_gold`, `draw_entropy` (nats), their `_se`, and `pass@1`."""
        found = both("entropy", monitors, before)
        if found is not None:
            gold = figure(monitors, "entropy_gold")
            normal = found[1] if gold is None else min(found[1], gold)
            if self._fell("entropy", normal, monitors, before):
                return (f"the entropy of the answers fell to {found[0]:.2f} nats where "
                        f"{normal:.2f} is normal (at least {self.min_ratio:g} of it)")
        drawn, right = both("draw_entropy", monitors, before), both("pass@1", monitors, before)
        if drawn is None or right is None or right[0] > right[1]:
            return None
        if not self._fell("draw_entropy", drawn[1], monitors, before):
            return None
        return (f"the entropy of the draws for one question fell from {drawn[1]:.2f} to "
                f"{drawn[0]:.2f} nats while pass@1 went from {100 * right[1]:.1f} to "
                f"{100 * right[0]:.1f}")

    def _fell(self, name: str, normal: float, monitors: Figures, before: Figures) -> bool:
        errors = (figure(of, f"{name}_se") or 0.0 for of in (monitors, before))
        error = self.z * math.sqrt(sum(e * e for e in errors))
        return monitors[name] < self.min_ratio * normal and normal - monitors[name] > error


@dataclass(frozen=True)
class PassAtK:
    """Fires when pass@1 does not fall but pass@k falls by more than `max_drop`.

    The model then grew surer without being able to solve more: monitor M12, and the collapse
    that voting rewards show (MM-UPT, arXiv 2505.22453).
    """

    max_drop: float = 0.03
    z: float = Z

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `pass@1` and the largest `pass@k` that both have."""
        single = both("pass@1", monitors, before)
        ks = [int(n[5:]) for n in monitors if n.startswith("pass@") and n[5:].isdigit()
              and both(n, monitors, before) is not None]
        if single is None or max(ks) == 1 or single[0] < single[1]:
            return None
        k = max(ks)
        now, then = monitors[f"pass@{k}"], before[f"pass@{k}"]
        if then - now <= self.max_drop + noise(self.z, figure(monitors, "questions"), now, then):
            return None
        return (f"pass@{k} fell from {100 * then:.1f} to {100 * now:.1f} while pass@1 went from "
                f"{100 * single[1]:.1f} to {100 * single[0]:.1f}")


@dataclass(frozen=True)
class YesRate:
    """Fires when the share of "yes" among yes/no answers moved away from the gold share.

    The distance to the gold share may grow by `max_drift` and `z` standard errors. Always yes is
    the usual end of a model that hallucinates (POPE's yes-ratio, arXiv 2305.10355).
    """

    max_drift: float = 0.1
    z: float = Z

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `yes_share`, `yes_gold` and `yes_questions`."""
        found = both("yes_share", monitors, before)
        gold, n = figure(monitors, "yes_gold"), figure(monitors, "yes_questions")
        if found is None or gold is None or not n:
            return None
        drift = abs(found[0] - gold) - abs(found[1] - gold)
        if drift <= self.max_drift + noise(self.z, n, *found):
            return None
        return (f"{found[0]:.0%} of the yes/no answers are yes, {found[1]:.0%} before, where "
                f"{gold:.0%} is right")


# -- without looking ------------------------------------------------------------------------------

@dataclass(frozen=True)
class Blind:
    """Fires when the picture matters less: answers without it got better by more than `max_rise`
    (monitor M13), and what the picture adds (accuracy with it minus without) fell.

    Both have to exceed `z` standard errors over the dev questions, so that small splits do not
    roll back by luck. A model that merely learns to guess in the right form, while it gains as
    much from looking as before, passes.
    """

    max_rise: float = 0.05
    z: float = Z

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `no_image`, `visual_gain`, and `questions` for the standard errors."""
        blind = both("no_image", monitors, before)
        added = both("visual_gain", monitors, before)
        if blind is None:
            return None
        error = noise(self.z, figure(monitors, "questions"), *blind)
        if blind[0] - blind[1] <= self.max_rise + error:
            return None
        if added is not None and added[0] - added[1] >= -error:
            return None
        return (f"accuracy without the picture rose from {100 * blind[1]:.1f} to "
                f"{100 * blind[0]:.1f} (by at most {100 * self.max_rise:g} points), and what the "
                "picture adds fell")
