"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("torch", "transformers", "trl", "accelerate", "vllm")


def describe(device: str) -> dict[str, Any]:
    """Processor, cores, threads, memory, system, versions and commit."""
    return {
        "processor": processor() if device == "cpu" else torch.cuda.get_device_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if version(name)},
        "commit": commit(),
    }


def key(machine: dict[str, Any]) -> str:
    """What baselines are kept by: figures of other machines say nothing about this one."""
    return f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"


def processor() -> str:
    """The CPU's name, with the vector width that matters most to it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    table = {name.strip(): value.strip() for name, value in found.items()}
    wide = " (AVX-512)" if "avx512f" in table.get("flags", "") else ""
    family = f" family {table['cpu family']}" if "cpu family" in table else ""
    return f"{table.get('model name', platform.machine())}{family}{wide}"


def version(package: str) -> str:
    """Its version, or "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """The checkout's commit, marked where files differ from it; "" without git."""
    here = Path(__file__).parent
    try:
        name = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, check=True,
                              capture_output=True, text=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--", "../src"], cwd=here,
                                 check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name + (" + changes" if changed else "")
