"""Timing: warm, interleaved, and a ratio with its interval."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]
SLOW, FEW = 60.0, 2
"""A round that takes longer than SLOW seconds (all sides together) is run FEW times only."""
AGAIN = 1.0
"""A run that takes fewer seconds is made twice in a row, and the second is timed."""


def race(sides: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, warm and in turn; every other round in the opposite order.

    Garbage is collected between runs and not during them. In training an update follows an
    update: what the other side has left in the processor's caches and in the allocator must not
    be measured, which short runs would mostly do.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    warm = {name: _timed(sides[name]) for name in order}  # allocator, threads, optimizer moments
    for turn in range(repeats if sum(warm.values()) <= SLOW else min(FEW, repeats)):
        for name in order if turn % 2 == 0 else reversed(order):
            short = min([warm[name], *seconds[name]]) < AGAIN
            seconds[name].append(_timed(sides[name], twice=short))
    return seconds


def _timed(work: Work, *, twice: bool = False) -> float:
    gc.collect()  # before the untimed run: it goes through every object there is
    gc.disable()
    try:
        if twice:
            work()
        _wait()
        began = time.perf_counter()
        work()
        _wait()
        return time.perf_counter() - began
    finally:
        gc.enable()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is: the median, and the range of the rounds' own ratios."""

    median: float
    low: float
    high: float


def ratio(peer: list[float], ours: list[float]) -> Ratio:
    """Of paired rounds. The range of n pairs covers the true median with 1 - 2^(1 - n): 94 % of
    the time for n = 5, whatever the distribution."""
    each = [p / o for p, o in zip(peer, ours, strict=True)]
    return Ratio(statistics.median(peer) / statistics.median(ours), min(each), max(each))
