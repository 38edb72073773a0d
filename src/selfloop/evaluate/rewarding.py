"""What the loop pays for against what is wanted: the training reward beside the held-out metric.

A loop that maximises a reward finds its holes (Skalse et al., arXiv 2209.13085; Gao et al.,
arXiv 2210.10760: the proxy goes on rising while the true score falls). So the loop's own verifier
judges the dev answers too, and its verdicts are set beside the metric's on the very same answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfloop.doors import Doors
from selfloop.evaluate.answers import Answer
from selfloop.evaluate.guards import Figures, Z, both, figure, noise
from selfloop.organize.judging import judge
from selfloop.roles import Engine, parameters
from selfloop.types import Group, Part, Rollout, Sample, Turn

if TYPE_CHECKING:
    from selfloop.loop import Loop

ARM = "reward"
"""Dev answers as the loop's verifier judges them: `right` and `score` are its verdict."""


def rewarded(loop: Loop, samples: Sequence[Sample], engines: Mapping[str, Engine], version: int,
             answers: Sequence[Answer]) -> list[Answer]:
    """The dev answers again, judged by the loop's verifier; nothing is drawn anew.

    A verifier of single answers judges the greedy ones, one of whole groups the draws. Empty
    where that teaches nothing: no verifier, one that is the metric itself, no such answers.
    """
    how, verifier = loop.evaluation, loop.verifier
    if how is None or verifier is None or how.sampler is not None or not how.rewarded \
            or verifier == how.metric:
        return []
    source = "draws" if "group" in parameters(verifier) else "greedy"
    said: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.arm == source:
            said.setdefault(answer.sample, []).append(answer)
    groups = [Group(sample=s, rollouts=tuple(_rollout(a, s) for a in said[s.id]))
              for s in samples if s.id in said]
    judged = judge(verifier, groups, Doors(engines, version, f"{loop.seed}/evaluate/{ARM}"))
    return [
        answer.model_copy(update={
            "arm": ARM, "score": verdict.score,
            "right": None if verdict.score is None else verdict.right})
        for group in judged.groups
        for answer, verdict in zip(said[group.sample.id], group.verdicts, strict=True)
    ]


def _rollout(answer: Answer, sample: Sample) -> Rollout:
    """A stored answer in the shape that verifiers read; its tokens are not kept."""
    return Rollout(id=f"{answer.sample}/{answer.draw}", sample=sample.id, context=sample.context,
                   turns=(Turn(token_ids=()),), output=(Part(text=answer.text),))


@dataclass(frozen=True)
class Disagreement:
    """Fires when two judges of the same answers disagree more often than before.

    On dev: the loop's verifier and the metric. In training: the parts of a combined verdict, a
    judge beside a rule for example. The share of answers on which they fall on different sides
    may rise by `max_rise` plus `z` standard errors.
    """

    max_rise: float = 0.05
    z: float = Z

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `disagreement` with `questions`, and `train_disagreement` with `train_n`."""
        for name, units, who in (
            ("disagreement", "questions", "the training reward and the held-out metric disagree"),
            ("train_disagreement", "train_n", "the parts of the training verdict disagree"),
        ):
            found = both(name, monitors, before)
            if found is None:
                continue
            error = noise(self.z, figure(monitors, units), *found)
            if found[0] - found[1] > self.max_rise + error:
                return (f"{who} on {found[0]:.0%} of the answers, {found[1]:.0%} before (by at "
                        f"most {self.max_rise:.0%} more)")
        return None


@dataclass(frozen=True)
class RewardParting:
    """Fires when the training reward rises and the held-out score does not.

    On the same dev answers (`reward`): the reward rose by more than `min_rise` while accuracy did
    not, or the gap between the two grew by more than `max_gap`. In training (`train_reward`, the
    first step's against the last one's): the gap grew by more than `max_gap` and accuracy *fell*,
    because a rising reward on the very questions that are trained on is what learning looks
    like. All beyond `z` standard errors.
    """

    min_rise: float = 0.05
    max_gap: float = 0.1
    z: float = Z

    def __call__(self, monitors: Figures, before: Figures) -> str | None:
        """Reads `reward`, `accuracy` with `questions`; `train_reward` with `train_n`."""
        right = both("accuracy", monitors, before)
        n = figure(monitors, "questions")
        if right is None:
            return None
        gain, right_error = right[0] - right[1], noise(self.z, n, *right)
        same, train = both("reward", monitors, before), both("train_reward", monitors, before)
        if same is not None:
            rise, error = same[0] - same[1], noise(self.z, n, *same)
            if (rise > self.min_rise + error and gain <= 0) \
                    or rise - gain > self.max_gap + math.hypot(error, right_error):
                return _parted("the reward of the dev answers", same, right)
        if train is not None and gain < -right_error:
            error = noise(self.z, figure(monitors, "train_n"), *train)
            if train[0] - train[1] - gain > self.max_gap + math.hypot(error, right_error) \
                    and train[0] - train[1] > self.min_rise + error:
                return _parted("the training reward", train, right)
        return None


def _parted(what: str, reward: tuple[float, float], right: tuple[float, float]) -> str:
    return (f"{what} went from {100 * reward[1]:.1f} to {100 * reward[0]:.1f} while dev accuracy "
            f"went from {100 * right[1]:.1f} to {100 * right[0]:.1f}")
