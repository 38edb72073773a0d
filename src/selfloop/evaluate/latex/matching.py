"""Whole answers: the parts of a key matched one to one with the boxes of a solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop.evaluate.latex.claims import Claim, claims
from selfloop.evaluate.latex.comparing import same_claim

MOST_EACH = 2
"""Distinct claims that are read for each one of the key, the last ones: who boxes every guess
gains nothing."""


@dataclass(frozen=True)
class Matched:
    """Verdicts on the parts of a key (True, False, None = cannot tell), and what was read."""

    parts: tuple[bool | None, ...]
    said: tuple[str, ...]
    """The boxes that were found, as they stand."""

    def count(self, verdict: bool | None) -> int:
        """The parts with this verdict."""
        return sum(part is verdict for part in self.parts)


def same_answer(gold: str, said: str) -> bool | None:
    """Whether one LaTeX answer says what another one says."""
    return match([gold], [said]).parts[0]


def match(gold: Sequence[str], boxes: Sequence[str]) -> Matched:
    """The parts of a key against the boxes: each claim of the key takes at most one claim said.

    A part is right when all of its claims are met, undecided when the rest of them could be.
    """
    if not boxes:
        return Matched((False,) * len(gold), ())
    wanted = [(part, claim) for part, text in enumerate(gold) for claim in claims(text)]
    said = _distinct([claim for box in boxes for claim in claims(box)])
    said = said[-MOST_EACH * max(len(wanted), 1):]
    met = _assigned([claim for _, claim in wanted], said)
    parts: list[bool | None] = []
    for part in range(len(gold)):
        own = [verdict for (at, _), verdict in zip(wanted, met, strict=True) if at == part]
        parts.append(None if not own else False if False in own else None if None in own else True)
    return Matched(tuple(parts), tuple(boxes))


def _distinct(found: list[Claim]) -> list[Claim]:
    """Without repetitions; the last of equal claims stays."""
    return list({(c.name, tuple(s.text for s in c.sides), c.words): c for c in found}.values())


def _assigned(gold: Sequence[Claim], said: Sequence[Claim]) -> list[bool | None]:
    """The verdict on each claim of the key under the assignment with the most right ones.

    Of equally good ones, that which pairs equal names and leaves the most undecided.
    """
    from scipy.optimize import linear_sum_assignment

    if not gold or not said:
        return [False] * len(gold)
    verdicts = [[same_claim(g, s) for s in said] for g in gold]
    worth = np.array([[{True: 100.0, None: 1.0, False: 0.0}[v] + 0.01 * (
        bool(g.name) and g.name == s.name) for v, s in zip(row, said, strict=True)]
        for row, g in zip(verdicts, gold, strict=True)])
    rows, columns = linear_sum_assignment(worth, maximize=True)
    chosen = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    return [verdicts[i][chosen[i]] if i in chosen else False for i in range(len(gold))]
