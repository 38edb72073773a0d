"""`selfloop doctor`: what is installed, and whether a model folder is fit for the loop.

It never raises: whatever is broken becomes one finding with its mend.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from selfloop.doctor_model import Finding, guarded, of_model

__all__ = ["PACKAGES", "Finding", "diagnose", "worst"]

PACKAGES: dict[str, tuple[bool, str, str]] = {
    "torch": (True, "all local models", "pip install torch"),
    "transformers": (True, "loads models and processors", "pip install 'transformers>=5.10,<6'"),
    "peft": (True, "LoRA adapters", "pip install peft"),
    "accelerate": (True, "device placement; several processes", "pip install accelerate"),
    "datasets": (False, "reads Hugging Face data sets", "pip install 'selfloop[datasets]'"),
    "openai": (False, "asks a judge on a server (run.yaml: engines)",
               "pip install 'selfloop[openai]'"),
    "math-verify": (False, "checks mathematical answers", "pip install 'selfloop[math]'"),
    "av": (False, "reads videos and sounds", "pip install 'selfloop[video]'"),
    "torchvision": (False, "image processors without a PIL version (Qwen-VL)",
                    "pip install torchvision of the same build as torch"),
    "vllm": (False, "fast generation on GPUs", "pip install vllm (Linux with a GPU)"),
    "ray": (False, "several machines", "pip install ray"),
    "bitsandbytes": (False, "4-bit weights", "pip install 'selfloop[qlora]' (with a GPU)"),
}
"""Distribution -> (required, what it is used for, how to get it)."""


def diagnose(model: str | None = None) -> list[Finding]:
    """Look at the installation and, if given, at a model folder or hub id. Never raises."""
    found = [_package(name, *about) for name, about in PACKAGES.items()]
    found += guarded("device", _machine)
    found += guarded("sandbox", _sandbox)
    if model is not None:
        found += guarded("model", lambda: of_model(model))
    return found


def _package(name: str, required: bool, use: str, get: str) -> Finding:
    try:
        return Finding("ok", f"{name} {version(name)}: {use}")
    except PackageNotFoundError:
        if required:
            return Finding("error", f"{name} is not installed: {use}", get)
        return Finding("ok", f"{name} is not installed (optional: {use})", get)


def _machine() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        count = torch.cuda.device_count()
        more = f"; one of {count}, which `processes: {count}` uses together" if count > 1 else ""
        yield Finding("ok", f"GPU {torch.cuda.get_device_name(0)}, {memory:.0f} GiB{more}")
    else:
        yield Finding("ok", f"no GPU: {torch.get_num_threads()} CPU threads "
                      "(results repeat bit for bit only at an equal thread count)")


def _sandbox() -> Iterator[Finding]:
    """Whether, and how well, code that a model writes can be shut in (engines/sandbox.py)."""
    from selfloop.engines.sandbox import LEVELS, level

    best, why_not = level()
    if best is None:
        yield Finding("ok", f"no sandbox for model-written code (optional): {why_not}")
    else:
        yield Finding("ok", f"sandbox for model-written code: {best}: {LEVELS[best]}"
                      + (f"; no stronger level, since {why_not}" if why_not else ""))


def worst(findings: list[Finding]) -> Literal["ok", "warning", "error"]:
    """The gravest level among findings: the exit status of `selfloop doctor`."""
    levels = [finding.level for finding in findings]
    return "error" if "error" in levels else "warning" if "warning" in levels else "ok"
