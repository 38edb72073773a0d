"""What an answer finally says, cut out of the text around it; every rule starts from here."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from typing import Any

from selfloop.organize.verify.boxed import boxed

_ANNOUNCED = re.compile(
    r"answer(?:\*\*|__)?\s*(?:is\b(?:\s*:)?|:)(?:(?:\*\*|__)(?=\s))?\s*(.+)", re.I)
_THOUGHTS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("◁think▷", "◁/think▷"))
"""Between which marks models think; the last pair is Kimi-VL's."""
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|rm)\s*\{([^{}]*)\}")
_BEFORE = re.compile(r"^(?:[,;:!?…]+|\.+(?!\d)|[*_`$]+(?=.)|#+ |[-*•] +(?![\d.]))")
_PEELS = 8
"""Layers of dress that are taken off an answer: enough for people, and no work for an attacker."""
_PAIRS = ('""', "''", "``", "()", "[]", "{}", "“”", "‘’", "«»", "**", "__", "$$")


def final_answer(text: str) -> str | None:
    """What an answer finally says: boxed, tagged, announced, after the last "=", or all of it.

    A thought is no answer, see `unthought`. None when there is nothing but white space.
    """
    text = unthought(text)
    if (found := _marked(text)) is not None:
        return found or None
    if announced := _ANNOUNCED.findall(text):
        return _tidy(announced[-1]) or None
    tail = text.rsplit("=", 1)[-1] if "=" in text else text
    return _tidy(tail) or None


def unthought(text: str) -> str:
    """What a text says outside of its thoughts, <think> to </think>: what is weighed there ("the
    answer is 4? No ...") is not the answer.

    A thought may begin before the text, in the prompt; one that never closes has no answer behind
    it. Linear in the text.
    """
    for opening, closing in _THOUGHTS:
        first, *others = text.split(opening)
        kept = [first, *(piece for piece in others if closing in piece)]
        text = "\n".join(piece.rpartition(closing)[2] for piece in kept)
    return text


def uncut(text: str) -> list[str]:
    """Other readings of the same answer, for gold texts that hold an "=" or "answer:" themselves:
    its last line, where a "=" cut it, and all of it. [] where it is boxed or tagged."""
    text = unthought(text)
    if _marked(text) is not None:
        return []
    cut = [_tidy(text)] if "=" in text and not _ANNOUNCED.search(text) else []
    return [*cut, text.strip()]


def explained(text: str) -> str | None:
    """All that an answer says, where nothing is boxed, tagged or announced: people answer first and
    explain in the lines below, so that the last line need not hold the answer. None elsewhere."""
    text = unthought(text)
    return None if _marked(text) is not None or _ANNOUNCED.search(text) else text.strip() or None


def _marked(text: str) -> str | None:
    for read in (lambda t: boxed(t, empty=True), tagged):
        if found := read(text):
            return _tidy(found[-1])
    return None


def tagged(text: str, tag: str = "answer") -> list[str]:
    """What each <tag> holds up to the next </tag>, in order; one that never closes holds nothing.

    Linear in the text, where a pattern would try every opening of a text that closes none.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    found: list[str] = []
    at = text.find(opening)
    while at >= 0 and (end := text.find(closing, at + len(opening))) >= 0:
        found.append(text[at + len(opening):end])
        at = text.find(opening, end + len(closing))
    return found


def _tidy(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".").strip() if lines else ""


def unwrapped(text: str) -> str:
    r"""A text without LaTeX's commands for words: \text{B} is B."""
    for _ in range(4):
        text, n = _WRAPPED.subn(r"\1", text)
        if not n:
            break
    return text


def normal(text: str) -> str:
    """Lower case, single spaces, without what only dresses an answer: full stops and the like at
    its ends, quotes, brackets and markup around it. What is nothing else stays.

    A sign that says something stays, too: "-7" is not "7", "C#" not "C", "50%" not "50", "<5" not
    ">5", "A+" not "A". One minus sign is as good as another, and a blank behind it is none.
    """
    composed = unicodedata.normalize("NFC", unwrapped(text)).replace("−", "-")
    plain = " ".join(re.sub(r"(?<=\w)’(?=\w)", "'", composed).lower().split())
    bare, before, peels = plain, "", _PEELS
    while bare != before and peels:
        before, peels = bare, peels - 1
        bare = bare.rstrip(" .,;:!?…")
        bare = _BEFORE.sub("", bare).strip()
        bare = re.sub(r"(?:\*\*|__|`|\$)$|\\\\$", "", bare)
        pair = next((p for p in _PAIRS if len(bare) > 1 and bare[0] == p[0] and bare[-1] == p[1]
                     and _whole(bare, p)), None)
        bare = bare[1:-1] if pair else _unpaired(bare)
    if not bare or not bare.strip(string.punctuation + " "):
        return plain
    return re.sub(r"^- +(?=[\d.])", "-", bare)


def _whole(text: str, pair: str) -> bool:
    """Whether the bracket that opens a text is closed by its last character, and no sooner."""
    if pair[0] == pair[1]:
        return pair[0] not in text[1:-1]
    depth = 0
    for i, c in enumerate(text):
        depth += (c == pair[0]) - (c == pair[1])
        if depth == 0:
            return i == len(text) - 1
    return False


def _unpaired(text: str) -> str:
    """Without one bracket or quote that nothing closes; a quote behind a digit is a unit."""
    for opened, closed in ("()", "[]", "{}", "“”", "«»"):
        if text.startswith(opened) and closed not in text:
            return text[1:]
        if text.endswith(closed) and opened not in text:
            return text[:-1]
    if text[:1] in ("'", '"') and text.count(text[0]) == 1:
        return text[1:]
    if text[-1:] in ("'", '"') and text.count(text[-1]) == 1 and not text[-2:-1].isdigit():
        return text[:-1]
    return text


def joined(text: str) -> str:
    """`normal`, and digits written apart as one number: "1 2" is "12"."""
    found = normal(text)
    return found.replace(" ", "") if re.fullmatch(r"[\d ]+", found) else found


def gold_texts(answer: Any) -> list[str]:
    """A gold value as accepted texts: one text or number, or a list of texts (alternatives).

    [] for what is no such thing, or blank in any place: a rule abstains on it.
    """
    if isinstance(answer, list | tuple):
        texts = [a for a in answer if isinstance(a, str) and a.strip()]
        return texts if len(texts) == len(answer) else []
    if isinstance(answer, str):
        return [answer] if answer.strip() else []
    if isinstance(answer, int | float) and math.isfinite(answer):
        return [str(answer)]
    return []
