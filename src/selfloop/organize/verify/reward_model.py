"""A trained reward model as a verifier: of a whole answer, or of each of its steps (V16, V19).

The model is a folder that `reward_model` or `process_reward` trained. What it is asked and in which
words must be what it was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from selfloop.organize.rewarded import ASK, WORDS, judged
from selfloop.organize.verify.gold_steps import Split
from selfloop.organize.verify.process import aggregate
from selfloop.organize.verify.steps import steps_in
from selfloop.pictures import Library
from selfloop.roles import SelfloopError
from selfloop.types import Branch, Rollout, Sample, Verdict

if TYPE_CHECKING:
    from selfloop.engines.hf import HFEngine


@dataclass(frozen=True)
class OutcomeReward:
    """sigma of the reward of an answer, in (0, 1); the reward itself, log-odds, is part `logit`.

    A model trained on pairs alone (Bradley-Terry) orders the answers to one problem: compare them,
    and put no threshold on them that you did not calibrate. The model is loaded at first use and
    kept in this process, on `device`; nothing is fetched. Abstains on an empty answer.
    """

    model: str
    ask: str = ASK
    words: tuple[str, str] = WORDS
    images: str = ""
    """Where pictures without a path lie: a run's images folder."""
    device: str = "auto"

    def __call__(self, rollout: Rollout, sample: Sample) -> Verdict:
        """Reads no label."""
        if not rollout.text.strip():
            return Verdict(rationale="an empty answer")
        ((logit,), tokens) = rewards(self.model, [judged(
            sample.context, rollout.text, self.ask, self.words[0])], self.words, self.images,
            self.device)
        return Verdict(score=_sigmoid(logit), parts={"logit": logit}, cost=tokens)


@dataclass(frozen=True)
class StepReward:
    """The probability that a step is right, for each step, and their `how` as the score.

    `how` is min, prod, last or mean (process.aggregate). `split` says where steps stand: the one
    that the model was trained with. Abstains where there is no step, or more than `most`.
    """

    model: str
    how: str = "min"
    split: Split = steps_in
    most: int = 64
    ask: str = ASK
    words: tuple[str, str] = WORDS
    images: str = ""
    device: str = "auto"

    def __post_init__(self) -> None:
        aggregate((), self.how)

    def __call__(self, rollout: Rollout, sample: Sample) -> Verdict:
        """Reads no label. `spans`: each step's place and score."""
        places = self.split(rollout.text)
        if not 0 < len(places) <= self.most:
            return Verdict(rationale=f"{len(places)} steps")
        logits, tokens = rewards(self.model, [
            judged(sample.context, rollout.text[:end], self.ask, self.words[0])
            for _, end in places], self.words, self.images, self.device)
        found = [_sigmoid(x) for x in logits]
        return Verdict(score=aggregate(found, self.how), cost=tokens,
                       spans=tuple((*p, s) for p, s in zip(places, found, strict=True)),
                       parts={"steps": float(len(places))})


def rewards(model: str, branches: Sequence[Branch], words: tuple[str, str], images: str = "",
            device: str = "auto") -> tuple[list[float], float]:
    """log pi(good) - log pi(bad) at the first token of each branch, and the tokens that were read.

    Raises SelfloopError where the model cannot be loaded, or the two words begin alike in it.
    """
    engine = _loaded(model, images, device)
    good, bad = (engine.encode(word)[0] for word in words)
    if good == bad:
        raise SelfloopError(f"reward model {model}: the words {words[0]!r} and {words[1]!r} begin "
                            "with the same token; use words=(...) that do not, in training too")
    rows = [[row for row in engine.rows(branch)] for branch in branches]
    places = [[(good, bad)] * sum(row.count for row in mine) for mine in rows]
    found = engine.logprobs(branches, others=places)
    return ([float(place[0][0] - place[0][1]) for place in found],
            float(sum(len(row.token_ids) for mine in rows for row in mine)))


@lru_cache(maxsize=2)
def _loaded(model: str, images: str, device: str) -> HFEngine:
    from selfloop.engines.hf import HFEngine

    engine = HFEngine(model, device=device)
    library = Library(Path(images)) if images else Library()
    engine.bind(library.open)
    return engine


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
