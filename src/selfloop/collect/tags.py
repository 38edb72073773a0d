"""Parsers of what a model was asked to write between tags or after a name: a value, or none.

They never guess. Where a reader could not say which text is meant (no tag, an empty one, two of
them, one within another, one that is not closed), the value is None and `why` says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Parsed:
    """A value, or None and the reason."""

    value: str | None
    why: str = ""


def tagged(text: str, name: str) -> Parsed:
    """What stands between <name> and </name>, which have to occur once each, in this order."""
    opened = [m.end() for m in re.finditer(rf"<{re.escape(name)}>", text, re.I)]
    closed = [m.start() for m in re.finditer(rf"</{re.escape(name)}>", text, re.I)]
    if not opened and not closed:
        return Parsed(None, f"no <{name}>")
    if len(opened) > 1 or len(closed) > 1:
        return Parsed(None, f"<{name}> more than once")
    if not opened or not closed or closed[0] < opened[0]:
        return Parsed(None, f"<{name}> and </{name}> do not pair")
    value = text[opened[0]:closed[0]].strip()
    return Parsed(value, "") if value else Parsed(None, f"<{name}> is empty")


def one_of(text: str, words: tuple[str, ...]) -> Parsed:
    """The one of `words` that the text names, as a whole word in any case; None for none or two."""
    named = [w for w in words if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.I)]
    if len(named) == 1:
        return Parsed(named[0])
    return Parsed(None, f"names {len(named)} of: {', '.join(words)}")


def one_number(text: str, least: int, most: int) -> Parsed:
    """The one whole number from `least` to `most` that the text names; None for none or several."""
    found = set(re.findall(r"[0-9]+", text))
    fitting = [n for n in found if len(n) <= 6 and least <= int(n) <= most]
    if len(found) == 1 and fitting:
        return Parsed(str(int(fitting[0])))
    return Parsed(None, f"names {len(found)} numbers, {len(fitting)} of them in {least}-{most}")
