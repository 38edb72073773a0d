"""Repetition and marker words that a policy learns to write for nothing (V25, V26)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from selfloop.organize.verify.rules import tagged
from selfloop.types import Rollout, Verdict


def adjacent_repeats(text: str, n: int = 8) -> float:
    """Share of the places where n words are followed by the same n words, in [0, 1].

    A text of fewer than 2 n words has no such place, and 0 of them.
    """
    words = text.lower().split()
    places = len(words) - 2 * n + 1
    if places < 1:
        return 0.0
    return sum(words[i:i + n] == words[i + n:i + 2 * n] for i in range(places)) / places


def repeated_share(text: str, n: int = 3) -> float:
    """1 - distinct n-grams / n-grams of a text's words, in [0, 1); 0 for fewer than n words.

    Finds repeats at any distance (Yeo et al. 2025, arXiv 2502.03373, appendix C.2).
    """
    words = text.lower().split()
    grams = [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class NoRepeats:
    """cap * (1 - share of adjacent equal n-grams): GRIT's anti-repeat reward (arXiv 2505.15879,
    released code: n 8, cap .5). An empty text has not repeated itself."""

    n: int = 8
    cap: float = 0.5

    def __call__(self, rollout: Rollout) -> Verdict:
        """Reads no label."""
        return Verdict(score=self.cap * (1 - adjacent_repeats(rollout.text, self.n)))


@dataclass(frozen=True)
class MarkerCap:
    """0 if the text says `marker` more than `most` times, as a word in any case; else 1.

    VL-Rethinker voids answers with more than 5 "wait" (arXiv 2504.08837, released code). To be
    multiplied with the answer's own reward in combine.AllOf.
    """

    marker: str = "wait"
    most: int = 5

    def __call__(self, rollout: Rollout) -> Verdict:
        """Reads no label."""
        found = len(re.findall(rf"(?<!\w){re.escape(self.marker)}(?!\w)", rollout.text, re.I))
        return Verdict(score=float(found <= self.most), parts={"markers": float(found)})


@dataclass(frozen=True)
class CharacterCap:
    """0 for a final answer of `limit` characters or more, else 1.

    Long answers talk judges into a yes: DeepEyes (arXiv 2505.14362, released code) gives 0 from
    1,000 characters on. Counts what `<answer>` holds, or all of the text without that tag.
    """

    limit: int = 1000

    def __call__(self, rollout: Rollout) -> Verdict:
        """Reads no label."""
        answers = tagged(rollout.text)
        length = len((answers[-1] if answers else rollout.text).strip())
        return Verdict(score=float(length < self.limit), parts={"characters": float(length)})
