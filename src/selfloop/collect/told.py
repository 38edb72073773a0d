"""What the guidance may tell any sampler, whatever it draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfloop.roles import SelfloopError


def longest(guidance: Mapping[str, Any] | None, own: int) -> int:
    """The length cap: `guidance["max_new_tokens"]` where a stage of a curriculum names one
    (`organize.refine.curriculum.Stages`; Vision-R1's 4K, 8K, 16K, arXiv 2503.06749), else `own`.
    """
    told = (guidance or {}).get("max_new_tokens")
    if told is None:
        return own
    if isinstance(told, bool) or not isinstance(told, int) or told < 1:
        raise SelfloopError(f'guidance["max_new_tokens"] is {told!r}; expected a whole number of '
                            "at least 1, as in Stage(guidance=((\"max_new_tokens\", 4096),))")
    return told
