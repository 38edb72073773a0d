"""The native benchmarks, one file each. What is not here runs through `selfloop serve`."""

from __future__ import annotations

import difflib
from importlib import import_module

from selfloop.evaluate.benchmark import Benchmark
from selfloop.roles import SelfloopError

NAMES = ("amber", "chair", "chartqa", "docvqa", "hallusionbench", "mathvista", "mmstar", "physics",
         "pope", "scienceqa", "vstar")


def benchmark(name: str) -> Benchmark:
    """A native benchmark by its name. Raises SelfloopError naming those that there are."""
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, 1)
        raise SelfloopError(
            f"no benchmark {name!r}{f' (did you mean {near[0]}?)' if near else ''}: native are "
            f"{', '.join(NAMES)}; any other runs through `selfloop serve` with lmms-eval or "
            "inspect_ai; your own questions are given as `--on FILE` alone")
    made = import_module(f"selfloop.evaluate.benchmarks.{name}").BENCHMARK
    assert isinstance(made, Benchmark)
    return made
