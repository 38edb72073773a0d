"""Degenerate text: what a model writes when its decoding broke down (primitives F2)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selfloop.organize.refine.filters import only
from selfloop.types import Group


@dataclass(frozen=True)
class Degenerate:
    """Take out rollouts whose text is broken, for the reasons that `reason` names.

    The limits are those of CSR (arXiv 2405.14622, released code: six equal words in a row, eleven
    equal characters, more than 5 newlines, foreign scripts) and SENA (released code: a word more
    than 30 times, more than half of the characters neither letter nor digit). CSR counts newlines
    within one sentence; here they count in a row, so that a worked solution passes.
    """

    phrase_repeats: int = 6
    """So many times the same phrase of one to five words, one after the other."""
    character_repeats: int = 11
    word_count: int = 30
    """So often may one word of two letters or more occur in a text."""
    newlines: int = 5
    symbols: float = 0.5
    """Largest share of characters other than letters, digits and white space."""
    short: int = 20
    """Texts of fewer characters are not measured by `symbols`: "-7." is an answer."""
    scripts: tuple[str, ...] | None = ("LATIN", "GREEK", "MATHEMATICAL")
    """Scripts a letter may be of, by the first word of its Unicode name; None = any."""
    empty: bool = True
    """Whether white space alone is degenerate, too."""

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups without degenerate rollouts."""
        return [only(g, [self.reason(r.text) is None for r in g.rollouts]) for g in groups]

    def reason(self, text: str) -> str | None:
        """What is wrong with a text, in words, or None. Linear in its length."""
        words = text.lower().split()
        if not words:
            return "empty" if self.empty else None
        if _longest_phrase_run(words) >= self.phrase_repeats:
            return "a phrase repeats"
        if re.search(rf"(\S)\1{{{self.character_repeats - 1}}}", text):
            return "a character repeats"
        if max(Counter(w for w in words if len(w) > 1).values(), default=0) > self.word_count:
            return "a word occurs too often"
        if re.search(rf"(?:\n[^\S\n]*){{{self.newlines + 1}}}", text):
            return "newlines repeat"
        if len(text) >= self.short and _symbol_share(text) > self.symbols:
            return "mostly symbols"
        if self.scripts is not None and _foreign(text, self.scripts):
            return "a foreign script"
        return None


def _longest_phrase_run(words: Sequence[str], longest: int = 5) -> int:
    """How often a phrase of up to `longest` words follows itself at most (1 = never)."""
    best = 1
    for size in range(1, longest + 1):
        run = 0  # words in a row that equal the one `size` before
        for i in range(size, len(words)):
            run = run + 1 if words[i] == words[i - size] else 0
            best = max(best, run // size + 1)
    return best


def _symbol_share(text: str) -> float:
    seen = [c for c in text if not c.isspace()]
    return sum(not c.isalnum() for c in seen) / len(seen)


def _foreign(text: str, scripts: Iterable[str]) -> bool:
    known = tuple(scripts)
    odd = {c for c in set(text) if ord(c) > 127 and (c.isalpha() or _is_emoji(c))}
    return any(not unicodedata.name(c, "").startswith(known) for c in odd)


def _is_emoji(character: str) -> bool:
    return unicodedata.category(character) == "So" and ord(character) >= 0x1F000
