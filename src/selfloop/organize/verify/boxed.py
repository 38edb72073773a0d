r"""The contents of every \boxed{} of a text, braces nested as deep as they are."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
LONGEST = 4000
"""Characters of a box that are read; a longer one is no final answer."""


def closing(text: str, start: int) -> int | None:
    """The place of the brace that closes the one before `start`; None where it never closes."""
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += 1
    return None


def _pairs(text: str) -> dict[int, int]:
    """Where each brace that closes is closed, in one pass: many that never close cost no more."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for mark in re.finditer(r"\\.|[{}]", text, re.S):
        if mark[0] == "{":
            opened.append(mark.start())
        elif mark[0] == "}" and opened:
            found[opened.pop()] = mark.start()
    return found


def boxed(text: str, *, empty: bool = False) -> list[str]:
    """Contents of the boxes in order, trimmed; unclosed, overlong and (unless `empty`) empty ones
    are left out.

    A box within a box counts once, as the outer one.
    """
    found, end = [], 0
    openings = list(_BOX.finditer(text)) if "}" in text else []  # else none of them closes
    closed = _pairs(text) if openings else {}
    for match in openings:
        if match.start() < end:
            continue
        close = closed.get(match.end() - 1)
        if close is None or close - match.end() > LONGEST:
            continue
        end = close
        content = text[match.end():close].strip()
        if content or empty:
            found.append(content)
    return found
