"""More than one log-prob a place: other tokens', the most likely ones', the collision's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch

from selfloop.optimize.rows import Row, Wide
from selfloop.roles import SelfloopError


@dataclass(frozen=True)
class Asked:
    """What all rows of a call ask for, at M places (see `rows.Wide`)."""

    others_MK: torch.Tensor
    top: int
    collision: bool

    def rows(self, at: slice) -> Asked:
        """The same for some of the places."""
        return replace(self, others_MK=self.others_MK[at])


def asked(rows: Sequence[Row], places: Sequence[tuple[int, int]], device: Any) -> Asked | None:
    """What rows ask for at (row, which of its trained tokens); None where they do not."""
    wide = next((row.wide for row in rows if row.wide is not None), None)
    if wide is None:
        return None
    others = [list(rows[i].wide.others[n]) if wide.k else []  # type: ignore[union-attr]
              for i, n in places]
    return Asked(torch.tensor(others, dtype=torch.long, device=device).view(len(places), wide.k),
                 wide.top, wide.collision)


def in_order(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Every trained token of every row."""
    return [(i, n) for i, row in enumerate(rows) for n in range(row.count)]


def columns(logp_MV: torch.Tensor, ids_M: torch.Tensor, ask: Asked) -> torch.Tensor:
    """The matrix [M, C] that `rows.Wide` describes, from whole distributions."""
    found = [logp_MV.gather(1, ids_M[:, None]), logp_MV.gather(1, ask.others_MK)]
    fixed_MV = logp_MV.detach()
    if ask.top:
        best = fixed_MV.topk(ask.top, -1)
        found += [best.values, best.indices.to(logp_MV.dtype)]
    if ask.collision:
        found.append(torch.logsumexp(2 * fixed_MV, -1, keepdim=True))
    return torch.cat(found, -1)


def alike(rows: Sequence[Row]) -> list[Row]:
    """Rows that all ask for what any of them asks for; others that a row lacks are its own token.

    Rows of which none asks for anything come back as they are.
    """
    wides = [row.wide for row in rows if row.wide is not None]
    if not wides:
        return list(rows)
    k, top = max(w.k for w in wides), max(w.top for w in wides)
    collision = any(w.collision for w in wides)
    return [replace(row, wide=Wide(_filled(row, k), top, collision)) for row in rows]


def _filled(row: Row, k: int) -> tuple[tuple[int, ...], ...]:
    mine = row.wide.others if row.wide is not None and row.wide.others else ((),) * row.count
    return tuple((*others, *(own,) * (k - len(others)))
                 for own, others in zip(row.trained_ids, mine, strict=True)) if k else ()


def widened(rows: Sequence[Row], others: Sequence[Sequence[int]] | None = None, top: int = 0,
            collision: bool = False) -> list[Row]:
    """The rows of one branch, asking for more; `others` go over all of its trained tokens."""
    ends = list(accumulate((row.count for row in rows), initial=0))
    return [replace(row, wide=Wide(tuple(tuple(o) for o in others[a:b]) if others else (),
                                   top, collision))
            for row, (a, b) in zip(rows, pairwise(ends), strict=True)]


def likeliest(columns: Sequence[float], top: int) -> list[tuple[int, float]]:
    """(id, log-prob) of the likeliest tokens, from what `rows.Wide` gives for one place."""
    logps, ids = columns[1:1 + top], columns[1 + top:1 + 2 * top]
    if logps[-1] == -float("inf"):
        raise SelfloopError(f"top={top}: fewer tokens can be drawn at all; ask for less")
    return [(int(i), lp) for i, lp in zip(ids, logps, strict=True)]


def checked(policy: object, rows: Sequence[Row], found: Sequence[torch.Tensor]) -> None:
    """Raises SelfloopError where a policy leaves out what rows ask for."""
    if any(row.wide is not None and x.ndim == 1 for row, x in zip(rows, found, strict=True)):
        raise SelfloopError(
            f"{type(policy).__name__} gives the log-probs of trained tokens only, but the loss "
            "needs other tokens' too (rows.Wide): take another engine or another loss")


def as_lists(found: Sequence[torch.Tensor]) -> list[list[Any]]:
    """The numbers of each, read from their device all at once: every read is waited for."""
    whole: Any = torch.cat(list(found)).cpu()
    return [x.tolist() for x in whole.split([len(x) for x in found])]


def narrow(row: Row) -> Row:
    """The row without what it asks for."""
    return replace(row, wide=None)
