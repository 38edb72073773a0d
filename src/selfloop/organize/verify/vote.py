"""Verification without labels: agreement among the answers of one group (primitives V13, V14)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfloop.organize.verify.rules import final_answer, normal_answer
from selfloop.types import Group, Rollout, Verdict


def majority(answers: Sequence[str | None]) -> tuple[str | None, float]:
    """(most frequent answer, its share of all answers); (None, 0.0) without any valid answer.

    None never wins, but counts in the denominator. Ties go to the answer that came first.
    """
    counts = Counter(a for a in answers if a is not None)
    if not counts:
        return None, 0.0
    answer, count = counts.most_common(1)[0]
    return answer, count / len(answers)


def voted(text: str) -> str | None:
    """What an answer votes for: its final answer in the form in which votes are counted. "Yes" and
    "**yes**." are one vote, "1,200" is "1200"; None for an answer that says nothing."""
    return normal_answer(text) or final_answer(text)  # a bare sign is an answer, too


@dataclass(frozen=True)
class MajorityVote:
    """1 for answers that agree with the group's majority, 0 for the others (MM-UPT, arXiv
    2505.22453). Abstains on the whole group when the majority's share is below `share`.

    Answers are compared by `voted`, as are those of the test-time vote, of maj@k and of reports.
    """

    share: float = 0.5

    def __call__(self, group: Group) -> list[Verdict]:
        """One verdict a rollout."""
        votes = [voted(r.text) for r in group.rollouts]
        winner, share = majority(votes)
        decided = winner is not None and share >= self.share
        return [Verdict(score=float(vote == winner) if decided else None,
                        rationale=final_answer(r.text) or "", parts={"vote_share": share})
                for r, vote in zip(group.rollouts, votes, strict=True)]


@dataclass(frozen=True)
class Agreement:
    """Chain check + agreement across questions and views: the label-free verifier.

    `evidence(text)` is what the answer claims to have seen (None = unreadable); `follows(text,
    question)` says whether its conclusion follows from it (None = cannot tell). Evidence is
    voted on over all the group's rollouts, whatever they were asked, because all saw one
    picture. Right = the chain holds and the evidence won. Abstains when no evidence has `share`
    of the votes, or fewer than `least` rollouts carried any.
    """

    evidence: Callable[[str], str | None]
    follows: Callable[[str, str], bool | None]
    share: float = 0.5
    least: int = 3
    concludes: Callable[[str, str], str | None] | None = None
    """(evidence, question) -> answer, where a rule can tell: makes the vote at test time, which
    a loop has to beat, as strong as it can be. Training does not use it."""

    def decide(self, group: Group) -> str | None:
        """The answer that the evidence with the most votes leads to; None without a rule."""
        winner, _, _, _ = self._vote(group)
        if self.concludes is None or winner is None:
            return None
        return self.concludes(winner, group.sample.context.text)

    def _vote(self, group: Group
              ) -> tuple[str | None, float, list[bool | None], list[str | None]]:
        holds = [self.follows(r.text, _question(r)) for r in group.rollouts]
        seen = [self.evidence(r.text) if ok else None
                for r, ok in zip(group.rollouts, holds, strict=True)]
        return (*majority(seen), holds, seen)

    def __call__(self, group: Group) -> list[Verdict]:
        """One verdict a rollout, the vote's share among its parts."""
        winner, share, holds, seen = self._vote(group)
        decided = winner is not None and share >= self.share \
            and sum(s is not None for s in seen) >= self.least
        return [
            Verdict(
                score=float(ok and claim == winner) if decided and ok is not None else None,
                parts={"vote_share": share}, rationale=final_answer(r.text) or "",
            )
            for r, ok, claim in zip(group.rollouts, holds, seen, strict=True)
        ]


def _question(rollout: Rollout) -> str:
    asked = rollout.sampling.get("question")
    return asked if isinstance(asked, str) else rollout.context.text
