"""Groups by the question that was asked, where a sampler asked several about one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.organize.refine.filters import only
from selfloop.types import Group, Sample


@dataclass(frozen=True)
class ByQuestion:
    """Organizer step: the answers to each proposal as a group of their own.

    A group's baseline is the mean of answers to one question (GRPO), so the answers that a
    proposer's several questions got may not share one. Answers are known by
    `sampling["proposal"]`; the rest of a group (the proposals) is left out.
    """

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """One group a proposal that was answered, its sample the question that was asked."""
        found: list[Group] = []
        for group in groups:
            of = [r.sampling.get("proposal") for r in group.rollouts]
            for proposal in dict.fromkeys(p for p in of if isinstance(p, str)):
                mine = only(group, [p == proposal for p in of])
                asked = mine.rollouts[0].context
                found.append(mine.model_copy(update={"sample": Sample(
                    prompt=asked.prompt, media=asked.media, parent=proposal,
                    meta={"task": "proposed", "cluster": group.sample.cluster})}))
        return found
