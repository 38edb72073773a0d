"""The same answer under another picture, as a further branch of each signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.organize.refine.filters import converses
from selfloop.organize.signals import HERE, elsewhere
from selfloop.roles import SelfloopError, call_by_name
from selfloop.types import AnySignal, Group


@dataclass(frozen=True)
class Beside:
    """Adds the branch `name` to a maker's signals: the branch `of`, its pictures through `op`.

    PAPO's `masked` beside `answer`, V-DPO's `chosen_blind` beside `chosen`, mDPO's and POVID's
    `corrupted`. The answer's tokens and their temperature stay; only the pictures differ. Signals
    without pictures are left out, since there the two branches would be one, and so are
    conversations, whose later turns a changed picture does not fit; `keep` passes them
    on as they are, for a mixture whose other losses read them.
    """

    maker: Any
    name: str
    of: str
    op: str = "blank"
    severity: float = 1.0
    keep: bool = False

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """What the maker makes, with one more branch."""
        return tuple(s.model_copy(update={"branches": {**s.branches, self.name: HERE}})
                     for s in getattr(self.maker, "makes", ()))

    def __call__(self, groups: Sequence[Group], key: str, **gold: Any) -> list[AnySignal]:
        """The maker's signals, those that have pictures with one more branch. Raises
        SelfloopError where a signal has no branch `of`."""
        made: list[AnySignal] = call_by_name(self.maker, groups=groups, key=key, **gold)
        seen = [self.of not in s.branches or (bool(s.branches[self.of].context.media)
                                              and not converses(s.branches[self.of])) for s in made]
        return [self._with(s, f"{key}/{i}") if looks else s
                for i, (s, looks) in enumerate(zip(made, seen, strict=True)) if looks or self.keep]

    def _with(self, signal: AnySignal, key: str) -> AnySignal:
        if self.of not in signal.branches:
            raise SelfloopError(f"Beside({self.name!r}): a {signal.kind} of sample {signal.sample} "
                                f"has no branch {self.of!r}, only {sorted(signal.branches)}")
        branch = signal.branches[self.of]
        seen = branch.context.seen_as(tuple(
            m.with_op(self.op, self.severity, f"{key}/{j}")
            for j, m in enumerate(branch.context.media)))
        return signal.model_copy(update={
            "branches": {**signal.branches, self.name: elsewhere(seen, branch)}})
