"""What a step learnt for the next collection, in one place: the guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from selfloop.organize.refine.filters import Role, in_order, not_below
from selfloop.types import Group


@dataclass(frozen=True)
class Learnt:
    """Organizer step: leave what the groups say about the problems and about the proposer.

    `guidance["difficulty"]` is {sample: 1 - mean score}, of the last `memory` problems judged;
    scores are cut to [0, 1]. `guidance["flat"]` is, for those of them whose last group had no
    variance, {sample: how many in a row had none}, of groups of two or more judged answers; a
    problem that was not drawn keeps both. `guidance["learnt"]` holds those of these shares that
    can be told:

    - `vote_share`: mean share of the most frequent answer, from the parts `vote_share` of the
      verdicts: of a proposed question's answers, or of the question's own verdict
      (`verify.questions.QuestionReward`), each question counted once;
    - `in_band`: judged groups whose mean score lies in [low, high];
    - `zero_variance`, `saturated`, `hopeless`: judged groups of two or more answers whose scores
      are all equal, all right, all wrong (DAPO's unused groups, arXiv 2503.14476, section 3.2);
    - `unanswerable`: checked proposals that were found unanswerable.

    `collect.steered.Steered` and `collect.propose.Propose` read it; `zero_variance` is for the
    reader of the manifest, since they read `flat` and its two halves. The groups stay as they are.
    """

    low: float = 0.1
    high: float = 0.9
    memory: int = 4096
    solver: str = "solver"

    def __post_init__(self) -> None:
        in_order(self, self.low, self.high)
        not_below(self, memory=(self.memory, 1))

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any]
                 ) -> tuple[list[Group], dict[str, Any]]:
        """(the same groups, the state update)."""
        solved = Role(self.solver)(groups)
        means = {g.sample.id: fmean(_cut(g)) for g in solved if _cut(g)}
        known = dict(state.get("difficulty", ()))
        for name, mean in means.items():
            known.pop(name, None)  # what was judged last stands last
            known[name] = 1 - mean
        kept = list(known.items())[-self.memory:]
        streaks = _streaks(solved, state.get("flat", {}))
        flat = {name: streaks[name] for name, _ in kept if name in streaks}
        learnt = {**_shares(solved, self.low, self.high), **_proposals(groups)}
        guidance = {**state.get("guidance", {}), "difficulty": dict(kept), "flat": flat,
                    "learnt": learnt}
        return list(groups), {"difficulty": [list(pair) for pair in kept], "flat": flat,
                              "guidance": guidance}


def _cut(group: Group) -> list[float]:
    return [min(1.0, max(0.0, s)) for _, s in group.scored()]


def _streaks(groups: Sequence[Group], before: Mapping[str, int]) -> dict[str, int]:
    """How many groups in a row had no variance; one answer alone tells nothing of it."""
    found = dict(before)
    for group in groups:
        scores = _cut(group)
        if len(scores) > 1:
            ended = found.pop(group.sample.id, 0)
            if min(scores) == max(scores):
                found[group.sample.id] = ended + 1
    return found


def _shares(groups: Sequence[Group], low: float, high: float) -> dict[str, float]:
    scores = [s for g in groups if (s := _cut(g))]
    many = [s for s in scores if len(s) > 1]
    found: dict[str, float] = {}
    if scores:
        found["in_band"] = fmean(low <= fmean(s) <= high for s in scores)
    if many:
        found["zero_variance"] = fmean(min(s) == max(s) for s in many)
        found["saturated"] = fmean(min(s) >= 0.5 for s in many)
        found["hopeless"] = fmean(max(s) < 0.5 for s in many)
    return found


def _proposals(groups: Sequence[Group]) -> dict[str, float]:
    votes = [v for g in groups if (v := _vote_shares(g))]
    found = {"vote_share": fmean(x for v in votes for x in v)} if votes else {}
    checked = [r.sampling["answerable"] for g in groups for r in g.rollouts
               if isinstance(r.sampling.get("answerable"), bool)]
    return {**found, "unanswerable": fmean(not a for a in checked)} if checked else found


def _vote_shares(group: Group) -> list[float]:
    """The largest share of each question of a group."""
    best: dict[str, float] = {}
    for rollout, verdict in zip(group.rollouts, group.verdicts, strict=False):
        share = verdict.parts.get("vote_share")
        if share is None or rollout.sampling.get("proposed", "") is None:
            continue  # an unreadable question, or one that was asked before
        own = rollout.id if "proposed" in rollout.sampling else ""
        question = str(rollout.sampling.get("proposal", own))
        best[question] = max(share, best.get(question, 0.0))
    return list(best.values())
