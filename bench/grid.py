"""What is measured: points (P, G, R), the bound that sharing a prompt has at each, and limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Point:
    """One group: a prompt of `prompt` tokens (pictures included) with `group` answers."""

    prompt: int
    group: int
    answer: int

    @property
    def bound(self) -> float:
        """S = G(P + R) / (P + GR): the fewest tokens that sharing the prompt leaves to run."""
        return self.group * (self.prompt + self.answer) / (self.prompt + self.group * self.answer)

    @property
    def name(self) -> str:
        """P, G and R as in tables."""
        return f"P{self.prompt} G{self.group} R{self.answer}"


DEFAULT = (Point(600, 8, 48), Point(1200, 16, 16), Point(300, 4, 64), Point(40, 2, 1024),
           Point(600, 8, 256), Point(1200, 2, 256))
"""From where sharing gains most to where it can gain nothing (P40 G2 R1024: S = 1.02)."""
PREFERENCE = (Point(1200, 2, 256),)
"""Pairs: two answers to one prompt."""
STEPS = (Point(600, 8, 48), Point(300, 4, 64))
ROLLOUTS = (Point(600, 8, 32),)
PROMPTS = (1, 4)
"""How many different prompts are answered in one call of the rollouts."""
FULL = tuple(Point(p, g, r) for p, g, r in product(
    (40, 300, 600, 1200), (2, 4, 8, 16), (16, 64, 256, 1024)))
GPU_STEPS = (Point(1200, 8, 512), Point(1200, 8, 2048))


def parse(texts: Iterable[str]) -> tuple[Point, ...]:
    """Points written as "P,G,R"."""
    return tuple(Point(*(int(x) for x in text.split(","))) for text in texts)


def peak_bytes(point: Point, *, patches: int, width: int, layers: int, vocabulary: int,
               checkpointing: bool) -> int:
    """A generous estimate of a plain update's peak, so that no point takes the machine down.

    Fitted to measured peaks of the tiny LLaVA: some 28 floats a layer and channel are kept for
    each text token and vision patch (with checkpointing: one, plus one layer at a time), and
    logits, their log-softmax and its gradient are three floats a word of the vocabulary.
    """
    tokens = point.group * (point.prompt + point.answer + patches)
    kept = 28 + layers if checkpointing else 28 * layers
    return 4 * width * kept * tokens + 12 * vocabulary * point.group * point.answer
