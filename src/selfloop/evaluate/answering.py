"""Put questions to a model and keep every answer: what accuracy is, and can be recomputed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfloop.collect.drawing import draw
from selfloop.doors import Doors
from selfloop.evaluate.answers import Answer
from selfloop.loop import Evaluation, Loop
from selfloop.organize.judging import judge
from selfloop.organize.verify.rules import final_answer
from selfloop.roles import Engine, Generate, Sampling, Verifier
from selfloop.types import Context, Group, Media, Rollout, Sample, Verdict

SHARD = 512


def evaluate(loop: Loop, samples: Sequence[Sample], engines: Mapping[str, Engine], version: int,
             keep: Callable[[Any], Media] | None = None) -> list[Answer]:
    """The loop's evaluation of one version: greedy, without pictures, and draws if asked.

    `keep` (Library.keep) stores the pictures that an environment draws.
    """
    how = loop.evaluation
    assert how is not None  # the caller has one
    if how.sampler is not None:
        return _played(how, samples, engines, version, loop.seed, keep)
    found = answer(samples, engines, version, how.metric, how.sampling, arm="greedy",
                   seed=loop.seed)
    if how.no_image:
        found += answer(samples, engines, version, how.metric, how.sampling, arm="no_image",
                        seed=loop.seed)
    if how.draws:
        found += answer(samples, engines, version, how.metric, drawing(how), n=how.draws,
                        arm="draws", seed=loop.seed)
    return found


def _played(how: Evaluation, samples: Sequence[Sample], engines: Mapping[str, Engine],
            version: int, seed: int, keep: Callable[[Any], Media] | None) -> list[Answer]:
    """Dev questions answered by a sampler of their own: whole episodes, tools, several turns."""
    found: list[Answer] = []
    for at in range(0, len(samples), SHARD):
        doors = Doors(engines, version, f"{seed}/evaluate/greedy", keep=keep)
        groups = draw(how.sampler, list(samples[at:at + SHARD]), doors, {})
        for group in judge(how.metric, groups, doors).groups:
            found += [_answer(group.sample, r, v, i, "greedy", seed)
                      for i, (r, v) in enumerate(zip(group.rollouts, group.verdicts, strict=True))]
    return found


def drawing(how: Evaluation) -> Sampling:
    """Temperature 1, at the evaluation's own length."""
    return Sampling(temperature=1.0, max_new_tokens=how.sampling.max_new_tokens)


def answer(samples: Sequence[Sample], engines: Mapping[str, Engine], version: int,
           metric: Verifier, sampling: Sampling, *, n: int = 1, arm: str, seed: int = 0,
           shown: Callable[[Sample], Context] | None = None) -> list[Answer]:
    """Every sample's answers, judged by `metric`, which alone sees the gold values.

    `shown` is what the model sees of a sample; by default the question as it is, and without its
    pictures in the arm "no_image".
    """
    found: list[Answer] = []
    for at in range(0, len(samples), SHARD):
        chunk = list(samples[at:at + SHARD])
        doors = Doors(engines, version, f"{seed}/evaluate/{arm}")
        drawn: list[list[Rollout]] = doors.run(
            [(s, "evaluate", _asking(shown(s) if shown else _seen(s, arm), n, sampling))
             for s in chunk])
        groups = [Group(sample=s, rollouts=tuple(r)) for s, r in zip(chunk, drawn, strict=True)]
        for group in judge(metric, groups, doors).groups:
            found += [_answer(group.sample, r, v, i, arm, seed)
                      for i, (r, v) in enumerate(zip(group.rollouts, group.verdicts, strict=True))]
    return found


def _seen(sample: Sample, arm: str) -> Context:
    return sample.context.without_media() if arm == "no_image" else sample.context


def _asking(context: Context, n: int, sampling: Sampling):  # type: ignore[no-untyped-def]
    async def job(generate: Generate) -> list[Rollout]:
        return await generate(context, n=n, sampling=sampling)
    return job


def _answer(sample: Sample, rollout: Rollout, verdict: Verdict, draw: int, arm: str, seed: int
            ) -> Answer:
    task = sample.meta.get("task")
    return Answer(
        sample=sample.id, cluster=sample.cluster, task=str(task) if task is not None else "",
        gold=None if sample.answer is None else str(sample.answer), text=rollout.text,
        parsed=final_answer(rollout.text),
        right=None if verdict.score is None else verdict.right, score=verdict.score,
        tokens=rollout.tokens, read=len(rollout.turns[0].prompt_token_ids), draw=draw,
        arm=arm, seed=seed,
    )
