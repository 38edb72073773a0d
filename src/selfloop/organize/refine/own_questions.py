"""Questions that a model proposed, on their way to being the next step's problems (S13, F8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from selfloop import keys
from selfloop.doors import asking
from selfloop.organize.verify.rules import normal_answer
from selfloop.organize.verify.vote import majority
from selfloop.roles import SelfloopError
from selfloop.types import Group, Rollout, Sample


@dataclass(frozen=True)
class AskNext:
    """Organizer step: the questions proposed in this step are problems of the next one.

    It leaves them as `guidance["samples"]`, from where the loop draws them beside its data, once.
    Each has as `parent` the rollout that proposed it, no answer, and the pictures and cluster of
    the sample that was asked about. A question that its `Propose` sampler also had answered gets
    the most frequent of these answers as `meta["pseudo_label"]` and that answer's share s of
    all as `meta["vote_share"]`; it is kept if low <= s <= high (VisPlay's band, arXiv 2511.15661,
    released script: .3 to .8, which leaves out what is trivial and what is hopeless). Questions
    with fewer than `least` answers are left out. At most `most` are kept, by a keyed draw.
    """

    low: float = 0.0
    high: float = 1.0
    least: int = 0
    most: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1 or self.most < 1:
            raise SelfloopError(f"{self}: expected 0 <= low <= high <= 1 and most >= 1")

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any], key: str
                 ) -> tuple[list[Group], dict[str, Any]]:
        """(the same groups, the state update)."""
        found = [s for s in proposed_samples(groups) if self._fits(s)]
        chosen = sorted(keys.shuffled(len(found), f"{key}/own questions")[:self.most])
        samples = [found[i].model_dump(mode="json", exclude_defaults=True) for i in chosen]
        return list(groups), {"guidance": {**state.get("guidance", {}), "samples": samples}}

    def _fits(self, sample: Sample) -> bool:
        votes, share = sample.meta["votes"], sample.meta.get("vote_share")
        if not isinstance(votes, int) or votes < self.least:
            return False
        return not votes or (isinstance(share, float) and self.low <= share <= self.high)


def proposed_samples(groups: Sequence[Group]) -> list[Sample]:
    """The questions of these groups that may be asked, as new samples, without answers.

    `meta` has `votes`, how many answers the question was given, and if any said something,
    `pseudo_label` and `vote_share`. Clusters are those of the pictures' own samples, so that
    questions about one picture are resampled together. What was asked several times of the same
    pictures (data often have several samples of one) is one sample, and all its answers vote:
    samples of one id would be drawn with equal keys, and their equal answers counted twice.
    """
    asked: dict[tuple[str, ...], list[tuple[Group, Rollout, str]]] = {}
    for group in groups:
        pictures = tuple(m.identity for m in group.sample.media)
        for rollout in group.rollouts:
            question = rollout.sampling.get("proposed")
            if isinstance(question, str) and not rollout.sampling.get("why"):
                asked.setdefault((question.lower(), *pictures), []).append(
                    (group, rollout, question))
    return [_sample(same) for same in asked.values()]


def _sample(same: Sequence[tuple[Group, Rollout, str]]) -> Sample:
    votes = [normal_answer(r.text) for group, proposal, _ in same for r in group.rollouts
             if r.sampling.get("proposal") == proposal.id]
    label, share = majority(votes)
    voted: dict[str, JsonValue] = {} if label is None else {"pseudo_label": label,
                                                            "vote_share": share}
    group, proposal, question = same[0]
    context = asking(group.sample, question)
    return Sample(prompt=context.prompt, media=context.media, parent=proposal.id, meta={
        "task": "proposed", "cluster": group.sample.cluster, "votes": len(votes), **voted})
