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

from selfloop.engines.hf_answers import Answers
from selfloop.engines.hf_cache import Copied, Forked
from selfloop.engines.hf_guided import followed, state_of
from selfloop.engines.hf_jobs import Drawn, Job
from selfloop.engines.hf_recorded import Recorder
from selfloop.engines.picking import pick, pick_apart
from selfloop.keys import uniforms
from selfloop.optimize.head import numbers
from selfloop.optimize.memory import out_of_memory
from selfloop.optimize.prefix import unsupported
from selfloop.optimize.rows import Row
from selfloop.optimize.score import Plain, Reader
from selfloop.optimize.selfcheck import runs_in
from selfloop.optimize.tail import give_up
from selfloop.roles import SelfloopError

__all__ = ["Drawn", "Job", "Sampler"]

CLOSE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Largest difference of a drawn token's log-prob from the plain path's; other dtypes: 0.5."""
Pairs = Sequence[tuple[int, int]]
"""(job, draw)."""


@dataclass
class Fit:
    """Whether a way of drawing has been compared with the plain one, and what was found wanting."""

    why_not: str = ""
    checked: bool = False


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
    guided: Fit = field(default_factory=Fit)
    """The same of guided draws."""
    recorder: Recorder = field(init=False)
    """Runs steps without the model's Python; `recorder.on = False` never does."""

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.model)
        self.why_not = self.why_not or unsupported(self.model)

    @torch.no_grad()
    def draw(self, jobs: Sequence[Job]) -> list[list[Drawn]]:
        """For each job, its n answers in order."""
        found: list[list[Drawn | None]] = [[None] * job.n for job in jobs]
        for batch in self._batches(jobs):
            for (j, i), drawn in zip(batch, self._run(jobs, batch), strict=True):
                how = jobs[j].sampling
                nameless = jobs[j].guided or (how.temperature == 0 and not how.diversity)
                found[j][i] = replace(drawn, logprobs=None) if nameless else drawn
        return [[d for d in row if d is not None] for row in found]

    def smaller(self, why: str, jobs: Sequence[Job]) -> None:
        """Draw these in batches half as large. Raises SelfloopError when one draw is too much."""
        if self.budget <= 16:
            raise SelfloopError(f"out of memory on a single draw ({why}): use smaller pictures or "
                                "lower max_new_tokens")
        most = sum(prompt + job.n * steps for job in jobs for prompt, steps in [job.size])
        self.budget = min(self.budget, most) // 2
        warnings.warn(f"out of memory while drawing: batches are cut to {self.budget} tokens",
                      stacklevel=2)

    def _batches(self, jobs: Sequence[Job]) -> list[list[tuple[int, int]]]:
        """(job, draw) pairs decoded alike, prompts in order of length, within the budget.

        A job is split only when its own draws pass the budget; its prompt is then run again.
        Diverse draws, which see each other, are never split.
        """
        alike: dict[Hashable, list[int]] = {}
        for j, job in enumerate(jobs):
            alike.setdefault(job.alike, []).append(j)
        found: list[list[tuple[int, int]]] = []
        for mine in alike.values():
            mine.sort(key=lambda j: (
                len(jobs[j].ids), repr(self.reader.signature(jobs[j].media)), jobs[j].ids,
                [m.identity for m in jobs[j].media], j))
            batch: list[tuple[int, int]] = []
            spent = 0
            for j in mine:
                prompt, steps = jobs[j].size
                most = max(1, (self.budget - prompt) // max(1, steps),
                           jobs[j].n if jobs[j].sampling.diversity else 1)
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
        guided = jobs[batch[0][0]].guided
        if self.why_not or (guided and self.guided.why_not):
            return self._copied(jobs, batch)
        drawn, why_not = self._tried(jobs, batch, guided)
        if why_not and give_up(self.model):
            self.checked = self.guided.checked = False
            drawn, why_not = self._tried(jobs, batch, guided)
        if not why_not:
            return drawn
        slow = self._copied(jobs, batch)  # where that fails, too, the fork is not to blame
        if guided:
            self.guided.why_not = why_not
        else:
            self.why_not = why_not
        what = "guided draws' prompts" if guided else "prompts"
        warnings.warn(f"{type(self.model).__name__}'s {what} cannot be forked ({why_not}): "
                      "each draw runs its own prompt, which is slower", stacklevel=2)
        return slow

    def _tried(self, jobs: Sequence[Job], batch: Pairs, guided: bool) -> tuple[list[Drawn], str]:
        """Draws over forked prompts, and why they cannot be trusted, or ""."""
        try:
            drawn = self._decoded(jobs, batch, Forked)
            if guided:
                return drawn, self._check_guided(jobs, batch, drawn)
            return drawn, "" if self.checked else self._check(jobs, batch, drawn)
        except Exception as error:  # any failure here has a correct answer: no fork
            if out_of_memory(error):
                raise
            lines = str(error).splitlines() or [""]
            return [], f"{type(error).__name__}: {lines[0][:200]}"

    def _copied(self, jobs: Sequence[Job], batch: Pairs) -> list[Drawn]:
        """Each draw with its own copy of the prompt; only prompts of one shape at a time."""
        alike: dict[Hashable, list[int]] = {}
        for place, (j, _) in enumerate(batch):
            key = tuple((len(read.ids), self.reader.signature(read.media))
                        for read in (jobs[j], jobs[j].other) if read is not None)
            alike.setdefault(key, []).append(place)
        found: dict[int, Drawn] = {}
        for places in alike.values():
            job = jobs[batch[places[0]][0]]
            most = max(1, self.budget // sum(job.size))
            if job.sampling.diversity:  # diverse draws see each other
                most = len(places)
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
        state = state_of(way, self.model, self.reader, [jobs[j] for j, _ in batch], self.banned_V)
        if isinstance(state, Forked):
            state.recorded = self.recorder.of(state)
        apart = _places(batch, device) if job.sampling.diversity else None
        text = Answers(self.decode, self.ends, len(batch), job, state.logits_NV)
        banned_B = numbers(self.banned_V)
        rows_N = torch.arange(len(batch), device=device)
        left = len(batch)
        for step in range(job.steps):
            given = state.logits_NV, uniform_NR[:, step], job.sampling, banned_B
            token_N, logp_N = pick(*given) if apart is None else pick_apart(
                *given, apart[rows_N], text.open_N[rows_N])
            open_N = text.write(step, rows_N, token_N, logp_N, left == len(rows_N))
            left = int(open_N.sum())
            if step + 1 == job.steps or not left:
                break
            # Leaving costs about one step, so closed rows leave in bulk.
            if left <= 0.85 * len(rows_N):
                keep_M = open_N.nonzero()[:, 0]
                state.select(keep_M)
                rows_N, token_N = rows_N[keep_M], token_N[keep_M]
                uniform_NR = uniform_NR[keep_M]
            state.advance(step, token_N)
        return text.drawn()

    def _check_guided(self, jobs: Sequence[Job], batch: Pairs, drawn: Sequence[Drawn]) -> str:
        """The longest draw's log-probs against those without a fork; why they differ, or ""."""
        if self.guided.checked:
            return ""
        place = max(range(len(drawn)), key=lambda p: len(drawn[p].token_ids))
        one = drawn[place]
        self.guided.checked = len(one.token_ids) > 2
        again = followed(self.model, self.reader, jobs[batch[place][0]], one.token_ids,
                         self.banned_V)
        return self._differ([(again, torch.tensor(one.logprobs, dtype=torch.float64))])

    def _check(self, jobs: Sequence[Job], batch: Pairs, drawn: Sequence[Drawn]) -> str:
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
        return self._differ(list(zip(plain, given, strict=True)))

    def _differ(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> str:
        gap = float(torch.stack([(a.cpu().double() - b).abs().max() for a, b in pairs]).max())
        limit = CLOSE.get(runs_in(self.model), 0.5)
        return "" if gap <= limit else \
            f"log-probs differ from the plain path by {gap:.3g} > {limit:g}"


def _places(batch: Pairs, device: Any) -> torch.Tensor:
    """(job, draw) of each row as numbers [N, 2]."""
    return torch.tensor(list(batch), dtype=torch.long, device=device)
