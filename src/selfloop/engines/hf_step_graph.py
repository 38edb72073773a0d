"""A traced decoding step, written anew: for any number of rows, and with as few calls as can be.

Only what gives the very same bits: a view of a view is one view, equal calls are one call, a
product with a turned weight is torch's linear, and operations are called by bindings that cost
less. Attention becomes `DecodingKeys.attend` of the layer that is there when the step is run.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

LENGTH = 10007
"""The prompt's length while a step is recorded: an integer that comes of it is not recorded."""

_Library: Any = torch.library.Library
_library = _Library("selfloop", "FRAGMENT")
_library.define("attend(Tensor q_NHD, Tensor k_NKD, Tensor v_NKD, int layer, float scale, "
                "int mask, float? softcap) -> Tensor")


def _stands_in(q_NHD: Any, k_NKD: Any, v_NKD: Any, *_: Any) -> Any:
    """Attention's shape."""
    return q_NHD.new_zeros(*q_NHD.shape[:2], v_NKD.shape[2])


_library.impl("attend", _stands_in, "CompositeExplicitAutograd")
ATTEND: Any = torch.ops.selfloop.attend.default
"""Attention as it stands in a traced step: of a cache layer, under a mask, both by number."""


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


class Writer:
    """Writes a traced step anew."""

    def __init__(self, traced: Any, rows: int) -> None:
        self.traced, self.rows = traced, rows
        self.graph = torch.fx.Graph()
        self.new: dict[Any, Any] = {}
        self.old: dict[Any, Any] = {}
        """The traced node of each node that was written."""
        self.same: dict[Any, Any] = {}
        """Nodes by what they compute: nothing is written over, so equal calls are equal."""

    def written(self, weights: int) -> Any:
        """The graph of ids, places, n, layers, fork, masks, *weights."""
        nodes = list(self.traced.nodes)
        for node in nodes:
            if node.op == "placeholder":
                self.new[node] = self.graph.placeholder(node.name)
        self.n, self.layers, self.fork, self.masks = (
            self.graph.placeholder(name) for name in ("n", "layers", "fork", "masks"))
        handed = [self.graph.placeholder(f"w{i}") for i in range(weights)]
        for node in nodes:
            if node.op == "get_attr":
                self.new[node] = handed[int(node.target)]
            elif node.op == "call_function":
                found = self._call(node)
                self.new[node] = found
                self.old.setdefault(found, node)
            elif node.op == "output":
                self.graph.output(self._given(node.args[0]))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return self.graph

    def _given(self, x: Any) -> Any:
        """An argument, with numbers of rows as they will be."""
        if isinstance(x, torch.fx.Node):
            return self.new[x]
        if isinstance(x, list | tuple):
            return tuple(self._given(part) for part in x)
        if type(x) is int and LENGTH - 2 <= abs(x) <= LENGTH + 2 * self.rows:
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
        if target is ATTEND:
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
    return node.meta["shape"]  # type: ignore[no-any-return]
