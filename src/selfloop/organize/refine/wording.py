"""When two texts say the same words: one normal form for every comparison of texts."""

from __future__ import annotations

import re
import unicodedata

_APOSTROPHES = re.compile("['\u2018\u2019\u02bc`\u00b4]")
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]")
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese are written without spaces between words."""
_EMPHASIS = re.compile(r"(?<!\d)[*#]{2,}|[*#]{2,}(?!\d)")
"""**bold** and ## headings; 2**3 is none."""
_OPERATORS = "-*/%#&@^\\"
"""Punctuation that says something: 3 * 7 is not 3 / 7, and -7 is not 7."""


def visible(text: str) -> str:
    """The text without white space at the ends and without characters that show nothing
    (Unicode category Cf: zero-width spaces and joiners, marks of direction, soft hyphens)."""
    if text.isascii():
        return text.strip()
    unseen = [ord(c) for c in set(text) if unicodedata.category(c) == "Cf"]
    return text.translate(dict.fromkeys(unseen)).strip()


def normal(text: str) -> str:
    """NFKC, casefold, without punctuation and invisible characters, single spaces.

    Operators, signs and points of numbers stay. A text of punctuation alone stays as it is.
    """
    folded = visible(unicodedata.normalize("NFKC", text).casefold())
    plain = _EMPHASIS.sub(" ", _APOSTROPHES.sub("", unicodedata.normalize("NFKC", folded)))
    marks = {c for c in set(plain) if unicodedata.category(c)[0] == "P"}
    kept = "".join(" " if c in marks and _is_mark(plain, i) else c for i, c in enumerate(plain)) \
        if marks else plain
    return " ".join(kept.split()) or " ".join(folded.split())


def _is_mark(text: str, i: int) -> bool:
    """Whether a character of punctuation says nothing."""
    before, after = text[i - 1:i], text[i + 1:i + 2]
    if text[i] in ".,":  # 3.5 is not 35
        return not after.isdigit() or not (before.isdigit() or text[i] == ".")
    return text[i] not in _OPERATORS or (before.isalpha() and after.isalpha())


def units(text: str) -> list[str]:
    """The words of the normal form; of a script without spaces, each character is one."""
    return _SPACELESS.sub(r" \g<0> ", normal(text)).split()
