"""Texts that a model drew and yet cannot be made to begin with, and what samplers make of them.

Samplers that grow an answer piece by piece force what was drawn so far as text. Not every text can
be forced: a tokenizer may read one back as an unknown token, or as a picture's placeholder that
was spelled out letter by letter. Such a path ends there; it is no fault of the run's.
"""

from __future__ import annotations

from collections.abc import Awaitable

from selfloop.roles import SelfloopError
from selfloop.types import Rollout


class Unsayable(SelfloopError):
    """Raised by an engine for a request whose forced text holds a token nobody may write."""


async def if_sayable(asked: Awaitable[list[Rollout]]) -> list[Rollout]:
    """What a call of `generate` draws; [] where the text that it forces cannot be said."""
    try:
        return await asked
    except Unsayable:
        return []
