"""One family's rows through both paths: log-probs, gradients, and how far apart they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from families.making import BANNED, Family
from families.wide import Float64
from selfloop.engines.hf_load import part_of
from selfloop.optimize.checkpointing import enable
from selfloop.optimize.prefix import Shared
from selfloop.optimize.rows import Row

BUDGET = 100_000
FLOOR = 1e-3
"""A tensor's gradient gap is relative to its norm, or to this share of the whole gradient's where
its own is smaller: what is next to nothing is not asked for to seven digits."""

Gradients = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Found:
    """What one path gave."""

    logp_M: torch.Tensor
    entropy_M: torch.Tensor
    gradients: Gradients


@dataclass(frozen=True)
class Measured:
    """Both paths side by side."""

    why_not: str
    logp: float
    """Largest difference of a log-prob or an entropy, in nats."""
    gradient: float
    """Largest relative difference of a parameter's gradient."""
    worst: str
    """That parameter."""
    shared: Found
    plain: Found
    ratio: float
    """Tokens of the plain path over tokens of the shared one."""
    path: Shared


def groups(family: Family) -> list[Row]:
    """One picture, two, another one, none; prompts and answers of unequal lengths, mixed up."""
    rows = [*family.rows((1,), 3, (1, 7, 3)), *family.rows((2, 3), 7, (4, 2)),
            *family.rows((4,), 3, (6, 6)), *family.rows((), 9, (3, 8))]
    return rows[::2] + rows[1::2]


def run(path: Any, model: Any, rows: Sequence[Row]) -> Found:
    """Log-probs, entropies and gradients of a fixed mixture of both."""
    model.zero_grad()
    logps, entropies = path(rows, entropy=True)
    logp_M, entropy_M = torch.cat(list(logps)), torch.cat(list(entropies))
    weight_M = torch.arange(1, 1 + len(logp_M), dtype=logp_M.dtype).sin()
    ((logp_M + 0.3 * entropy_M) * weight_M).sum().backward()
    return Found(logp_M.detach(), entropy_M.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def measure(family: Family, rows: Sequence[Row], budget: int = BUDGET) -> Measured:
    """Both paths on these rows. The shared one checks itself and may fall back, with a warning."""
    path = Shared(family.model, family.reader, BANNED, budget, worth=0)
    plain = run(path.plain, family.model, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shared = run(path, family.model, rows)
    gradient, worst = apart(shared.gradients, plain.gradients)
    return Measured(path.why_not, distance(shared, plain), gradient, worst, shared, plain,
                    path.plain.cost(rows) / path.cost(rows), path)


def distance(ours: Found, theirs: Found) -> float:
    """Largest difference of a log-prob or an entropy."""
    return max(float((ours.logp_M - theirs.logp_M).abs().max()),
               float((ours.entropy_M - theirs.entropy_M).abs().max()))


def apart(ours: Gradients, theirs: Gradients) -> tuple[float, str]:
    """Largest relative difference of one parameter's gradient, and whose it is."""
    assert ours.keys() == theirs.keys()
    whole = sum(float(g.double().norm()) ** 2 for g in theirs.values()) ** 0.5
    return max((float((ours[name].double() - g.double()).norm())
                / max(float(g.double().norm()), FLOOR * whole), name)
               for name, g in theirs.items())


def sighted(model: Any) -> str:
    """The part that reads pictures: the tower, or the projector of models that have none."""
    parts = {part_of(model, name) for name, _ in model.named_parameters()}
    return "vision" if "vision" in parts else "projector"


def share(family: Family, gradients: Gradients) -> float:
    """How much of the whole gradient's norm belongs to the part that reads pictures."""
    part = sighted(family.model)
    squares = {name: float(g.double().norm()) ** 2 for name, g in gradients.items()}
    mine = sum(s for name, s in squares.items() if part_of(family.model, name) == part)
    return float((mine / max(sum(squares.values()), 1e-30)) ** 0.5)


def exactly(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """For float64: no casts to float32 on the way."""
    return Float64() if dtype == torch.float64 else nullcontext()


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Layers are computed again in the backward pass, as `HFEngine(checkpointing=True)` asks."""
    own = {module: vars(module).get("forward") for module in model.modules()}
    for module in model.modules():
        if next(model.parameters()).dtype == torch.float64:
            _widen(module)
    enable(model)
    try:
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


def _widen(module: Any) -> None:
    """A layer that is run again within `backward` runs outside of any mode that backward was
    called in, so it brings its own."""
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with Float64():
            return inner(*args, **kwargs)

    if isinstance(module, GradientCheckpointingLayer):
        module.forward = forward


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """What reads pictures does not learn; the rest does."""
    part = sighted(model)
    mine = [p for name, p in model.named_parameters() if part_of(model, name) == part]
    for parameter in mine:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in mine:
            parameter.requires_grad_(True)
