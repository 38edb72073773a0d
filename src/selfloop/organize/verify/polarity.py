"""Whether a text says yes or no. The first word decides; "no idea" and "not sure" are neither."""

from __future__ import annotations

import re

from selfloop.organize.verify.final import explained, final_answer

_WORD = re.compile(r"(?<![\w'’])(yes|no)(?![\w'’])", re.I)
_UNKNOWN = re.compile(r"\s+(?:idea|way|clue|information|evidence|means|basis|certainty|opinion|"
                      r"answer|data|comment|one (?:knows|can (?:know|say|tell)))s?\b", re.I)
_FILLER = re.compile(r"\s+(?:doubt|question|problem|wonder|need|matter)\b", re.I)
_AFTER_NOT = re.compile(r"(?:\b(?:not|neither|never)|n['’]t)\s+(?:a\s+)?[\"'“*]*$", re.I)
_NEAR = 40
_OPEN = re.compile(r"[\s\"'“*_`().,:>-]*")


def polarity(text: str, *, first: bool = False) -> bool | None:
    """True for yes, False for no, None for neither or both.

    A yes or no that opens the text decides, unless the other one stands alone later ("yes and no",
    but not "yes, there is no doubt"). With `first` nothing else counts; else a text that says only
    one of the two says that one.
    """
    opening = _OPEN.match(text)
    start = opening.end() if opening else 0
    found: list[tuple[int, bool, bool]] = []
    for m in _WORD.finditer(text):
        rest = text[m.end():m.end() + _NEAR]
        says = m[1].lower() == "yes"
        if not says and _UNKNOWN.match(rest):
            if m.start() == start:
                return None
            found.append((m.start(), says, True))
        elif (says or not _FILLER.match(rest)) and not _AFTER_NOT.search(
                text[max(0, m.start() - _NEAR):m.start()]):
            # "no" before a word of its own ("no cats") is part of a sentence, and no second answer
            alone = says or not re.match(r"\s+(?!and\b|or\b|but\b|yes\b)[a-z]", rest, re.I)
            found.append((m.start(), says, alone))
        elif m.start() == start and says is False:
            return None
    opens = [says for at, says, _ in found if at == start]
    if opens:
        return opens[0] if all(s == opens[0] for _, s, alone in found if alone) else None
    unknown = any(not says and _UNKNOWN.match(text[at + 2:at + _NEAR]) for at, says, _ in found)
    said = {says for _, says, _ in found}
    return said.pop() if len(said) == 1 and not first and not unknown else None


def said_yes(text: str) -> bool | None:
    """What a whole answer says: the first word of its final part decides, then, where nothing is
    announced, the first word of all ("Yes.\\n\\nThe dog is on the left."), then the one of the two
    that the final part says. None for neither or both."""
    final = final_answer(text)
    if final is None:
        return None
    found = polarity(final, first=True)
    if found is None and (whole := explained(text)) is not None:
        found = polarity(whole, first=True)
    return polarity(final) if found is None else found
