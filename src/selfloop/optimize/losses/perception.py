"""Reinforce looking: the answer shall become less likely when the picture is masked (PAPO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.optimize.losses import counts
from selfloop.optimize.losses.surrogates import k3
from selfloop.roles import SelfloopError
from selfloop.types import Advantage, AnySignal


@dataclass(frozen=True)
class Perception:
    """-gamma KL(pi(.|x) || pi(.|x masked)) + entropies of both passes (PAPO, arXiv 2507.06448).

    The k3 estimate at the answer's own tokens, d = log pi(masked) - log pi; the branch `masked` is
    the answer under the masked picture. Both entropies are pushed *down* by `entropy`: maximising
    the divergence alone would make the policy random. `cap` bounds a token's divergence; `wrong`
    weighs that of answers with a negative advantage (the released code has .1 as an option). Stands
    beside a policy loss in a Mix: Mix(((1.0, GRPO()), (1.0, Perception()))).
    """

    gamma: float = 0.01
    entropy: float = 0.03
    cap: float | None = None
    wrong: float = 1.0
    fade: tuple[int, int] | None = None
    """Updates (first, last) between which gamma falls linearly to 0; None: it stays."""

    reads = frozenset({"answer", "masked"})

    def __post_init__(self) -> None:
        if self.fade is not None and not 0 <= self.fade[0] < self.fade[1]:
            raise SelfloopError(f"Perception(fade={self.fade}): expected two numbers of updates, "
                                "0 <= first < last")

    @property
    def needs(self) -> frozenset[str]:
        """Entropies, when they weigh."""
        return frozenset({"entropy"} if self.entropy else set())

    def accepts(self, signal: AnySignal) -> bool:
        """Advantages with a `masked` branch."""
        return isinstance(signal, Advantage) and "masked" in signal.branches

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted trained tokens."""
        terms = ("perception", *(("seen", "unseen") if self.entropy else ()))
        return counts.tokens(signals, tokens["answer"], terms)

    def adapt(self, state: Mapping[str, float], means: Mapping[str, float],
              whole: Mapping[str, Any]) -> dict[str, float]:
        """The number of updates so far, where gamma fades."""
        return {} if self.fade is None else {"updates": state.get("updates", 0.0) + 1}

    def gamma_at(self, updates: float) -> float:
        """Gamma after so many updates."""
        if self.fade is None:
            return self.gamma
        first, last = self.fade
        return self.gamma * min(1.0, max(0.0, (last - updates) / (last - first)))

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"perception": ..., and the entropies "seen" and "unseen"}."""
        seen, unseen = batch.branches["answer"], batch.branches["masked"]
        share_BT = seen.mask_BT * batch.weight_B[:, None]
        apart_BT = k3(unseen.logp_BT - seen.logp_BT)
        if self.cap is not None:
            apart_BT = apart_BT.clamp(max=self.cap)
        if self.wrong != 1:
            apart_BT = apart_BT * (1 - (1 - self.wrong) * (batch.advantage_BT < 0))
        gamma = self.gamma_at(batch.state.get("updates", 0.0))
        terms = {"perception": (-gamma, (apart_BT * share_BT).sum())}
        if self.entropy:
            terms["seen"] = (self.entropy, (seen.entropy_BT * share_BT).sum())
            terms["unseen"] = (self.entropy, (unseen.entropy_BT * share_BT).sum())
        return terms
