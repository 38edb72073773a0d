"""What a study of label efficiency is made of: budgets, seeds, arms, and who gets which label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfloop import keys
from selfloop.evaluate.sealed import Sealed
from selfloop.loop import Loop
from selfloop.recipes.supervised import supervised
from selfloop.roles import Engine, SelfloopError, Verifier
from selfloop.types import Sample

SHARES = (0.01, 0.05, 0.15, 0.4, 1.0)
"""Label budgets as shares of the pool."""


@dataclass(frozen=True)
class Supervision:
    """The supervised stage: one rule for every budget, seed and arm."""

    metric: Verifier
    updates: int = 400
    """Updates that every arm starts with, on its budget's labels."""
    more: int = 200
    """Updates of the arm "supervised" after that: as many as a loop makes in all."""
    batch: int = 32
    lr: float = 1e-3
    more_lr: float = 5e-4
    labels: str = "rationale"
    views: float = 0.5
    max_new_tokens: int = 64

    def __call__(self, n: int, seed: int, *, again: bool = False) -> Loop:
        """Training on n labels; `again` for the updates that match a loop's."""
        updates = self.more if again else self.updates
        loop = supervised(
            self.metric, labels=self.labels, iterations=1, updates=updates, batch=self.batch,
            lr=self.more_lr if again else self.lr, views=self.views,
            copies=max(1, round(updates * self.batch / n)),
            max_new_tokens=self.max_new_tokens, seed=seed)
        return asked_plainly(loop)


def asked_plainly(loop: Loop) -> Loop:
    """Without a gate and without the questions asked blind: versions are chosen by dev accuracy."""
    if loop.evaluation is None:
        raise SelfloopError(f"loop {loop.name!r} has no evaluation: a study of labels chooses "
                            "versions on dev, so give it a metric")
    return replace(loop, gate=None, evaluation=replace(loop.evaluation, no_image=False, draws=0))


@dataclass(frozen=True)
class LabelStudy:
    """Supervised training beside supervised training plus a loop, at every label budget.

    Picklable: every callable is a function of a module or a partial of one.
    """

    folder: Path
    pool: Sequence[Sample]
    """Labelled questions: the first of a seed's order are the budget, the others the rest."""
    dev: Sequence[Sample]
    """Chooses versions, alike in all arms; its labels are counted apart."""
    test: Sealed
    make_engine: Callable[[Path | None], Engine]
    """None: the model that has seen no label of the pool; else a folder of weights."""
    supervise: Supervision
    loops: Mapping[str, Callable[[int], Loop]]
    """Arm -> its loop at a seed. A loop that reads no labels is given none."""
    vote: Callable[[int], Loop]
    """Arm (b): whose sampler and verifier the supervised model votes with at test time."""
    budgets: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    model: str = "embedded"
    bare: Sequence[Sample] = ()
    """Questions that nobody has labelled: loops that read no labels draw from them, too."""

    def __post_init__(self) -> None:
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) \
                or not 1 <= self.budgets[0] <= self.budgets[-1] <= len(self.pool):
            raise SelfloopError(
                f"budgets {list(self.budgets)}: expected rising numbers of labels from 1 to the "
                f"pool's {len(self.pool)}")
        if not self.seeds:
            raise SelfloopError("seeds: give at least one")

    def split(self, budget: int, seed: int) -> tuple[list[Sample], list[Sample]]:
        """(labelled, rest) of the pool; a bigger budget of the same seed holds the smaller one."""
        order = keys.shuffled(len(self.pool), f"label_study/{seed}")
        chosen = [self.pool[i] for i in order]
        return chosen[:budget], chosen[budget:]

    def arms(self, budget: int) -> tuple[str, ...]:
        """The arms of a budget: at the whole pool nothing is left for a loop."""
        loops = tuple(self.loops) if budget < len(self.pool) else ()
        return ("supervised", *loops, "vote")

    def place(self, budget: int, seed: int) -> Path:
        """The folder of one point."""
        return self.folder / "points" / f"{budget:06d}-{seed}"


def budgets_of(shares: Sequence[float], pool: int) -> tuple[int, ...]:
    """Numbers of labels of these shares of a pool. Raises SelfloopError outside (0, 1]."""
    bad = next((s for s in shares if not 0 < s <= 1), None)
    if bad is not None:
        raise SelfloopError(f"budget {bad:g}: expected a share of the pool in (0, 1], such as 0.05")
    return tuple(sorted({max(1, round(share * pool)) for share in shares}))
