"""What both sides are given: one group's tokens and advantages, or one preference pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.grid import Point
from bench.questions import Question, ask, tokens

_TEXT = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Group:
    """G answers of R tokens to one prompt, with their advantages.

    `noise` [answers, tokens] is added to the current log-probs to make the old ones: the ratio is
    then not 1 everywhere, some tokens are clipped, and the loss says something about both sides.
    """

    question: Question
    prompt_ids: list[int]
    answers: list[list[int]]
    advantages: list[float]
    noise: list[list[float]]


@dataclass(frozen=True)
class Choice:
    """Two texts answering one prompt; with the template's end of turn each has R tokens."""

    question: Question
    chosen: str
    rejected: str


def group(kind: str, processor: Any, point: Point) -> Group:
    """Random letters: what an answer says has no influence on what it costs."""
    question = ask(kind, processor, point.prompt)[0]
    encode = processor.tokenizer.convert_tokens_to_ids
    answers = [[encode(c) for c in _letters(point.answer, seed)] for seed in range(point.group)]
    values = np.random.default_rng(0).normal(size=point.group)
    values = (values - values.mean()) / (values.std() + 1e-4)
    noise = np.random.default_rng(1).normal(scale=0.1, size=(point.group, point.answer))
    return Group(question, tokens(processor, question), answers, values.tolist(), noise.tolist())


def choices(kind: str, processor: Any, point: Point, count: int = 1) -> list[Choice]:
    """Chosen and rejected texts; the end of turn adds <|im_end|> and a line break."""
    size = point.answer - 2
    return [Choice(question, _letters(size, 2 * i), _letters(size, 2 * i + 1))
            for i, question in enumerate(ask(kind, processor, point.prompt, count))]


def reward(text: str) -> float:
    """The same for both sides, and as good as free: how many different characters there are."""
    return float(len(set(text)))


def _letters(count: int, seed: int) -> str:
    return _TEXT[np.random.default_rng(seed).integers(0, len(_TEXT), count)].tobytes().decode()
