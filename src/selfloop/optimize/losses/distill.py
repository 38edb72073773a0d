"""Self-distillation: match a teacher that saw more (primitives; SDFT arXiv 2601.19897)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfloop.types import AnySignal, Distill


@dataclass(frozen=True)
class ReverseKL:
    """On-policy reverse KL on drawn tokens: token by token, the policy gradient of
    KL(student || teacher).

    Each drawn token has advantage log pi_teacher - log pi_student (no gradient), where the
    teacher is the same answer scored under the privileged `teacher` branch. In expectation over
    on-policy draws it is the gradient of the sum over positions of the next-token KL, with the
    drawn prefixes held fixed (on-policy distillation, arXiv 2306.13649, section 3).
    """

    clip: float = 5.0
    """Bound on a token's advantage, so that one impossible token cannot dominate a step."""
    needs: frozenset[str] = field(default=frozenset({"teacher"}), init=False)

    def accepts(self, signal: AnySignal) -> bool:
        """Distill signals."""
        return isinstance(signal, Distill)

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted trained tokens of the student."""
        return {"distill": sum(s.weight * n for s, n in
                               zip(signals, tokens["student"], strict=True))}

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"distill": sum over tokens}."""
        scored = batch.branches["student"]
        gap_BT = (scored.teacher_BT - scored.logp_BT.detach()).clamp(-self.clip, self.clip)
        surrogate_BT = -gap_BT * scored.logp_BT * scored.mask_BT
        return {"distill": (1.0, (surrogate_BT * batch.weight_B[:, None]).sum())}
