"""Batched sampling: each prompt with its pictures is run once and forked for all of its draws.

Prompts of any lengths are decoded together. Randomness belongs to the draw: token t of draw i is
the inverse CDF at the t-th uniform of the key "{key}/{i}", so a draw does not depend on what else
is in the batch (beyond float noise).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from selfloop.engines.hf_cache import Copied, Forked
from selfloop.engines.picking import pick
from selfloop.keys import uniforms
from selfloop.optimize.memory import out_of_memory
from selfloop.optimize.prefix import unsupported
from selfloop.optimize.rows import Row
from selfloop.optimize.score import Plain, Reader
from selfloop.roles import Sampling, SelfloopError
from selfloop.types import FinishReason, Media

CLOSE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Largest difference of a drawn token's log-prob from the plain path's; other dtypes: 0.5."""
Pairs = Sequence[tuple[int, int]]
"""(job, draw)."""


@dataclass(frozen=True)
class Job:
    """n answers to one prompt. `forced` opens each of them without being drawn."""

    prompt: tuple[int, ...]
    media: tuple[Media, ...]
    forced: tuple[int, ...]
    key: str
    n: int
    sampling: Sampling
    room: int
    """Tokens that may still be drawn before the model's positions end."""

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads before the first draw."""
        return (*self.prompt, *self.forced)

    @property
    def steps(self) -> int:
        """Most tokens that are drawn."""
        return min(self.sampling.max_new_tokens, self.room)


@dataclass(frozen=True)
class Drawn:
    """One answer's drawn tokens, with log-probs before top-p/top-k/min-p (`draw` gives None for
    greedy ones)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason


@dataclass
class Sampler:
    """Draws jobs from one model."""

    model: Any
    reader: Reader
    banned_V: torch.Tensor
    ends: frozenset[int]
    decode: Callable[[Sequence[int]], str]
    budget: int
    """Cached tokens (prompts and answers) of one batch."""
    why_not: str = field(default="")
    """Why prompts are run once per draw; "" while they are forked."""
    checked: bool = field(default=False)

    def __post_init__(self) -> None:
        self.why_not = self.why_not or unsupported(self.model)

    @torch.no_grad()
    def draw(self, jobs: Sequence[Job]) -> list[list[Drawn]]:
        """For each job, its n answers in order."""
        found: list[list[Drawn | None]] = [[None] * job.n for job in jobs]
        for batch in self._batches(jobs):
            for (j, i), drawn in zip(batch, self._run(jobs, batch), strict=True):
                greedy = jobs[j].sampling.temperature == 0
                found[j][i] = replace(drawn, logprobs=None) if greedy else drawn
        return [[d for d in row if d is not None] for row in found]

    def smaller(self, why: str, jobs: Sequence[Job]) -> None:
        """Draw these in batches half as large. Raises SelfloopError when one draw is too much."""
        if self.budget <= 16:
            raise SelfloopError(f"out of memory on a single draw ({why}): use smaller pictures or "
                                "lower max_new_tokens")
        most = sum(len(job.ids) + job.n * job.steps for job in jobs)
        self.budget = min(self.budget, most) // 2
        warnings.warn(f"out of memory while drawing: batches are cut to {self.budget} tokens",
                      stacklevel=2)

    def _batches(self, jobs: Sequence[Job]) -> list[list[tuple[int, int]]]:
        """(job, draw) pairs decoded alike, prompts in order of length, within the budget.

        A job is split only when its own draws pass the budget; its prompt is then run again.
        """
        alike: dict[Hashable, list[int]] = {}
        for j, job in enumerate(jobs):
            alike.setdefault((job.sampling, job.steps), []).append(j)
        found: list[list[tuple[int, int]]] = []
        for mine in alike.values():
            mine.sort(key=lambda j: (
                len(jobs[j].ids), repr(self.reader.signature(jobs[j].media)), jobs[j].ids,
                [m.identity for m in jobs[j].media], j))
            batch: list[tuple[int, int]] = []
            spent = 0
            for j in mine:
                prompt, steps = len(jobs[j].ids), jobs[j].steps
                most = max(1, (self.budget - prompt) // max(1, steps))
                for at in range(0, jobs[j].n, most):
                    pairs = [(j, i) for i in range(at, min(jobs[j].n, at + most))]
                    size = prompt + len(pairs) * steps
                    if batch and spent + size > self.budget:
                        found.append(batch)
                        batch, spent = [], 0
                    batch, spent = batch + pairs, spent + size
            found.append(batch)
        return [batch for batch in found if batch]

    def _run(self, jobs: Sequence[Job], batch: Pairs) -> list[Drawn]:
        if self.why_not:
            return self._copied(jobs, batch)
        try:
            drawn = self._decoded(jobs, batch, Forked)
            if not self.checked:
                self._check(jobs, batch, drawn)
        except Exception as error:  # any failure here has a correct answer: no fork
            if out_of_memory(error):
                raise
            lines = str(error).splitlines() or [""]
            self.why_not = f"{type(error).__name__}: {lines[0][:200]}"
        if not self.why_not:
            return drawn
        warnings.warn(f"{type(self.model).__name__}'s prompts cannot be forked ({self.why_not}): "
                      "each draw runs its own prompt, which is slower", stacklevel=2)
        return self._copied(jobs, batch)

    def _copied(self, jobs: Sequence[Job], batch: Pairs) -> list[Drawn]:
        """Each draw with its own copy of the prompt; only prompts of one shape at a time."""
        alike: dict[Hashable, list[int]] = {}
        for place, (j, _) in enumerate(batch):
            key = (len(jobs[j].ids), self.reader.signature(jobs[j].media))
            alike.setdefault(key, []).append(place)
        found: dict[int, Drawn] = {}
        for places in alike.values():
            job = jobs[batch[places[0]][0]]
            most = max(1, self.budget // (len(job.ids) + job.steps))
            for at in range(0, len(places), most):
                mine = places[at:at + most]
                drawn = self._decoded(jobs, [batch[p] for p in mine], Copied)
                found.update(zip(mine, drawn, strict=True))
        return [found[place] for place in range(len(batch))]

    def _decoded(self, jobs: Sequence[Job], batch: Pairs, way: type[Forked] | type[Copied]
                 ) -> list[Drawn]:
        job, device = jobs[batch[0][0]], self.banned_V.device
        uniform_NR = torch.stack([
            torch.from_numpy(uniforms(f"{jobs[j].key}/{i}", job.steps)) for j, i in batch
        ]).to(device)
        state = way(self.model, self.reader, [jobs[j] for j, _ in batch])
        text = _Text(self, len(batch), job, state.logits_NV)
        rows_N = torch.arange(len(batch), device=device)
        for step in range(job.steps):
            token_N, logp_N = pick(state.logits_NV, uniform_NR[rows_N, step], job.sampling,
                                   self.banned_V)
            open_N = text.write(step, rows_N, token_N, logp_N)
            left = int(open_N.sum())
            if step + 1 == job.steps or not left:
                break
            # Leaving costs about one step, so closed rows leave in bulk.
            if left <= 0.85 * len(rows_N):
                keep_M = open_N.nonzero()[:, 0]
                state.select(keep_M)
                rows_N, token_N = rows_N[keep_M], token_N[keep_M]
            state.advance(step, token_N)
        return text.drawn()

    def _check(self, jobs: Sequence[Job], batch: Pairs, drawn: Sequence[Drawn]) -> None:
        """The longest draws' log-probs against the plain path, until they tell something."""
        longest: dict[int, int] = {}
        for place, ((j, _), one) in enumerate(zip(batch, drawn, strict=True)):
            length = len(jobs[j].ids)
            if len(one.token_ids) > len(drawn[longest.get(length, place)].token_ids) \
                    or length not in longest:
                longest[length] = place
        chosen = sorted(longest.values(), key=lambda p: -len(drawn[p].token_ids))[:2]
        rows: list[Row] = []
        given: list[torch.Tensor] = []
        for place in chosen:
            job, one = jobs[batch[place][0]], drawn[place]
            ids = (*job.ids, *one.token_ids)
            rows.append(Row(ids, (False,) * len(job.ids) + (True,) * len(one.token_ids), job.media,
                            len(job.ids), temperature=job.sampling.temperature or 1.0))
            given.append(torch.tensor(one.logprobs, dtype=torch.float64))
        # The first token comes from the prompt's own pass: alone it shows nothing about the fork.
        self.checked = len(drawn[chosen[0]].token_ids) > 2
        plain = Plain(self.model, self.reader, self.banned_V, self.budget)(rows)[0]
        gap = max(float((a.cpu().double() - b).abs().max())
                  for a, b in zip(plain, given, strict=True))
        limit = CLOSE.get(next(self.model.parameters()).dtype, 0.5)
        if not gap <= limit:
            self.why_not = f"log-probs differ from the plain path by {gap:.3g} > {limit:g}"


class _Text:
    """The answers of one batch as they grow: tokens, log-probs and ends, as arrays."""

    def __init__(self, sampler: Sampler, rows: int, job: Job, logits: torch.Tensor) -> None:
        device, wide = logits.device, torch.promote_types(logits.dtype, torch.float32)
        self.decode, self.stop, self.forced = sampler.decode, job.sampling.stop, job.forced
        self.ends = torch.tensor(sorted(sampler.ends), device=device)
        self.token_NR = torch.zeros(rows, job.steps, dtype=torch.long, device=device)
        self.logp_NR = torch.zeros(rows, job.steps, device=device, dtype=wide)
        self.length_N = torch.zeros(rows, dtype=torch.long, device=device)
        self.open_N = torch.ones(rows, dtype=torch.bool, device=device)

    def write(self, step: int, rows_M: Any, token_M: Any, logp_M: Any) -> Any:
        """Append to those of rows_M that are open; returns which of them still are."""
        was_M = self.open_N[rows_M]
        mine = rows_M[was_M]
        self.token_NR[mine, step] = token_M[was_M]
        self.logp_NR[mine, step] = logp_M[was_M]
        self.length_N[mine] = step + 1
        self.open_N[rows_M] = was_M & ~torch.isin(token_M, self.ends)
        for row in mine.tolist() if self.stop else ():
            if self.open_N[row] and self._stopped(row, step + 1):
                self.open_N[row] = False
        return self.open_N[rows_M]

    def _stopped(self, row: int, length: int) -> bool:
        # A stop string of k bytes lies within the last k tokens (each has at least one); four
        # more keep tokenizers honest that drop a leading space or split a character.
        longest = max(len(s.encode()) for s in self.stop) + 4
        ids = [*self.forced, *self.token_NR[row, :length].tolist()]
        tail = self.decode(ids[-longest:])
        # What was forced does not stop the answer: a match has to end in drawn text.
        given = len(self.decode(ids[-longest:-length])) if length < longest else 0
        return any(tail.find(s, max(0, given - len(s) + 1)) >= 0 for s in self.stop)

    def drawn(self) -> list[Drawn]:
        """The finished answers."""
        tokens, logps = self.token_NR.tolist(), self.logp_NR.tolist()
        opened, lengths = self.open_N.tolist(), self.length_N.tolist()
        return [Drawn(tuple(t[:n]), tuple(lp[:n]), "length" if still else "stop")
                for t, lp, n, still in zip(tokens, logps, lengths, opened, strict=True)]
