"""Verification without labels: agreement among the answers of one group (primitives V13, V14)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from selfloop.calling import SelfloopError
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


def vote_of(text: str | None) -> str | None:
    """An answer as votes compare answers, None for one that says nothing: "Yes" and "yes." are one
    vote, "1,200" is "1200"; a bare sign is an answer, too ("which operator ?")."""
    return None if text is None else normal_answer(text) or final_answer(text)


def tied(votes: Sequence[str | None]) -> bool:
    """Whether several answers share the lead."""
    counts = Counter(a for a in votes if a is not None).most_common(2)
    return len(counts) == 2 and counts[0][1] == counts[1][1]


@dataclass(frozen=True)
class MajorityVote:
    """1 for answers that agree with the group's majority, 0 for the others (MM-UPT, arXiv
    2505.22453). Abstains on all of them when the majority's share is below `share`.

    Answers are compared by `vote_of`, as are those of the test-time vote, of maj@k and of reports,
    those to each question of a group (`sampling["question"]`) among themselves. Among answers that
    share the lead there is no majority, and it abstains; `ties="first"` takes the one that came
    first, as published (TTRL, arXiv 2504.16084, listing): a coin flip, whose pseudo-label is no
    better than any of its answers.
    """

    share: float = 0.5
    ties: Literal["abstain", "first"] = "abstain"
    compares = True  # see judging.alone

    def __post_init__(self) -> None:
        if self.ties not in ("abstain", "first") or not 0 <= self.share <= 1:
            raise SelfloopError(f"{self}: expected a share in [0, 1], and ties abstain or first")

    def __call__(self, group: Group) -> list[Verdict]:
        """One verdict a rollout."""
        asked = [str(r.sampling.get("question") or "") for r in group.rollouts]
        said = [vote_of(r.text) for r in group.rollouts]
        decided = {q: self._winner([a for a, own in zip(said, asked, strict=True) if own == q])
                   for q in {*asked}}
        return [Verdict(score=None if decided[q][0] is None else float(vote == decided[q][0]),
                        rationale=final_answer(r.text) or "", parts={"vote_share": decided[q][1]})
                for r, vote, q in zip(group.rollouts, said, asked, strict=True)]

    def _winner(self, votes: Sequence[str | None]) -> tuple[str | None, float]:
        """(the answer that is paid, or None; the share of the lead)."""
        winner, share = majority(votes)
        open_ = share < self.share or (self.ties == "abstain" and tied(votes))
        return None if open_ else winner, share


@dataclass(frozen=True)
class Agreement:
    """Chain check + agreement across questions and views: the label-free verifier.

    `evidence(text)` is what the answer claims to have seen (None = unreadable); `follows(text,
    question)` says whether its conclusion follows from it (None = cannot tell). Evidence is
    voted on over all the group's rollouts, whatever they were asked, because all saw one
    picture. Right = the chain holds and the evidence won. Abstains when no evidence has `share`
    of the votes, or fewer than `least` rollouts carried any. Of a tie the first evidence wins.
    """

    evidence: Callable[[str], str | None]
    follows: Callable[[str, str], bool | None]
    share: float = 0.5
    least: int = 3
    compares = True
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
