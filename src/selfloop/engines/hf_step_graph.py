"""One decoding step of a model as a flat list of torch operations, for any number of rows.

The model's own code is run once on a made-up step, by torch.fx, with attention left out: it
becomes one call of the cache layer that is there when the list is run (`DecodingKeys.attend`).
What is left out with it is Python alone (modules, hooks, keyword arguments), so the numbers are
the model's own, bit by bit; hf_recorded.py compares them and decides when any of this is done.

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
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from selfloop.engines.hf_cache import Decoding, Step
from selfloop.optimize import attend
from selfloop.optimize.checkpointing import answering
from selfloop.optimize.fork import BranchCache, BranchKeys, forking
from selfloop.optimize.positions import spread

_LENGTH = 10007
"""The prompt's length while a step is recorded: an integer that comes of it is not recorded."""
_PRIMES = (37, 41, 43, 47, 53, 59, 61, 67, 71, 79, 83, 89, 97)

_Library: Any = torch.library.Library
_library = _Library("selfloop", "FRAGMENT")
_library.define("attend(Tensor q_NHD, Tensor k_NKD, Tensor v_NKD, int layer, float scale, "
                "int mask, float? softcap) -> Tensor")


def _stands_in(q_NHD: Any, k_NKD: Any, v_NKD: Any, *_: Any) -> Any:
    """Attention's shape."""
    return q_NHD.new_zeros(*q_NHD.shape[:2], v_NKD.shape[2])


_library.impl("attend", _stands_in, "CompositeExplicitAutograd")
_ATTEND: Any = torch.ops.selfloop.attend.default


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
                visible += [attend.mask(mask_function=rule) for rule in self.masks]
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
        with _Strict():
            out = model(input_ids=ids_1N, position_ids=place, past_key_values=cache,
                        use_cache=True)
            return out.logits.flatten(0, 1)

    ids_1N, place_1N = (torch.full((1, rows), x, device=decoding.device) for x in (id_, place))
    with torch.no_grad(), answering(model, fork):
        # Functionalised: what the model writes in place is written anew; a weight would be refused.
        traced = make_fx(torch.func.functionalize(step, remove="mutations"))(
            ids_1N, spread(place_1N, dimensions))
    traced.graph.eliminate_dead_code()
    known = {id(x) for x in (*model.parameters(), *model.buffers())}
    graph, weights = _Writer(traced, rows, known).written()
    code: Any = torch.fx.GraphModule(torch.nn.Module(), graph)
    return Recording(code.forward, weights, tuple(fork.rules))


# -- what stands in for a step's surroundings ---------------------------------------------------

class _Standing(Step):
    """A fork that notes the masks it is asked for, of a length that can be told."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.rules: list[Callable[..., Any]] = []

    @property
    def longest(self) -> int:
        """See _LENGTH."""
        return _LENGTH

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
        return _ATTEND(q_NHD, k_NKD, v_NKD, self.place, scale, number, softcap)


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


class _Strict(_Mode):  # type: ignore[misc]
    """Refuses operations that may do something else the next time."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, or raise NotImplementedError."""
        if func._schema.is_mutable:
            raise NotImplementedError(f"{func} writes in place")
        for tag in (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape,
                    torch.Tag.nondeterministic_seeded):
            if tag in func.tags:
                raise NotImplementedError(f"{func}: {str(tag).removeprefix('Tag.')}")
        return func(*args, **(kwargs or {}))


# -- the list -----------------------------------------------------------------------------------

_BOUND: dict[str, Any] = {
    "mul.Tensor": operator.mul, "add.Tensor": operator.add, "sub.Tensor": operator.sub,
    "div.Tensor": operator.truediv, "neg.default": torch.neg, "rsqrt.default": torch.rsqrt,
    "pow.Tensor_Scalar": torch.pow, "mean.dim": torch.mean, "cos.default": torch.cos,
    "sin.default": torch.sin, "tanh.default": torch.tanh, "sigmoid.default": torch.sigmoid,
    "silu.default": torch._C._nn.silu, "gelu.default": torch._C._nn.gelu, "cat.default": torch.cat,
    "mm.default": torch.mm, "addmm.default": torch.addmm, "bmm.default": torch.bmm,
    "transpose.int": torch.transpose, "unsqueeze.default": torch.unsqueeze,
    "squeeze.dim": torch.squeeze, "select.int": torch.select, "permute.default": torch.permute,
    "split_with_sizes.default": torch.split_with_sizes, "embedding.default": torch.embedding,
    "native_layer_norm.default": torch.native_layer_norm}
"""aten's operations by bindings that cost less than torch.ops', and mean the same."""


_SIGNS = (operator.mul, operator.add, operator.sub, operator.truediv)


class _Writer:
    """Writes a traced step anew: for any number of rows, and as few calls as can be."""

    def __init__(self, traced: Any, rows: int, known: set[int]) -> None:
        self.traced, self.rows, self.known = traced, rows, known
        self.graph = torch.fx.Graph()
        self.new: dict[Any, Any] = {}
        self.old: dict[Any, Any] = {}
        """The traced node of each node that was written."""
        self.same: dict[Any, Any] = {}
        """Nodes by what they compute: nothing is written over, so equal calls are equal."""

    def written(self) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """(graph of ids, places, n, layers, fork, masks, *weights; the weights)."""
        nodes = list(self.traced.graph.nodes)
        for node in nodes:
            if node.op == "placeholder":
                self.new[node] = self.graph.placeholder(node.name)
        self.n, self.layers, self.fork, self.masks = (
            self.graph.placeholder(name) for name in ("n", "layers", "fork", "masks"))
        weights = self._weights([node for node in nodes if node.op == "get_attr"])
        for node in nodes:
            if node.op == "call_function":
                found = self._call(node)
                self.new[node] = found
                self.old.setdefault(found, node)
            elif node.op == "output":
                self.graph.output(self._given(node.args[0]))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return self.graph, weights

    def _weights(self, nodes: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """Parameters and buffers, each handed in once."""
        found: dict[int, Any] = {}
        weights: list[torch.Tensor] = []
        for node in nodes:
            tensor = getattr(self.traced, node.target)
            if id(tensor) not in self.known:
                raise NotImplementedError(f"a tensor {list(tensor.shape)} that is no weight")
            if id(tensor) not in found:
                found[id(tensor)] = self.graph.placeholder(f"w{len(weights)}")
                weights.append(tensor)
            self.new[node] = found[id(tensor)]
        return tuple(weights)

    def _given(self, x: Any) -> Any:
        """An argument, with numbers of rows as they will be."""
        if isinstance(x, torch.fx.Node):
            return self.new[x]
        if isinstance(x, list | tuple):
            return tuple(self._given(part) for part in x)
        if type(x) is int and _LENGTH - 2 <= abs(x) <= _LENGTH + 2 * self.rows:
            raise NotImplementedError("the prompt's length enters the step")
        if type(x) is int and x > 0 and x % self.rows == 0:
            times = x // self.rows
            return self.n if times == 1 else self._once(operator.mul, self.n, times)
        return x

    def _once(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, or the node that makes it already."""
        key = (target, args, tuple(kwargs.items()))
        if key not in self.same:
            make = self.graph.call_method if isinstance(target, str) else self.graph.call_function
            self.same[key] = make(target, args, kwargs)
        return self.same[key]

    def _call(self, node: Any) -> Any:
        """One traced call as it is written."""
        target, name = node.target, str(node.target).removeprefix("aten.")
        args, kwargs = self._given(node.args), {k: self._given(v) for k, v in node.kwargs.items()}
        if target is _ATTEND:
            layer, scale, mask, softcap = node.args[3:]  # whatever numbers these are
            lender = self._once(operator.getitem, self.layers, layer)
            visible = self._once(operator.getitem, self.masks, mask)
            out = self.graph.call_method(
                "attend", (lender, *args[:3], self.fork, scale, visible, softcap))
            return self.graph.call_method("contiguous", (out,))
        if target is operator.getitem or (kwargs and _BOUND.get(name) in _SIGNS):
            return self._once(target, *args, **kwargs)
        if name in ("view.default", "_unsafe_view.default"):
            return self._view(node, *args)
        if name == "slice.Tensor":
            return self._slice(node, *args)
        if name in ("detach.default", "alias.default"):
            return args[0]
        if name == "expand.default" and not kwargs:
            return self._once("expand", *args)
        if name in ("mm.default", "addmm.default") and not kwargs \
                and str(node.args[-1].target) == "aten.t.default":
            weight = self.new[node.args[-1].args[0]]
            return self._once(torch._C._nn.linear, args[-2], weight, *args[:-2])
        return self._once(_BOUND.get(name, target), *args, **kwargs)

    def _view(self, node: Any, source: Any, shape: Any) -> Any:
        """A view of a view is one of what lies beneath; of the same shape, it is that."""
        while source.op == "call_method" and source.target == "view":
            source = source.args[0]
        if source in self.old and _shape(self.old[source]) == _shape(node):
            return source
        return self._once("view", source, shape)

    def _slice(self, node: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None,
               step: int = 1) -> Any:
        """A stretch, counted from the front."""
        size = _shape(node.args[0])[dim]
        given = [x for x in node.args[2:4] if x is not None]
        if step != 1 or size % self.rows == 0 or any(x and x % self.rows == 0 for x in given):
            return self._once(node.target, source, dim, start, end, step)
        first, last, _ = slice(start, end).indices(size)
        return source if (first, last) == (0, size) else \
            self._once(torch.narrow, source, dim, first, last - first)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)
