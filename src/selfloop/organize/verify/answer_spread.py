"""How a question's answers spread: soft votes, entropy, the peak of uncertainty (V14 to V16).

The answers to one question are called `votes` here: a parameter of the name `answers` would declare
that gold values are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.organize.verify.length import brevity
from selfloop.organize.verify.rules import normal_answer
from selfloop.organize.verify.vote import majority
from selfloop.types import Group, Rollout, Verdict


def shares(votes: Sequence[str | None]) -> dict[str, float]:
    """p(a) = count of a / number of all answers. None is no answer but counts below the line."""
    counts = Counter(a for a in votes if a is not None)
    return {answer: count / len(votes) for answer, count in counts.items()}


def entropy(votes: Sequence[str | None]) -> float | None:
    """H = -sum p ln p in nats, over the answers that say something; None if none does.

    An answer that says nothing is left out, not made an answer of its own: five of them are not
    agreement.
    """
    p = shares([a for a in votes if a is not None])
    return -sum(x * math.log(x) for x in p.values()) if p else None


@dataclass(frozen=True)
class AnswerEntropy:
    """exp(-(H - mu)^2 / (2 sigma^2)) of a question's answers: neither trivial nor hopeless.

    EvoLMM's proposer reward (arXiv 2511.16672, released code), made for five answers:
    .04 where all agree, .99 for three against one and one, .13 where all differ.
    """

    mu: float = 0.90
    sigma: float = 0.35

    def __call__(self, votes: Sequence[str | None]) -> float | None:
        """`votes`: normalised answers; None = says nothing."""
        h = entropy(votes)
        return None if h is None else math.exp(-((h - self.mu) ** 2) / (2 * self.sigma**2))


def uncertainty_peak(votes: Sequence[str | None]) -> float | None:
    """min(s, 1 - s), s = share of the most frequent answer; 0.5 at most; None without an answer.

    VisPlay's questioner reward (arXiv 2511.15661, released code), before its cluster penalty.
    """
    winner, share = majority(votes)
    return None if winner is None else min(share, 1 - share)


@dataclass(frozen=True)
class SoftVote:
    """p(a)^gamma of each answer among its question's answers: EvoLMM's solver reward (arXiv
    2511.16672, released code, gamma .7).

    Unlike a 0/1 vote it tells a narrow majority from a wide one. An answer that says nothing gets
    no score, and never wins. With `brief`, times EvoLMM's length factor (see length.brevity).
    """

    gamma: float = 0.7
    brief: bool = False
    compares = True  # see judging.alone

    def __call__(self, group: Group) -> list[Verdict]:
        """One verdict a rollout; answers to other questions of the group are votes of their own."""
        asked = [question_of(r) for r in group.rollouts]
        said = [normal_answer(r.text) for r in group.rollouts]
        return [self._verdict(r, answer, [a for a, q in zip(said, asked, strict=True) if q == mine])
                for r, answer, mine in zip(group.rollouts, said, asked, strict=True)]

    def _verdict(self, rollout: Rollout, answer: str | None, votes: list[str | None]) -> Verdict:
        if answer is None:
            return Verdict(rationale="the answer says nothing")
        share = shares(votes)[answer]
        factor = brevity(rollout.text) if self.brief else 1.0
        return Verdict(score=share**self.gamma * factor, parts={"vote_share": share},
                       rationale=answer)


def question_of(rollout: Rollout) -> str:
    """What a rollout answered: `sampling["question"]`, else the last message of its context."""
    asked = rollout.sampling.get("question")
    if isinstance(asked, str):
        return asked
    last = rollout.context.prompt[-1] if rollout.context.prompt else None
    return "".join(part.text for part in last.content) if last else ""
