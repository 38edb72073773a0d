"""Reinforce a spy game's clues and votes in turn: Vision-Zero (arXiv 2509.25541). Reads no label.

**Same**: 4 players, one of whom sees a changed picture; 2 rounds of clues, then votes; zero-sum
rewards of clues; advantages over a running mean by phase and role, votes normalised within a game
besides; one phase learned at a time; KL to the seed .04, rate 1e-5.
**Differs**: the spy's picture is the sample's second, or its first through `op`, not an edited one;
phases change by our rule (refine.phases.Alternate); at most 2 x 4 votes a game.
"""
from selfloop.collect.self_play import CLUE, RULES, VOTE, SpyGame
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.advantages import AsScored, Marked, RunningBaseline, Together
from selfloop.organize.chain import Chain
from selfloop.organize.refine.filters import Apart
from selfloop.organize.refine.phases import Alternate
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.environment import EnvironmentReturn
from selfloop.roles import Optim, Sampling, Verifier


def vision_zero(metric: Verifier, *, games: int = 1, players: int = 4, rounds: int = 2,
                decisions: int = 2, op: str = "crop", severity: float = 0.7, rules: str = RULES,
                clue: str = CLUE, vote: str = VOTE, tags: bool = True, least: int = 5,
                max_new_tokens: int = 512, samples: int = 16, steps: int = 20, iterations: int = 5,
                lr: float = 1e-5, kl: float = 0.04, seed: int = 0) -> Loop:
    """`rules`, `clue`, `vote` are what players are told; `tags`: votes stand between <answer>s."""
    game = SpyGame(games, players, rounds, op, severity, 1.0, max_new_tokens, max_new_tokens,
                   decisions, rules, clue, vote, tags)
    maker = Together((Marked(AsScored(), "phase", value="clue"),
                      Marked(GroupAdvantage(), "phase", value="vote")))
    return Loop(
        name="vision_zero", sampler=game, verifier=EnvironmentReturn(),
        learn={"solver": Learn(
            organizer=Chain((RunningBaseline(by=("phase", "spy")), Apart(("game",)),
                             Alternate(least=least)), maker),
            loss=GRPO(kl=kl), optim=Optim(lr=lr, batch=4096, reference="seed"))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
