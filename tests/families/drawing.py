"""One family's rollouts beside the plain path and beside transformers' own `generate`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from families.making import BANNED, EOS, Family
from families.measuring import BUDGET
from selfloop.engines.hf_decode import Drawn, Job, Sampler
from selfloop.optimize.rows import Row
from selfloop.optimize.score import Plain
from selfloop.roles import Sampling


def sampler(family: Family) -> Sampler:
    """A sampler that has drawn nothing yet."""
    return Sampler(family.model, family.reader, BANNED, frozenset({EOS}), str, BUDGET)


def jobs(family: Family, n: int = 3, tokens: int = 12, temperature: float = 1.0) -> list[Job]:
    """One picture, two, another one, none, and prompts of unequal lengths."""
    asked = [family.prompt((1,), (20, 21, 22)), family.prompt((2, 3), (30, 31, 32, 33)),
             family.prompt((4,), (20, 25, 22)), family.prompt((), (40,) * 9)]
    return [Job(ids, media, (), f"k{i}", n,
                Sampling(max_new_tokens=tokens, temperature=temperature), 99)
            for i, (ids, media) in enumerate(asked)]


def draw(mine: Sampler, asked: Sequence[Job]) -> list[list[Drawn]]:
    """Draws; a fall-back is read off `why_not`, not off its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mine.draw(asked)


def drift(family: Family, asked: Sequence[Job], drawn: Sequence[Sequence[Drawn]]) -> float:
    """Largest difference of a drawn token's log-prob from the plain path's, in nats."""
    rows, given = [], []
    for job, mine in zip(asked, drawn, strict=True):
        for one in mine:
            rows.append(Row((*job.ids, *one.token_ids), (False,) * len(job.ids)
                            + (True,) * len(one.token_ids), job.media, len(job.ids)))
            given += one.logprobs or ()
    with torch.no_grad():
        plain_M = torch.cat(list(Plain(family.model, family.reader, BANNED, BUDGET)(rows)[0]))
    return float((plain_M.double() - torch.tensor(given, dtype=torch.float64)).abs().max())


def generated(family: Family, job: Job) -> tuple[int, ...]:
    """What transformers' greedy search writes."""
    inputs = family.reader.inputs([(job.ids, job.media)])
    with torch.no_grad():
        out = family.model.generate(
            **inputs, do_sample=False, max_new_tokens=job.steps, eos_token_id=EOS, pad_token_id=0,
            suppress_tokens=BANNED.nonzero()[:, 0].tolist())
    return tuple(out[0, len(job.ids):].tolist())
