"""What the floor is computed for: known accelerators, this machine, and a model's own shape.

Accelerators are known by their makers' figures; any other device is measured, in under half a
second: a matrix product for FLOP/s, a copy for bytes/s. A shape is read off the model's config and
parameters by the names that all families share, and what a model does not say stays unknown.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from selfloop.floor import Machine, Shape
from selfloop.roles import SelfloopError
from selfloop.types import Sample

_HOPPER = {"bfloat16": 989e12, "float32": 67e12}
_AMPERE = {"bfloat16": 312e12, "float32": 19.5e12}
KNOWN: dict[str, tuple[dict[str, float], float, str]] = {
    "H200": (_HOPPER, 4.8e12, "NVIDIA H200 data sheet, SXM"),
    "H100": (_HOPPER, 3.35e12, "NVIDIA H100 data sheet, SXM"),
    "H100-PCIe": ({"bfloat16": 756e12, "float32": 51e12}, 2.0e12,
                  "NVIDIA H100 data sheet, PCIe 80 GB"),
    "A100": (_AMPERE, 2.039e12, "NVIDIA A100 data sheet, SXM 80 GB"),
    "A100-40GB": (_AMPERE, 1.555e12, "NVIDIA A100 data sheet, 40 GB"),
    "L40S": ({"bfloat16": 362e12, "float32": 91.6e12}, 864e9, "NVIDIA L40S data sheet"),
    "L4": ({"bfloat16": 121e12, "float32": 30.3e12}, 300e9, "NVIDIA L4 data sheet"),
    "RTX-4090": ({"bfloat16": 165.2e12, "float32": 82.6e12}, 1008e9,
                 "NVIDIA Ada architecture paper, sums in float32"),
    "RTX-3090": ({"bfloat16": 71e12, "float32": 35.6e12}, 936e9,
                 "NVIDIA GA102 architecture paper, sums in float32"),
}
"""Name -> (FLOP/s by precision, bytes/s, source). Dense matrix products, no sparsity; bfloat16 on
tensor cores (float16 is as fast on all of these), float32 without TF32, as torch computes it."""


def machine_named(name: str, dtype: str = "bfloat16", price_per_hour: float | None = None
                  ) -> Machine:
    """An accelerator of `KNOWN`. Raises SelfloopError naming those there are."""
    found = {_plain(known): known for known in KNOWN}.get(_plain(name))
    if found is None:
        raise SelfloopError(f"--machine {name}: expected one of {', '.join(KNOWN)}; leave it out "
                            "to plan for the machine that was probed")
    flops, bandwidth, source = KNOWN[found]
    precision = "float32" if dtype == "float32" else "bfloat16"
    return Machine(flops[precision], bandwidth, found, price_per_hour, f"{source}, {precision}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def device_named(name: str, memory: float) -> str | None:
    """The key of `KNOWN` that a device's own name means; None for another. `memory` in bytes."""
    words = _plain(name)
    for key in ("H200", "L40S", "RTX-4090", "RTX-3090"):
        if words.endswith(_plain(key)):  # "laptop" and "NVL" parts are slower ones
            return key
    if "h100" in words and "nvl" not in words:
        return "H100-PCIe" if "pcie" in words else "H100"
    if "a100" in words:
        return "A100" if memory > 60e9 and "pcie" not in words else \
            "A100-40GB" if memory < 60e9 else None
    return "L4" if words.endswith("l4") else None


# -- measuring ------------------------------------------------------------------------------------

def calibrated(model: Any, name: str = "this machine") -> Machine:
    """The machine that holds `model`: its maker's figures if it is known, else measured."""
    import torch

    first = next(model.parameters())
    dtype = str(first.dtype).removeprefix("torch.")
    if first.device.type == "cuda":
        about = torch.cuda.get_device_properties(first.device)
        known = device_named(about.name, float(about.total_memory))
        name = about.name
        if known is not None:
            return replace(machine_named(known, dtype), name=name)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    size = min(2**26, max(2**20, 2 ** (held - 1).bit_length()))
    flops, bandwidth = _measured(str(first.device), dtype, size, torch.get_num_threads())
    n = torch.get_num_threads()
    threads = f", {n} thread{'s' * (n != 1)}" if first.device.type == "cpu" else ""
    return Machine(flops, bandwidth, name, None, f"measured in {dtype}{threads}")


@cache
def _measured(device: str, dtype: str, size: int, threads: int) -> tuple[float, float]:
    """(FLOP/s, bytes/s): the best of a few products, and of a few copies of `size` bytes.

    Of the size of the weights, since what fits into a cache is read faster. A copy reads and
    writes: 2 bytes moved a byte. Takes less than half a second.
    """
    import torch

    with torch.no_grad():
        kind = getattr(torch, dtype)
        side = 4096 if device.startswith("cuda") else 512
        for larger in (side, 2 * side):
            a = torch.full((larger, larger), 0.5, dtype=kind, device=device)
            out = torch.empty_like(a)
            took = _best(partial(torch.mm, a, a, out=out), device, 0.1)
            flops = 2 * larger**3 / took
            if took > 0.02:
                break
        x = torch.zeros(size, dtype=torch.uint8, device=device)
        y = torch.ones_like(x)
        return flops, 2 * size / _best(partial(y.copy_, x), device, 0.08)


def _best(work: Callable[[], Any], device: str, limit: float) -> float:
    """The shortest of the runs that fit into `limit` seconds, after one to warm up; at least 2."""
    import torch

    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < limit and len(times) < 50):
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return max(1e-9, min(times[1:]))


# -- a model's shape ------------------------------------------------------------------------------

def shape_of(model: Any) -> Shape:
    """The shape of a loaded model, by its config's common names and where parameters hang."""
    text = model.config.get_text_config(decoder=True)
    counts = _counted(model)
    heads, width = _of(text, "num_attention_heads"), _of(text, "hidden_size")
    each = _of(text, "head_dim") or (width / heads if heads and width else None)
    full, windowed, window, others = _layers(text)
    experts = _of(text, "num_experts", "num_local_experts", "n_routed_experts") or 1.0
    used = _of(text, "num_experts_per_tok", "moe_top_k") or experts
    idle = counts["experts"] * (1 - used / experts)
    tower = getattr(model.config, "vision_config", None)
    patch_heads = _of(tower, "num_attention_heads", "num_heads")
    return Shape(
        parameters=counts["language"] - idle, bytes=float(next(model.parameters()).element_size()),
        head=counts["head"], layers=full, query=heads * each if heads and each else None,
        kv=(_of(text, "num_key_value_heads") or heads or 0.0) * each if each else None,
        window_layers=windowed, window=window,
        other_layers=others, idle=idle, experts=experts, used=used, resident=counts["all"],
        trained=counts["trained"], recompute=_recomputes(model), width=width,
        trained_share=min(1.0, counts["language trained"] / max(1.0, counts["language"])),
        inner=_of(text, "intermediate_size"), vocabulary=_of(text, "vocab_size") or 0.0,
        vision=counts["vision"] or None,
        vision_layers=_seeing(tower),
        vision_width=_of(tower, "hidden_size", "embed_dim") if patch_heads else None,
        vision_trained=counts["vision trained"] > 0, projector=counts["projector"])


def _of(config: Any, *names: str) -> float | None:
    """The first of these fields that is a number."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _recomputes(model: Any) -> bool:
    """Whether layers were told to run again in the backward pass (optimize/checkpointing.py)."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return any(isinstance(m, GradientCheckpointingLayer) and "forward" in vars(m)
               for m in model.modules())


def _seeing(tower: Any) -> float | None:
    """The tower's layers whose patches see the whole picture; those with windows cost less."""
    whole = getattr(tower, "fullatt_block_indexes", None)
    return float(len(whole)) if isinstance(whole, list | tuple) else \
        _of(tower, "num_hidden_layers", "depth", "num_layers")


def _layers(text: Any) -> tuple[float | None, float, float, float]:
    """(layers of full attention, of windowed attention, its window, layers of other kinds)."""
    kinds = getattr(text, "layer_types", None)
    if not kinds:
        return _of(text, "num_hidden_layers"), 0.0, 0.0, 0.0
    window = _of(text, "sliding_window", "attention_chunk_size") or 0.0
    windowed = sum("sliding" in k or "chunked" in k for k in kinds) if window else 0
    full = sum("full" in k for k in kinds)
    return float(full), float(windowed), window, float(len(kinds) - full - windowed)


def _counted(model: Any) -> dict[str, float]:
    """Weights by part: what a token or patch is multiplied with, so no embeddings, norms, biases.

    Of the vision tower those of its numbered layers and of the patch projection: what it has
    beside them runs once a picture, if at all.
    """
    import torch

    from selfloop.engines.hf_load import part_of

    head = model.get_output_embeddings()
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    if head is not None:
        looked_up.discard(id(head.weight))  # tied to the embeddings it is a weight all the same
    found = dict.fromkeys(("all", "trained", "language", "language trained", "projector",
                           "vision", "vision trained", "experts"), 0.0)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    own = {id(p) for p in decoder.parameters()} if decoder is not None else set()
    for name, parameter in model.named_parameters():
        n, learns = float(parameter.numel()), parameter.requires_grad
        found["all"] += n
        found["trained"] += n * learns
        if parameter.dim() < 2 or id(parameter) in looked_up:
            continue
        part = "language" if id(parameter) in own else part_of(model, name)
        places = name.split(".")
        if part == "vision" and not ("patch" in name or any(p.isdigit() for p in places)):
            continue
        found[part] += n
        if part != "projector":
            found[f"{part} trained"] += n * learns
        found["experts"] += n * ("experts" in places)
    return found | {"head": float(head.weight.numel()) if head is not None else 0.0}


# -- an engine's account --------------------------------------------------------------------------

def described(engine: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    """Shape, machine, prompt length and pictures a question: what a floor is computed from.

    {} for an engine without a model of its own, or one that cannot be read: an account is no
    reason to stop a run.
    """
    model = getattr(engine, "model", None)
    if getattr(model, "config", None) is None or not samples:
        return {}
    try:
        shape = shape_of(model)
        some = samples[:8]
        prompts = [engine.render(s.context)[0] for s in some]
        found: dict[str, Any] = dict(_seen(engine, some))
        machine = calibrated(model)
        return {
            "shape": replace(shape, **found).numbers(),
            "machine": {"flops": machine.flops, "bandwidth": machine.bandwidth,
                        "name": machine.name, "source": machine.source},
            "prompt_tokens": sum(map(len, prompts)) / len(prompts),
            "pictures": sum(len(s.media) for s in samples) / len(samples),
            "different_pictures": float(len({m.identity for s in samples for m in s.media})),
            "batch_tokens": float(getattr(engine, "max_batch_tokens", 32768)),
        }
    except Exception:  # whatever it is, the run itself will say it better
        return {}


def numbers(engine: Any, samples: Sequence[Sample]) -> dict[str, float]:
    """`described` as a probe keeps it: flat, shapes as "shape.NAME"."""
    found = described(engine, samples)
    if not found:
        return {}
    return {"pictures": found["pictures"], "peak_flops": found["machine"]["flops"],
            "peak_bandwidth": found["machine"]["bandwidth"],
            **{f"shape.{name}": value for name, value in found["shape"].items()}}


def _seen(engine: Any, samples: Sequence[Sample]) -> dict[str, float]:
    """Patches and tokens a picture, from what the processor makes of the first that has one."""
    context = next((s.context for s in samples if s.media), None)
    if context is None:
        return {}
    n = len(context.media)
    ids = engine.render(context)[0]
    config = engine.model.config
    place = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    places = ids.count(place) or sum(t in engine.prompts.placeholders for t in ids)
    found = {"picture_tokens": places / n}
    tower = getattr(engine.model.config, "vision_config", None)
    pixels = engine.prompts.pixels(context.media)
    main = max((t for t in pixels.values() if t.is_floating_point()), default=None,
               key=lambda t: t.numel())
    size = getattr(tower, "patch_size", None)
    side = size[0] if isinstance(size, list | tuple) else size
    if main is None:
        return found
    if main.dim() >= 4 and isinstance(side, int):  # pictures or tiles: [..., channels, h, w]
        span = (main.shape[-2] // side) * (main.shape[-1] // side)
        tiles = main.numel() / (main.shape[-1] * main.shape[-2] * main.shape[-3])
        return found | {"patches": tiles * span / n, "span": float(span)}
    if main.dim() == 2:  # patches, one a row
        return found | {"patches": main.shape[0] / n, "span": main.shape[0] / n}
    return found
