"""A second device, made of the first: what would fail on a GPU fails here, on two cores.

Its tensors say that they live on `second`, hold their numbers on the CPU, and refuse to be mixed
with tensors that do not, where CUDA refuses it: all but one number by itself, indices, and copies.
`Reads` counts how often numbers are brought back, each of which a GPU has to be waited for. torch's
kernels for GPUs, their speed and their memory are not tried by this.

For a process of its own (`__main__`, which test_second_device.py starts): once torch has this
device, it has it for good.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _device as device_context
from torch.utils import backend_registration as backends
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)


class Reads:
    """How often this process waited for numbers."""

    count = 0


class Second(torch.Tensor):
    """A tensor there; `here` holds its numbers."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Second:
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(),
            dtype=here.dtype, device=torch.device("second", 0))
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        Reads.count += 1
        return f"Second({self.here!r})"

    __format__ = object.__format__

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation on tensors of which some are there, or whose result shall be."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, Second)]
    asked = kwargs.get("device")
    if there and func not in COPIES:
        _alike(func, args, tensors)
    Reads.count += bool(there) and (func in READS or (func in INDEXED and any(
        i is not None and i.dtype == torch.bool for i in args[1])))  # a mask's size is not known
    if asked is not None:
        stays = torch.device(asked).type == "second"
        kwargs = {**kwargs, "device": "cpu"} if stays else kwargs
    else:
        stays = isinstance(args[0], Second) if func is aten.copy_.default else bool(there)
    found = func(*tree_map_only(Second, _numbers, args), **tree_map_only(Second, _numbers, kwargs))
    if not stays:
        if func is aten._to_copy.default and there:
            Reads.count += 1
            return found.clone() if found is there[0].here else found
        return found
    found = tree_map_only(torch.Tensor, lambda x: x if isinstance(x, Second) else Second(x), found)
    return return_and_correct_aliasing(func, args, kwargs, found) \
        if there and func is not aten._to_copy.default else found


def _numbers(there: Second) -> torch.Tensor:
    return there.here


def _alike(func: Any, args: Any, tensors: Sequence[torch.Tensor]) -> None:
    """Raises RuntimeError, as CUDA would, for tensors of both devices."""
    spare = {id(i) for i in args[1] if i is not None} \
        if func in INDEXED and isinstance(args[0], Second) else set()
    if any(x.dim() and not isinstance(x, Second) and id(x) not in spare for x in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of "
                           f"{[(tuple(x.shape), str(x.device)) for x in tensors]}")


class There(TorchDispatchMode):
    """Makes tensors there where `device` says so."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if str(kwargs.get("device", "")).startswith("second") \
                or any(isinstance(x, Second) for x in tree_leaves((args, kwargs))):
            return run(func, args, kwargs)
        return func(*args, **kwargs)


class _Backend(backends._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _copied(source: Any, target: Any, non_blocking: bool = False) -> Any:
    """What torch itself carries over, below any Python."""
    (target.here if isinstance(target, Second) else target).copy_(
        source.here if isinstance(source, Second) else source)
    return target


def install() -> Any:
    """torch has the device from here on; returns what has to be kept for that."""
    backends._setup_privateuseone_for_python_backend("second", backend_module=_Backend())
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("empty.memory_format", lambda size, dtype=None, **_: Second(
        torch.empty(size, dtype=dtype)), "PrivateUse1")
    kernels.impl("empty_strided", lambda size, stride, dtype=None, **_: Second(
        torch.empty_strided(size, stride, dtype=dtype)), "PrivateUse1")
    kernels.impl("_copy_from", _copied, "PrivateUse1")
    kernels.impl("_local_scalar_dense", lambda x: x.here.item(), "PrivateUse1")
    device_context._device_constructors()  # before `tensor` is another one
    made = torch.tensor

    def tensor(data: Any, *, device: Any = None, **more: Any) -> torch.Tensor:
        found = made(data, **more)  # torch places it where no Python looks
        return found if device is None else found.to(device)

    torch.tensor = tensor  # type: ignore[assignment]
    # Views taken in inference mode of tensors made outside are beyond tensors of this kind.
    torch.inference_mode = lambda mode=True: torch.no_grad()  # type: ignore[assignment,misc]
    torch.autograd.set_multithreading_enabled(False)
    There().__enter__()
    return kernels


def moved(net: torch.nn.Module) -> torch.nn.Module:
    """The same model there; a tensor that two modules share stays one."""
    seen: dict[int, tuple[Any, Any]] = {}
    for module in net.modules():
        for table in (module._parameters, module._buffers):
            for name, x in table.items():
                if x is None:
                    continue
                if id(x) not in seen:
                    new: Any = Second(x.detach())
                    if isinstance(x, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=x.requires_grad)
                    seen[id(x)] = new, x
                table[name] = seen[id(x)][0]
    return net


def loading_there() -> None:
    """HFEngine(device="second") works."""
    from selfloop.engines import hf_load

    load = hf_load._load_model

    def elsewhere(folder: Any, dtype: str, device: str, **more: Any) -> Any:
        if device != "second":
            return load(folder, dtype, device, **more)
        with _disable_current_modes():
            net = load(folder, dtype, "cpu", **more)
        return moved(net)

    hf_load._load_model = elsewhere


# -- what is tried there --------------------------------------------------------------------------

HOW: tuple[dict[str, Any], ...] = (
    {}, {"temperature": 0.0}, {"top_p": 0.9, "top_k": 20}, {"stop": ("a", "b c")},
    {"prefix": "0", "min_p": 0.02}, {"diversity": 0.5})


def tried(engine: Any, folder: Path) -> dict[str, Any]:
    """Draws, updates by GRPO and DPO, scores, a saved state; and how often numbers were read."""
    from hf_models import asked, open_picture
    from selfloop.learning import learn
    from selfloop.optimize.losses.preference import DPO
    from selfloop.optimize.losses.rl import GRPO
    from selfloop.roles import Optim, Request, Sampling
    from selfloop.sampling import Contrast
    from selfloop.types import Advantage, Branch, Pair

    engine.bind(open_picture)
    engine.publish(0, 0)
    engine.sampler.recorder.after = 8
    contexts = [asked(1), asked(2, "which one?", pictures=2), asked(3)]

    def draw(n: int, **how: Any) -> list[Any]:
        before = Reads.count
        rows = engine.generate([Request(context=c, key=f"k{i}", n=n, sampling=Sampling(**how))
                                for i, c in enumerate(contexts)], engine.version)
        found["reads"].append(Reads.count - before)
        return rows

    found: dict[str, Any] = {"reads": [], "update_reads": []}
    found["how"] = [[(t.token_ids, t.finish_reason) for row in draw(3, max_new_tokens=12, **how)
                     for t in row]
                    for how in (*HOW, {"contrast": Contrast(context=asked(9), weight=-1.0)})]
    rows = draw(6, max_new_tokens=24)
    found["tokens"] = [t.token_ids for row in rows for t in row]
    found["logprobs"] = [x for row in rows for t in row for x in t.logprobs]
    branches = [[Branch(context=c, turns=(t,)) for t in row]
                for c, row in zip(contexts, rows, strict=True)]
    found["scores"] = [x for branch in engine.logprobs(
        [b for mine in branches for b in mine]) for x in branch]
    for many in (2, 6):
        signals = [Advantage(branches={"answer": b}, sample=f"s{i}", group=f"g{i}",
                             advantage=(-1.0) ** n)
                   for i, mine in enumerate(branches) for n, b in enumerate(mine[:many])]
        before = Reads.count
        found[f"grpo {many}"] = learn(engine, signals, GRPO(kl=0.1, entropy=0.01),
                                      Optim(lr=1e-4, reference="seed"), "grpo")
        found["update_reads"].append(Reads.count - before)
    pairs = [Pair(branches={"chosen": mine[0], "rejected": mine[1]}, sample=f"s{i}")
             for i, mine in enumerate(branches)]
    found["dpo"] = learn(engine, pairs, DPO(), Optim(lr=1e-4, reference="seed", ema=0.9), "dpo")
    engine.publish(1, 0)
    found["learnt"] = [t.token_ids for row in draw(3, max_new_tokens=12) for t in row]
    engine.save_state(folder / "state")
    engine.restart()
    engine.load_state(folder / "state")
    found["again"] = [t.token_ids for row in draw(3, max_new_tokens=12) for t in row]
    found["paths"] = [engine.training_path, engine.sampler.why_not, engine.features.why_not,
                      engine.sampler.recorder.why_not]
    found["recorded"] = engine.sampler.recorder.recorded
    return found


def main(names: Sequence[str]) -> None:
    """Prints what each way of making an engine gives on both devices, as JSON."""
    from hf_models import FAMILIES
    from selfloop.engines.hf import HFEngine, LoRA

    ways: dict[str, dict[str, Any]] = {
        "full": {}, "lora": {"lora": LoRA(rank=4)}, "checkpointed": {"checkpointing": True},
        "frozen": {"freeze": ("vision", "projector")}}
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        for name in names:
            family, way = name.split("-")
            folder = FAMILIES[family](Path(home) / name)
            found[name] = {
                device: tried(HFEngine(folder, device=device, **ways[way]),
                              Path(home) / f"{name}-{device}")
                for device in ("cpu", "second")}
    print(json.dumps(found))


if __name__ == "__main__":
    kept = install()
    loading_there()
    main(sys.argv[1:])
