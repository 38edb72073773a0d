"""One decoding step of a model as a flat list of torch operations, for any number of rows.

The model's own code is run once on a made-up step, and every operation is written down; attention
becomes one call of the cache layer that is there when the list is run. What is left out is Python
alone (modules, keyword arguments, masks without effect), so the numbers are the model's own, bit
by bit; hf_recorded.py compares them and decides when any of this is done.

Rows are counted by a prime that divides no weight's size: integers of the list that are multiples
of it are multiples of the number of rows. Weights are handed in at every call, as they are then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selfloop.engines.hf_cache import Decoding, Step
from selfloop.engines.hf_step_graph import ATTEND, LENGTH, Writer
from selfloop.optimize import masks
from selfloop.optimize.checkpointing import answering
from selfloop.optimize.fork import BranchCache, BranchKeys, forking
from selfloop.optimize.positions import spread

_PRIMES = (37, 41, 43, 47, 53, 59, 61, 67, 71, 79, 83, 89, 97)


@dataclass(frozen=True)
class Recording:
    """A step that can be run again."""

    code: Callable[..., torch.Tensor]
    weights: tuple[torch.Tensor, ...]
    masks: tuple[Callable[..., Any], ...]
    """The model's rules of what a token may see, beside causality (windows)."""

    def __call__(self, ids_1N: torch.Tensor, place: torch.Tensor, cache: BranchCache, fork: Step
                 ) -> torch.Tensor:
        """Logits [N, V]; keys and values join the cache."""
        visible: list[Any] = [None]
        if self.masks:
            with forking(fork):
                visible += [masks.mask(mask_function=rule) for rule in self.masks]
        return self.code(ids_1N, place, ids_1N.shape[1], cache.layers, fork, visible,
                         *self.weights)


def record(model: Any, decoding: Decoding, id_: int, place: int, dimensions: int) -> Recording:
    """The step of rows that each run token `id_` at position `place`.

    Raises whatever the model does when it looks at numbers, and NotImplementedError for all that
    could be different at another step.
    """
    sizes = {size for p in model.parameters() for size in p.shape}
    rows = next(n for n in _PRIMES if not any(size % n == 0 for size in sizes))
    fork = _Standing(decoding.fork.blocks, [1] * rows, decoding.device)
    cache = BranchCache(fork, torch.zeros(0), keys=_StandingKeys, grows=True)
    for i, layer in enumerate(cache.layers):
        layer.place = i

    def step(ids_1N: torch.Tensor, place: torch.Tensor) -> Any:
        with tracer:
            out = model(input_ids=ids_1N, position_ids=place, past_key_values=cache,
                        use_cache=True)
            return out.logits.flatten(0, 1)

    ids_1N, place_1N = (torch.full((1, rows), x, device=decoding.device) for x in (id_, place))
    inputs = ids_1N, spread(place_1N, dimensions)
    tracer = _Tracer(inputs, [*model.parameters(), *model.buffers()])
    with torch.no_grad(), answering(model, fork):
        # Functionalised: what the model writes in place is written anew; a weight is refused.
        logits_NV = torch.func.functionalize(step, remove="mutations")(*inputs)
    tracer.end(logits_NV)
    graph = Writer(tracer.graph, rows).written(len(tracer.weights))
    code: Any = torch.fx.GraphModule(torch.nn.Module(), graph)
    return Recording(code.forward, tuple(tracer.weights), tuple(fork.rules))


# -- what stands in for a step's surroundings ---------------------------------------------------

class _Standing(Step):
    """A fork that notes the masks it is asked for, of a length that can be told."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.rules: list[Callable[..., Any]] = []

    @property
    def longest(self) -> int:
        """See LENGTH."""
        return LENGTH

    def note(self, rule: Callable[..., Any]) -> torch.Tensor:
        """A mask to be passed on to attention untouched."""
        _need_plain(rule)
        self.rules.append(rule)
        mask: Any = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        mask.number = len(self.rules)
        return mask  # type: ignore[no-any-return]


class _StandingKeys(BranchKeys):
    """A layer whose attention is one operation of the list."""

    place = 0

    def attend(self, q_NHD: Any, k_NKD: Any, v_NKD: Any, fork: Any, scale: float, visible: Any,
               softcap: float | None) -> Any:
        """[N, H, D] of nothing."""
        number = getattr(visible, "number", 0)
        if visible is not None and not number:
            raise NotImplementedError("the model changes its masks")
        return ATTEND(q_NHD, k_NKD, v_NKD, self.place, scale, number, softcap)


def _need_plain(rule: Any) -> None:
    """A mask's rule that is made of numbers and other such rules is the same at every step."""
    if isinstance(rule, FunctionType):
        rule = [cell.cell_contents for cell in rule.__closure__ or ()]
    if isinstance(rule, list | tuple):
        for part in rule:
            _need_plain(part)
    elif not isinstance(rule, int | float | str | None):
        raise NotImplementedError(f"a mask that depends on a {type(rule).__name__}")


_Mode: Any = TorchDispatchMode


class _Tracer(_Mode):  # type: ignore[misc]
    """Writes down the operations that are run in it as a torch.fx graph.

    Refuses operations that may do something else the next time, and tensors of unknown origin.
    """

    def __init__(self, inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.graph = torch.fx.Graph()
        self.known = {id(x) for x in weights}
        self.weights: list[torch.Tensor] = []
        self.nodes: dict[int, Any] = {}
        self.kept: list[torch.Tensor] = []
        """All tensors so far: an address is not used twice."""
        for i, x in enumerate(inputs):
            self._bind(x, self.graph.placeholder(f"given_{i}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it and write it down, or raise NotImplementedError."""
        if func._schema.is_mutable:
            raise NotImplementedError(f"{func} writes in place")
        for tag in (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape,
                    torch.Tag.nondeterministic_seeded):
            if tag in func.tags:
                raise NotImplementedError(f"{func}: {str(tag).removeprefix('Tag.')}")
        out = func(*args, **(kwargs or {}))
        self._bind(out, self.graph.call_function(
            func, tuple(map(self._node, args)),
            {name: self._node(x) for name, x in (kwargs or {}).items()}))
        return out

    def end(self, out: torch.Tensor) -> None:
        """What the graph gives."""
        self.graph.output(self._node(out))
        self.graph.eliminate_dead_code()

    def _bind(self, x: Any, node: Any) -> None:
        if isinstance(x, torch.Tensor):
            self.nodes[id(x)] = node
            self.kept.append(x)
            node.meta["shape"] = tuple(x.shape)
        elif isinstance(x, list | tuple):
            for i, part in enumerate(x):
                self._bind(part, self.graph.call_function(operator.getitem, (node, i)))

    def _node(self, x: Any) -> Any:
        """An argument, its tensors as nodes."""
        if isinstance(x, list | tuple):
            return tuple(map(self._node, x))
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) not in self.nodes:
            if id(x) not in self.known:
                raise NotImplementedError(f"a tensor {list(x.shape)} that is no weight")
            self._bind(x, self.graph.get_attr(str(len(self.weights))))
            self.weights.append(x)
        return self.nodes[id(x)]
