"""Picture features kept: with a frozen vision side, each picture is encoded once for a whole run.

What `get_image_features` gives (all levels that a model injects) is kept by (pictures with their
operations, processor settings, vision weights), in memory and, if asked, on disk. Rollouts,
scoring, learning and evaluation share it. Features are always computed one row at a time, kept or
not, so a result never depends on what happened to be kept. No model family is named: which weights
are used is read off the autograd graph, and how outputs of several rows join is found out and
compared with the model's own output at first use; where any of this fails the store switches
itself off and says why (`Features.why_not`).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch

from selfloop.engines.feature_store import FeatureStore, Kept
from selfloop.engines.joining import Kind, flat, join, kind_of
from selfloop.optimize.memory import out_of_memory
from selfloop.optimize.selfcheck import runs_in
from selfloop.types import Media

Pixels = dict[str, torch.Tensor]
Row = tuple[Media, ...]


class Features:
    """The store at work in one model."""

    def __init__(self, model: Any, processor: Any, pixels_of: Callable[[Row], Pixels],
                 store: FeatureStore | None) -> None:
        self.model, self.pixels_of, self.store = model, pixels_of, store
        self.why_not = "" if store is not None else "no store was given"
        """Why nothing is kept; "" while it is."""
        self._settings = settings_of(processor, next(model.parameters()).dtype)
        self._owner = owner_of(model)
        self._original: Any = self._owner.get_image_features if self._owner is not None else None
        self._noted: tuple[Pixels, list[Row]] | None = None
        self._kind: Kind | None = None
        self._used: list[torch.Tensor] = []
        self._seen: tuple[tuple[int, int], ...] = ()
        self._weights = ""
        self._busy = False
        # Settings by name, such as which layer to take; the rest is passed through to all modules.
        self._settles = {n for n, p in inspect.signature(self._original).parameters.items()
                         if p.kind is p.POSITIONAL_OR_KEYWORD} if self._original else set()
        if self._owner is None:
            self.why_not = self.why_not or "the model has no get_image_features"
        if not self.why_not:
            self._owner.get_image_features = self._call

    def note(self, inputs: Pixels, rows: Sequence[Row]) -> None:
        """Tell which pictures stand behind the pixel tensors of the next forward pass."""
        if self.why_not or self._busy:
            return
        self._noted = (inputs, list(rows))
        if self._kind is None:
            self._try(inputs)

    def stats(self) -> dict[str, int]:
        """Hits, misses and bytes held."""
        return self.store.stats() if self.store is not None else {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Features:
        """A copied model computes its own features."""
        twin = object.__new__(Features)
        twin.store, twin._noted, twin._kind, twin._busy = None, None, None, False
        twin.why_not, twin._owner = "the model is a copy", memo.get(id(self._owner), self._owner)
        twin._original = MethodType(type(self._owner).get_image_features, twin._owner)
        return twin

    # -- the call that the model makes ----------------------------------------------------------

    def _call(self, *args: Any, **named: Any) -> Any:
        noted = self._noted
        if self.why_not or noted is None or self._busy or self._kind is None:
            return self._original(*args, **named)
        names = _names(noted[0], args, named)
        if names is None:  # somebody else's call, or tensors that were not made here
            return self._original(*args, **named)
        found: dict[tuple[str, ...], Kept] = {}
        device = next(iter(noted[0].values())).device
        keys = [tuple(m.identity for m in row) for row in noted[1]]
        for key, row in zip(keys, noted[1], strict=True):
            if key not in found:
                kept = self._features(row, names, args, named)
                found[key] = {name: x.to(device) for name, x in kept.items()}
        return join(self._kind, [found[key] for key in keys])

    def _features(self, row: Row, names: dict[Any, str], args: Any, named: Any) -> Kept:
        assert self.store is not None and self._kind is not None
        key = hashlib.sha256(json.dumps([
            [m.identity for m in row], self._settings, str(runs_in(self.model)), self._hash(),
            {k: repr(v) for k, v in sorted(named.items())
             if k in self._settles and k not in names}]).encode()
        ).hexdigest()
        kept = self.store.get(key)
        if kept is None:
            with torch.no_grad():
                kept = flat(self._kind, self._alone(row, names, args, named))
            kept = self.store.put(key, kept)
        return kept

    def _alone(self, row: Row, names: dict[Any, str], args: Any, named: Any) -> Any:
        """The model's own features of one row's pictures."""
        pixels = self.pixels_of(row)
        args = tuple(pixels[names[i]] if i in names else x for i, x in enumerate(args))
        return self._original(*args, **{
            k: pixels[names[k]] if k in names else x for k, x in named.items()})

    def _hash(self) -> str:
        """Of the weights behind the features; computed again when one of them was written to.

        (Writes through `.data` leave no trace in torch; nothing here makes any.)
        """
        seen = tuple((x.data_ptr(), x._version) for x in self._used)
        if seen != self._seen:
            digest = hashlib.sha256()
            for x in self._used:
                digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._seen, self._weights = seen, digest.hexdigest()
        return self._weights

    # -- the first use --------------------------------------------------------------------------

    def _try(self, inputs: Pixels) -> None:
        """Find the weights and the joining rule; compare logits with and without the store."""
        assert self._noted is not None
        self._busy = True
        try:
            rows = self._noted[1]
            with torch.no_grad():
                calls = self._recorded(inputs)
            names = _names(inputs, *calls)
            if names is None:
                raise NotImplementedError("its pixels do not reach get_image_features unchanged")
            self._learn_kind(rows[0], names, calls)
            if learning := [x for x in self._used if x.requires_grad]:
                raise NotImplementedError(f"{len(learning)} tensors of the vision side learn")
            with torch.no_grad():
                plain = self._logits(inputs)
                self._busy = False
                kept = self._logits(inputs)
            near = 1e-4 if plain.dtype in (torch.float32, torch.float64) else 0.05
            if not torch.allclose(kept, plain, rtol=near, atol=near * float(plain.abs().max())):
                raise NotImplementedError("kept features change the model's predictions")
        except NotImplementedError as error:
            self._off(str(error), quiet="learn" in str(error))
        except Exception as error:  # whatever fails here has a correct answer: keep nothing
            self._kind = None
            if out_of_memory(error):  # a smaller batch tries again
                raise
            self._off(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}")
        finally:
            self._busy = False

    def _off(self, why: str, quiet: bool = False) -> None:
        self.why_not, self._kind = why, None
        self._owner.__dict__.pop("get_image_features", None)
        if not quiet:
            warnings.warn(f"picture features are not kept: {why}", stacklevel=4)

    def _recorded(self, inputs: Pixels) -> tuple[Any, Any]:
        """How the model calls get_image_features in a forward pass."""
        calls: list[tuple[Any, Any]] = []

        def record(*args: Any, **named: Any) -> Any:
            calls.append((args, named))
            return self._original(*args, **named)

        self._owner.get_image_features = record
        try:
            self._logits(inputs)
        finally:
            self._owner.get_image_features = self._call
        if len(calls) != 1:
            raise NotImplementedError(f"get_image_features is called {len(calls)} times")
        return calls[0]

    def _learn_kind(self, row: Row, names: dict[Any, str], calls: tuple[Any, Any]) -> None:
        """Weights behind one row's features, and how those of two rows join."""
        args, named = calls
        learns = [p for p in self.model.parameters() if not p.requires_grad]
        for p in learns:
            p.requires_grad_(p.is_floating_point())
        try:
            with torch.enable_grad():
                one = self._alone(row, names, args, named)
                used = leaves(one)
        finally:
            for p in learns:
                p.requires_grad_(False)
        self._used = [*used, *_buffers(self.model, used)]
        pixels = self.pixels_of(row)
        twice = {name: torch.cat([x, x]) for name, x in pixels.items()}
        with torch.no_grad():
            both = self._original(
                *(twice[names[i]] if i in names else x for i, x in enumerate(args)),
                **{k: twice[names[k]] if k in names else x for k, x in named.items()})
        kind = kind_of(one, both)
        kept = {name: x.detach() for name, x in flat(kind, one).items()}
        ours, theirs = flat(kind, join(kind, [kept, kept])), flat(kind, both)
        if ours.keys() != theirs.keys() or not all(
                torch.allclose(x.float(), theirs[n].float(), rtol=1e-3, atol=1e-3)
                for n, x in ours.items()):
            raise NotImplementedError("features of two rows do not join to those of both")
        self._kind = kind

    def _logits(self, inputs: Pixels) -> torch.Tensor:
        return self.model(**inputs, use_cache=False, logits_to_keep=1).logits.float()  # type: ignore[no-any-return]


def owner_of(model: Any) -> Any:
    """The innermost module with get_image_features: outer ones hand their calls on to it."""
    having = [m for m in model.modules() if hasattr(type(m), "get_image_features")]
    inner = [m for m in having if not any(o is not m and o in set(m.modules()) for o in having)]
    return inner[0] if len(inner) == 1 else None


def settings_of(processor: Any, dtype: torch.dtype) -> str:
    """Whatever decides how a picture becomes pixels, and in which numbers it is encoded."""
    image: Any = getattr(processor, "image_processor", None)
    found = image.to_dict() if hasattr(image, "to_dict") else repr(image)
    return hashlib.sha256(json.dumps(
        [type(image).__name__, found, str(dtype)], sort_keys=True, default=str).encode()
    ).hexdigest()


def leaves(output: Any) -> list[torch.Tensor]:
    """The parameters that tensors of an output depend on, each once."""
    pending = [x.grad_fn for x in torch.utils._pytree.tree_leaves(output)
               if isinstance(x, torch.Tensor) and x.grad_fn is not None]
    seen, found = set(pending), dict[int, torch.Tensor]()
    while pending:
        node: Any = pending.pop()
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                pending.append(after)
    return list(found.values())


def _buffers(model: Any, used: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Buffers of the modules that own these parameters (statistics of a norm, say)."""
    mine = {id(x) for x in used}
    return [b for module in model.modules()
            if any(id(p) in mine for p in module.parameters(recurse=False))
            for b in module.buffers(recurse=False)]


def _names(inputs: Pixels, args: Sequence[Any], named: dict[str, Any]) -> dict[Any, str] | None:
    """Argument (place or name) -> which noted tensor it is; None if another tensor is passed."""
    known = {id(x): name for name, x in inputs.items()}
    found: dict[Any, str] = {}
    for where, value in [*enumerate(args), *named.items()]:
        if isinstance(value, torch.Tensor):
            if id(value) not in known:
                return None
            found[where] = known[id(value)]
    return found or None
