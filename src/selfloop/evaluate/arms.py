"""The arms: what a self-improvement claim has to be above (design: "Arms").

(a) the same optimizer steps on the labels only, and again at the same total FLOPs;
(b) the seed with the recipe's own voting at test time, same number of draws;
(c) verdicts shuffled at equal keep rate; (d) supervised training on every gold value read.
Beside them: no-image baseline and a skyline with full labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from selfloop.collect.drawing import draw
from selfloop.doors import Doors
from selfloop.evaluate.answering import answer
from selfloop.evaluate.answers import Answer
from selfloop.loop import Learn, Loop
from selfloop.organize.chain import Chain
from selfloop.organize.judging import judge
from selfloop.organize.refine.shuffle import ShuffleVerdicts
from selfloop.organize.verify.rules import final_answer
from selfloop.organize.verify.vote import majority, vote_of
from selfloop.roles import Engine, Sampling, SelfloopError, reads
from selfloop.store import RunFolder
from selfloop.types import Group, Part, Rollout, Sample, Turn


@dataclass(frozen=True)
class Spent:
    """What a finished run used, to match a control with it."""

    updates: int
    """Optimizer updates over the whole run."""
    trained: int
    """Tokens trained on."""
    read: int
    """Tokens read while learning."""
    flops: float
    """Total, rollouts included."""


def spent(run: RunFolder) -> Spent:
    """Read a finished run's account from its folder."""
    done = run.iterations()
    if not done:
        raise SelfloopError(f"{run.path} has no finished iteration: nothing to match a control to")
    learned = [run.json("steps", f"{s:06d}", "learned.json") or {} for s in range(done[-1].version)]
    updates = sum(int(role["updates"]) for found in learned for role in found.values())
    tokens = done[-1].tokens
    return Spent(updates, tokens["learn_trained"], tokens["learn_read"], done[-1].flops)


def shuffled(loop: Loop) -> Loop:
    """Arm (c): the loop with its verdicts dealt out at random."""
    def mixed(how: Learn) -> Learn:
        if not isinstance(how.organizer, Chain):
            raise SelfloopError("the shuffled arm needs an organizer made with Chain")
        chain = replace(how.organizer, steps=(ShuffleVerdicts(), *how.organizer.steps))
        return replace(how, organizer=chain)

    return replace(loop, name=f"{loop.name}-shuffled", gate=None,
                   learn={role: mixed(how) for role, how in loop.learn.items()})


def votes(loop: Loop, samples: Sequence[Sample], engines: Mapping[str, Engine], *,
          shard: int = 256) -> list[Answer]:
    """Arm (b): the seed's own vote at test time, with the recipe's sampler and draws.

    A label-free verifier that can `decide` does; another chooses among the answers to the
    question itself; where it leaves none, or reads labels (which do not exist at test time), the
    majority decides.
    """
    assert loop.evaluation is not None
    own = loop.verifier is not None and not reads(loop.verifier)
    decide = getattr(loop.verifier, "decide", _undecided) if own else _undecided
    found: list[Answer] = []
    for at in range(0, len(samples), shard):
        chunk = list(samples[at:at + shard])
        doors = Doors(engines, 0, f"{loop.seed}/vote")
        groups = draw(loop.sampler, [s.unlabelled() for s in chunk], doors, {})
        judged = judge(loop.verifier, groups, doors).groups if own else groups
        picked = [
            Group(sample=s, rollouts=(_said(decide(g) or _winner(g), g),))
            for s, g in zip(chunk, judged, strict=True)
        ]
        for group in judge(loop.evaluation.metric, picked, doors).groups:
            rollout, verdict = group.rollouts[0], group.verdicts[0]
            found.append(Answer(
                sample=group.sample.id, cluster=group.sample.cluster,
                task=str(group.sample.meta.get("task") or ""), gold=str(group.sample.answer),
                text=rollout.text, parsed=final_answer(rollout.text),
                right=None if verdict.score is None else verdict.right,
                tokens=0, draw=0, arm="testtime_vote", seed=loop.seed))
    return found


def _undecided(group: Group) -> str | None:
    return None


def _winner(group: Group) -> str:
    asked = group.sample.context.text
    own = [(i, r) for i, r in enumerate(group.rollouts) if r.context.text == asked]
    kept = [r for i, r in own if group.verdicts and group.verdicts[i].right]
    said = [(vote, final_answer(r.text) or "") for r in (kept or [r for _, r in own])
            if (vote := vote_of(r.text)) is not None]
    winner = majority([vote for vote, _ in said])[0]
    return next((answer for vote, answer in said if vote == winner), "")


def _said(text: str, group: Group) -> Rollout:
    """A chosen answer in the shape that the metric reads."""
    return Rollout(id=f"vote-{group.sample.id}", sample=group.sample.id,
                   context=group.sample.context, turns=(Turn(token_ids=()),),
                   output=(Part(text=text),))


def final_answers(loop: Loop, samples: Sequence[Sample], engines: Mapping[str, Engine],
                  version: int, arm: str, sampling: Sampling | None = None) -> list[Answer]:
    """Greedy answers of one version, stored under the arm's name."""
    assert loop.evaluation is not None
    how = loop.evaluation
    seen = "no_image" if arm.endswith("no_image") else arm
    found = answer(samples, engines, version, how.metric, sampling or how.sampling, arm=seen,
                   seed=loop.seed)
    return [a.model_copy(update={"arm": arm}) for a in found]
