"""What kind of answers a set of labels holds, and which rule can check them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

RULES = "selfloop.organize.verify.rules"
MOST_CLASSES = 20
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?([eE][-+]?\d+)?\s*%?")
_LETTER = re.compile(r"\(?[A-Ja-j]\)?\.?")


@dataclass(frozen=True)
class AnswerType:
    """The kind of answers, the verifier for it, and the closed set of answers if there is one."""

    kind: str
    """yes_no | choice | number | numbers | class | accepted | short_text | free_text | none"""
    verifier: str
    """module:name, or "" when there are no labels to check against."""
    classes: tuple[str, ...] = ()
    why: str = ""


def infer(labels: Sequence[JsonValue]) -> AnswerType:
    """The answer type of these gold answers (None = unlabelled, passed over)."""
    given = [label for label in labels if label is not None]
    if not given:
        return AnswerType("none", "", why="no picture has a label")
    if all(isinstance(label, list) and not _numbers(label) for label in given):
        return AnswerType("accepted", f"{RULES}:text",
                          why="each label is a list of accepted answers")
    texts = [as_text(label) for label in given]
    seen = Counter(texts)
    if {text.lower() for text in texts} <= {"yes", "no"}:
        return AnswerType("yes_no", f"{RULES}:yes_no", ("yes", "no"),
                          "every label is yes or no")
    if all(_LETTER.fullmatch(text) for text in texts):
        return AnswerType("choice", f"{RULES}:choice", why="every label is an option letter")
    if all(_is_number(text) for text in texts):
        return AnswerType("number", f"{RULES}:number", why="every label is a number")
    if all(_is_number(part) for text in texts for part in re.split(r"[,;]\s*|\s+", text)):
        return AnswerType("numbers", f"{RULES}:exact", why="every label is a list of numbers")
    if 2 <= len(seen) <= MOST_CLASSES and len(texts) >= 2 * len(seen):
        return AnswerType("class", f"{RULES}:exact", tuple(sorted(seen)),
                          f"{len(seen)} different labels, each used "
                          f"{len(texts) / len(seen):.0f} times on average")
    longest = max(len(text.split()) for text in texts)
    if longest <= 8:
        return AnswerType("short_text", f"{RULES}:exact",
                          why=f"{len(seen)} different labels of at most {longest} words")
    return AnswerType("free_text", f"{RULES}:text",
                      why=f"labels of up to {longest} words: only the very same text counts as "
                          "right, so consider a judge or a similarity verifier")


def as_text(label: JsonValue) -> str:
    """A label as a model would write it: true is yes, a list of numbers is "3, 5"."""
    if isinstance(label, bool):
        return "yes" if label else "no"
    if isinstance(label, list):
        return ", ".join(as_text(part) for part in label)
    return " ".join(str(label).split())


def hint(found: AnswerType) -> str:
    """What to add to a prompt so that the model knows what may be answered; "" if nothing."""
    if found.kind == "yes_no":
        return "Answer with one of: yes, no."
    if found.kind == "class":
        return f"Answer with one of: {', '.join(found.classes)}."
    return ""


def _is_number(text: str) -> bool:
    return any(c.isdigit() for c in text) and bool(_NUMBER.fullmatch(text))


def _numbers(label: list[JsonValue]) -> bool:
    return all(isinstance(part, int | float) for part in label)
