"""From log-probs of rows to the tensors of a `Batch`; and which signals share a micro-batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from selfloop.optimize.batch import Batch, Policy, Scored
from selfloop.optimize.rows import Row, Weight
from selfloop.roles import Known, SelfloopError
from selfloop.types import Advantage, AnySignal


def micro_batches(policy: Policy, signals: Sequence[AnySignal],
                  rows: Sequence[dict[str, list[Row]]], budget: int) -> list[list[int]]:
    """Signals of one kind and shape together, those of one prompt side by side, within budget.

    The budget counts what is run: a prompt that several rows share counts once, with its pictures.
    """
    kinds: dict[Any, dict[Hashable, list[int]]] = {}
    weights = [[policy.weigh(row) for rs in named.values() for row in rs] for named in rows]
    for i, (signal, named) in enumerate(zip(signals, rows, strict=True)):
        contexts = kinds.setdefault((signal.kind, tuple(sorted(named))), {})
        contexts.setdefault(weights[i][0].key if weights[i] else None, []).append(i)
    found: list[list[int]] = []
    for contexts in kinds.values():
        found.append([])
        spent, seen = 0, set[Hashable]()
        for i in (i for mine in contexts.values() for i in mine):
            size = _size(weights[i], seen)
            if found[-1] and spent + size > budget:
                found.append([])
                spent, seen = 0, set()
                size = _size(weights[i], seen)
            found[-1].append(i)
            spent += size
            seen |= {weight.key for weight in weights[i]}
    return [chunk for chunk in found if chunk]


def _size(weights: Sequence[Weight], seen: set[Hashable]) -> int:
    prompts = {w.key: w.prompt for w in weights if w.key not in seen}
    return sum(prompts.values()) + sum(w.answer for w in weights)


def chunks(rows: Sequence[Row], budget: int) -> list[list[int]]:
    """Indices in order, cut where rows padded to the longest would pass the token budget."""
    found: list[list[int]] = [[]]
    longest = 0
    for i, row in enumerate(rows):
        longest = max(longest, len(row.token_ids))
        if found[-1] and longest * (len(found[-1]) + 1) > budget:
            found.append([])
            longest = len(row.token_ids)
        found[-1].append(i)
    return [chunk for chunk in found if chunk]


def padded(parts: Sequence[Any]) -> Any:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def scored(name: str, parts: list[Any], entropy: list[Any], rows: list[list[Row]],
            index: list[int], known: Known) -> Scored:
    mask_BT = padded([torch.ones_like(p) for p in parts]).detach()

    def given(what: str, otherwise: Sequence[Any] = (None,) * len(index)) -> Any | None:
        table = known.get(what, {})
        found = [table.get((i, name), other) for i, other in zip(index, otherwise, strict=True)]
        if any(f is None for f in found):
            return None
        return padded([torch.tensor(f, dtype=parts[0].dtype, device=parts[0].device)
                        for f in found])

    drawn = [None if any(r.drawn is None for r in rs) else [x for r in rs for x in r.drawn or ()]
             for rs in rows]
    return Scored(padded(parts), mask_BT, given("old", drawn), given("reference"),
                  given("teacher"), padded(entropy) if entropy else None)


def advantages(signals: Sequence[AnySignal], answer: Scored) -> Any:
    """One number a signal spread over its tokens, or one number a token."""
    rows = []
    for signal, mask_T in zip(signals, answer.mask_BT, strict=True):
        value = signal.advantage if isinstance(signal, Advantage) else 0.0
        length = int(mask_T.sum())
        spread = value if isinstance(value, tuple) else (float(value),) * length
        if (n := len(spread)) != length:
            raise SelfloopError(f"sample {signal.sample}: {n} token advantages for {length} tokens")
        rows.append(torch.tensor(spread, dtype=mask_T.dtype, device=mask_T.device))
    padded_BT = padded(rows)
    return torch.nn.functional.pad(padded_BT, (0, answer.mask_BT.shape[1] - padded_BT.shape[1]))


def gaps(batch: Batch) -> list[float]:
    """Largest |sampler - learner| log-prob gap of each drawn answer in this micro-batch."""
    answer = batch.branches.get("answer")
    if answer is None or answer.old_BT is None:
        return []
    gap_BT = (answer.logp_BT.detach() - answer.old_BT).abs() * answer.mask_BT
    return [float(g) for g in gap_BT.amax(-1)]
