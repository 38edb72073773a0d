"""What a loss sees: log-probs of each branch's trained tokens, padded on the right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from selfloop.optimize.rows import Row, Weight
from selfloop.types import AnySignal, Branch

Tensor = Any
"""torch.Tensor; torch is imported by the learner and inside loss calls only."""


@dataclass(frozen=True)
class Scored:
    """One named branch over the B signals of a micro-batch; T = its longest trained answer."""

    logp_BT: Tensor
    """Under the policy being trained; carries the graph."""
    mask_BT: Tensor
    """1.0 on trained tokens, 0.0 on padding."""
    old_BT: Tensor | None = None
    """Under the version that drew it (None unless every row of the batch knows it)."""
    ref_BT: Tensor | None = None
    teacher_BT: Tensor | None = None
    """The teacher branch's log-probs of the same tokens (Distill signals only)."""
    entropy_BT: Tensor | None = None

    @property
    def sum_B(self) -> Tensor:
        """Sequence log-prob."""
        return (self.logp_BT * self.mask_BT).sum(-1)

    @property
    def ref_sum_B(self) -> Tensor:
        """Sequence log-prob under the reference. Raises if the loss did not declare it."""
        if self.ref_BT is None:
            raise ValueError(
                "this loss reads the reference but does not declare needs={'reference'}")
        return (self.ref_BT * self.mask_BT).sum(-1)

    @property
    def ratio_B(self) -> Tensor:
        """h(y) = log pi(y|x) - log pi_ref(y|x): the implicit reward over beta (DPO, eq. 5)."""
        return self.sum_B - self.ref_sum_B


@dataclass(frozen=True)
class Batch:
    """One micro-batch of signals of one kind, with the same branch names."""

    signals: tuple[AnySignal, ...]
    branches: dict[str, Scored]
    weight_B: Tensor
    advantage_BT: Tensor | None = None
    """Advantages spread over the trained tokens of `answer` (Advantage signals only)."""
    margin_B: Tensor | None = None


class Policy(Protocol):
    """What the learner needs of a local model. Implemented by each local engine."""

    def rows(self, branch: Branch) -> list[Row]:
        """The branch as token sequences."""
        ...

    def logps(self, rows: list[Row], *, entropy: bool = False
              ) -> tuple[list[Tensor], list[Tensor] | None]:
        """For each row, its trained tokens' log-probs (1-D, float32, with graph when grad is
        enabled) after the row's temperature, suppressed tokens excluded from the normaliser exactly
        as in sampling; and their entropies if asked. One backward pass: the logits are spent in
        it, so a second one through the same graph raises."""
        ...

    def weigh(self, row: Row) -> Weight:
        """What a row adds to a forward pass: micro-batches are planned by it."""
        ...

    def trainable(self) -> dict[str, Tensor]:
        """Name -> parameter that learns, in a fixed order."""
        ...
