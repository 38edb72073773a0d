"""What a run's answers that are worse on purpose were like: the audit of its negatives."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from selfloop.collect.auditing import Audit, audit
from selfloop.report.facts import Findings

MAKERS = ("Negatives(", "MixedDecoding(", "MaskedAttention(")
"""Samplers that mark bad answers, as the printed loop names them."""
HEAD = ("negative", "drawn", "skipped", "empty", "judged", "wrong", "good ones wrong",
        "length ratio", "longer", "depends on picture", "good ones depend")
"""What each column of `rows` holds."""
SAYS = ("Negatives should be wrong more often than the good answers, as long (ratio 1, longer .5) "
        "and neither empty nor independent of the picture. “Skipped” counts good answers for "
        "which a cause gave none. Unknown: nothing was judged, or there are no blind answers "
        "(Negatives(blind=True)) to tell dependence from.")


def negatives(found: Findings) -> dict[str, dict[str, Any]]:
    """`collect.auditing.audit` over all steps, by cause, JSON-able; {} where none were drawn.

    Stored answers are read only where the loop's sampler is, or holds, one that marks them.
    """
    printed = str(found.about.get("printed", ""))
    if not any(name in printed for name in MAKERS):
        return {}
    groups = [g for m in found.manifests for g in found.groups(m["step"])]
    return {cause: dataclasses.asdict(told) for cause, told in audit(groups).items()}


def rows(told: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a cause, in the order of HEAD; "unknown" for what could not be counted."""
    names = [f.name for f in dataclasses.fields(Audit)]
    return [(cause, *(_said(figures[name]) for name in names)) for cause, figures in told.items()]


def table(told: dict[str, dict[str, Any]]) -> list[RenderableType]:
    """The same for the terminal; nothing where there are none."""
    if not told:
        return []
    made = Table(*HEAD, box=None, pad_edge=False, header_style="dim", title="negatives",
                 title_justify="left", title_style="bold")
    for row in rows(told):
        made.add_row(*(Text(cell) for cell in row))
    return [made, Text(SAYS, style="dim")]


def _said(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
