"""An organizer as a chain: refine the groups step by step, then make signals of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.roles import Organized, SelfloopError, call_by_name, check_call, name_of
from selfloop.types import AnySignal, Group

GOLD = ("answers", "rationales")


@dataclass(frozen=True)
class Chain:
    """`steps` map (groups[, state, key]) to groups, or to (groups, state update); then `maker`.

    The state (replay pools, running baselines) is JSON and kept with the run. What the steps
    learn for the next collection they leave in the state under "guidance".
    """

    steps: tuple[Callable[..., Any], ...] = ()
    maker: Callable[..., list[AnySignal]] | None = None
    wave: int = 0
    """Ask for more problems until the maker made at least so many signals (DAPO's dynamic
    sampling, arXiv 2503.14476, eq. 11); 0 = never."""

    def __post_init__(self) -> None:
        if self.maker is None:
            raise SelfloopError("Chain needs maker=: what makes signals of the groups")
        for step in self.steps:
            check_call("step", step, ("groups", "state", "key", *GOLD))
            if hasattr(step, "makes"):
                raise SelfloopError(f"step {name_of(step)} makes signals: give it as the maker, of "
                                    "which there is one, and steps before it")
        check_call("maker", self.maker, ("groups", "key", *GOLD))

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """What the maker makes."""
        return tuple(getattr(self.maker, "makes", ()))

    def wants(self, groups: Sequence[Group]) -> int:
        """How many more problems to draw in another wave."""
        if not self.wave:
            return 0
        useful = sum(1 for g in groups if len({s for _, s in g.scored()}) > 1)
        return max(0, self.wave - useful)

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any], key: str,
                 **gold: Any) -> Organized:
        """(signals, state, guidance)."""
        now: dict[str, Any] = dict(state)
        for i, step in enumerate(self.steps):
            found = call_by_name(step, groups=groups, state=now, key=f"{key}/{i}", **gold)
            groups, update = found if isinstance(found, tuple) else (found, {})
            now |= update
        guidance = dict(now.pop("guidance", {}))
        assert self.maker is not None  # checked when built
        return call_by_name(self.maker, groups=groups, key=key, **gold), now, guidance
