"""An organizer as a chain: refine the groups step by step, then make signals of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.roles import Organized, SelfloopError, call_by_name, check_call, name_of, parameters
from selfloop.types import AnySignal, Group

_MAKER = ("groups", "key", "answers", "rationales")


@dataclass(frozen=True)
class Chain:
    """`steps` map (groups[, state, key]) to groups, or to (groups, state update); then `maker`.

    The state (replay pools, running baselines) is JSON and kept with the run. What the steps
    learn for the next collection they leave in the state under "guidance".
    """

    steps: tuple[Callable[..., Any], ...] = ()
    maker: Callable[..., list[AnySignal]] | None = None
    wave: int = 0
    """Ask for more problems until so many groups, as they were judged, have answers that differ in
    score (DAPO's dynamic sampling, arXiv 2503.14476, eq. 11), up to `Loop.max_waves`; 0 = never."""

    def __post_init__(self) -> None:
        if self.maker is None:
            raise SelfloopError("Chain needs maker=: what makes signals of the groups")
        for step in self.steps:
            _takes_groups("step", step, (*_MAKER, "state"))
            if hasattr(step, "makes"):
                raise SelfloopError(f"step {name_of(step)} makes signals of the groups, which only "
                                    "the end of a chain does: give it as maker")
        _takes_groups("maker", self.maker, _MAKER)

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """What the maker makes."""
        return tuple(getattr(self.maker, "makes", ()))

    def wants(self, groups: Sequence[Group]) -> int:
        """How many more problems to draw in another wave."""
        if not self.wave:
            return 0
        useful = sum(1 for g in groups if len({round(s, 9) for _, s in g.scored()}) > 1)
        return max(0, self.wave - useful)

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any], key: str,
                 **gold: Any) -> Organized:
        """(signals, state, guidance)."""
        now: dict[str, Any] = dict(state)
        for i, step in enumerate(self.steps):
            found = call_by_name(step, groups=groups, state=now, key=f"{key}/{i}", **gold)
            groups, update = found if isinstance(found, tuple) else (found, {})
            _all("step", step, groups, Group)
            now |= update
        guidance = dict(now.pop("guidance", {}))
        assert self.maker is not None  # checked when built
        signals = call_by_name(self.maker, groups=groups, key=key, **gold)
        _all("maker", self.maker, signals, AnySignal)
        return signals, now, guidance


def _takes_groups(what: str, component: Any, offered: Sequence[str]) -> None:
    check_call(what, component, offered)
    named = parameters(component)
    if "groups" not in named and not any(p.kind is p.VAR_KEYWORD for p in named.values()):
        raise SelfloopError(f"{what} {name_of(component)} does not take `groups`, which a {what} "
                            "is there for")


def _all(what: str, component: Any, found: Any, kind: Any) -> None:
    """Refuse what is handed on in the place of groups or signals, where it comes from."""
    odd = [found] if not isinstance(found, list) else [x for x in found if not isinstance(x, kind)]
    if odd:
        wanted = "a list of groups, or (groups, state update)" if kind is Group \
            else "a list of signals"
        raise SelfloopError(f"{what} {name_of(component)} returned a {type(odd[0]).__name__} where "
                            f"{wanted} was expected")
