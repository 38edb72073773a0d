"""What a loss sees: log-probs of each branch's trained tokens, padded on the right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from selfloop.optimize.rows import Row, Weight
from selfloop.types import AnySignal, Branch

Tensor = Any
"""torch.Tensor; torch is imported by the learner and inside loss calls only."""


@dataclass(frozen=True)
class Scored:
    """One named branch over the B signals of a micro-batch; T = its longest trained answer.

    A field is None where the loss does not declare that it needs it.
    """

    logp_BT: Tensor
    """Under the policy being trained; carries the graph."""
    mask_BT: Tensor
    """1.0 on trained tokens, 0.0 on padding."""
    old_BT: Tensor | None = None
    """Before the first update of the step (None unless every row of the batch knows it)."""
    drawn_BT: Tensor | None = None
    """The sampler's own log-probs, where the tokens are trained as they were drawn."""
    ref_BT: Tensor | None = None
    teacher_BT: Tensor | None = None
    """The teacher branch's log-probs of the same tokens (Distill signals only)."""
    entropy_BT: Tensor | None = None
    """Of the next-token distribution, in nats; carries the graph."""
    ids_BT: Tensor | None = None
    """Token ids, -1 on padding."""
    collision_BT: Tensor | None = None
    """log sum_v pi(v)^2, without gradient."""
    others_BTK: Tensor | None = None
    """Log-probs of K further tokens at each place (`Others`); carries the graph."""
    others_ref_BTK: Tensor | None = None
    others_source_BTK: Tensor | None = None
    """What the source of these tokens gives them: a teacher's top-k log-probs."""
    weights_BT: Tensor | None = None
    """The branches' `token_weights`; None where every token weighs 1."""

    @property
    def share_BT(self) -> Tensor:
        """`mask_BT`, with each token's own weight."""
        return self.mask_BT if self.weights_BT is None else self.mask_BT * self.weights_BT

    @property
    def value_BT(self) -> Tensor:
        """The log-odds of a reward model's two words at each place (`others` are these words)."""
        if self.others_BTK is None:
            raise ValueError("this loss reads values but does not declare needs={'words'}")
        return self.others_BTK[..., 0] - self.others_BTK[..., 1]

    @property
    def sum_B(self) -> Tensor:
        """Sequence log-prob."""
        return (self.logp_BT * self.mask_BT).sum(-1)

    @property
    def count_B(self) -> Tensor:
        """Trained tokens, at least 1."""
        return self.mask_BT.sum(-1).clamp(min=1)

    @property
    def ref_sum_B(self) -> Tensor:
        """Sequence log-prob under the reference. Raises if the loss did not declare it."""
        return (self.reference_BT * self.mask_BT).sum(-1)

    @property
    def reference_BT(self) -> Tensor:
        """`ref_BT`, where it is there. Raises if the loss did not declare it."""
        if self.ref_BT is None:
            raise ValueError(
                "this loss reads the reference but does not declare needs={'reference'}")
        return self.ref_BT

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
    index: tuple[int, ...] = ()
    """Places of these signals in the update."""
    update: tuple[AnySignal, ...] = ()
    """All N signals of the update."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """What the loss measured over the update before: name -> [N], NaN where it did not."""
    state: Mapping[str, float] = field(default_factory=dict)
    """What the loss carries from update to update."""


@dataclass(frozen=True)
class Others:
    """Which further tokens a loss wants scored at every place of a branch.

    The `k` most likely ones of the branch `source`, a same answer under another context, as the
    policy `version` ("current", "seed", "ema") sees it before the first update of the step.
    """

    branch: str
    source: str
    k: int
    version: str = "current"


class Policy(Protocol):
    """What the learner needs of a local model. Implemented by each local engine."""

    def rows(self, branch: Branch) -> list[Row]:
        """The branch as token sequences."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """An answer's token ids, end of turn included."""
        ...

    def logps(self, rows: list[Row], *, entropy: bool = False
              ) -> tuple[list[Tensor], list[Tensor] | None]:
        """For each row, its trained tokens' log-probs (1-D, float32, with graph when grad is
        enabled) after the row's temperature, suppressed tokens excluded from the normaliser exactly
        as in sampling; and their entropies if asked. One backward pass: the logits are spent in
        it, so a second one through the same graph raises. A row with `wide` gets a matrix instead
        (see `rows.Wide`)."""
        ...

    def weigh(self, row: Row) -> Weight:
        """What a row adds to a forward pass: micro-batches are planned by it."""
        ...

    def trainable(self) -> dict[str, Tensor]:
        """Name -> parameter that learns, in a fixed order."""
        ...
