"""Good and bad answers that need not come in pairs: KTO and BCO.

Both read pairs (`chosen` is good, `rejected` bad) and Advantage signals (the sign of `advantage`
says which `answer` is good), in one batch or apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.losses.sft import SFT
from selfloop.types import Advantage, AnySignal

_JUDGED = frozenset({"chosen", "rejected", "answer"})


def judged(batch: Any) -> Iterator[tuple[str, Any, Any]]:
    """(branch, implicit reward log pi - log pi_ref [B], +1 or -1 [B]) of every judged answer."""
    import torch

    if "answer" in batch.branches:
        sign_B = torch.tensor([_sign(s) for s in batch.signals]).to(batch.weight_B)
        yield "answer", batch.branches["answer"].ratio_B, sign_B
    else:
        for name, sign in (("chosen", 1.0), ("rejected", -1.0)):
            yield name, batch.branches[name].ratio_B, torch.full_like(batch.weight_B, sign)


def _sign(signal: AnySignal) -> float:
    return 1.0 if isinstance(signal, Advantage) and _number(signal) > 0 else -1.0


def _number(signal: Advantage) -> float:
    value = signal.advantage
    return sum(value) if isinstance(value, tuple) else value


def readable(signal: AnySignal) -> bool:
    """Pairs, and Advantage signals that are not zero."""
    if isinstance(signal, Advantage):
        return _number(signal) != 0
    return {"chosen", "rejected"} <= signal.branches.keys()


def answers(signals: Sequence[AnySignal], term: str) -> dict[str, float]:
    """Weighted judged answers: a pair has two."""
    return {term: sum(s.weight * (1 if isinstance(s, Advantage) else 2) for s in signals)}


@dataclass(frozen=True)
class KTO:
    """Kahneman-Tversky optimization (arXiv 2402.01306, eq. 7).

    lambda_D (1 - sigma(beta (h - z))) for good answers, lambda_U (1 - sigma(beta (z - h))) for bad
    ones; z = max(0, mean of h over the `mismatched` branches of the whole update), without
    gradient: answers to other prompts, an estimate of KL(pi || pi_ref) (the organizer
    `Desirability` makes them). centred=False sets z = 0, which is APO-zero (arXiv 2408.06266).
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0
    centred: bool = True

    @property
    def needs(self) -> frozenset[str]:
        """The mean over the update is taken before."""
        return frozenset({"reference"} | ({"statistics"} if self.centred else set()))

    reads = _JUDGED

    @property
    def measured(self) -> frozenset[str]:
        """Mismatched answers, for z."""
        return frozenset({"mismatched"} if self.centred else ())

    def accepts(self, signal: AnySignal) -> bool:
        """Pairs and signed advantages; with a `mismatched` branch where z is estimated."""
        return readable(signal) and (not self.centred or "mismatched" in signal.branches)

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted answers."""
        return answers(signals, "kto")

    def measure(self, batch: Any) -> dict[str, Any]:
        """h of the mismatched answers."""
        return {"kl": batch.branches["mismatched"].ratio_B}

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"kto": weighted sum over answers}."""
        import torch

        z = batch.whole["kl"].nanmean().clamp(min=0) if self.centred else 0.0
        total = batch.weight_B.new_zeros(())
        for _, h_B, sign_B in judged(batch):
            value_B = 1 - torch.sigmoid(self.beta * sign_B * (h_B - z))
            share_B = torch.where(sign_B > 0, self.desirable, self.undesirable)
            total = total + (share_B * value_B * batch.weight_B).sum()
        return {"kto": (1.0, total)}


@dataclass(frozen=True)
class BCO:
    """Binary classifier optimization (arXiv 2404.04656).

    -log sigma(beta h - delta) for good answers, -log sigma(-(beta h - delta)) for bad ones. delta
    is the mean of the good and of the bad rewards' means, a running average over updates with
    `decay` (0: this update's own); shifted=False sets delta = 0 (TRL, "bco_pair").
    """

    beta: float = 0.1
    shifted: bool = True
    decay: float = 0.9
    reads = _JUDGED

    @property
    def needs(self) -> frozenset[str]:
        """The rewards' means over the update are taken before."""
        return frozenset({"reference"} | ({"statistics"} if self.shifted else set()))

    def accepts(self, signal: AnySignal) -> bool:
        """Pairs and signed advantages."""
        return readable(signal)

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted answers."""
        return answers(signals, "bco")

    def measure(self, batch: Any) -> dict[str, Any]:
        """The rewards, good and bad apart."""
        import torch

        found: dict[str, Any] = {}
        for _, h_B, sign_B in judged(batch):
            for name, sign in (("good", 1.0), ("bad", -1.0)):
                here_B = torch.where(sign_B == sign, self.beta * h_B, torch.nan)
                found[name] = here_B if name not in found else torch.where(
                    here_B.isnan(), found[name], here_B)
        return found

    def adapt(self, state: Mapping[str, float], means: Mapping[str, float],
              whole: Mapping[str, Any]) -> dict[str, float]:
        """The running delta."""
        return {"delta": self._delta(state, whole)} if self.shifted else {}

    def _delta(self, state: Mapping[str, float], whole: Mapping[str, Any]) -> float:
        """Half the sum of both means; of the one that there is, where an update has one kind."""
        both = [float(m) for name in ("good", "bad")
                if name in whole and not (m := whole[name].nanmean()).isnan()]
        now = sum(both) / len(both) if both else 0.0
        return self.decay * state["delta"] + (1 - self.decay) * now if "delta" in state else now

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"bco": weighted sum over answers}."""
        from torch.nn.functional import logsigmoid

        delta = self._delta(batch.state, batch.whole) if self.shifted else 0.0
        total = batch.weight_B.new_zeros(())
        for _, h_B, sign_B in judged(batch):
            z_B = sign_B * (self.beta * h_B - delta)
            total = total - (logsigmoid(z_B) * batch.weight_B).sum()
        return {"bco": (1.0, total)}


def mpo(beta: float = 0.1, preference: float = 0.8, quality: float = 0.2, generation: float = 1.0
        ) -> Mix:
    """Mixed preference optimization (arXiv 2411.10442): DPO + BCO + the chosen's NLL.

    The weights are those of the released InternVL recipe.
    """
    return Mix(((preference, DPO(beta)), (quality, BCO(beta)), (generation, SFT("chosen"))))
