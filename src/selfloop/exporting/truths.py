"""What the reward of a question compared its answers with, found again in what the run stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from typing import Any

from selfloop.roles import SelfloopError
from selfloop.types import Group

GOLD, VOTE, PSEUDO = "gold", "vote", "pseudo-label"


def truth_of(group: Group, read: Set[str]) -> tuple[Any, str] | None:
    """(truth, where it comes from) of a question, None where its vote decided nothing.

    `read`: ids of the samples whose gold values the run read. Theirs is the gold answer; else the
    winner of the vote among the group's answers, else `meta["pseudo_label"]` of a question that
    the model proposed: a label-free run compared with nothing else, whatever the data hold.
    Raises SelfloopError where the verifier compared with no value that could be written.
    """
    sample = group.sample
    if sample.id in read and sample.answer is not None:
        return sample.answer, GOLD
    if any("vote_share" in verdict.parts for verdict in group.verdicts):
        winner = _winner(group)
        return None if winner is None else (winner, VOTE)
    label = sample.meta.get("pseudo_label")
    if isinstance(label, str):
        return label, PSEUDO
    why = "has no answer" if sample.answer is None else \
        "has an answer, but the run never read it, and its verifier compared with no other"
    raise SelfloopError(f"sample {sample.id} {why}, and the reward of grpo rows compares with one: "
                        "label it and use a verifier that reads it, or export --as kto, which is "
                        "made of the verifier's scores")


def _winner(group: Group) -> str | None:
    """What the best paid answers to the sample's own question say: a vote pays its winner most.

    The verdict's rationale is the answer as it was voted on.
    """
    paid = [(verdict.score, verdict.rationale)
            for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
            if verdict.score and verdict.rationale and "vote_share" in verdict.parts
            and rollout.sampling.get("question") in (None, group.sample.context.text)]
    best = max((score for score, _ in paid), default=0.0)
    counts = Counter(said for score, said in paid if score == best)
    return counts.most_common(1)[0][0] if counts else None
