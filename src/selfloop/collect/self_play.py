"""A spy game: players who see one picture look for the one who sees another (primitive S10).

Vision-Zero (arXiv 2509.25541) in its two phases. Nobody labels anything: who the spy is, is known
by construction, and what clues are worth is what the votes say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop import keys
from selfloop.collect.conditioning import noted
from selfloop.collect.tags import one_number, tagged
from selfloop.corruptions import OPERATIONS
from selfloop.doors import asking, filled
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Context, Media, Rollout, Sample

RULES = ("{players} players each look at a picture. All pictures are the same but for one "
         "player's, the spy's, which was changed. You are player {me}.")
CLUE = ("Say one true thing about your picture in a sentence. If you are not the spy, help the "
        "others to see it; if you are, do not give yourself away.")
VOTE = ("Which player is the spy? Write the player's number between <answer> and </answer>, or "
        "none if you cannot tell.")


SEEN = tuple(name for name in OPERATIONS if name != "page")
"""The operations through which a spy may see the picture."""


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


def parse_vote(text: str, players: int, tags: bool = True) -> tuple[int | None, bool]:
    """(player from 0 or None for "none", whether the vote could be read); without `tags` the whole
    text is the vote."""
    found = tagged(text, "answer").value if tags else text
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
    all that was said before, and vote at the end, at once. Each player is one role of one model,
    seeing only its own picture. `EnvironmentReturn` reads the rewards.

    Every rollout notes its `sampling["phase"]` ("clue" or "vote"), `["game"]`, `["player"]` (from
    0) and whether it is the `["spy"]`'s; clues the `["votes"]` against their player, and votes of
    civilians what was `["voted"]`: "right", "none" or "wrong". What clues and votes earn are
    different things (a tenth against one): never put both into one mean. `recipes.vision_zero` has
    the organizer. While `guidance["phase"]` is "vote" (`organize.refine.phases.Alternate`), each
    player votes `decisions` times on the same clues; its first vote is the one that counts.
    """

    n: int = 1
    players: int = 4
    rounds: int = 2
    op: str = "crop"
    severity: float = 0.7
    temperature: float = 1.0
    clue_tokens: int = 48
    vote_tokens: int = 128
    decisions: int = 1
    rules: str = RULES
    clue: str = CLUE
    vote: str = VOTE
    tags: bool = True
    """Whether a vote stands between <answer> and </answer>, or is the whole text."""

    def __post_init__(self) -> None:
        if self.players < 3 or self.rounds < 1 or self.n < 1 or self.decisions < 1:
            raise SelfloopError(f"{self}: a spy game needs three players and one round at least, "
                                "and n and decisions of at least 1")
        if not 0 < self.severity <= 1:
            raise SelfloopError(f"SpyGame(severity={self.severity}): expected more than 0, or the "
                                "spy sees what the others do, and at most 1")
        if self.op not in SEEN:
            raise SelfloopError(f"SpyGame(op={self.op!r}): no operation that changes a whole "
                                f"picture; there are: {', '.join(SEEN)}")

    @property
    def per_problem(self) -> float:
        """Draws a problem at most, for cost estimates."""
        return self.n * self.players * (self.rounds + self.decisions)

    async def __call__(self, generate: Generate, sample: Sample, key: str,
                       guidance: Mapping[str, Any]) -> list[Rollout]:
        """All games' clues and votes, in the order of play."""
        decisions = self.decisions if guidance.get("phase") == "vote" else 1
        if not 0 < len(sample.media) < 3 or any(m.kind != "image" for m in sample.media):
            raise SelfloopError(f"sample {sample.id}: SpyGame needs one picture, or two where the "
                                f"second is the changed one; it has {len(sample.media)} media")
        found: list[Rollout] = []
        for game in range(self.n):
            found += await self._play(generate, sample, f"{key}/game{game}", f"g{game}", decisions)
        return found

    async def _play(self, generate: Generate, sample: Sample, key: str, name: str,
                    decisions: int) -> list[Rollout]:
        spy = int(keys.generator(f"{key}/spy").integers(self.players))
        changed = sample.media[1] if len(sample.media) > 1 else sample.media[0].with_op(
            self.op, self.severity, f"{key}/changed")
        seen = [changed if i == spy else sample.media[0] for i in range(self.players)]
        clues: list[tuple[int, Rollout]] = []
        for turn in range(self.rounds * self.players):
            me = turn % self.players
            context = self._told(sample, seen[me], me, clues, self.clue)
            (clue,) = await generate(context, label=f"{name}.clue{turn}", sampling=Sampling(
                temperature=self.temperature, max_new_tokens=self.clue_tokens))
            clues.append((me, clue))
        votes = await asyncio.gather(*(
            generate(self._told(sample, seen[me], me, clues, self.vote), label=f"{name}.vote{me}",
                     n=decisions, sampling=Sampling(temperature=self.temperature,
                                                    max_new_tokens=self.vote_tokens))
            for me in range(self.players)))
        return self._credited(clues, votes, spy, name)

    def _credited(self, clues: list[tuple[int, Rollout]], votes: Sequence[Sequence[Rollout]],
                  spy: int, name: str) -> list[Rollout]:
        cast = [[parse_vote(r.text, self.players, self.tags) for r in drawn] for drawn in votes]
        against = [sum(first == i for (first, _), *_ in cast) for i in range(self.players)]
        earned = clue_rewards(against, spy)
        found = [noted(r, phase="clue", game=name, player=me, spy=me == spy, votes=against[me],
                       **{"return": earned[me]}) for me, r in clues]
        for me, drawn in enumerate(votes):
            for r, (vote, readable) in zip(drawn, cast[me], strict=True):
                told = {} if me == spy else {"voted": "right" if vote == spy else
                                             "none" if readable and vote is None else "wrong"}
                found.append(noted(r, phase="vote", game=name, player=me, spy=me == spy, **told,
                                   **{"return": vote_reward(vote, readable, me, spy)}))
        return found

    def _told(self, sample: Sample, picture: Media, me: int, clues: list[tuple[int, Rollout]],
              ask: str) -> Context:
        """What a player knows: the rules, its own picture, and every clue so far."""
        heard = "\n".join(f"Player {who + 1}: {' '.join(clue.text.split())}"
                          for who, clue in clues)
        text = "\n".join(part for part in (
            filled(self.rules, players=str(self.players), me=str(me + 1)), heard, ask) if part)
        return asking(sample.model_copy(update={"media": (picture,)}), text)
