"""How verifiers put questions to a model: quoted text that cannot instruct, and strict replies."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from selfloop.doors import asking_of
from selfloop.organize.verify.final import unthought
from selfloop.organize.verify.polarity import polarity
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Media, Rollout, digest

LONGEST = 8000
"""Characters of a quoted text that a judge is shown; a longer one is cut, and that is said."""


class BrokenReply(SelfloopError):
    """Raised by an engine that was told a JSON Schema, for a reply that does not fit it."""


def code(key: str) -> str:
    """Eight characters that the author of a judged text could not know when it was written."""
    return digest(["asking", key], size=4)


def fenced(text: str, key: str) -> str:
    """`text` between two marker lines that it cannot close: the marker holds a code made of `key`,
    and any copy of that code inside the text is taken out."""
    mark, inside = code(key), text
    while mark in inside:  # taking one out can put another together
        inside = inside.replace(mark, "")
    cut = "" if len(inside) <= LONGEST else "\n[cut here]"
    return f"----- begin {mark} -----\n{inside[:LONGEST]}{cut}\n----- end {mark} -----"


async def ask(generate: Generate, text: str, media: Sequence[Media], role: str,
              sampling: Sampling, label: str, n: int = 1) -> list[Rollout]:
    """`n` replies of a role's model to one user message: pictures first, then the text."""
    return await generate(asking_of(media, text), n=n, role=role, sampling=sampling, label=label)


def yes_or_no(text: str) -> bool | None:
    """True or False for a reply whose first word is yes or no and that says not both; else None,
    and for "no idea", too."""
    return polarity(unthought(text), first=True)


def object_in(reply: str) -> dict[str, Any] | None:
    """The JSON object that a reply is, bare or whole in a ```json block; None for any other text,
    for one that is very long, and for an object that says one thing twice."""
    text = unthought(reply).strip()
    if block := re.fullmatch(r"```(?:json)?\s*(\{.*\})\s*```", text, re.S | re.I):
        text = block[1]
    if not text.startswith("{") or len(text) > 8 * LONGEST:
        return None

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
