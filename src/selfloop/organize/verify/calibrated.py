"""A model's own likelihood, calibrated by the picture, sentence by sentence (primitives V8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.organize.verify.similarity import DualEncoder, Encoder, open_one
from selfloop.roles import SelfloopError
from selfloop.sampling import SENTENCE_ENDS
from selfloop.types import Group, Rollout, Verdict


@dataclass(frozen=True)
class Step:
    """One sentence of a path: what came before it, itself, and its mean log-prob."""

    before: str
    text: str
    logprob: float


@dataclass(frozen=True)
class Calibrated:
    """(1 - weight) R_T + weight R_I, the mean over an answer's sentences, higher is better.

    CSR (arXiv 2405.14622, eq. 5): R_T is what the model thinks of the sentence (here the geometric
    mean of its token probabilities, in (0, 1]), R_I how well the sentence alone fits the picture
    (max(cosine, 0)). With `ranks`, as in the released code, both are ranks among the sentences that
    go on from the same beginning: 1 for the best down to 1/n, cumulative log-prob for R_T. It ranks
    within all children of a node; here within those that are in a path of the group, because the
    others were not kept. Reads `sampling["path"]` of `beams.SentenceTree`; abstains without it.
    """

    encoder: Encoder = DualEncoder()
    weight: float = 0.9
    ranks: bool = False
    stop: tuple[str, ...] = SENTENCE_ENDS
    """What ends a sentence: the tree's own."""
    images: str = ""
    compares = False  # but for ranks, which are of paths and not of answers

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise SelfloopError(f"Calibrated: weight {self.weight} must be in [0, 1]")

    def __call__(self, group: Group) -> list[Verdict]:
        """One verdict a path. Reads no label. `parts`: text, image (means of R_T and R_I)."""
        picture = open_one(group.sample, self.images)
        paths = [steps_of(r, self.stop) for r in group.rollouts]
        if picture is None:
            return [Verdict(rationale="no picture")] * len(paths)
        texts = sorted({s.text for path in paths for s in path})
        fit = dict(zip(texts, self.encoder(picture, texts), strict=True)) if texts else {}
        own = {s: self._own(s) for path in paths for s in path}
        seen = {s: max(0.0, float(fit[s.text])) for s in own}
        if self.ranks:
            own, seen = _ranked(own), _ranked({s: float(fit[s.text]) for s in own})
        return [self._verdict(path, own, seen) for path in paths]

    def _own(self, step: Step) -> float:
        # Siblings share all that came before, so ranks of the sums are ranks of the sentences.
        return step.logprob if self.ranks else math.exp(step.logprob)

    def _verdict(self, path: Sequence[Step], own: dict[Step, float], seen: dict[Step, float]
                 ) -> Verdict:
        if not path:
            return Verdict(rationale="no path of sentences")
        text = sum(own[s] for s in path) / len(path)
        image = sum(seen[s] for s in path) / len(path)
        return Verdict(score=(1 - self.weight) * text + self.weight * image,
                       parts={"text": text, "image": image})


def steps_of(rollout: Rollout, stop: Sequence[str]) -> list[Step]:
    """The sentences of a path with their log-probs; [] where the two do not fit together."""
    logprobs = rollout.sampling.get("path")
    if not isinstance(logprobs, list) or not logprobs:
        return []
    cut = [0]
    while len(cut) < len(logprobs):
        ends = [at + len(s) for s in stop if (at := rollout.text.find(s, cut[-1])) >= 0]
        cut.append(min(ends, default=len(rollout.text)))
    bounds = list(zip(cut, [*cut[1:], len(rollout.text)], strict=True))
    said = [rollout.text[a:b].strip() for a, b in bounds]
    if not all(said[:-1]):  # only the last draw may have been the end alone
        return []
    return [Step(rollout.text[:a], text, float(str(logprob)))
            for (a, _), text, logprob in zip(bounds, said, logprobs, strict=True) if text]


def _ranked(values: dict[Step, float]) -> dict[Step, float]:
    """Among steps that share a beginning: 1 for the highest, 1/n for the lowest; ties the mean."""
    found: dict[Step, float] = {}
    for before in {s.before for s in values}:
        siblings = {s: v for s, v in values.items() if s.before == before}
        n = len(siblings)
        for step, value in siblings.items():
            above = sum(v > value for v in siblings.values())
            same = sum(v == value for v in siblings.values())
            found[step] = (n - above - (same - 1) / 2) / n
    return found
