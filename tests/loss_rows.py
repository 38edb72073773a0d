"""Random rows for tests of losses, and what the learner would make of a loss on them."""

from __future__ import annotations

import torch

from selfloop.optimize.batch import Batch, Scored
from selfloop.types import Advantage, Branch, Context, Demonstration, Distill, Pair

X = Branch(context=Context(prompt=()), text="x")
EMPTY = Context(prompt=())


def f64(value):
    return None if value is None else torch.as_tensor(value, dtype=torch.float64)


def scored(logp, mask=None, **more) -> Scored:
    """A branch from lists or tensors, in float64 (token ids stay whole)."""
    logp = f64(logp)
    mask = torch.ones_like(logp) if mask is None else f64(mask)
    return Scored(logp, mask, **{k: torch.as_tensor(v) if k == "ids_BT" else f64(v)
                                 for k, v in more.items()})


def batch(branches, n=None, *, advantage=None, weight=None, margin=None, signals=None,
          **more) -> Batch:
    """A micro-batch that is a whole update."""
    n = n or len(next(iter(branches.values())).logp_BT)
    signals = tuple(signals or (None,) * n)
    return Batch(signals, branches, f64([1.0] * n if weight is None else weight), f64(advantage),
                 f64([0.0] * n if margin is None else margin), tuple(range(n)), signals, **more)


def counted(loss, found: Batch) -> dict[str, float]:
    """The loss's denominators on these rows."""
    tokens = {n: s.mask_BT.sum(-1).int().tolist() for n, s in found.branches.items()}
    return loss.units(found.signals, tokens)


def value(loss, found: Batch, **state):
    """The number that the learner minimises, statistics included; signals must be real."""
    if "statistics" in loss.needs:
        from dataclasses import replace
        with torch.no_grad():
            found = replace(found, whole=loss.measure(found), state=state)
    units = counted(loss, found)
    return sum(w * x / units[name] for name, (w, x) in loss(found).items())


def total(loss, found, units):
    """As `value`, with denominators given."""
    return sum(w * x / units[name] for name, (w, x) in loss(found).items())


def mask(rng, rows, width):
    lengths = torch.randint(1, width + 1, (rows,), generator=rng)
    return (torch.arange(width)[None] < lengths[:, None]).double()


def random(rng, rows=6, width=5, **more) -> Scored:
    """Log-probs that are leaves of the graph, with a reference, and `more` of the same shape."""
    here = mask(rng, rows, width)

    def logps():
        return -2 * torch.rand(rows, width, generator=rng, dtype=torch.float64) * here

    return Scored(logps().requires_grad_(), here, ref_BT=logps(),
                  **{k: logps() for k, v in more.items() if v})


def pairs(rng, n=6, names=("chosen", "rejected"), margin=None, **more) -> Batch:
    """Pairs with random log-probs."""
    branches = {name: random(rng, n, **more) for name in names}
    signals = [Pair(branches=dict.fromkeys({*names, "chosen", "rejected"}, X))] * n
    return batch(branches, n, signals=signals, margin=margin)


def answers(rng, n=6, advantage=None, groups=None, **more) -> Batch:
    """Advantage signals with old and reference log-probs."""
    found = random(rng, n, old_BT=True, **more)
    a = torch.randn(n, generator=rng, dtype=torch.float64) if advantage is None else f64(advantage)
    signals = [Advantage(branches={"answer": X}, advantage=float(x),
                         group=groups[i] if groups else "") for i, x in enumerate(a)]
    return batch({"answer": found}, n, signals=signals,
                 advantage=(a[:, None] * found.mask_BT))


def leaves(found: Batch) -> list[torch.Tensor]:
    return [s.logp_BT for s in found.branches.values()]


def same(ours, theirs, leaves, tolerance=1e-5) -> None:
    """Value and gradient."""
    assert abs(float(ours.detach()) - float(theirs.detach())) <= tolerance * max(
        1.0, abs(float(theirs.detach())))
    a = torch.autograd.grad(ours, leaves, allow_unused=True, retain_graph=True)
    b = torch.autograd.grad(theirs, leaves, allow_unused=True, retain_graph=True)
    moved = 0.0
    for mine, other in zip(a, b, strict=True):
        mine, other = (torch.zeros(1).double() if g is None else g for g in (mine, other))
        assert torch.allclose(mine.double(), other.double(), rtol=tolerance, atol=tolerance)
        moved += float(other.abs().sum())
    assert moved > 0, "a gradient of nothing proves nothing"


__all__ = ["Advantage", "Demonstration", "Distill", "Pair"]
