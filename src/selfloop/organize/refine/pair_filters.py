"""Filters over candidate pairs (primitives F1, F2, F6, F7, F15): candidates in, candidates out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from itertools import accumulate
from operator import itemgetter

from selfloop.organize.refine.degenerate import Degenerate, scripts_about
from selfloop.organize.refine.filters import in_order
from selfloop.organize.refine.pairs import Candidate
from selfloop.organize.refine.wording import units, visible
from selfloop.organize.signals import EDGE
from selfloop.roles import SelfloopError


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class Distinct:
    """Drop pairs of equal texts, bare yes or no, and rejected texts contained in the chosen, word
    by word (F1); of an empty chosen text in any case: it would teach to say nothing.

    SENA (released code; case and white space apart; there by characters, which takes 3 to be in 13
    and the option "A" in any sentence); SeVa (released code) drops equal texts only:
    `Distinct(contained=False, bare=())`.
    """

    contained: bool = True
    bare: tuple[str, ...] = ("yes", "no")
    """Answers that teach nothing as either side."""

    def __call__(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The pairs that stay."""
        return [c for c in candidates if self._differ(_plain(c.chosen.text),
                                                      _plain(c.rejected.text))]

    def _differ(self, chosen: str, rejected: str) -> bool:
        if not visible(chosen) or chosen == rejected:
            return False
        if {chosen.rstrip("."), rejected.rstrip(".")} & set(self.bare):
            return False
        return not (self.contained and rejected in chosen and _within(units(rejected),
                                                                      units(chosen)))


def _within(some: Sequence[str], words: Sequence[str]) -> bool:
    """Whether these words stand in a row among the others."""
    return any(words[i:i + len(some)] == some for i in range(len(words) - len(some) + 1))


@dataclass(frozen=True)
class Fluent:
    """Drop pairs with a degenerate side (F2): a broken negative is too easy to tell apart."""

    test: Degenerate = Degenerate()

    def __call__(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The pairs whose two texts are both whole."""
        once = {id(c.group): c.group for c in candidates}
        about = {own: scripts_about(group) for own, group in once.items()}
        broken = cache(self.test.reason)  # an answer may stand in several pairs
        return [c for c in candidates if not any(
            broken(side.text, about[id(c.group)]) for side in (c.chosen, c.rejected))]


@dataclass(frozen=True)
class LengthBalance:
    """Make chosen and rejected equally long on average (F6).

    For tau in {0, .02, ..., .98} keep the pairs with (|y-| - |y+|) / |y-| <= tau; choose the tau
    with the least |mean |y+| - mean |y-|| / mean |y-|. Equal texts are dropped first. A tie goes
    to the greater tau, which keeps more. Lengths in drawn tokens, what a DPO loss sums over.
    RLAIF-V (arXiv 2405.17220, released code): a score that counts errors favours short answers.
    """

    step: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise SelfloopError(f"LengthBalance(step={self.step:g}): the grid of tau needs a step "
                                "above 0 and of at most 1, such as .02")

    def __call__(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The pairs that the best tau keeps."""
        pairs = [(c, c.chosen.tokens, c.rejected.tokens) for c in candidates
                 if c.chosen.text != c.rejected.text and c.rejected.tokens]
        ranked = sorted((1 - own / other, own, other) for _, own, other in pairs)
        chosen, rejected = ([0, *accumulate(side)] for side in (
            [own for _, own, _ in ranked], [other for *_, other in ranked]))
        best, tau = float("inf"), float("-inf")
        for i in range(round(0.98 / self.step) + 1):
            most = i * self.step + 1e-9
            n = bisect_right(ranked, most, key=itemgetter(0))  # pairs that this tau keeps
            if n and (off := abs(chosen[n] / n - rejected[n] / n) / (rejected[n] / n)) <= best:
                best, tau = off, most
        return [c for c, own, other in pairs if 1 - own / other <= tau]


@dataclass(frozen=True)
class SwapOrDrop:
    """Swap when s(y-) > s(y+) + margin; drop when |s(y+) - s(y-)| < margin; else keep (F7).

    For pairs made by construction (judge-free, arXiv 2411.17760): the scorer corrects the
    construction. Exactly `margin` apart the wrong way round is dropped, too.
    """

    margin: float = 0.0

    def __call__(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The pairs that stay, some of them swapped; equal scores are dropped."""
        kept: list[Candidate] = []
        for candidate in candidates:
            if candidate.gap > 0 and candidate.gap >= self.margin - EDGE:
                kept.append(candidate)
            elif -candidate.gap > self.margin + EDGE:
                kept.append(candidate.swapped())
        return kept


@dataclass(frozen=True)
class SimilarityWindow:
    """Keep pairs whose texts are alike to a degree in [low, high] (F15).

    Similarity = 2 M / T over words: M words in matching blocks, T words in both (Ratcliff and
    Obershelp; `difflib`). Too alike teaches nothing, too far apart is told apart without looking.
    The idea is BDHS's (arXiv 2407.02477); the window is yours to set.
    """

    low: float = 0.2
    high: float = 0.95

    def __post_init__(self) -> None:
        in_order(self, self.low, self.high)

    def __call__(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The pairs inside the window."""
        return [c for c in candidates if self.low <= similarity(c.chosen.text, c.rejected.text)
                <= self.high]


def similarity(a: str, b: str) -> float:
    """Likeness of two texts by their words (of scripts without spaces, their characters), in
    [0, 1]; case and punctuation apart; two empty texts are equal."""
    return SequenceMatcher(None, units(a), units(b), autojunk=False).ratio()
