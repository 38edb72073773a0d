"""Rules that people forget and machines do not: sizes, the import law, names, a light import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "selfloop"
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS: list[tuple[str, ...]] = [
    ("selfloop.words", "selfloop.keys"),
    ("selfloop.types",),
    ("selfloop.calling",),
    ("selfloop.roles", "selfloop.sampling"),
    ("selfloop.corruptions", "selfloop.places", "selfloop.decoding", "selfloop.likeness",
     "selfloop.pictures", "selfloop.media_index", "selfloop.durations", "selfloop.interrupting",
     "selfloop.egress",
     "selfloop.yaml_lines",
     "selfloop.video", "selfloop.sound", "selfloop.row_media",
     "selfloop.formats",
     "selfloop.sources",
     "selfloop.row_to_sample", "selfloop.data", "selfloop.store",
     "selfloop.doors", "selfloop.elsewhere", "selfloop.floor", "selfloop.learning"),
    ("selfloop.collect", "selfloop.organize", "selfloop.optimize", "selfloop.testbeds",
     "selfloop.gathering", "selfloop.splitting", "selfloop.answer_types", "selfloop.initialize"),
    ("selfloop.engines", "selfloop.doctor", "selfloop.doctor_model", "selfloop.machines"),
    ("selfloop.loop", "selfloop.evaluate", "selfloop.stepping", "selfloop.running"),
    ("selfloop.recipes", "selfloop.report"),
    ("selfloop.proof", "selfloop.export", "selfloop.methods", "selfloop.composing",
     "selfloop.cleaning", "selfloop.casting",
     "selfloop.exporting",
     "selfloop.config", "selfloop.config_sections", "selfloop.config_errors",
     "selfloop.probed",
     "selfloop.probing", "selfloop.choosing", "selfloop.costs", "selfloop.planning",
     "selfloop.judging_costs", "selfloop.step_memory",
     "selfloop.checking", "selfloop.auditing", "selfloop.progress", "selfloop.sinks",
     "selfloop.serving"),
    ("selfloop.demo", "selfloop.proving", "selfloop.own_proof", "selfloop.label_study",
     "selfloop.loss_study",
     "selfloop.evaluating"),
    ("selfloop.cli", "selfloop.commands", "selfloop.__main__"),
]
"""From the bottom up: a module imports from its own layer and from those before it."""

NEVER = ("utils", "common", "core", "base", "helpers", "manager")


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    for level, names in enumerate(LAYERS):
        if any(module == n or module.startswith(n + ".") for n in names):
            return level
    raise AssertionError(f"{module} has no layer: add it to LAYERS in tests/test_house_rules.py")


def imports(path: Path, *, only_top: bool) -> list[str]:
    """Modules that a file imports; with only_top, at module level and at run time."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if only_top else list(ast.walk(tree))
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "selfloop":
                found += [f"selfloop.{alias.name}" for alias in node.names]
            else:
                found.append(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path):
    module = module_of(path)
    if module == "selfloop":
        return
    for target in imports(path, only_top=True):
        if target.startswith("selfloop.") and (SOURCE.parent / target.replace(".", "/")
                                               ).with_suffix(".py").exists():
            assert layer_of(target) <= layer_of(module), f"{module} imports {target}"


def test_stages_never_import_each_other():
    for stage in ("collect", "organize", "optimize"):
        others = {"collect", "organize", "optimize"} - {stage}
        for path in (SOURCE / stage).rglob("*.py"):
            for target in imports(path, only_top=False):
                assert not any(target.startswith(f"selfloop.{o}") for o in others), (path, target)


def test_the_loop_never_imports_an_engine():
    for name in ("loop", "running", "stepping", "learning", "doors"):
        found = imports(SOURCE / f"{name}.py", only_top=False)
        assert not any("engines" in target for target in found), name


def test_torch_stays_where_tensors_are():
    allowed = ("optimize", "engines", "testbeds")
    for path in FILES:
        if path.relative_to(SOURCE).parts[0] in allowed:
            continue
        top = imports(path, only_top=True)
        assert not any(t.split(".")[0] in ("torch", "transformers", "ray") for t in top), path


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_sizes(path):
    text = path.read_text()
    recipe = path.parent.name == "recipes" and path.name != "__init__.py"
    assert text.count("\n") <= (40 if recipe else 300), f"{path} is too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = node.end_lineno - node.lineno + 1
            assert size <= 60, f"{path}:{node.lineno} {node.name} has {size} lines"


def test_losses_stay_small():
    """No function of a loss has more than 25 lines, its docstring left out."""
    for path in (SOURCE / "optimize" / "losses").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first, *rest = node.body
                told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                body = rest if told else node.body
                size = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert size <= 25, f"{path}:{node.lineno} {node.name} has {size} lines"


def test_the_learner_knows_no_method_by_name():
    for name in ("optimize/learner.py", "optimize/assemble.py",
                 "optimize/wide.py", "learning.py", "running.py", "stepping.py"):
        text = (SOURCE / name).read_text()
        assert not re.search(r"\b(\w*GRPO|\w*DPO|SFT|STaR|RLOO|KTO|BCO|GKD|SDFT)\b", text), name


def test_no_catch_all_names():
    for path in FILES:
        assert path.stem not in NEVER, path


def test_nothing_evaluates_or_unpickles():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
        found = imports(path, only_top=False)
        assert not any(t.split(".")[0] in ("pickle", "dill", "shelve") for t in found), path
        assert "trust_remote_code=True" not in path.read_text(), path


def test_import_is_light_and_fast():
    code = ("import time; t = time.perf_counter(); import selfloop; s = time.perf_counter() - t;"
            "import sys; print(s, 'torch' in sys.modules, 'ray' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, torch, ray = out.stdout.split()
    assert float(seconds) < 0.3 and torch == ray == "False"


def test_public_names_exist():
    import selfloop

    assert all(getattr(selfloop, name) is not None for name in selfloop.__all__)
