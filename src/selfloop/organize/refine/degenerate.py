"""Degenerate text: what a model writes when its decoding broke down (primitives F2)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import eq

from selfloop.organize.refine.filters import only
from selfloop.organize.refine.wording import normal, units, visible
from selfloop.types import Group

LETTERLESS = 20
"""So many times more often may digits, rules and leaders repeat: 1000000000000, ------------."""
RULES = frozenset("-_=.\u00b7\u2026*#~+|\u2013\u2014\u2500\u2550\u2022")
"""Characters that lines are drawn with."""
NUMERIC = frozenset("0123456789 \n\t[](){},.;:+-*/=%<>|")
"""Characters that lists of numbers, matrices and boxes are written with."""
FORMULA = frozenset("+-*/=^_<>()[]{}|,.;:!'$\\&%\u00b0")
"""Characters that formulas, points and sets are written with, beside Unicode's own for them."""
WINDOW = 8
"""Characters of which two equal runs, equally far apart again and again, make a period."""
PERIODIC = 24
"""Characters that repeat at least, for a period to count: "ha ha ha" is a laugh."""
FAMILY = frozenset(("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "BOPOMOFO"))
"""Scripts that are mixed in one text; a text that may have one may have all."""


@dataclass(frozen=True)
class Degenerate:
    """Take out rollouts whose text is broken, for the reasons that `reason` names.

    The limits are those of CSR (arXiv 2405.14622, released code: six equal words in a row, eleven
    equal characters, more than 5 newlines, foreign scripts) and SENA (released code: a word more
    than 30 times, more than half of the characters neither letter nor digit, repeated sentences).
    CSR counts newlines within one sentence; here they count in a row, so that a worked solution
    passes. Tables, JSON, lists of numbers and fenced code are not prose: no limit on words,
    phrases and symbols holds in them. A formula may have half as many letters and digits as
    `symbols` asks for. A foreign script is one that neither `scripts` name, nor the
    question is in, nor most answers of the group; symbols and emoji are of no script.
    """

    phrase_repeats: int = 6
    """So many times the same phrase, one after the other, with or without spaces; or the same
    sentence anywhere ..."""
    sentence_share: float = 0.1
    """... if these are more than this share of the sentences: who thinks long says "let me check
    that again" more than once."""
    character_repeats: int = 11
    word_count: int = 30
    """So often may one word of two letters or more occur in a text of any length ..."""
    word_share: float = 0.2
    """... and more often up to this share of its words: of English prose, 6 % are "the"."""
    newlines: int = 5
    symbols: float = 0.5
    """Largest share of characters other than letters, digits and white space."""
    short: int = 20
    """Texts of fewer characters are not measured by `symbols`: "-7." is an answer."""
    scripts: tuple[str, ...] | None = ("LATIN", "GREEK", "MATHEMATICAL")
    """Scripts a letter may be of, by the first word of its Unicode name, beside those of the
    question and of most answers; None = any."""
    empty: bool = True
    """Whether white space (and what shows nothing) alone is degenerate, too."""

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups without degenerate rollouts."""
        return [only(g, [self.reason(r.text, own) is None for r in g.rollouts])
                for g, own in zip(groups, map(scripts_about, groups), strict=True)]

    def reason(self, text: str, about: frozenset[str] = frozenset()) -> str | None:
        """What is wrong with a text, in words, or None. `about`: further scripts that a letter may
        be of (see `scripts_about`). Linear in its length."""
        seen = visible(text)
        if not seen:
            return "empty" if self.empty else None
        prose = _prose(seen)
        words = prose.lower().split()
        if self._repeats(prose, words):
            return "a phrase repeats"
        if any(len(found[0]) >= self.character_repeats * _patience(found[1]) for found in
               re.finditer(rf"(\S)\1{{{self.character_repeats - 1}}}\1*", seen)):
            return "a character repeats"
        if self._says_one_word(words):
            return "a word occurs too often"
        if re.search(rf"(?:\n[^\S\n]*){{{self.newlines + 1}}}", seen):
            return "newlines repeat"
        if len(prose) >= self.short and _is_mostly_symbols(
                prose, (1 + self.symbols) / 2 if _is_formula(prose) else self.symbols):
            return "mostly symbols"
        if self.scripts is not None and not seen.isascii() and _scripts(seen).keys() - {
                "ASCII"} - _united({*self.scripts, *about}):
            return "a foreign script"
        return None

    def _repeats(self, prose: str, words: Sequence[str]) -> bool:
        return _a_phrase_follows_itself(words, self.phrase_repeats) \
            or _periodic(" ".join(words), self.phrase_repeats) \
            or _is_said(prose, self.phrase_repeats, self.sentence_share)

    def _says_one_word(self, words: Sequence[str]) -> bool:
        most = max(self.word_count, self.word_share * len(words))
        return len(words) > most and any(
            n > most and len(word) > 1 and any(map(str.isalpha, word))
            for word, n in Counter(words).items())


def scripts_about(group: Group) -> frozenset[str]:
    """Scripts of the questions of a group, and the one that most of two or more answers are in."""
    asked = {group.sample.context.text, *(r.context.text for r in group.rollouts)}
    mains = Counter(_main(r.text) for r in group.rollouts if visible(r.text))
    script, count = mains.most_common(1)[0] if mains else ("", 0)
    led = {script} if count >= 2 and 2 * count > mains.total() else set()
    return frozenset(led.union(*map(_scripts, asked)))


def _main(text: str) -> str:
    """The script of most letters of a text; "" without any."""
    if text.isascii():
        return "ASCII" if any(map(str.isalpha, text)) else ""
    found = _scripts(text)
    return max(sorted(found), key=lambda name: found[name]) if found else ""


def _scripts(text: str) -> Counter[str]:
    """How many letters there are of each script: "ASCII", or the first word of Unicode's names.

    Letters are taken by what they stand for (NFKC): of the sign for micro that is Greek, of
    superscripts, of the real numbers' R and of full width it is Latin. Letter-like symbols
    (U+2100 to U+214F) and modifiers are of no script.
    """
    if text.isascii():
        return +Counter(ASCII=sum(map(str.isalpha, text)))
    found: Counter[str] = Counter()
    for character, times in Counter(text).items():
        if character.isascii():
            found["ASCII"] += times * character.isalpha()
        elif not 0x2100 <= ord(character) <= 0x214F:
            for letter in filter(str.isalpha, unicodedata.normalize("NFKC", character)):
                found["ASCII" if letter.isascii() else
                      unicodedata.name(letter, "UNNAMED").split()[0]] += times
    del found["MODIFIER"]
    return +found


def _united(scripts: set[str]) -> set[str]:
    return scripts | FAMILY if scripts & FAMILY else scripts


def _prose(text: str) -> str:
    """The text without what is written by other rules: fenced code, JSON, tables, bare numbers."""
    text = re.sub(r"```[^`]*```", " ", text)
    if _is_json(text) or (set(text) <= NUMERIC and any(map(str.isdigit, text))):
        return ""
    if "|" not in text:
        return text
    lines: list[str] = []
    for bars, same in groupby(text.split("\n"), key=lambda line: line.count("|")):
        rows = list(same)
        lines += rows if bars < 2 or len(rows) < 2 else []
    return "\n".join(lines)


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _patience(character: str) -> int:
    return LETTERLESS if character.isdigit() or character in RULES else 1


def _a_phrase_follows_itself(words: Sequence[str], times: int, longest: int = 5) -> bool:
    """Whether a phrase of up to `longest` words stands so many times in a row."""
    for size in range(1, longest + 1):
        if sum(map(eq, words, words[size:])) < (times - 1) * size:
            continue  # too few words equal the one `size` before
        run = 0  # of those, how many in a row
        for i in range(size, len(words)):
            run = run + 1 if words[i] == words[i - size] else 0
            repeats = run // size + 1
            if repeats >= times and (repeats >= LETTERLESS * times or any(
                    map(str.isalpha, "".join(words[i - size + 1:i + 1])))):
                return True
    return False


def _periodic(text: str, times: int) -> bool:
    """Whether characters follow themselves so many times, `PERIODIC` of them at least.

    Every window of characters is looked up where it last stood; in a period it always stands
    equally far back. Periods in which a window stands twice are left to the count of sentences.
    A text in which nothing long enough stands twice is not looked at so closely.
    """
    least = _overlap(times)
    places = range(len(text) - least + 1)
    if len({text[i:i + least] for i in places}) == len(places):
        return False
    last: dict[str, int] = {}
    before = run = 0
    for i in range(len(text) - WINDOW + 1):
        window = text[i:i + WINDOW]
        back = i - last.get(window, i)
        run = run + 1 if back and back == before else 1
        before, last[window] = back, i
        whole = run + back + WINDOW - 1
        if back and whole >= max(PERIODIC, times * back) and (
                whole >= LETTERLESS * max(PERIODIC, times * back)
                or any(map(str.isalpha, text[i + WINDOW - back:i + WINDOW]))):
            return True
    return False


@cache
def _overlap(times: int) -> int:
    """Characters that a text of any period shares at least with itself, moved by that period."""
    return min(max(PERIODIC, times * back) - back for back in range(1, PERIODIC + 1))


def _is_said(prose: str, times: int, share: float) -> bool:
    """Whether a sentence of three words or more is said so many times, and twice at least, and is
    more than this share of all."""
    sentences = [s for s in re.split(r"[.!?\u3002\uff01\uff1f\n]+", prose) if s.strip()]
    if len(sentences) < times:
        return False
    said = Counter(map(normal, sentences))
    return any(n >= max(2, times) and n > share * len(sentences) and len(units(sentence)) > 2
               for sentence, n in said.items())


def _is_formula(text: str) -> bool:
    """Whether a text is written as formulas are, and what opens in it closes: (x+1)^2 = 9."""
    odd = {c for c in set(text) if not c.isalnum() and not c.isspace()}
    if any(c not in FORMULA and unicodedata.category(c) != "Sm" for c in odd):
        return False
    depth = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _is_mostly_symbols(text: str, most: float) -> bool:
    """Whether more than this share are symbols; a line that is drawn, or a leader, counts as one.
    """
    seen = "".join(text.split())
    plain = sum(map(str.isalnum, seen))
    if (len(seen) - plain) / max(1, len(seen)) <= most:
        return False  # a line that counts as one makes the share no greater
    count = sum(1 if c in RULES else len([*run]) for c, run in groupby(seen))
    return (count - plain) / max(1, count) > most
