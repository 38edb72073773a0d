"""Another device than the CPU: nothing is left behind on the first (second_device.py says how)."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

BY_DEFAULT = ("gemma3-lora", "idefics3-checkpointed")
WAYS = (*BY_DEFAULT, *(pytest.param(way, marks=pytest.mark.slow)
                       for way in ("llava-full", "llava-frozen")))

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch makes no devices in Python")


@cache
def found(way: str) -> dict[str, Any]:
    script = Path(__file__).parent / "second_device.py"
    done = subprocess.run([sys.executable, str(script), way], capture_output=True, text=True,
                          timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])[way]


@pytest.fixture(params=WAYS)
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return found(request.param)["cpu"], found(request.param)["second"]


def test_draws_are_the_same(both: tuple[Any, Any]) -> None:
    cpu, second = both
    for what in ("how", "tokens", "learnt", "again"):
        assert second[what] == cpu[what], what
    assert second["again"] == second["learnt"] != second["how"][0]
    assert second["logprobs"] == pytest.approx(cpu["logprobs"], abs=1e-4)
    assert second["scores"] == pytest.approx(second["logprobs"], abs=1e-4)


def test_updates_are_the_same(both: tuple[Any, Any]) -> None:
    cpu, second = both
    for what in ("grpo 2", "grpo 6", "dpo"):
        assert second[what] == pytest.approx(cpu[what], rel=1e-3, abs=1e-5), what
        assert second[what]["grad_norm"] > 0


def test_the_fast_paths_are_taken(both: tuple[Any, Any]) -> None:
    cpu, second = both
    assert second["paths"] == cpu["paths"] and second["paths"][0] == "shared prefix"
    assert second["recorded"] == cpu["recorded"] > 0


def test_a_gpu_would_hardly_be_waited_for(both: tuple[Any, Any]) -> None:
    """Once a token (is anybody left?), twice where layers have windows, and at most three times
    more for stop strings; for an update about as often with six answers to a prompt as with two,
    whatever their lengths."""
    _, second = both
    few, many = second["update_reads"]
    assert few < 60 and many <= few + 6, "12 answers more"
    plain, stopped, long = (second["reads"][n] for n in (1, 3, 7))
    assert plain <= 2 * 12 + 20
    assert stopped <= plain + 3 * 12
    assert long <= 2 * plain + 24, "24 tokens, and once more where answers have ended"
