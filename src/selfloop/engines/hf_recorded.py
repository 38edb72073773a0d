"""When decoding steps are run from a recording (hf_step_trace.py), not through the model's code.

A recording is compared with the model's own step, bit by bit, at each new number of rows, at each
new length of the longest prompt and at each doubling of the step. Where a bit differs, or anything
is unusual, it is given up and `why_not` says so. A draw is the same whichever way its steps are
run, so a run that was killed may record at another moment.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.modules import module as module_hooks

from selfloop.engines.hf_step_trace import Recording, record
from selfloop.optimize.memory import out_of_memory

AFTER = 64
"""Steps that are run by the model's code before one is recorded. Recording costs about as much as
it saves in this many steps, whatever the model: both grow with the layers."""


@dataclass
class Recorder:
    """One model's recordings."""

    model: Any
    on: bool = True
    """Whether steps may be recorded."""
    after: int = AFTER
    why_not: str = ""
    """Why steps are run by the model's code for good; "" while they may be recorded."""
    not_now: str = ""
    """The same of the last draw alone."""
    eager: int = 0
    """Steps run so far by the model's code."""
    recorded: int = 0
    """Steps run so far from a recording alone."""
    made: dict[Hashable, Recording] = field(default_factory=dict)
    due: dict[Hashable, int] = field(default_factory=dict)
    """(recording, rows or "prompt", number) -> step from which on both are compared again."""
    parts: list[Any] = field(default_factory=list)
    """The modules and tensors that the recordings are of."""

    @property
    def says(self) -> str:
        """Why the last draw's steps were all run by the model's code; "" if they were not."""
        return self.why_not or self.not_now or ("" if self.made else "too few so far")

    def of(self, state: Any) -> Any:
        """How the steps of a `Forked` are run: a callable of (ids, places); None: as they are."""
        if not self.on or self.why_not:
            return None
        if state.alone or not state.light:
            self.why_not = "layers keep a state" if state.alone else "weights are sharded"
            return None
        modules = list(self.model.modules())
        self.not_now = _unusual(state, modules)
        if self.not_now:
            return None
        parts = [*modules, *self.model.parameters(), *self.model.buffers()]
        if list(map(id, parts)) != list(map(id, self.parts)):
            self.made, self.due, self.parts = {}, {}, parts
        return partial(self._run, (state.dimensions, *_worn(modules)), state)

    def _run(self, key: Hashable, state: Any, ids: torch.Tensor, place: torch.Tensor
             ) -> torch.Tensor:
        """Logits [N, V] of one step."""
        if not self.why_not and key not in self.made and self.eager >= self.after:
            self._record(key, state, ids, place)
        recording = self.made.get(key)
        if self.why_not or recording is None:
            self.eager += 1
            return state.run(ids, place)  # type: ignore[no-any-return]
        fork = state.decoding.fork
        rows, prompt = (key, "rows", ids.shape[1]), (key, "prompt", fork.longest)
        found: Any = None
        try:
            with torch.inference_mode():
                found = recording(ids, place, state.decoding.cache, fork)
        except Exception as error:
            self._give_up(error)
        if found is not None and prompt in self.due and fork.step < self.due.get(rows, 0):
            self.recorded += 1
            return found  # type: ignore[no-any-return]
        # After the recording, whose keys and values it writes over: a wrong one leaves no trace.
        expected: torch.Tensor = state.run(ids, place)
        self.due |= {rows: 2 * fork.step + 2, prompt: 0}
        if found is not None and not _equal(found, expected):
            self.why_not = "a recorded step differs from the model's own"
            self.made = {}
        return expected

    def _record(self, key: Hashable, state: Any, ids: torch.Tensor, place: torch.Tensor) -> None:
        try:
            self.made[key] = record(self.model, state.decoding, int(ids[0, 0]),
                                    int(place.flatten()[0]), state.dimensions)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Whatever it is, the model's own code is right. Memory that ran out is raised."""
        if out_of_memory(error):
            raise error
        lines = str(error).strip().splitlines() or [""]
        self.why_not, self.made = f"{type(error).__name__}: {lines[0][:200]}", {}


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Every bit of every number (not-a-number included) but the sign of zero."""
    return a.dtype == b.dtype and a.shape == b.shape \
        and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _unusual(state: Any, modules: list[Any]) -> str:
    """Why this draw is none for a recording; "" if it is."""
    if any(state.blinds):
        return "pictures are hidden"
    if torch.is_autocast_enabled(state.device.type):
        return "autocast is on"
    if any(m.training for m in modules):
        return "the model is in train mode"
    everywhere = module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks
    foreign = everywhere or any(map(_foreign, modules))
    return "somebody else's hooks are on the model" if foreign else ""


def _foreign(module: Any) -> list[Any]:
    """Hooks on a module; transformers' own, which note outputs that are asked for, are none."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return [hook for hook in hooks
            if getattr(hook, "__module__", "") != "transformers.utils.output_capturing"]


@dataclass(frozen=True, eq=False)
class _This:
    """An object that is equal to itself alone. It is kept: an id would be given to another one
    once it is gone."""

    it: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _This) and other.it is self.it

    def __hash__(self) -> int:
        return id(self.it)


def _worn(modules: list[Any]) -> tuple[Hashable, ...]:
    """What code of modules depends on besides their tensors: forwards put in from outside, and
    which adapters are on, and how strongly."""
    found: list[Hashable] = [_This(m.__dict__["forward"]) for m in modules
                             if "forward" in m.__dict__]
    for m in modules:
        if "_active_adapter" in m.__dict__ or hasattr(type(m), "active_adapters"):
            scaling = getattr(m, "scaling", None)
            found.append((str(getattr(m, "active_adapters", "")),
                          bool(getattr(m, "disable_adapters", False)),
                          str(getattr(m, "merged_adapters", "")),
                          str(sorted(scaling.items())) if isinstance(scaling, dict) else ""))
    return tuple(found)
