"""Rule verifiers of final answers (primitives V1-V3). They read the gold `answer`.

Every one returns a Verdict whose `rationale` is the answer it parsed. An empty or unparseable
model answer is wrong (0); a gold value that the rule cannot read makes it abstain (None).
"""

from __future__ import annotations

import re
import string
from typing import Any

from selfloop.types import Rollout, Verdict

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_ANNOUNCED = re.compile(r"(?:final answer|answer)\s*(?:is|:)\s*(.+)", re.I)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")


def final_answer(text: str) -> str | None:
    """What an answer finally says: boxed, tagged, announced, after the last "=", or all of it.

    None when there is nothing but white space.
    """
    for read in (_BOXED.findall, tagged, _ANNOUNCED.findall):
        if found := read(text):
            return _tidy(found[-1]) or None
    tail = text.rsplit("=", 1)[-1] if "=" in text else text
    return _tidy(tail) or None


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


def _normal(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends; what is nothing else stays.

    The minus sign and the point of a number are no punctuation: "-7" is not "7".
    """
    plain = " ".join(text.lower().split())
    bare = plain.strip(string.punctuation + " ")
    if not bare:
        return plain
    sign = re.search(r"-?\.?$", plain[:plain.index(bare)]) if bare[0].isdigit() else None
    return (sign[0] if sign else "") + bare


def normal_answer(text: str) -> str | None:
    """The final answer as votes compare answers: lower case, no commas, no punctuation at the
    ends but a minus sign and the point of a number, single spaces; digits written apart are one
    number. None for an answer that says nothing. EvoLMM (arXiv 2511.16672, released code)."""
    said = _normal((final_answer(text) or "").replace(",", ""))
    return None if not said.strip(string.punctuation) else _joined(said)


def _verdict(right: bool | None, parsed: str | None) -> Verdict:
    score = None if right is None else float(right)
    return Verdict(score=score, rationale=parsed or "")


def exact(rollout: Rollout, answer: Any) -> Verdict:
    """The final answer equals the gold text, white space, case and end punctuation apart.

    Digits written apart count as one number ("1 2" is "12").
    """
    if answer is None:
        return Verdict()
    parsed = final_answer(rollout.text)
    return _verdict(parsed is not None and _joined(parsed) == _joined(str(answer)), parsed)


def _joined(text: str) -> str:
    normal = _normal(text)
    return normal.replace(" ", "") if re.fullmatch(r"[\d ]+", normal) else normal


def as_number(text: str) -> float | None:
    """The last number in a text ("1,234.5", "12 %", "3e4", "1 2" of digit tokens), or None."""
    if re.fullmatch(r"[\d ]+", text.strip()):
        text = text.replace(" ", "")
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return float(found[-1].replace(",", ""))
    except ValueError:
        return None


def number(rollout: Rollout, answer: Any) -> Verdict:
    """The final number is within 1e-6 (relative) of the gold number; abstains on a gold that
    holds none."""
    gold = as_number(str(answer)) if answer is not None else None
    if gold is None:
        return Verdict(rationale="the gold answer holds no number")
    parsed = final_answer(rollout.text)
    value = as_number(parsed) if parsed else None
    close = value is not None and abs(value - gold) <= 1e-6 * max(1.0, abs(gold))
    return _verdict(close, parsed)


_LETTER = re.compile(r"^\W*([A-Ja-j])(?:[\W_]|$)")


def choice(rollout: Rollout, answer: Any) -> Verdict:
    """The option letter of the final answer equals the gold letter; naming two options is wrong."""
    gold = _LETTER.match(str(answer)) if answer is not None else None
    if gold is None:
        return Verdict(rationale="the gold answer is not an option letter")
    parsed = final_answer(rollout.text)
    match = _LETTER.match(parsed) if parsed else None
    letters = set(re.findall(r"\b[A-J]\b", parsed or ""))
    right = match is not None and len(letters) <= 1 \
        and match.group(1).lower() == gold.group(1).lower()
    return _verdict(right, parsed)


def yes_no(rollout: Rollout, answer: Any) -> Verdict:
    """The first yes or no of the final answer equals the gold one; saying both is wrong."""
    gold = _normal(str(answer)) if answer is not None else ""
    if gold not in ("yes", "no"):
        return Verdict(rationale="the gold answer is neither yes nor no")
    parsed = final_answer(rollout.text)
    said = set(re.findall(r"\b(?:yes|no)\b", (parsed or "").lower()))
    return _verdict(said == {gold}, parsed)


def text(rollout: Rollout, answer: Any) -> Verdict:
    """One of the gold texts (a string, or a list of accepted ones) is the whole final answer."""
    golds = [answer] if isinstance(answer, str | int | float) else list(answer or ())
    if not golds:
        return Verdict()
    parsed = final_answer(rollout.text)
    return _verdict(parsed is not None and _joined(parsed) in {_joined(str(g)) for g in golds},
                    parsed)
