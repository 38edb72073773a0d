"""The shuffled-verdicts arm: the same loop, the same keep rate, and no information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfloop import keys
from selfloop.types import Group


@dataclass(frozen=True)
class ShuffleVerdicts:
    """Deal the step's verdicts out again at random over all its rollouts.

    As many answers are kept as before, but which ones is chance: what still improves is owed to
    training on one's own answers and not to verification.
    """

    def __call__(self, groups: Sequence[Group], key: str) -> list[Group]:
        """The same groups with their verdicts permuted across all of them."""
        verdicts = [v for g in groups for v in g.verdicts]
        order = keys.shuffled(len(verdicts), key)
        mixed = iter([verdicts[i] for i in order])
        return [g.model_copy(update={"verdicts": tuple(next(mixed) for _ in g.verdicts)})
                for g in groups]
