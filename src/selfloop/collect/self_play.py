"""A spy game: players who see one picture look for the one who sees another (primitive S10).

Vision-Zero (arXiv 2509.25541) in its two phases. Nobody labels anything: who the spy is, is known
by construction, and what clues are worth is what the votes say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop import keys
from selfloop.collect.conditioning import noted
from selfloop.collect.tags import one_number, tagged
from selfloop.doors import asking
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Context, Media, Rollout, Sample

RULES = ("{players} players each look at a picture. All pictures are the same but for one "
         "player's, the spy's, which was changed. You are player {me}.")
CLUE = ("Say one true thing about your picture in a sentence. If you are not the spy, help the "
        "others to see it; if you are, do not give yourself away.")
VOTE = ("Which player is the spy? Write the player's number between <answer> and </answer>, or "
        "none if you cannot tell.")


def clue_rewards(votes: Sequence[int], spy: int, beta: float = 0.1, spread: float = 0.1
                 ) -> tuple[float, ...]:
    """What each player's clues earn, from the votes against each; the sum is zero.

    With v the votes, m the civilians' mean and n players: the spy gets -beta (v_spy - m), and
    civilian j gets beta (v_spy - m) / (n - 1) - spread (v_j - m) (Vision-Zero, released code).
    """
    civilians = [v for i, v in enumerate(votes) if i != spy]
    mean = sum(civilians) / len(civilians)
    caught = beta * (votes[spy] - mean)
    return tuple(-caught if i == spy else caught / len(civilians) - spread * (v - mean)
                 for i, v in enumerate(votes))


def vote_reward(vote: int | None, readable: bool, me: int, spy: int) -> float:
    """What a vote earns (players from 0; None = "none"), as in Vision-Zero's released code.

    A civilian: 1 for the spy, -.5 for none, -1 for another or an unreadable vote. The spy: .5 for
    another, .2 for none, -1 for itself or an unreadable vote.
    """
    if not readable:
        return -1.0
    if me == spy:
        return 0.2 if vote is None else -1.0 if vote == me else 0.5
    return -0.5 if vote is None else 1.0 if vote == spy else -1.0


def parse_vote(text: str, players: int) -> tuple[int | None, bool]:
    """(player from 0 or None for "none", whether the vote could be read)."""
    found = tagged(text, "answer").value
    if found is None:
        return None, False
    if found.strip(" .").lower() in ("none", "n/a"):
        return None, True
    number = one_number(found, 1, players).value
    return (int(number) - 1, True) if number else (None, False)


@dataclass(frozen=True)
class SpyGame:
    """`n` games a sample; each clue and each vote is a rollout with `sampling["return"]`.

    A sample with two pictures gives the second to the spy; with one picture, the spy sees it
    through `op`. Who is the spy is drawn by key. In a round the players speak in turn and hear
    all that was said before, and vote at the end, at once. `EnvironmentReturn` reads the rewards;
    `sampling["phase"]` (clue or vote) and `["spy"]` let an organizer train one phase at a time or
    take a baseline by role. Each player is one role of one model, seeing only its own picture.
    """

    n: int = 1
    players: int = 4
    rounds: int = 2
    op: str = "crop"
    severity: float = 0.7
    temperature: float = 1.0
    clue_tokens: int = 48
    vote_tokens: int = 128

    def __post_init__(self) -> None:
        if self.players < 3 or self.rounds < 1:
            raise SelfloopError(f"{self}: a spy game needs three players and one round at least")

    async def __call__(self, generate: Generate, sample: Sample, key: str) -> list[Rollout]:
        """All games' clues and votes, in the order of play."""
        if not sample.media or any(m.kind != "image" for m in sample.media):
            raise SelfloopError(f"sample {sample.id}: SpyGame needs one picture, or two where the "
                                "second is the changed one")
        found: list[Rollout] = []
        for game in range(self.n):
            found += await self._play(generate, sample, f"{key}/game{game}", f"g{game}")
        return found

    async def _play(self, generate: Generate, sample: Sample, key: str, name: str
                    ) -> list[Rollout]:
        spy = int(keys.generator(f"{key}/spy").integers(self.players))
        changed = sample.media[1] if len(sample.media) > 1 else sample.media[0].with_op(
            self.op, self.severity, f"{key}/changed")
        seen = [changed if i == spy else sample.media[0] for i in range(self.players)]
        clues: list[tuple[int, Rollout]] = []
        for turn in range(self.rounds * self.players):
            me = turn % self.players
            context = self._told(sample, seen[me], me, clues, CLUE)
            (clue,) = await generate(context, label=f"{name}.clue{turn}", sampling=Sampling(
                temperature=self.temperature, max_new_tokens=self.clue_tokens))
            clues.append((me, clue))
        votes = [drawn[0] for drawn in await asyncio.gather(*(
            generate(self._told(sample, seen[me], me, clues, VOTE), label=f"{name}.vote{me}",
                     sampling=Sampling(temperature=self.temperature,
                                       max_new_tokens=self.vote_tokens))
            for me in range(self.players)))]
        return self._credited(clues, votes, spy)

    def _credited(self, clues: list[tuple[int, Rollout]], votes: list[Rollout], spy: int
                  ) -> list[Rollout]:
        cast = [parse_vote(r.text, self.players) for r in votes]
        against = [sum(vote == i for vote, _ in cast) for i in range(self.players)]
        earned = clue_rewards(against, spy)
        said = [noted(r, phase="clue", player=me, spy=me == spy, **{"return": earned[me]})
                for me, r in clues]
        return said + [
            noted(r, phase="vote", player=me, spy=me == spy,
                  **{"return": vote_reward(vote, readable, me, spy)})
            for me, (r, (vote, readable)) in enumerate(zip(votes, cast, strict=True))]

    def _told(self, sample: Sample, picture: Media, me: int, clues: list[tuple[int, Rollout]],
              ask: str) -> Context:
        """What a player knows: the rules, its own picture, and every clue so far."""
        heard = "\n".join(f"Player {who + 1}: {' '.join(clue.text.split())}"
                          for who, clue in clues)
        text = "\n".join(part for part in (
            RULES.format(players=self.players, me=me + 1), heard, ask) if part)
        return asking(sample.model_copy(update={"media": (picture,)}), text)
