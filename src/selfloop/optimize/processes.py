"""One update, or one batch of draws, shared out over several processes.

Every term of a loss is a sum over signals, divided by the units of the whole update. So each
process runs its share of the signals, and gradients are added, never averaged: what comes out is
the gradient of one process up to the order of sums, however uneven the shares are.

All processes make the same calls in the same order. What one of them does alone is fenced by
`Team.agreed`: whatever goes wrong in it goes wrong on all of them, in one line, and nobody waits
for somebody who is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from selfloop.optimize.memory import out_of_memory
from selfloop.roles import SelfloopError

T = TypeVar("T")
_TOLD = "_told_to_all"
_BUCKET = 2**25
"""Numbers that are added up in one message."""


class Lost(SelfloopError):
    """A process has ended or does not answer: the others cannot go on without it."""


class Elsewhere(Exception):
    """This process stops because another one has failed, which says why in a moment."""


@dataclass
class Team:
    """The processes that play one engine, as one of them sees them. Alone: a team of one."""

    rank: int = 0
    """0 leads: it alone runs the loop and writes files."""
    size: int = 1
    words: Any = None
    """The process group for what is said and for tensors in main memory (gloo)."""
    fast: Any = None
    """The process group for tensors on accelerators (nccl), where there is one."""
    steps: Any = None
    """How sharded layers are run in step (optimize/sharding.py); None where each has them all."""
    lost: Lost | None = None

    # -- going on together, or stopping together ----------------------------------------------

    def agreed(self, work: Callable[[], T]) -> T:
        """work() here; raises on every process where it fails on any.

        Its own error where it failed; elsewhere an out-of-memory, or SelfloopError with the line
        and the process. Lost where a process does not answer. May be nested.
        """
        if self.size == 1:
            return work()
        try:
            found = work()
        except Exception as error:
            if not isinstance(error, Lost) and not getattr(error, _TOLD, False):
                self._tell(error)
            raise
        self._tell(None)
        return found

    def _tell(self, mine: Exception | None) -> None:
        """Says how it went here, hears how it went elsewhere; raises if it went wrong."""
        failed = torch.tensor([int(mine is not None)])
        self._sent(lambda: dist.all_reduce(failed, group=self.words))
        if not int(failed):  # as it nearly always is: one small message
            return
        told = self.gathered(_account(mine))
        wrong = [(rank, kind, text) for rank, (kind, text) in enumerate(told) if kind]
        worse = [x for x in wrong if x[1] != "memory"]  # smaller pieces would not mend that
        own = None if isinstance(mine, Elsewhere) else mine
        if own is not None and (not worse or not out_of_memory(own)):
            raise _told(own)
        rank, _, text = (worse or wrong)[0]
        where = f"{text} (in process {rank} of {self.size})"
        raise _told(SelfloopError(where) if worse else torch.OutOfMemoryError(where)) from mine

    def gathered(self, mine: T) -> list[T]:
        """What each process gives, in order, on all of them. Plain data only."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        self._sent(lambda: dist.all_gather_object(found, mine, group=self.words))
        return found

    def joined(self, mine: Sequence[T]) -> list[T]:
        """The lists of all processes end to end, on all of them."""
        return [x for part in self.gathered(list(mine)) for x in part]

    def _sent(self, message: Callable[[], Any]) -> None:
        if self.lost is not None:
            raise self.lost
        try:
            message()
        except RuntimeError as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            self.lost = Lost(
                f"a process of {self.size} has ended or does not answer ({line}): what is stored "
                "is whole; give the same command again to go on from there")
            raise _told(self.lost) from error

    # -- who does what --------------------------------------------------------------------------

    def share(self, items: Sequence[T], sizes: Sequence[float]) -> list[T]:
        """This process's stretch of the items, of about a `size`th of the work.

        Stretches follow one another, so neighbours that share a prompt mostly stay together.
        """
        if self.size == 1:
            return list(items)
        ends = list(accumulate(sizes))
        total = ends[-1] if ends else 0.0
        return [x for x, end, size in zip(items, ends, sizes, strict=True)
                if min(self.size - 1, int(self.size * (end - size / 2) / max(total, 1e-12)))
                == self.rank]

    def share_of_update(self, plan: Callable[[Sequence[int], float], list[list[int]]],
                        sizes: Sequence[int], budget: int) -> list[list[int]]:
        """This process's micro-batches; `plan(signals, budget)` says how signals go together."""
        every = range(len(sizes))
        if self.size == 1:
            return plan(every, budget)
        order = [i for chunk in plan(every, math.inf) for i in chunk]
        mine = self.share(order, [sizes[i] for i in order])
        return plan(mine, budget)

    def rounds(self, chunks: Sequence[T]) -> list[T | None]:
        """The chunks; where layers are sharded, as many places on every process (None: idle)."""
        if self.steps is None:
            return list(chunks)
        most = max(self.gathered(len(chunks)))
        return [*chunks, *[None] * (most - len(chunks))]

    def differentiate(self, work: Callable[[T], Any], chunk: T | None) -> None:
        """The backward pass of work(chunk); with sharded layers, in step with the others."""
        if self.steps is not None:
            self.steps.differentiate((lambda: 0.0) if chunk is None else lambda: work(chunk))
        elif chunk is not None:
            work(chunk).backward()

    def prime(self, policy: Any, rows: Sequence[Any]) -> None:
        """With sharded layers: what is found out at first use, all processes find out together."""
        if self.steps is not None and rows:
            policy.prime(rows)

    def looking(self, work: Callable[[], T]) -> T:
        """work() without gradients, agreed: with sharded layers, in step with the others."""
        steps = self.steps
        if steps is None:
            return self.agreed(work)

        def in_step() -> T:
            found: T = steps.looking(work)
            return found

        return self.agreed(in_step)

    # -- sums -------------------------------------------------------------------------------------

    def set_aside(self, trainable: Mapping[str, torch.Tensor]) -> list[torch.Tensor | None]:
        """Gradients that earlier passes left, which `add_up` puts back on top."""
        if self.size == 1:
            return []
        kept = [p.grad for p in trainable.values()]
        for p in trainable.values():
            p.grad = None
        return kept

    def add_up(self, trainable: Mapping[str, torch.Tensor], kept: Sequence[torch.Tensor | None]
               ) -> None:
        """Every parameter's gradient becomes its sum over the processes, plus what was kept.

        One that has no gradient anywhere keeps none: an optimizer passes over it, as alone.
        Gradients of sharded parameters have been added already, in the backward pass.
        """
        if self.size == 1:
            return
        parameters = list(trainable.values())
        have = [any(flags) for flags in zip(*self.gathered(
            [p.grad is not None for p in parameters]), strict=True)]
        for p, wanted in zip(parameters, have, strict=True):
            if wanted and p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets([p.grad for p in parameters
                                if p.grad is not None and not hasattr(p.grad, "to_local")]):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            self.sum(flat)
            for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]),
                                      strict=True):
                gradient.copy_(part.view_as(gradient))
        for p, old in zip(parameters, kept, strict=True):
            if old is not None:
                p.grad = old if p.grad is None else p.grad + old

    def sum(self, tensor: torch.Tensor) -> None:
        """Adds up a tensor over the processes, in place, to the same bits on each."""
        group = self.fast if tensor.is_cuda and self.fast is not None else self.words
        self._sent(lambda: dist.all_reduce(tensor, group=group))

    def merged(self, whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Statistics [N] of the whole update from those of the shares, NaN where not measured."""
        if self.size == 1:
            return dict(whole)
        device = next(iter(whole.values())).device if whole else None
        found: dict[str, torch.Tensor] = {}
        for part in self.gathered({name: x.cpu() for name, x in whole.items()}):
            for name, x in part.items():
                found[name] = torch.where(found[name].isnan(), x, found[name]) \
                    if name in found else x
        return {name: x.to(device) for name, x in sorted(found.items())}

    def same(self, trainable: Mapping[str, torch.Tensor], when: str) -> None:
        """Raises SelfloopError where the processes' weights have come apart."""
        if self.size == 1:
            return
        sums = [float(p.detach().double().sum()) for p in trainable.values()
                if not hasattr(p, "to_local")]
        if any(other != sums for other in self.gathered(sums)):
            raise SelfloopError(
                f"{when} the processes hold different weights: are they given the same model "
                "folder, machine type and versions?")


def _told(error: Exception) -> Exception:
    """Marks an error that all processes know of (a field would keep its tensors alive)."""
    setattr(error, _TOLD, True)
    return error


def _account(error: Exception | None) -> tuple[str, str]:
    """(kind, one line) of what went wrong here; ("", "") if nothing did."""
    if error is None or isinstance(error, Elsewhere):
        return "", ""
    line = " ".join(str(error).split())[:600]
    if out_of_memory(error):
        return "memory", line or type(error).__name__
    return "error", line if isinstance(error, SelfloopError) else f"{type(error).__name__}: {line}"


def _buckets(tensors: Sequence[Any]) -> list[list[Any]]:
    """Tensors of one type and device together, in order, at most `_BUCKET` numbers (or one)."""
    found: list[list[Any]] = []
    for x in tensors:
        last = found[-1] if found else []
        alike = last and (last[0].dtype, last[0].device) == (x.dtype, x.device)
        if not alike or sum(y.numel() for y in last) + x.numel() > _BUCKET:
            found.append([])
        found[-1].append(x)
    return found
