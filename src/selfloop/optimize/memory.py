"""Answering an out-of-memory: the same work in smaller pieces, never less of it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory"))


def fitting(work: Callable[[], T], smaller: Callable[[str], None]) -> T:
    """`work()`; when memory runs out, `smaller(why)` and again.

    `smaller` makes the next try need less, or raises when it cannot.
    """
    while True:
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error):
                raise
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        # Outside of the handler: its traceback would keep the tensors of the failed try alive.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller(why)
