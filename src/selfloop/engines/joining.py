"""How a model's picture features of several rows become those of a batch, found by example.

Models give a tensor of all pictures, one tensor a picture, one a level, or all of these at once.
A `Kind` says for each place in the output which it is; it is read off the outputs for one row
and for two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Flat = dict[str, torch.Tensor]
_DROPPED = ("hidden_states", "attentions")
"""Fields that no forward pass injects."""


@dataclass(frozen=True)
class Kind:
    """One place of an output: `what` is tensor, constant, nothing, pictures, levels or fields."""

    what: str
    type: Any = None
    inside: tuple[tuple[str, Kind], ...] = ()


def kind_of(one: Any, both: Any) -> Kind:
    """From the output for one row and for that row twice. Raises NotImplementedError."""
    if isinstance(one, torch.Tensor):
        # Of the same shape for one row and for two: it says nothing about pictures.
        return Kind("constant" if one.shape == both.shape else "tensor")
    if one is None:
        return Kind("nothing")
    if hasattr(one, "keys"):
        full = getattr(one, "pooler_output", None) is not None
        skip = (*_DROPPED, *(("last_hidden_state",) if full else ()))
        return Kind("fields", type(one), tuple(
            (name, kind_of(one[name], both[name])) for name in one if name not in skip))
    if isinstance(one, list | tuple) and len(one):
        if len(both) == len(one):
            return Kind("levels", type(one), tuple(
                (str(i), kind_of(a, b)) for i, (a, b) in enumerate(zip(one, both, strict=True))))
        if len(both) == 2 * len(one) and isinstance(one[0], torch.Tensor):
            return Kind("pictures", type(one))
    raise NotImplementedError(f"its features hold a {type(one).__name__}")


def flat(kind: Kind, output: Any, path: str = "") -> Flat:
    """The tensors of an output by their place."""
    if kind.what in ("tensor", "constant"):
        return {path: output}
    if kind.what == "pictures":
        return {f"{path}/{i}": x for i, x in enumerate(output)}
    found: Flat = {}
    for name, inner in kind.inside:
        part = output[int(name)] if kind.what == "levels" else output[name]
        found |= flat(inner, part, f"{path}/{name}")
    return found


def join(kind: Kind, rows: Sequence[Flat], path: str = "") -> Any:
    """The output for a batch of rows from each row's tensors."""
    if kind.what == "constant" or (kind.what == "tensor" and len(rows) == 1):
        return rows[0][path]
    if kind.what == "tensor":
        return torch.cat([row[path] for row in rows])
    if kind.what == "pictures":
        return _sequence(kind.type, [row[name] for row in rows for name in _numbered(row, path)])
    inside = {name: join(inner, rows, f"{path}/{name}") for name, inner in kind.inside}
    if kind.what == "levels":
        return _sequence(kind.type, list(inside.values()))
    return kind.type(**inside) if kind.what == "fields" else None


def _numbered(row: Flat, path: str) -> list[str]:
    count = 0
    while f"{path}/{count}" in row:
        count += 1
    return [f"{path}/{i}" for i in range(count)]


def _sequence(kind: Any, values: list[Any]) -> Any:
    return values if kind is list else tuple(values)
