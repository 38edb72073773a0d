"""Selective sample replay: reinforcement never runs dry when most groups agree (primitives F10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop import keys
from selfloop.roles import Organized, Organizer, SelfloopError
from selfloop.types import Advantage, AnySignal, Group


@dataclass(frozen=True)
class SelectiveReplay:
    """Draw the step's advantages anew, by |A|, topped up from those of earlier steps.

    Wraps an organizer that makes `Advantage` signals. With B = rollouts drawn in the step, judged
    or not, and `size` = B // 2 signals to be made (of a step without groups, the largest so far):

    1. from this step's signals with A != 0, draw with replacement, P(i) = |A_i|^alpha / sum, as
       many as there are such signals, `size` at most;
    2. the rest from the queue, P(j) proportional to |A_j|^alpha + 1e-4;
    3. this step's signals with A != 0 join the queue, which holds the last `keep` (the largest
       size so far, if 0: a thin step empties no queue).

    A signal with A = 0 is never made. Other signals (imitation beside reinforcement) pass by as
    they are. VL-Rethinker (arXiv 2504.08837, selective sample replay;
    the constants are those of the released code). The queue is JSON in the state; a replayed
    answer keeps the log-probs it was drawn with, so use a loss with importance ratios.
    """

    organizer: Organizer
    alpha: float = 1.0
    size: int = 0
    """Signals a step; 0 = half of the drawn rollouts."""
    keep: int = 0

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """What the wrapped organizer makes."""
        return tuple(getattr(self.organizer, "makes", ()))

    def wants(self, groups: Sequence[Group]) -> int:
        """What the wrapped organizer wants."""
        wants = getattr(self.organizer, "wants", None)
        return int(wants(groups)) if wants is not None else 0

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any], key: str, **gold: Any
                 ) -> Organized:
        """(signals, state, guidance). Raises SelfloopError where the wrapped organizer can make no
        advantages."""
        inner = {k: v for k, v in state.items() if k not in ("replay", "replay_size")}
        signals, inner, guidance = self.organizer(groups, state=inner, key=key, **gold)
        beside = [s for s in signals if not isinstance(s, Advantage)]
        self._check(beside)
        fresh = [s for s in signals if isinstance(s, Advantage) and strength(s) > 0]
        queue = [Advantage.from_json(line) for line in state.get("replay", ())]
        drawn_now = sum(len(g.rollouts) for g in groups)
        largest = max(int(state.get("replay_size", len(queue))), self.size or drawn_now // 2)
        size = self.size or (drawn_now // 2 if drawn_now else largest)
        drawn = self._draw(fresh, min(size, len(fresh)), 0.0, f"{key}/fresh")
        drawn += self._draw(queue, size - len(drawn), 1e-4, f"{key}/replay")
        queue = (queue + fresh)[-(self.keep or max(largest, 1)):]
        kept = {"replay": [s.to_json() for s in queue], "replay_size": largest}
        return [*drawn, *beside], {**inner, **kept}, guidance

    def _check(self, beside: Sequence[AnySignal]) -> None:
        if beside and not any(isinstance(s, Advantage) for s in self.makes):
            raise SelfloopError(
                f"SelectiveReplay: got a {type(beside[0]).__name__} of sample {beside[0].sample}, "
                "and no advantages; wrap an organizer whose maker is GroupAdvantage or another "
                "that makes advantages")

    def _draw(self, pool: Sequence[Advantage], n: int, floor: float, key: str
              ) -> list[Advantage]:
        """n of the pool, with replacement."""
        if not pool or n <= 0:
            return []
        weights = np.array([strength(s) for s in pool]) ** self.alpha + floor
        picked = keys.generator(key).choice(len(pool), size=n, p=weights / weights.sum())
        return [pool[int(i)] for i in picked]


def strength(signal: Advantage) -> float:
    """|A|; of an advantage per token, the mean of the absolute values."""
    each = signal.advantage if isinstance(signal.advantage, tuple) else (signal.advantage,)
    return sum(map(abs, each)) / len(each) if each else 0.0
