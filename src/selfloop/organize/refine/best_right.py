"""Of the right answers, those that a second scorer likes best (primitives F11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfloop import keys
from selfloop.organize.refine.filters import not_below, only
from selfloop.roles import SelfloopError
from selfloop.types import Group, Verdict


@dataclass(frozen=True)
class BestRight:
    """Keep the `k` rollouts of highest `parts[by]` among those judged right; drop the others.

    M-STaR (arXiv 2412.17451): a process reward model ranks what the answer check let through,
    k = 2. Ties are drawn by key. A right answer that the second scorer did not judge is left out:
    unknown is no rank.
    """

    by: str
    k: int = 2
    at_least: float = 0.5

    def __post_init__(self) -> None:
        not_below(self, k=(self.k, 1))

    def __call__(self, groups: Sequence[Group], key: str) -> list[Group]:
        """The same groups with at most k rollouts. Raises SelfloopError when no verdict of the
        step has the part `by`."""
        right = [v for g in groups for v in g.verdicts if self._right(v)]
        if right and not any(self.by in v.parts for v in right):
            raise SelfloopError(f"BestRight(by={self.by!r}): no verdict has that part; they have "
                                f"{sorted({p for v in right for p in v.parts}) or 'none'}; rank "
                                "answers (verify.steps.Reranked), or see why the ranker abstains")
        return [self._best(g, f"{key}/{g.sample.id}") for g in groups]

    def _best(self, group: Group, key: str) -> Group:
        verdicts = group.verdicts or (Verdict(),) * len(group.rollouts)
        able = [i for i in keys.shuffled(len(verdicts), key)
                if self._right(verdicts[i]) and self.by in verdicts[i].parts]
        best = set(sorted(able, key=lambda i: -verdicts[i].parts[self.by])[:self.k])
        return only(group.model_copy(update={"verdicts": verdicts}),
                    [i in best for i in range(len(verdicts))])

    def _right(self, verdict: Verdict) -> bool:
        return verdict.score is not None and verdict.score >= self.at_least
