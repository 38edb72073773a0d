"""Several makers of signals as one, each with its weight (primitives F13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.roles import SelfloopError, call_by_name
from selfloop.types import AnySignal, Group


@dataclass(frozen=True)
class Together:
    """The signals of all makers over the same groups; a part's weight multiplies its signals'.

    R3V (arXiv 2411.00855, section 3) mixes imitation, self-refinement and self-selection so. For
    different losses over one stream of signals see `optimize.losses.mix.Mix`.
    """

    parts: tuple[tuple[float, Callable[..., list[AnySignal]]], ...]

    def __post_init__(self) -> None:
        if not self.parts or any(weight <= 0 for weight, _ in self.parts):
            raise SelfloopError("Together: give at least one (weight, maker), weights above 0")

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """Whatever the parts make."""
        return tuple(s for _, maker in self.parts for s in getattr(maker, "makes", ()))

    def __call__(self, groups: Sequence[Group], key: str, **gold: Any) -> list[AnySignal]:
        """Part after part."""
        made: list[AnySignal] = []
        for i, (weight, maker) in enumerate(self.parts):
            signals = call_by_name(maker, groups=groups, key=f"{key}/{i}", **gold)
            made += [s.model_copy(update={"weight": s.weight * weight}) for s in signals]
        return made
