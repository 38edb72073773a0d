"""Rewards for length: window, cosine, Gaussian, brevity (primitives V24)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from selfloop.calling import as_verdict, call_by_name, name_of
from selfloop.organize.verify.format import tagged_blocks
from selfloop.roles import Verifier
from selfloop.types import Rollout, Verdict


def _inner(verifier: Verifier, rollout: Rollout, offered: dict[str, Any]) -> Verdict:
    return as_verdict(call_by_name(verifier, rollout=rollout, **offered), name_of(verifier))


def cosine_length(length: float, limit: float, right: bool) -> float:
    """Half a cosine from 0 to `limit` tokens: 1 -> .5 for a right answer, -.5 -> 0 for a wrong one.

    So a right answer had better be short, and a wrong one had better have tried for long. Beyond
    the limit it stays. Yeo et al. 2025 (arXiv 2502.03373, section 4) with VLM-R1's four values; the
    released VLM-R1 always takes the right branch, which is not done here.
    """
    start, end = (1.0, 0.5) if right else (-0.5, 0.0)
    turn = math.cos(math.pi * min(max(length, 0.0) / limit, 1.0))
    return end + 0.5 * (start - end) * (1 + turn)


def gaussian_length(length: float, target: float, width: float) -> float:
    """exp(-((length - target) / width)^2): 1 at the target, 1/e at `width` off it."""
    return math.exp(-(((length - target) / width) ** 2))


def brevity(text: str, free: int = 6, most: float = 0.1) -> float:
    """1 - most * min(1, max(0, (w - free) / free)), w = words before the answer tag, in [.9, 1].

    EvoLMM (arXiv 2511.16672, released code). A text without the tag counts all its words.
    """
    words = len(re.split(r"<answer>", text, maxsplit=1)[0].split())
    return 1 - most * min(1.0, max(0.0, (words - free) / free))


@dataclass(frozen=True)
class LengthWindow:
    """What `right` says, plus `bonus` for a right answer of `low` to `high` drawn tokens.

    Video-R1 (arXiv 2503.21776): 320 to 512 tokens, .2. Wrong answers earn nothing for
    their length; None stays None.
    """

    right: Verifier
    low: int = 320
    high: int = 512
    bonus: float = 0.2

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """Gold values reach `right` alone."""
        found = _inner(self.right, rollout, offered)
        if found.score is None:
            return found
        inside = found.right and self.low <= rollout.tokens <= self.high
        return found.model_copy(update={"score": found.score + self.bonus * inside,
                                        "parts": {**found.parts, "window": float(inside)}})


@dataclass(frozen=True)
class CosineLength:
    """`cosine_length` of the drawn tokens, by whether `right` says right; None stays None."""

    right: Verifier
    limit: int = 1024

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """Gold values reach `right` alone."""
        found = _inner(self.right, rollout, offered)
        if found.score is None:
            return found
        value = cosine_length(rollout.tokens, self.limit, found.right)
        return found.model_copy(update={
            "score": value, "parts": {**found.parts, "right": float(found.right)}})


@dataclass(frozen=True)
class ReflectionLength:
    """How near a reflected answer is to twice the length of its first try, in (0, 1].

    `gaussian_length` with target 2 f and width .5 f, f = words of the first think and answer
    blocks, of all five blocks' words. SRPO (arXiv 2506.01713, released reward; it counts tokens,
    here words, since blocks are text). 0 where the five blocks are not there.
    """

    tags: tuple[str, ...] = ("think", "answer", "reflection", "think", "answer")

    def __call__(self, rollout: Rollout) -> Verdict:
        """Reads no label."""
        blocks = tagged_blocks(rollout.text, self.tags)
        if blocks is None:
            return Verdict(score=0.0, rationale="not the five blocks in order")
        words = [len(block.split()) for block in blocks]
        first = sum(words[:2])
        return Verdict(score=gaussian_length(sum(words), 2 * first, 0.5 * first),
                       parts={"words": float(sum(words)), "first": float(first)})


@dataclass(frozen=True)
class Brief:
    """`brevity` as a verdict, to be multiplied with others in combine.AllOf."""

    free: int = 6
    most: float = 0.1

    def __call__(self, rollout: Rollout) -> Verdict:
        """Reads no label."""
        return Verdict(score=brevity(rollout.text, self.free, self.most))
