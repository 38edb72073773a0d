"""Batched sampling: each prompt with its pictures is run once, its cache repeated for n draws.

Randomness belongs to the draw: token t of draw i is the inverse CDF at the t-th uniform of the key
"{key}/{i}", so a draw does not depend on what else is in the batch (beyond float noise).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from selfloop.keys import uniforms
from selfloop.optimize.prefix import after, mrope_offsets
from selfloop.optimize.score import Reader
from selfloop.roles import Sampling
from selfloop.types import FinishReason, Media

Offsets = tuple[bool, torch.Tensor | None]


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
    """One answer's drawn tokens, with log-probs before top-p/top-k/min-p (None when greedy)."""

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
    """Cached tokens (rows times prompt and answer) of one batch."""
    copies: bool = field(default=False)
    """Whether prompts are run once per draw, because this model's cache cannot be repeated."""

    @torch.no_grad()
    def draw(self, jobs: Sequence[Job]) -> list[list[Drawn]]:
        """For each job, its n answers in order."""
        found: list[list[Drawn | None]] = [[None] * job.n for job in jobs]
        for batch in self._batches(jobs):
            for (j, i), drawn in zip(batch, self._run(jobs, batch), strict=True):
                found[j][i] = drawn
        return [[d for d in row if d is not None] for row in found]

    def _batches(self, jobs: Sequence[Job]) -> list[list[tuple[int, int]]]:
        """(job, draw) pairs of equal prompt length, alike pixels and decoding, within budget.

        A job is split only when its own draws pass the budget; its prompt is then run again.
        """
        alike: dict[Hashable, list[int]] = {}
        for j, job in enumerate(jobs):
            key = (len(job.ids), self.reader.signature(job.media), job.sampling, job.steps)
            alike.setdefault(key, []).append(j)
        found: list[list[tuple[int, int]]] = []
        for mine in alike.values():
            job = jobs[mine[0]]
            most = max(1, self.budget // (len(job.ids) + job.steps))
            batch: list[tuple[int, int]] = []
            for j in mine:
                for at in range(0, jobs[j].n, most):
                    pairs = [(j, i) for i in range(at, min(jobs[j].n, at + most))]
                    if len(batch) + len(pairs) > most and batch:
                        found.append(batch)
                        batch = []
                    batch += pairs
            found.append(batch)
        return [batch for batch in found if batch]

    def _run(self, jobs: Sequence[Job], batch: Sequence[tuple[int, int]]) -> list[Drawn]:
        job = jobs[batch[0][0]]
        contexts: dict[Hashable, int] = {}
        owner = [contexts.setdefault(_context(jobs[j]), len(contexts)) for j, _ in batch]
        firsts = [jobs[batch[owner.index(c)][0]] for c in range(len(contexts))]
        state = self._prefill(firsts, owner)
        device = self.banned_V.device
        uniform_NR = torch.stack([
            torch.from_numpy(uniforms(f"{jobs[j].key}/{i}", job.steps)) for j, i in batch
        ]).to(device)
        text = _Text(self, len(batch), job, state.logits)
        rows_N = torch.arange(len(batch), device=device)
        owner_N = torch.tensor(owner, device=device)
        for step in range(job.steps):
            token_N, logp_N = pick(state.logits, uniform_NR[rows_N, step], job.sampling,
                                   self.banned_V)
            open_N = text.write(step, rows_N, token_N, logp_N)
            if step + 1 == job.steps or not bool(open_N.any()):
                break
            # A copy of the cache costs about one step, so closed rows leave in bulk.
            if not self.copies and int(open_N.sum()) <= 0.85 * len(rows_N):
                keep_M = open_N.nonzero()[:, 0]
                state.cache.batch_select_indices(keep_M)
                rows_N, token_N, owner_N = rows_N[keep_M], token_N[keep_M], owner_N[keep_M]
            positions = after(len(job.ids) + step, 1, owner_N, state.mrope)
            out = self.model(input_ids=token_N[:, None], position_ids=positions,
                             past_key_values=state.cache, use_cache=True)
            state.logits, state.cache = out.logits[:, -1], out.past_key_values
        return text.drawn()

    def _prefill(self, firsts: Sequence[Job], owner: list[int]) -> _State:
        """Run each distinct prompt once and give every draw its prompt's cache."""
        owner_N = torch.tensor(owner, device=self.banned_V.device)
        if not self.copies:
            inputs = self.reader.inputs([(job.ids, job.media) for job in firsts])
            out = self.model(**inputs, use_cache=True, logits_to_keep=1)
            try:
                out.past_key_values.batch_select_indices(owner_N)
                return _State(out.logits[:, -1][owner_N], out.past_key_values,
                              mrope_offsets(self.model))
            except (AttributeError, NotImplementedError, TypeError) as error:
                self.copies = True
                warnings.warn(
                    f"{type(self.model).__name__}'s cache cannot be repeated ({error}): each draw "
                    "runs its own prompt, which is slower", stacklevel=2)
        inputs = self.reader.inputs([(firsts[c].ids, firsts[c].media) for c in owner])
        out = self.model(**inputs, use_cache=True, logits_to_keep=1)
        return _State(out.logits[:, -1], out.past_key_values,
                      _first(mrope_offsets(self.model), owner))


@dataclass
class _State:
    logits: torch.Tensor
    cache: Any
    mrope: Offsets
    """M-RoPE offsets [C, 1] of the distinct prompts (see optimize/prefix.py)."""


class _Text:
    """The answers of one batch as they grow: tokens, log-probs and ends, as arrays."""

    def __init__(self, sampler: Sampler, rows: int, job: Job, logits: torch.Tensor) -> None:
        device, wide = logits.device, torch.promote_types(logits.dtype, torch.float32)
        self.decode, self.stop, self.forced = sampler.decode, job.sampling.stop, job.forced
        self.greedy = job.sampling.temperature == 0
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
        if logp_M is not None:
            self.logp_NR[mine, step] = logp_M[was_M]
        self.length_N[mine] = step + 1
        self.open_N[rows_M] = was_M & ~torch.isin(token_M, self.ends)
        for row in mine.tolist() if self.stop else ():
            if self.open_N[row] and self._stopped(row, step + 1):
                self.open_N[row] = False
        return self.open_N[rows_M]

    def _stopped(self, row: int, length: int) -> bool:
        # A stop string of k characters lies within the last k tokens (each has at least one);
        # two more keep tokenizers honest that drop a leading space or split a character.
        longest = max(len(s) for s in self.stop)
        ids = [*self.forced, *self.token_NR[row, :length].tolist()]
        tail = self.decode(ids[-(longest + 2):])
        return any(s in tail for s in self.stop)

    def drawn(self) -> list[Drawn]:
        """The finished answers."""
        tokens, logps = self.token_NR.tolist(), self.logp_NR.tolist()
        opened, lengths = self.open_N.tolist(), self.length_N.tolist()
        return [Drawn(tuple(t[:n]), None if self.greedy else tuple(lp[:n]),
                      "length" if still else "stop")
                for t, lp, n, still in zip(tokens, logps, lengths, opened, strict=True)]


def pick(logits_NV: torch.Tensor, uniform_N: torch.Tensor, sampling: Sampling,
         banned_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One token a row, by inverse CDF in float64, and its log-prob (None when greedy).

    The log-prob is after temperature and banned tokens, before top-k, top-p and min-p.
    """
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    wide_NV = wide_NV.masked_fill(banned_V, -torch.inf)
    if sampling.temperature == 0:
        return wide_NV.argmax(-1), None
    logp_NV = torch.log_softmax(wide_NV / sampling.temperature, -1)
    p_NV = filtered(logp_NV.double().exp(), sampling)
    cdf_NV = p_NV.cumsum(-1)
    total_N1 = cdf_NV[:, -1:]
    # Strictly below the total, so that the token found always has probability of its own.
    point_N1 = torch.minimum(uniform_N[:, None] * total_N1,
                             torch.nextafter(total_N1, torch.zeros_like(total_N1)))
    token_N = torch.searchsorted(cdf_NV, point_N1, right=True)[:, 0]
    return token_N, logp_NV.gather(1, token_N[:, None])[:, 0]


def filtered(p_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities with those outside min-p, top-k and top-p at zero (not renormalised)."""
    if sampling.min_p > 0:
        p_NV = p_NV.masked_fill(p_NV < sampling.min_p * p_NV.amax(-1, keepdim=True), 0.0)
    if not sampling.top_k and sampling.top_p >= 1:
        return p_NV
    sorted_NV, order_NV = p_NV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        sorted_NV[:, sampling.top_k:] = 0.0
    if sampling.top_p < 1:
        # The smallest set that reaches top_p of the mass: drop where the mass before is enough.
        before_NV = sorted_NV.cumsum(-1) - sorted_NV
        enough_NV = before_NV >= sampling.top_p * sorted_NV.sum(-1, keepdim=True)
        sorted_NV = sorted_NV.masked_fill(enough_NV, 0.0)
    return torch.zeros_like(p_NV).scatter(1, order_NV, sorted_NV)


def _first(mrope: Offsets, owner: list[int]) -> Offsets:
    """Offsets of the rows of n copies, reduced to one per distinct prompt."""
    three, offsets = mrope
    if offsets is not None:
        offsets = offsets[[owner.index(c) for c in range(max(owner) + 1)]]
    return three, offsets


def _context(job: Job) -> Hashable:
    return job.ids, tuple(m.identity for m in job.media)
