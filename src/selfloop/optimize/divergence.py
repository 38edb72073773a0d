"""Updates that must not be stepped on, refused by naming the rows that are to blame.

Three stops, each before the weights are touched: a loss that is not a finite number, a gradient
that is not, and a loss or gradient norm that leaves its running band (`Guard`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from selfloop.optimize.again import Pass, alone, not_finite
from selfloop.optimize.batch import Batch, Scored
from selfloop.roles import Loss, Optim, SelfloopError
from selfloop.types import AnySignal

WARM = 8
"""Updates of a loss before its band is trusted."""
DECAY = 0.99
"""How fast a band narrows after a large value: tenfold in about 230 updates."""
NAMED = 4
"""Rows that an error names."""
WEIGHED = 64
"""Rows whose gradients are computed one by one to find the heaviest."""
_LOGPS = {"logp_BT": "log-prob", "ref_BT": "reference log-prob", "old_BT": "old log-prob",
          "drawn_BT": "sampler's log-prob", "teacher_BT": "teacher's log-prob",
          "entropy_BT": "entropy", "collision_BT": "collision",
          "others_BTK": "log-prob of another token",
          "others_ref_BTK": "reference log-prob of another token",
          "others_source_BTK": "teacher's log-prob of another token"}


# -- a loss that is not finite --------------------------------------------------------------------

def not_a_loss(done: Pass, batch: Batch, value: float) -> SelfloopError:
    """The error for a micro-batch whose loss is not finite: the very rows, tokens and terms.

    Where the loss is told what was measured over the whole update, one bad row breaks all, so rows
    of every micro-batch are looked at.
    """
    loss = done.update.loss
    rows = _measured(done) if "statistics" in loss.needs and not _several_processes() else []
    rows = rows or [why for at in range(len(batch.signals)) if (why := _broken(loss, batch, at))]
    rows = rows or [f"only their sum is not finite: {_samples(batch.signals)}"]
    return SelfloopError(
        f"the loss became {value} on {_listed(rows)}: nothing was stepped; lower Optim.lr or look "
        "at these samples with `selfloop show`")


@torch.no_grad()
def _measured(done: Pass) -> list[str]:
    """The rows of an update of which a number that the loss reads is not finite."""
    found, update = [], done.update
    for chunk in (list(chunk) for chunk in done.chunks):
        names = sorted({*update.names(chunk), *update.names(chunk, measuring=True)})
        batch = update.batch(chunk, names, done.state, done.whole)
        for at, signal in enumerate(batch.signals):
            if source := next(_inputs(alone(batch, at)), ""):
                found.append(f"{_named(signal)}: {source}")
    return found


def _broken(loss: Loss, batch: Batch, at: int) -> str:
    """What is not finite in one row; "" where its loss is."""
    row = alone(batch, at)
    with torch.no_grad():
        bad = [name for name, (_, x) in loss(row).items() if not math.isfinite(float(x))]
    if not bad:
        return ""
    source = next(_inputs(row), "from finite log-probs")
    return f"{_named(row.signals[0])}: term {bad[0]}, {source}"


def _inputs(row: Batch) -> Iterator[str]:
    """Every number of a row that is not finite, in words."""
    for name, scored in row.branches.items():
        for field, word in _LOGPS.items():
            found = getattr(scored, field)
            if found is not None and (place := _first(found, scored)) is not None:
                yield f"{word} of {name} token {place[0]}{_id(scored, place[0])} is {place[1]}"
    for word, x in (("weight", row.weight_B), ("margin", row.margin_B),
                    ("advantage", row.advantage_BT)):
        if x is not None and not bool(torch.isfinite(x).all()):
            yield f"its {word} is {float(x[~torch.isfinite(x)][0])}"


def _first(found: Any, scored: Scored) -> tuple[int, float] | None:
    """(1-based place among the trained tokens, value) of the first that is not finite."""
    on_T = scored.mask_BT[0] > 0
    values_TK = found[0].reshape(len(on_T), -1)
    bad_T = on_T & ~torch.isfinite(values_TK).all(-1)
    if not bool(bad_T.any()):
        return None
    at = int(bad_T.nonzero()[0])
    return at + 1, float(values_TK[at][~torch.isfinite(values_TK[at])][0])


def _id(scored: Scored, place: int) -> str:
    return "" if scored.ids_BT is None else f" (id {int(scored.ids_BT[0, place - 1])})"


# -- a gradient that is not, and bands ------------------------------------------------------------

@dataclass
class Band:
    """The largest value so far, slowly forgotten: max(value, DECAY * what it was)."""

    top: float = 0.0
    count: int = 0

    def left(self, value: float, factor: float) -> bool:
        """Whether `value` is more than `factor` times the band; a band is at least 1 wide."""
        return self.count >= WARM and value > factor * max(1.0, self.top)

    def add(self, value: float) -> None:
        """Take in the value of an update that is stepped on."""
        self.top, self.count = max(value, DECAY * self.top), self.count + 1


class Guard:
    """Looks at every update of one learner before it is stepped on.

    The absolute loss and the gradient norm (before clipping) each have a band for each loss: the
    largest value so far, decaying by 1 % an update, and at least 1. After 8 updates, a value of
    more than `Optim.diverged` times its band is a divergence.
    """

    def __init__(self) -> None:
        self.passes: list[tuple[str, Pass, float]] = []
        """(described loss, pass, loss) of every pass since the last update."""
        self.bands: dict[str, Band] = {}

    def saw(self, described: str, done: Pass, loss: float) -> None:
        """Remember a pass; its rows may have to be run again."""
        self.passes.append((described, done, loss))

    def check(self, norm: float, optim: Optim, lr: float) -> None:
        """Raises SelfloopError, naming rows, where the update must not be stepped on."""
        passes, self.passes = self.passes, []
        if not math.isfinite(norm):
            raise _not_a_gradient(norm, [done for _, done, _ in passes], lr)
        losses = ", ".join(dict.fromkeys(name for name, _, _ in passes))
        values: list[tuple[str, float, Pass | None]] = [
            (f"loss of {name}", abs(loss), done) for name, done, loss in passes]
        values += [(f"gradient norm of {losses}", norm, None)] if passes else []
        for what, value, only in values:
            band = self.bands.get(what, Band())
            if optim.diverged is not None and band.left(value, optim.diverged):
                raise _diverged(what, value, band, optim, lr,
                                [only] if only else [done for _, done, _ in passes])
        for what, value, _ in values:
            self.bands.setdefault(what, Band()).add(value)

    def forget(self, bands: bool = True) -> None:
        """Drop the passes, whose gradients are gone, and (at a restart) the bands."""
        self.passes = []
        if bands:
            self.bands = {}

    def state(self) -> dict[str, list[float]]:
        """The bands, for a checkpoint."""
        return {what: [band.top, band.count] for what, band in self.bands.items()}

    def load(self, found: Mapping[str, Sequence[float]]) -> None:
        """The inverse of `state`."""
        self.forget()
        self.bands = {what: Band(float(top), int(count)) for what, (top, count) in found.items()}


def _not_a_gradient(norm: float, passes: Sequence[Pass], lr: float) -> SelfloopError:
    head = f"the gradient norm became {norm}: nothing was stepped"
    for done in passes:
        if _several_processes():
            return SelfloopError(f"{head}; run the step in one process to have its rows named, or "
                                 f"lower Optim.lr ({lr:g})")
        rows, by_itself = not_finite(done.gradient_norm, done.order, most=NAMED)
        if rows:
            what = "it is that of" if by_itself else "finite one by one, but not together, are"
            named = _listed([_named(done.update.signals[i]) for i in rows])
            return SelfloopError(f"{head}; {what} {named}: look at them with `selfloop show`, or "
                                 f"lower Optim.lr ({lr:g})")
    return SelfloopError(
        f"{head}; computed again it is finite on every row, so none of them is to blame: run again "
        f"(what was learned up to the last checkpoint is kept), or lower Optim.lr ({lr:g})")


def _diverged(what: str, value: float, band: Band, optim: Optim, lr: float,
              passes: Sequence[Pass]) -> SelfloopError:
    """The error for a value outside of its band, with the rows that weigh most in it."""
    head = (f"learning diverges: the {what} became {value:.4g}, more than {optim.diverged:g} times "
            f"its running band ({max(1.0, band.top):.4g}): nothing was stepped")
    rows = [] if _several_processes() else _heaviest(passes, what.startswith("gradient"))
    blame = f"; most comes from {_listed(rows)}" if rows else ""
    return SelfloopError(f"{head}{blame}; lower Optim.lr ({lr:g}), look at these samples with "
                         "`selfloop show`, or raise Optim.diverged if this is healthy")


def _heaviest(passes: Sequence[Pass], by_gradient: bool) -> list[str]:
    """The rows with the largest loss or gradient norm, in words."""
    found: list[tuple[float, str]] = []
    for done in passes:
        losses = done.losses()
        first = sorted(losses, key=lambda i: (-_size(losses[i]), i))
        if by_gradient:
            sizes = {i: done.gradient_norm([i]) for i in first[:WEIGHED]}
            found += [(_size(g), f"{_named(done.update.signals[i])} with gradient norm {g:.4g}")
                      for i, g in sizes.items()]
        else:
            found += [(_size(losses[i]), f"{_named(done.update.signals[i])} with {losses[i]:.4g}")
                      for i in first[:NAMED]]
    return [words for _, words in sorted(found, key=lambda f: -f[0])[:NAMED - 1]]


def _size(x: float) -> float:
    return abs(x) if math.isfinite(x) else math.inf


def _several_processes() -> bool:
    """Rows cannot be run again by one process where the others would have to take part."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() \
        and distributed.get_world_size() > 1


def _named(signal: AnySignal) -> str:
    return f"sample {signal.sample} ({', '.join(sorted(signal.branches))})"


def _samples(signals: Sequence[AnySignal]) -> str:
    return _listed([_named(signal) for signal in signals])


def _listed(rows: Sequence[str]) -> str:
    more = f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return "; ".join(rows[:NAMED]) + more
