"""Self-distillation: match a teacher that saw more (primitives; SDFT arXiv 2601.19897).

The teacher is the same answer scored under the privileged `teacher` branch (with a hint, a gold
answer, a crop, a peer's solution) by the weights that `teacher` names: "current" (as they are
before the first update of the step), "seed", or "ema", their running average with decay `ema`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfloop.optimize.batch import Others
from selfloop.optimize.losses import counts
from selfloop.optimize.losses.divergences import BackwardKL, Divergence, among, with_rest
from selfloop.types import AnySignal, Distill


def _checked(teacher: str, ema: float | None) -> None:
    from selfloop.roles import SelfloopError

    counts.one_of("teacher", teacher, "current", "seed", "ema")
    if (teacher == "ema") != (ema is not None) or not 0 < (ema or 0.5) < 1:
        raise SelfloopError(f"teacher={teacher!r}, ema={ema}: teacher='ema' and a decay in (0, 1) "
                            "go together")


@dataclass(frozen=True)
class ReverseKL:
    """On-policy reverse KL on drawn tokens: token by token, the policy gradient of
    KL(student || teacher).

    Each drawn token has advantage log pi_teacher - log pi_student (no gradient). In expectation
    over on-policy draws it is the gradient of the sum over positions of the next-token KL, with
    the drawn prefixes held fixed (on-policy distillation, arXiv 2306.13649, section 3).
    """

    clip: float = 5.0
    """Bound on a token's advantage, so that one impossible token cannot dominate a step."""
    teacher: str = "current"
    ema: float | None = None
    needs: frozenset[str] = field(default=frozenset({"teacher"}), init=False)
    reads: frozenset[str] = field(default=frozenset({"student"}), init=False)

    def __post_init__(self) -> None:
        _checked(self.teacher, self.ema)

    def accepts(self, signal: AnySignal) -> bool:
        """Distill signals."""
        return isinstance(signal, Distill)

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted trained tokens of the student."""
        return counts.tokens(signals, tokens["student"], ("distill",))

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"distill": sum over tokens}."""
        scored = batch.branches["student"]
        gap_BT = (scored.teacher_BT - scored.logp_BT.detach()).clamp(-self.clip, self.clip)
        surrogate_BT = -gap_BT * scored.logp_BT * scored.mask_BT
        return {"distill": (1.0, (surrogate_BT * batch.weight_B[:, None]).sum())}


@dataclass(frozen=True)
class TopK:
    """A divergence over the teacher's k likeliest tokens at each place, with gradient through it.

    `rest` keeps all other tokens as one more class (the divergence is then a lower bound of the
    full one, and equal to it at k = vocabulary - 1); without it both are normalised over the k.
    `divergence`: BackwardKL (reverse), ForwardKL or JSD (GKD, arXiv 2306.13649, eq. 1).
    """

    k: int = 20
    divergence: Divergence = BackwardKL()
    rest: bool = True
    teacher: str = "current"
    ema: float | None = None
    needs: frozenset[str] = field(default=frozenset({"others"}), init=False)
    reads: frozenset[str] = field(default=frozenset({"student"}), init=False)

    def __post_init__(self) -> None:
        _checked(self.teacher, self.ema)

    @property
    def others(self) -> tuple[Others, ...]:
        """The teacher's likeliest tokens."""
        return (Others("student", "teacher", self.k, self.teacher),)

    def accepts(self, signal: AnySignal) -> bool:
        """Distill signals."""
        return isinstance(signal, Distill)

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted trained tokens of the student."""
        return counts.tokens(signals, tokens["student"], ("distill",))

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"distill": sum over tokens}."""
        scored = batch.branches["student"]
        whole = with_rest if self.rest else among
        real_BT = scored.mask_BT > 0
        apart_N = self.divergence(whole(scored.others_BTK[real_BT]),
                                  whole(scored.others_source_BTK[real_BT]))
        share_N = (scored.mask_BT * batch.weight_B[:, None])[real_BT]
        return {"distill": (1.0, (apart_N * share_N).sum())}
