"""Ratios reached before, kept by machine; a later run must not fall below their spread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.machine import key
from bench.measure import Ratio
from bench.results import Result

PATH = Path(__file__).with_name("baselines.json")
Kept = dict[str, dict[str, dict[str, Any]]]
"""Machine -> row -> {"ratio": {...}, "S": ..., "share": ...}."""


def read(path: Path = PATH) -> Kept:
    """What is kept; nothing without the file."""
    return json.loads(path.read_text()) if path.exists() else {}


def save(results: Sequence[Result], machine: dict[str, Any], path: Path = PATH) -> None:
    """Replace the rows that were measured, on this machine; leave all others."""
    kept = read(path)
    mine = kept.setdefault(key(machine), {})
    for result in results:
        if not result.why_not:
            mine[result.name] = {"ratio": asdict(result.ratio), "S": round(result.point.bound, 3),
                                 "share": round(result.share, 3)}
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def regressions(results: Sequence[Result], machine: dict[str, Any], path: Path = PATH
                ) -> list[str] | None:
    """Rows whose whole interval lies below the kept one; None where this machine has no baselines.
    """
    mine = read(path).get(key(machine))
    if mine is None:
        return None
    found = []
    for result in results:
        if result.why_not or result.name not in mine:
            continue
        was, now = Ratio(**mine[result.name]["ratio"]), result.ratio
        if now.high < was.low:
            found.append(f"{result.name}: {now.median:.2f} [{now.low:.2f}, {now.high:.2f}], "
                         f"was {was.median:.2f} [{was.low:.2f}, {was.high:.2f}]")
    return found
