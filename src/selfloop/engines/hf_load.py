"""Loading any Hugging Face VLM: safetensors only, no remote code, errors in one line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from selfloop.roles import SelfloopError

PARTS = ("vision", "projector", "language")
_PROJECTOR = re.compile(r"projector|connector|merger|perceiver|aligner|mm_|embed_vision")
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters on the language model (Hu et al. 2021): W + (alpha / rank) B A."""

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] | None = None
    """Last names of linear layers, such as "q_proj"; None = all of the language model's."""


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode on its device, its processor, and the folder both came from."""

    model: Any
    processor: Any
    folder: Path
    peft: Any = None
    """The PEFT wrapper when there are adapters; `model` is then the adapted inner model."""


def folder_of(model: str | Path) -> Path:
    """A local folder as it is, or a hub id's snapshot (downloaded unless HF_HUB_OFFLINE)."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or str(model).startswith(("~", ".")) or str(model).count("/") != 1:
        raise SelfloopError(f"no model folder at {path}: give a folder that save_pretrained wrote, "
                            "or a hub id such as owner/name")
    from huggingface_hub import snapshot_download

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(_FILES),
                                      local_files_only=offline))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise SelfloopError(f"no folder {model!r} here, and the hub does not give it: {reason}"
                            ) from error


def check_files(folder: Path) -> None:
    """Raises SelfloopError naming the first file that a VLM folder lacks."""
    if not (folder / "config.json").is_file():
        raise SelfloopError(f"{folder} has no config.json: it is not a from_pretrained folder")
    if not any((folder / name).is_file()
               for name in ("processor_config.json", "preprocessor_config.json")):
        raise SelfloopError(f"{folder} has no processor (processor_config.json or "
                            "preprocessor_config.json): save it there with "
                            "AutoProcessor.from_pretrained(...).save_pretrained(folder)")
    if not list(folder.glob("*.safetensors")):
        raise SelfloopError(f"{folder} has no *.safetensors weights: selfloop reads no pickles; "
                            "convert them with save_pretrained(..., safe_serialization=True)")


def load(model: str | Path, *, lora: LoRA | None = None, dtype: str = "float32",
         device: str = "auto", freeze: tuple[str, ...] = ()) -> Loaded:
    """Model and processor, checked, frozen and adapted as asked. Raises SelfloopError."""
    if unknown := [part for part in freeze if part not in PARTS]:
        raise SelfloopError(f"freeze={unknown[0]!r}: expected some of {', '.join(PARTS)}")
    folder = folder_of(model)
    check_files(folder)
    processor = load_processor(folder)
    net = _load_model(folder, dtype)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    net = net.to(device).eval()
    _freeze(net, freeze)
    if lora is None:
        if not any(p.requires_grad for p in net.parameters()):
            raise SelfloopError("freeze names every part: nothing is left to learn")
        return Loaded(net, processor, folder)
    peft = _adapt(net, lora)
    return Loaded(net, processor, folder, peft)


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


def _load_model(folder: Path, dtype: str) -> Any:
    config = json.loads((folder / "config.json").read_text())
    auto = getattr(transformers, "AutoModelForMultimodalLM", None) \
        or transformers.AutoModelForImageTextToText
    wanted = dtype if dtype == "auto" else getattr(torch, dtype, None)
    if wanted is None:
        raise SelfloopError(f"dtype={dtype!r}: expected auto, float32, bfloat16 or float16")
    try:
        with no_progress_bars():
            net = auto.from_pretrained(folder, dtype=wanted, use_safetensors=True,
                                       trust_remote_code=False, local_files_only=True)
    except Exception as error:
        hint = " (it needs its own remote code, which selfloop never runs)" \
            if "auto_map" in config else ""
        raise SelfloopError(f"{folder}: the model does not load{hint}: {_line(error)}") from error
    if "image" not in (getattr(net, "input_modalities", None) or ("image",)) \
            or getattr(net.config, "vision_config", True) is None:
        raise SelfloopError(f"{folder}: {type(net).__name__} reads no pictures; "
                            "give a vision-language model")
    if getattr(net.config, "is_encoder_decoder", False):
        raise SelfloopError(f"{folder}: encoder-decoder models are not supported; "
                            "give a decoder-only vision-language model")
    return net


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


def part_of(net: Any, name: str) -> str:
    """Which of `PARTS` a parameter belongs to, from where it hangs in the model."""
    decoder = net.get_decoder() if hasattr(net, "get_decoder") else None
    inside = next((n for n, m in net.named_modules() if m is decoder), "")
    if (inside and name.startswith(f"{inside}.")) or name.startswith("lm_head"):
        return "language"
    if _PROJECTOR.search(name):
        return "projector"
    if re.search(r"vision|visual|image|vit", name):
        return "vision"
    return "language"


def _freeze(net: Any, parts: tuple[str, ...]) -> None:
    if not parts:
        return
    for name, parameter in net.named_parameters():
        if part_of(net, name) in parts:
            parameter.requires_grad_(False)


def language_linears(net: Any) -> dict[str, list[str]]:
    """The language model's linear layers: last name -> full names (the output head excluded)."""
    head = net.get_output_embeddings()
    found: dict[str, list[str]] = {}
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head \
                and part_of(net, f"{name}.weight") == "language":
            found.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    return found


def _adapt(net: Any, lora: LoRA) -> Any:
    from peft import LoraConfig, get_peft_model

    known = language_linears(net)
    wanted = lora.targets or tuple(sorted(known))
    if unknown := [name for name in wanted if name not in known]:
        raise SelfloopError(f"LoRA target {unknown[0]!r} is no linear layer of the language model; "
                            f"it has: {', '.join(sorted(known))}")
    names = [full for name in wanted for full in known[name]]
    # One expression over full names: PEFT's own suffix matching would also hit the vision tower.
    pattern = _alternation(names)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0,
                        target_modules=pattern, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the adapters' start is part of the seed, not of the caller
        peft = get_peft_model(net, config)
    return peft.eval()


def _alternation(names: list[str]) -> str:
    """Full names as one expression, layer numbers folded: `...layers.\\d+.self_attn.q_proj`."""
    folded = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(n)) for n in names})
    return "|".join(f"(?:{name})" for name in folded)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
