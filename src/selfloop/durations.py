"""Lengths of time as people write and read them."""

from __future__ import annotations

import math
import re

_SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def seconds(text: str) -> float:
    """Seconds of "90", "90s", "10m", "2h" or "1h30m". Raises ValueError on anything else."""
    found = _SPAN.fullmatch(text.strip().lower().replace(" ", ""))
    if not found or not any(found.groups()):
        raise ValueError(f'{text!r} is no length of time: write 90s, 10m, 2h or 1h30m')
    hours, minutes, rest = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + rest


def time_of(amount: float | None) -> str:
    """Seconds for people: "4.5 s", "45 s", "12 min", "3.5 h", "2.1 days"."""
    if amount is None or not math.isfinite(amount):
        return "unknown"
    if amount < 100:
        return f"{amount:.0f} s" if amount >= 10 else f"{amount:.1f} s"
    if amount < 6000:
        return f"{amount / 60:.0f} min"
    return f"{amount / 3600:.1f} h" if amount < 172800 else f"{amount / 86400:.1f} days"
