"""Who is the spy: zero-sum votes of players with almost the same picture (primitives V21)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.calling import SelfloopError
from selfloop.types import Group, Rollout, Verdict


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
    """`clue_rewards` of games whose sampler left `sampling["votes"]` (received, a number) and
    `sampling["spy"]` (a bool) with each player's clues, as `collect.self_play.SpyGame` does.

    Several games of a group are told apart by `sampling["game"]`, several clues of one player by
    `["player"]`; without these notes the group is one game and each rollout a player. Rollouts of
    another `["phase"]` than "clue" get no score. Abstains on a whole game unless all its clues have
    their votes and exactly one player is the spy: a sum over part of a game is not zero."""

    beta: float = 0.1
    lam: float = 0.1

    def __call__(self, group: Group) -> list[Verdict]:
        """One verdict a rollout. Reads no label."""
        games: dict[str, list[int]] = {}
        for i, rollout in enumerate(group.rollouts):
            if rollout.sampling.get("phase", "clue") == "clue":
                games.setdefault(str(rollout.sampling.get("game")), []).append(i)
        found = [Verdict(rationale="not a clue of a whole game with one spy")] * len(group.rollouts)
        for places in games.values():
            for i, verdict in zip(places, self._paid([group.rollouts[i] for i in places]),
                                  strict=False):
                found[i] = verdict
        return found

    def _paid(self, clues: Sequence[Rollout]) -> list[Verdict]:
        """A verdict a clue of one game; none where it is not whole."""
        names = [str(r.sampling.get("player", i)) for i, r in enumerate(clues)]
        players = {name: (r.sampling.get("votes"), r.sampling.get("spy") is True)
                   for name, r in zip(names, clues, strict=True)}
        counts = {name: float(v) for name, (v, _) in players.items() if isinstance(v, int | float)}
        spies = [i for i, (_, spy) in enumerate(players.values()) if spy]
        if len(counts) < len(players) or len(players) < 2 or len(spies) != 1:
            return []
        rewards = dict(zip(players, clue_rewards(list(counts.values()), spies[0], self.beta,
                                                 self.lam), strict=True))
        return [Verdict(score=rewards[n], parts={"votes": counts[n]}) for n in names]
