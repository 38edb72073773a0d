"""Rule verifiers of final answers (primitives V1-V3). They read the gold `answer`.

Every one returns a Verdict whose `rationale` is the answer it parsed. An empty or unparseable
model answer is wrong (0); a gold value that the rule cannot read makes it abstain (None).
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.final import (
    final_answer,
    gold_texts,
    joined,
    normal,
    tagged,
    uncut,
    unthought,
)
from selfloop.organize.verify.numbers import numbers_said, the_number
from selfloop.organize.verify.options import letters, option
from selfloop.organize.verify.polarity import said_yes
from selfloop.types import Rollout, Sample, Verdict

__all__ = ["AllAccepted", "as_number", "choice", "exact", "final_answer", "number", "tagged",
           "text", "yes_no"]


def normal_answer(text: str) -> str | None:
    """The final answer as votes compare answers: lower case, no commas, no punctuation at the
    ends but a minus sign and the point of a number, single spaces; digits written apart are one
    number. None for an answer that says nothing. EvoLMM (arXiv 2511.16672, released code)."""
    said = normal((final_answer(text) or "").replace(",", ""))
    return None if not said.strip(string.punctuation) else joined(said)


def _verdict(right: bool | None, parsed: str | None) -> Verdict:
    score = None if right is None else float(right)
    return Verdict(score=score, rationale=parsed or "")


def exact(rollout: Rollout, answer: Any) -> Verdict:
    """The final answer equals the gold text, white space, case and end punctuation apart.

    Digits written apart count as one number ("1 2" is "12"). A list of texts holds alternatives, as
    in AnyAccepted (all of a set: AllAccepted). Abstains on a blank gold and on other values.
    """
    golds = gold_texts(answer)
    if not golds:
        return Verdict(rationale="the gold answer is no text")
    parsed = final_answer(rollout.text)
    return _verdict(parsed is not None and _equals_one(rollout.text, parsed, golds), parsed)


def _equals_one(whole: str, parsed: str, golds: list[str]) -> bool:
    """Whether the final answer is one of the gold texts, or the uncut one is: a gold "x = 5"."""
    wanted = {joined(gold) for gold in golds}
    return joined(parsed) in wanted or any(joined(said) in wanted for said in uncut(whole))


def as_number(text: str) -> float | None:
    """The last number in a text ("1,234.5", "12 %", "3e4", "1 2" of digit tokens), or None."""
    if re.fullmatch(r"[\d ]+", text.strip()):
        text = text.replace(" ", "")
    found = [said.value for said in numbers_said(text) if math.isfinite(said.value)]
    return found[-1] if found else None


def number(rollout: Rollout, answer: Any) -> Verdict:
    """The final number is within 1e-6 (relative) of the gold number, whatever its unit.

    Several different numbers are wrong, and so is one that is denied ("not 5") or a bound ("more
    than 5") where gold is not; of a calculation the last value counts. Abstains on a gold without
    one finite number.
    """
    gold = the_number(str(answer)) if answer is not None else None
    if gold is None or not math.isfinite(gold.value) or gold.mark == "not":
        return Verdict(rationale="the gold answer is not one number")
    parsed = final_answer(rollout.text)
    said = the_number(rollout.text)
    close = said is not None and said.mark == gold.mark and math.isfinite(said.value) \
        and abs(said.value - gold.value) <= 1e-6 * abs(gold.value)
    return _verdict(close, parsed)


_OPTION = re.compile(r"[\W_]*([A-Ja-j])(?:[\W_]*|[).:\]]\s.*)", re.S)


def choice(rollout: Rollout, answer: Any, sample: Sample | None = None) -> Verdict:
    """The option that the final answer names is the gold letter; naming two options is wrong.

    See `options.option`. Where the sample has its options in `meta` (`options: [...]`), only their
    letters count, and the whole text of one names it. Abstains on a gold that is not one letter.
    """
    gold = _OPTION.fullmatch(str(answer).strip()) if answer is not None else None
    if gold is None or len(letters(str(answer))) > 1:
        return Verdict(rationale="the gold answer is not an option letter")
    texts = sample.meta.get("options") if sample is not None else None
    options = {letter: str(t) for letter, t in zip(string.ascii_uppercase, texts, strict=False)} \
        if isinstance(texts, list) and texts else dict.fromkeys("ABCDEFGHIJ", "")
    parsed = final_answer(rollout.text)
    named = option(rollout.text, options) if parsed else None
    return _verdict(named == gold.group(1).upper(), parsed)


def yes_no(rollout: Rollout, answer: Any) -> Verdict:
    """The yes or no of the answer equals the gold one: the first word, of the final part or else of
    all, or the only one of the two. Saying both is wrong, and so are "not yes" and "no idea"."""
    gold = normal(str(answer)) if answer is not None else ""
    if gold not in ("yes", "no"):
        return Verdict(rationale="the gold answer is neither yes nor no")
    parsed = final_answer(rollout.text)
    said = said_yes(rollout.text)
    return _verdict(said is not None and said == (gold == "yes"), parsed)


def text(rollout: Rollout, answer: Any) -> Verdict:
    """One of the gold texts (a string, or a list of accepted ones) is the whole final answer.

    As `exact`; abstains on a gold value that is no text, or holds something else.
    """
    return exact(rollout, answer)


@dataclass(frozen=True)
class AllAccepted:
    """All texts of the gold set, in any order, and no other: multiple choice with several answers.

    The answer lists them with commas, semicolons, "and" or one a line; letters may stand together
    ("AC"). With `partial`, the share |said and gold| / |said or gold| (Jaccard) instead of 0.
    `answer`: a list of texts, or one text that lists them. Abstains on a gold that is neither.
    """

    partial: bool = False

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """Doubles count once."""
        golds = gold_texts(answer)
        wanted = {joined(g) for g in golds} if isinstance(answer, list | tuple) \
            else _listed(golds[0], frozenset()) if golds else set()
        parsed = final_answer(rollout.text)
        if not wanted:
            return Verdict(rationale="the gold answer is no set of texts")
        whole = unthought(rollout.text).strip()
        said = max((_listed(t, frozenset(wanted)) for t in (parsed, whole) if t),
                   key=lambda found: len(found & wanted) - len(found - wanted), default=set())
        shared = len(said & wanted) / len(said | wanted)
        return Verdict(score=shared if self.partial else float(shared == 1), rationale=parsed or "")


def _listed(words: str, known: frozenset[str]) -> set[str]:
    """The members of a written list; "AC" are two where all of them are known to be letters."""
    if (found := letters(words)) and (len(found) == 1 or all(len(k) == 1 for k in known)):
        return {letter.lower() for letter in found}
    if joined(words) in known:
        return {joined(words)}
    lines = [normal(re.sub(r"^\s*\d+[.)]\s+", "", line)) for line in words.splitlines()]
    split = [part for line in lines for part in re.split(r"\s*[,;]\s*(?:and\s+)?", line)]
    parts = [p for part in split for p in ([part] if joined(part) in known
                                          else re.split(r"\s+and\s+|\s*&\s*", part))]
    return {joined(p) for p in parts if p.strip()}
