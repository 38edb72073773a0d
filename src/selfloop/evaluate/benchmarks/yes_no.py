"""Yes or no in an answer, as the tools find it; the hallucination benchmarks share these rules."""

from __future__ import annotations

import re

from selfloop.organize.verify.polarity import said_yes

_DASHED = ';/[]"{}()=+\\_-><@`,?!'
"""The marks that VLMEvalKit takes out; others, such as : and *, stay part of a word."""


def in_final_answer(text: str) -> str | None:
    """Our own rule, that of the verifier `yes_no`: the first word, or the only one of the two; None
    for neither, for both, and for "no idea"."""
    return {True: "yes", False: "no", None: None}[said_yes(text)]


def among_words(text: str) -> str | None:
    """VLMEvalKit's rule (utils/yorn.py): yes or no is one of the words, and not the other.

    Its punctuation rule is kept as it is: a mark that stands next to a blank anywhere is dropped
    and others become a blank, so "yes,no" is two words and "**yes**" is none of them.
    """
    low = text.lower()
    plain, number = low, re.search(r"\d,\d", low) is not None
    for mark in _DASHED:
        dropped = number or f"{mark} " in low or f" {mark}" in low
        plain = plain.replace(mark, "" if dropped else " ")
    words = re.sub(r"\.(?!\d)", "", plain, count=32).split()  # 32: as the tool calls it
    yes, no = "yes" in words, "no" in words
    return None if yes == no else "yes" if yes else "no"


def exactly(text: str) -> str | None:
    """The authors of AMBER: the whole answer is "Yes" or "No", capital and all."""
    return {"Yes": "yes", "No": "no"}.get(text)


def anywhere(text: str) -> str | None:
    """lmms-eval's rule for AMBER: "yes" anywhere in the text, letters inside words too; else "no"
    anywhere."""
    low = text.lower()
    return "yes" if "yes" in low else "no" if "no" in low else None
