"""Reward models, outcome and process (primitives L24), trained by the same learner.

A reward is the log-odds of two words at a trained place, log pi(good) - log pi(bad): a language
model is its own reward head (Math-Shepherd, arXiv 2312.08935, does so for steps). A branch is the
judging prompt with the answer in it, answered by the good word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfloop.optimize.losses import counts
from selfloop.types import Advantage, AnySignal


@dataclass(frozen=True)
class BradleyTerry:
    """-log sigma(r(y+) - r(y-) - margin) + centre (r(y+) + r(y-))^2 (InstructGPT, arXiv 2203.02155,
    eq. 1; margin: Llama 2, arXiv 2307.09288, eq. 2; centring: arXiv 2312.09244, eq. 2).

    r is the value at the first trained token of `chosen` and `rejected`.
    """

    words: tuple[str, str] = ("yes", "no")
    centre: float = 0.0
    needs: frozenset[str] = field(default=frozenset({"words"}), init=False)
    reads: frozenset[str] = field(default=frozenset({"chosen", "rejected"}), init=False)

    def accepts(self, signal: AnySignal) -> bool:
        """Pairs."""
        return self.reads <= signal.branches.keys()

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The pairs' weights."""
        return counts.weights(signals, "rank", *(("centre",) if self.centre else ()))

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"rank": ..., "centre": ...}."""
        from torch.nn.functional import logsigmoid

        better_B, worse_B = (batch.branches[name].value_BT[:, 0] for name in ("chosen", "rejected"))
        found_B = -logsigmoid(better_B - worse_B - batch.margin_B)
        terms = {"rank": (1.0, (found_B * batch.weight_B).sum())}
        if self.centre:
            off_B = (better_B + worse_B) ** 2
            terms["centre"] = (self.centre, (off_B * batch.weight_B).sum())
        return terms


@dataclass(frozen=True)
class StepBCE:
    """Binary cross-entropy of each step's value (process rewards, arXiv 2305.20050).

    Reads Advantage signals, whose `advantage` is the labels, numbers in [0, 1]: one for each
    trained token of `answer` (the places of a mark; the other tokens have loss_mask 0), or a single
    number, the label of the first trained token (a reply to a question about one step).
    """

    words: tuple[str, str] = ("yes", "no")
    needs: frozenset[str] = field(default=frozenset({"words"}), init=False)
    reads: frozenset[str] = field(default=frozenset({"answer"}), init=False)

    def accepts(self, signal: AnySignal) -> bool:
        """Advantages whose numbers are labels."""
        if not isinstance(signal, Advantage):
            return False
        labels = signal.advantage if isinstance(signal.advantage, tuple) else (signal.advantage,)
        return all(0 <= x <= 1 for x in labels)

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted steps."""
        found = [n if _is_one_a_token(s) else min(n, 1)
                 for s, n in zip(signals, tokens["answer"], strict=True)]
        return counts.tokens(signals, found, ("step",))

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"step": sum over steps}."""
        from torch.nn.functional import binary_cross_entropy_with_logits as bce

        scored = batch.branches["answer"]
        mask_BT = scored.mask_BT.clone()
        for signal, mask_T in zip(batch.signals, mask_BT, strict=True):
            if not _is_one_a_token(signal):
                mask_T[1:] = 0
        found_BT = bce(scored.value_BT, batch.advantage_BT, reduction="none")
        return {"step": (1.0, (found_BT * mask_BT * batch.weight_B[:, None]).sum())}


def _is_one_a_token(signal: Any) -> bool:
    return isinstance(signal.advantage, tuple)
