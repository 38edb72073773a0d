"""Games learned one phase at a time, the other being played meanwhile (Vision-Zero)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.organize.refine.filters import Noted
from selfloop.roles import SelfloopError
from selfloop.types import Group


@dataclass(frozen=True)
class Alternate:
    """Organizer step: only the phase that is learned now, "clue" or "vote", of spy games.

    Votes are learned until civilians find the spy easily, then clues, until they no longer do
    (iterative self-play, Vision-Zero, arXiv 2509.25541; rule and thresholds are ours). With a the
    running share of the civilians' votes that were right (`sampling["voted"]`; "none" is not
    right), a <- decay a + (1 - decay) share of this step: from votes to clues where a >= `easy`,
    from clues to votes where a < `hard`. Between the two nothing changes, so that a step of luck
    turns nothing back; and a phase is learned for `least` steps at least.

    The state is kept with the run under "phases". The coming step's phase is left as
    `guidance["phase"]`, for `collect.self_play.SpyGame`.
    """

    easy: float = 0.9
    hard: float = 0.6
    least: int = 5
    decay: float = 0.9
    first: str = "clue"

    def __post_init__(self) -> None:
        if not 0 <= self.hard <= self.easy <= 1 or not 0 <= self.decay < 1 or self.least < 1:
            raise SelfloopError(f"{self}: expected 0 <= hard <= easy <= 1, 0 <= decay < 1 and "
                                "least >= 1")
        if self.first not in ("clue", "vote"):
            raise SelfloopError(f"Alternate(first={self.first!r}): expected clue or vote")

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any]
                 ) -> tuple[list[Group], dict[str, Any]]:
        """(the same groups with this step's phase only, the state update)."""
        known = state.get("phases", {})
        now, steps = str(known.get("now", self.first)), int(known.get("steps", 0)) + 1
        right = self._right(groups, known.get("right"))
        coming = now
        if right is not None and steps >= self.least:
            if now == "vote" and right >= self.easy:
                coming = "clue"
            elif now == "clue" and right < self.hard:
                coming = "vote"
        phases = {"now": coming, "steps": steps if coming == now else 0, "right": right}
        guidance = {**state.get("guidance", {}), "phase": coming}
        return Noted("phase", now)(groups), {"phases": phases, "guidance": guidance}

    def _right(self, groups: Sequence[Group], before: float | None) -> float | None:
        """The running share; the first step that had votes begins it."""
        voted = [r.sampling["voted"] for g in groups for r in g.rollouts if "voted" in r.sampling]
        if not voted:
            return before
        share = voted.count("right") / len(voted)
        return share if before is None else self.decay * before + (1 - self.decay) * share
