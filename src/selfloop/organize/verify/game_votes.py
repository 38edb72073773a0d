"""Who is the spy: zero-sum votes of players with almost the same picture (primitives V21)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.calling import SelfloopError
from selfloop.types import Group, Verdict


def clue_rewards(votes: Sequence[float], spy: int, beta: float = 0.1, lam: float = 0.1
                 ) -> list[float]:
    """One reward a player for the clues, from the votes each received; they sum to 0.

    With v votes and vbar the civilians' mean: the spy gets -beta (v_spy - vbar), civilian j gets
    beta (v_spy - vbar) / (n - 1) - lam (v_j - vbar), n players. Vision-Zero (arXiv 2509.25541,
    released code: beta = lambda = .1). Raises SelfloopError for fewer than two players.
    """
    n = len(votes)
    if n < 2 or not 0 <= spy < n:
        raise SelfloopError(f"clue_rewards: spy {spy} among {n} players; expected at least two "
                            "players and the spy's index among them")
    mean = sum(v for i, v in enumerate(votes) if i != spy) / (n - 1)
    lead = votes[spy] - mean
    return [-beta * lead if i == spy else beta * lead / (n - 1) - lam * (v - mean)
            for i, v in enumerate(votes)]


def decision_reward(vote: int | None, spy: int, voter: int, *, readable: bool = True) -> float:
    """A civilian: 1 for the spy, -.5 for nobody (None), -1 for another or an unreadable vote; the
    spy: .5 for another, .2 for nobody, -1 for itself or unreadable. Vision-Zero, released code."""
    if not readable:
        return -1.0
    if voter == spy:
        return 0.2 if vote is None else -1.0 if vote == spy else 0.5
    return -0.5 if vote is None else 1.0 if vote == spy else -1.0


@dataclass(frozen=True)
class ClueVotes:
    """`clue_rewards` of a game whose sampler left `sampling["votes"]` (received, a number) and
    `sampling["spy"]` (a bool) with each player's rollout. Abstains on the whole group unless every
    rollout has its votes and exactly one is the spy's: a sum over part of a game is not zero."""

    beta: float = 0.1
    lam: float = 0.1

    def __call__(self, group: Group) -> list[Verdict]:
        """One verdict a rollout. Reads no label."""
        votes = [r.sampling.get("votes") for r in group.rollouts]
        spies = [i for i, r in enumerate(group.rollouts) if r.sampling.get("spy") is True]
        counts = [float(v) for v in votes if isinstance(v, int | float)]
        if len(counts) != len(votes) or len(votes) < 2 or len(spies) != 1:
            return [Verdict(rationale="not one whole game with one spy") for _ in votes]
        rewards = clue_rewards(counts, spies[0], self.beta, self.lam)
        return [Verdict(score=r, parts={"votes": v}) for r, v in zip(rewards, counts, strict=True)]
