"""Loading any Hugging Face VLM: safetensors only, no remote code, errors in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import torch
import transformers

from selfloop.engines.hf_adapters import (
    FIRST,
    LoRA,
    adapted,
    four_bits,
    language_linears,
    need_four_bits,
)
from selfloop.engines.hf_patches import as_products
from selfloop.engines.hf_windows import at_once
from selfloop.engines.model_folder import DTYPES, check_files, local
from selfloop.optimize.parts import freeze_parts, frozen_parts, part_of
from selfloop.roles import SelfloopError

__all__ = ["LoRA", "Loaded", "check_files", "folder_of", "language_linears", "load",
           "load_processor", "no_progress_bars", "part_of"]

_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode on its device, its processor, and the folder both came from."""

    model: Any
    processor: Any
    folder: Path
    peft: Any = None
    """The PEFT wrapper when there are adapters; `model` is then the adapted inner model."""
    adapter: str = FIRST
    """Which of the adapters on this base is meant."""
    turn: Any = field(default_factory=RLock, repr=False, compare=False)
    """Whose turn it is to run the model, where several threads ask: adapters and weights of other
    versions are put on for a call."""


def folder_of(model: str | Path) -> Path:
    """A local folder as it is, or a hub id's snapshot (downloaded unless HF_HUB_OFFLINE)."""
    if (folder := local(model)) is not None:
        return folder
    from huggingface_hub import snapshot_download

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(_FILES),
                                      local_files_only=offline))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise SelfloopError(f"no folder {model!r} here, and the hub does not give it: {reason}"
                            ) from error


def load(model: str | Path, *, lora: LoRA | None = None, dtype: str = "float32",
         device: str = "auto", freeze: tuple[str, ...] = ()) -> Loaded:
    """Model and processor, checked, frozen and adapted as asked. Raises SelfloopError."""
    frozen = _must_fit(lora, frozen_parts(freeze))
    device = _usable(device)
    folder = folder_of(model)
    check_files(folder)
    for name in ("config.json", "generation_config.json"):  # of which a broken one is passed over
        _read(folder / name)
    processor = load_processor(folder)
    net = _load_model(folder, dtype, device, bits=lora.bits if lora else None)
    freeze_parts(net, frozen)
    as_products(net)
    at_once(net)
    return Loaded(net, processor, folder, None if lora is None else adapted(net, lora))


def _usable(device: str) -> str:
    """The device, where this torch can use it; auto: the GPU if there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SelfloopError(f"device={device!r}: this torch cannot use it: {_line(error)}; "
                            "device=auto takes what there is") from error
    return device


def _must_fit(lora: LoRA | None, frozen: tuple[str, ...]) -> tuple[str, ...]:
    """What is frozen, where it does not take from adapters the part that they adapt."""
    if lora is not None and "language" in frozen:
        raise SelfloopError("lora adapts the language model, and language is frozen: leave one of "
                            "them out (with lora, vision and projector never learn)")
    if lora is not None and lora.bits is not None:
        need_four_bits()
    return frozen


def load_processor(folder: Path) -> Any:
    """The processor with its chat template. Raises SelfloopError when it lacks a part."""
    try:
        auto: Any = transformers.AutoProcessor
        processor = auto.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise SelfloopError(f"{folder}: its processor does not load: {_line(error)}") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise SelfloopError(f"{folder}: {type(processor).__name__} reads no pictures; "
                            "give a vision-language model")
    if not processor.chat_template:
        processor.chat_template = getattr(processor.tokenizer, "chat_template", None)
    if not processor.chat_template:
        raise SelfloopError(f"{folder} has no chat template: put a chat_template.jinja there")
    return processor


def _load_model(folder: Path, dtype: str, device: str, bits: int | None = None) -> Any:
    """The model in eval mode on its device, its linear layers in 4 bits if asked."""
    config = _read(folder / "config.json")
    auto: Any = getattr(transformers, "AutoModelForMultimodalLM", None) \
        or transformers.AutoModelForImageTextToText
    if dtype not in DTYPES:
        raise SelfloopError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    quiet: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        with no_progress_bars():
            less = {"quantization_config": four_bits(_empty(auto, folder, quiet), _sums_in(wanted)),
                    "device_map": {"": device}} if bits else {}
            net, told = auto.from_pretrained(folder, dtype=wanted, use_safetensors=True,
                                             output_loading_info=True, ignore_mismatched_sizes=True,
                                             **less, **quiet)
    except Exception as error:
        hint = " (it needs its own remote code, which selfloop never runs)" \
            if "auto_map" in config else ""
        raise SelfloopError(f"{folder}: the model does not load{hint}: {_line(error)}") from error
    _all_there(folder, net, told)
    if "image" not in (getattr(net, "input_modalities", None) or ("image",)) \
            or getattr(net.config, "vision_config", True) is None:
        raise SelfloopError(f"{folder}: {type(net).__name__} reads no pictures; "
                            "give a vision-language model")
    if getattr(net.config, "is_encoder_decoder", False):
        raise SelfloopError(f"{folder}: encoder-decoder models are not supported; "
                            "give a decoder-only vision-language model")
    return (net if bits else net.to(device)).eval()


def _all_there(folder: Path, net: Any, told: Mapping[str, Any]) -> None:
    """Raises SelfloopError for weights that no file holds: they would be random ones, others at
    each start."""
    for name, found, wanted in sorted(told.get("mismatched_keys") or ()):
        raise SelfloopError(f"{folder}: the weights {name} have shape {tuple(found)} in its files, "
                            f"and config.json makes it {tuple(wanted)}: they are not of one model")
    lacking = set(told.get("missing_keys") or ()) & {
        name for name, _ in net.named_parameters(remove_duplicate=False)}
    if lacking:
        raise SelfloopError(f"{folder}: {len(lacking)} of the model's weights are in none of its "
                            f"files, {min(lacking)} the first: they would start as random numbers; "
                            "save the whole model there with save_pretrained")


def _empty(auto: Any, folder: Path, quiet: dict[str, Any]) -> Any:
    """The model without weights: only which layers it has."""
    config = transformers.AutoConfig.from_pretrained(folder, **quiet)
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=False)


def _sums_in(dtype: Any) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading and saving say nothing: a run has a progress display of its own."""
    switch: Any = transformers.utils.logging
    shown = switch.is_progress_bar_enabled()
    switch.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            switch.enable_progress_bar()


def _read(path: Path) -> dict[str, Any]:
    """A folder's JSON file; {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise SelfloopError(f"{path} is not JSON: {_line(error)}") from None
    if not isinstance(found, dict):
        raise SelfloopError(f"{path}: expected an object, not {type(found).__name__}")
    return found


def _line(error: Exception) -> str:
    """An error's first line, and the next where that one only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = 1 + (lines[0].endswith(":") if lines else 0)
    return " ".join(lines[:end])[:300] or type(error).__name__
