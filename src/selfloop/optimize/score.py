"""Rows to log-probs: the plain path, one forward pass over whole sequences padded on the right.

The normaliser is the sampler's own: float32, divided by the row's temperature, suppressed tokens
at minus infinity. Logits are computed on trained positions only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch

from selfloop.optimize.head import Head
from selfloop.optimize.rows import Row
from selfloop.optimize.wide import asked, in_order
from selfloop.roles import SelfloopError
from selfloop.types import Media

Sequence_ = tuple[tuple[int, ...], tuple[Media, ...]]
"""Token ids (placeholders expanded) and the pictures behind the placeholders, in order."""


class Reader(Protocol):
    """How token sequences with pictures become a model's keyword arguments."""

    placeholders: frozenset[int]
    """Ids that stand for picture features."""

    def inputs(self, sequences: Sequence[Sequence_]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask [B, T] padded right, pixels, and per-token types."""
        ...

    def signature(self, media: tuple[Media, ...]) -> Hashable:
        """Sequences of equal signature may share a batch (their pixel tensors concatenate)."""
        ...


class Answers(Protocol):
    """One path from rows to the log-probs of their trained tokens."""

    def __call__(self, rows: Sequence[Row], *, entropy: bool
                 ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]: ...


class Plain:
    """Whole sequences, each row with its own copy of the prompt."""

    def __init__(self, model: Any, reader: Reader, banned_V: torch.Tensor, budget: int,
                 head: Head | None = None) -> None:
        self.model, self.reader, self.banned_V, self.budget = model, reader, banned_V, budget
        self.head = head or Head(model, banned_V)
        self.marks: tuple[str, ...] | None = None
        """Arguments that must be 1 on answers to keep them causal; None = not yet looked at."""

    def __call__(self, rows: Sequence[Row], *, entropy: bool = False
                 ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Per row, in order, the log-probs of its trained tokens (and entropies if asked)."""
        logps: list[Any] = [None] * len(rows)
        entropies: list[Any] = [None] * len(rows)
        for index in self._batches(rows):
            found, measured = self._forward([rows[i] for i in index], entropy)
            for place, i in enumerate(index):
                logps[i] = found[place]
                entropies[i] = measured[place] if measured is not None else None
        return logps, entropies if entropy else None

    def cost(self, rows: Sequence[Row]) -> int:
        """Tokens run for these rows, padding left out."""
        return sum(len(row.token_ids) for row in rows)

    def _batches(self, rows: Sequence[Row]) -> list[list[int]]:
        """Row indices, similar lengths together, padded size within the token budget."""
        signatures = [self.reader.signature(row.media) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: (
            repr(signatures[i]), rows[i].prompt, len(rows[i].token_ids), i))
        found: list[list[int]] = []
        longest = 0
        for i in order:
            longest = max(longest, len(rows[i].token_ids))
            fits = found and signatures[found[-1][0]] == signatures[i] \
                and longest * (len(found[-1]) + 1) <= self.budget
            if not fits:
                found.append([])
                longest = len(rows[i].token_ids)
            found[-1].append(i)
        return found

    def _forward(self, rows: list[Row], entropy: bool
                 ) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor] | None]:
        inputs = self._inputs(rows)
        ids_BT = inputs["input_ids"]
        device = ids_BT.device
        first = min(row.prompt for row in rows) - 1
        keep_K = torch.arange(first, ids_BT.shape[1] - 1, device=device)
        hidden_BKD = self.head.hidden({**inputs, "use_cache": False}, keep_K)
        trained_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
        for b, row in enumerate(rows):
            trained_BT[b, :len(row.trained)] = torch.tensor(row.trained)
        trained_BK = trained_BT[:, first + 1:].to(device)
        counts = [row.count for row in rows]
        temperature_N = torch.tensor([row.temperature for row in rows], device=device)
        logp_M, entropy_M = self.head.logps(
            hidden_BKD[trained_BK], ids_BT[:, first + 1:][trained_BK],
            temperature_N.repeat_interleave(torch.tensor(counts, device=device)), entropy,
            asked(rows, in_order(rows), device))
        return (torch.split(logp_M, counts),
                torch.split(entropy_M, counts) if entropy_M is not None else None)

    def _inputs(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        if self.marks is None:
            self.marks = self._marked(rows[0])
        return self._read(rows, self.marks)

    def _read(self, rows: Sequence[Row], marks: tuple[str, ...]) -> dict[str, torch.Tensor]:
        found = self.reader.inputs([(row.token_ids, row.media) for row in rows])
        for name in marks:
            for b, row in enumerate(rows):
                found[name][b, row.prompt:len(row.token_ids)] = 1
        return found

    @torch.no_grad()
    def _marked(self, row: Row) -> tuple[str, ...]:
        """Prefix language models see a whole sequence both ways unless answers are marked.

        Found out by changing the last of three tokens put after the row, which must not change
        what stands before it.
        """
        free = [t for t in range(len(self.banned_V)) if not bool(self.banned_V[t])
                and t not in self.reader.placeholders][:2]
        pair = [Row((*row.token_ids, free[0], free[0], last), (*row.trained, True, True, True),
                    row.media, row.prompt) for last in (free[0], free[-1])]
        keep_K = torch.arange(len(row.token_ids) - 1, len(row.token_ids) + 2)
        row = pair[0]
        types = [name for name, x in self._read([row], ()).items() if not x.is_floating_point()
                 and x.shape == (1, len(row.token_ids)) and name not in _NOT_TYPES]
        for marks in ((), *((name,) for name in types)):
            seen, changed = (self.head.hidden(
                {**(inputs := self._read([r], marks)), "use_cache": False},
                keep_K.to(inputs["input_ids"].device))[0, :-1].float() for r in pair)
            if torch.allclose(seen, changed, rtol=1e-3, atol=1e-3 * float(seen.abs().max())):
                return marks
        raise SelfloopError(
            f"{type(self.model).__name__} lets an answer look at its own later tokens: it cannot "
            "be trained token by token")


_NOT_TYPES = ("input_ids", "attention_mask")
