"""Every token of an answer reinforced by what a verifier said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfloop.organize.signals import HERE, trained_on
from selfloop.roles import SelfloopError
from selfloop.types import Advantage, AnySignal, Group


@dataclass(frozen=True)
class TokenRewards:
    """Advantage signals with one advantage a token: the verdicts' `token_scores`, times `scale`.

    Token-level policy gradients (FiSAO's, arXiv 2410.14148; VLM-RLAIF's are one number an answer).
    Nothing is subtracted: a verifier with baselines of its own (token_fit.TokenFit) gives rewards
    about zero. Answers without token scores, and those whose scores are all 0, are left out.
    """

    scale: float = 1.0
    makes: ClassVar[tuple[AnySignal, ...]] = (
        Advantage(branches={"answer": HERE}, advantage=0.0),)

    def __call__(self, groups: Sequence[Group]) -> list[AnySignal]:
        """One signal an answer. Raises SelfloopError for as many scores as it has no tokens."""
        made: list[AnySignal] = []
        for group in groups:
            for rollout, verdict in zip(group.rollouts, group.verdicts, strict=False):
                scores = verdict.token_scores
                if scores is None or not any(scores):
                    continue
                branch = trained_on(rollout, as_drawn=True)
                count = sum(sum(turn.mask) for turn in branch.turns)
                if len(scores) != count:
                    raise SelfloopError(f"TokenRewards: sample {group.sample.id}: {len(scores)} "
                                        f"token scores for {count} drawn tokens")
                made.append(Advantage(
                    sample=group.sample.id, group=group.sample.id, rollouts=(rollout.id,),
                    branches={"answer": branch}, role=rollout.role,
                    advantage=tuple(self.scale * s for s in scores)))
        return made
