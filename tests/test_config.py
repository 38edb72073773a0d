"""run.yaml: what it may say, and the one line that every mistake gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfloop.answer_types import AnswerType
from selfloop.config import SEED, RunConfig, load_config
from selfloop.durations import seconds, time_of
from selfloop.initialize import Prepared, write_run_yaml
from selfloop.loop import Loop
from selfloop.methods import METHODS, build_loop, options_of, verifier_named
from selfloop.roles import SelfloopError

BASE = """\
model: embedded
data:
  train: data/train.jsonl
  dev: data/dev.jsonl
verifier: exact
method: star
"""


@pytest.fixture
def write(tmp_path: Path):
    def put(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return put


def test_what_init_writes_is_a_config(tmp_path: Path) -> None:
    sets = {name: tmp_path / "data" / f"{name}.jsonl" for name in ("train", "dev", "test")}
    prepared = Prepared(
        **sets, counts={"train": 7, "dev": 2, "test": 2, "unlabelled": 1}, clusters=11,
        answers=AnswerType("number", "selfloop.organize.verify.rules:number"), smallest_gain=0.1,
        seed=3)
    path = write_run_yaml(prepared, tmp_path / "run.yaml", model="owner/name", budget="90m")
    assert len(path.read_text().splitlines()) <= 30
    config = load_config(path)
    assert (config.model, config.method, config.seed, config.budget) == (
        "owner/name", "auto", 3, 5400)
    assert config.data.dev == sets["dev"] and config.folder == tmp_path / "runs" / "auto"


def test_paths_start_at_the_file(write, tmp_path: Path) -> None:
    (tmp_path / "mymodel").mkdir()
    config = load_config(write(BASE), ["model=mymodel", "out=elsewhere/one", "lora=8"])
    assert config.model == str(tmp_path / "mymodel")
    assert config.folder == tmp_path / "elsewhere" / "one"
    assert config.lora is not None and (config.lora.rank, config.lora.alpha) == (8, 16)
    assert load_config(write(BASE)).model_path == str(SEED)


def test_what_a_run_keeps_reads_back_as_the_same_config(write, tmp_path: Path) -> None:
    config = load_config(write(BASE), ["options.n=4", "budget=10m", "lora=4"])
    again = tmp_path / "again.yaml"
    again.write_text(config.as_yaml())
    other = load_config(again)
    assert other == config.model_copy(update={"model": str(SEED)})


@pytest.mark.parametrize(("text", "said"), [
    (BASE + "itrations: 2\n", ["run.yaml, line 7", "'itrations'", "'iterations'"]),
    (BASE.replace("dev:", "devv:"), ["line 4", "'data.devv'", "'dev'"]),
    (BASE + "model: twice\n", ["line 7", "twice", "line 1"]),
    (BASE + "a: [1,\n", ["run.yaml, line", "not YAML"]),
    (BASE + "iterations: 0\n", ["line 7", "iterations", "greater"]),
    (BASE + "iterations: many\n", ["line 7", "'many'", "expected a whole number"]),
    (BASE + "features: perhaps\n", ["line 7", "expected true or false"]),
    (BASE.replace("method: star", "method: [star]"), ["line 6", "expected text"]),
    (BASE + "dtype: float8\n", ["line 7", "expected 'auto', 'float32', "]),
    (BASE + "compute: float16\n", ["line 7", "expected 'bfloat16'"]),
    (BASE + "device: gpu\n", ["line 7", "'gpu'", "expected auto, cpu, cuda"]),
    (BASE + "freeze: [tower]\n", ["line 7", "'tower'", "expected 'vision', 'projector' or "]),
    (BASE + "freeze: [vision]\nlearn: [language]\n", ["line 8", "give one of them"]),
    (BASE + "freeze: [vision, projector, language]\n", ["line 7", "nothing is left to learn"]),
    (BASE + "options: {lr: .inf}\n", ["line 7", "options.lr: expected a finite number"]),
    (BASE + "options: {a: [1, {b: .nan}]}\n", ["options.a.1.b: expected a finite number"]),
    (BASE + "options: {a: &x [*x]}\n", ["line 7", "options"]),
    (BASE + "gate: {min_gain: .nan}\n", ["gate.min_gain: expected a finite number"]),
    (BASE + "gate: {min_gain: inf}\n", ["gate.min_gain = 'inf': expected a finite number"]),
    (BASE + "gate: {alpah: 0.1}\n", ["line 7", "'gate.alpah'; did you mean 'alpha'?"]),
    (BASE + "engines: {judge: {model: a/b, dtype: float8}}\n", ["judge.dtype: expected 'auto'"]),
    (BASE + "options: 4\n", ["line 7", "write {name: value}"]),
    (BASE + "freeze: vision\n", ["line 7", "expected a list: write freeze: [vision]"]),
    (BASE + "gate: 0.1\n", ["line 7", "(alpha, min_gain, ", "write gate: {alpha: ...}"]),
    (BASE.replace("  train: data/train.jsonl\n", "  train: [a, b]\n"),
     ["line 3", "data.train", "expected one path"]),
    ("model: embedded\nverifier: exact\ndata: train.jsonl\n",
     ["line 3", "data = 'train.jsonl'", "write data: {train: train.jsonl}"]),
    # Where a key may be several things: all of them, or what was wrong with the one meant.
    (BASE + "audit: strict\n", ["line 7", "expected 'off', or keys of its own (allow, "]),
    (BASE + "network: a.com\n", ["line 7", "expected 'none', or a list: write network: [a.com]"]),
    (BASE + "suites: {path: a}\n", ["line 7", "'none', or a list: write suites: [{path: a}]"]),
    (BASE + "suites: [a.jsonl]\n", ["suites.0", "write {path: a.jsonl}"]),
    (BASE + "suites: [{path: a}]\n", ["the key 'suites.0.verifier' is missing"]),
    (BASE + "suites: [{path: a, verifier: exact, x: 1}]\n", ["unknown key 'suites.0.x'"]),
    (BASE + "budget: soon\n", ["line 7", "budget", "10m"]),
    (BASE + "n: 4\n", ["line 7", "'options.n'"]),
    (BASE + "prompt: chain\n", ["line 7", "chain of thought"]),
    (BASE.replace("verifier: exact\n", ""), ["'verifier'", "missing"]),
    ("- a list\n", ["list"]),
    ("!!python/object/apply:os.getcwd []\n", ["not YAML"]),
])
def test_mistakes_in_the_file_are_one_line(write, text: str, said: list[str]) -> None:
    with pytest.raises(SelfloopError) as caught:
        load_config(write(text))
    assert "\n" not in str(caught.value)
    assert "literal[" not in str(caught.value) and "Input should" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize(("override", "said"), [
    ("optons.n=4", ["'optons.n=4'", "'options'"]),
    ("iterations=none", ["'iterations=none'", "whole number"]),
    ("seed", ["key=value"]),
    ("seed.x=1", ["seed"]),
])
def test_mistakes_in_overrides_name_the_override(write, override: str, said: list[str]) -> None:
    with pytest.raises(SelfloopError) as caught:
        load_config(write(BASE), [override])
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize(("overrides", "said"), [
    (["options.lrr=1"], ["options.lrr", "star", "'lr'", "per_sample"]),
    (["options.n=few"], ["options.n", "integer"]),
    (["options.seed=1"], ["key of its own"]),
    (["method=stra"], ["'stra'", "'star'"]),
    (["verifier=exat"], ["'exat'", "'exact'"]),
    (["verifier=nowhere:name"], ["nowhere:name"]),
    (["method=agreement", "options.verifier=exact"], ["reads gold answers"]),
    (["method=auto"], ["selfloop plan"]),
    (["options.lr=-1"], ["options of star: Optim.lr=-1: must be positive"]),
    (["options.lr=1e999"], ["options.lr = '1e999': expected a finite number"]),
    (["options.temperature=-1"], ["options of star: Independent(temperature=-1.0)", "in [0, 1e6]"]),
    (["options.n=0"], ["options of star", "n=0"]),
])
def test_mistakes_in_the_method_are_one_line(write, overrides: list[str], said: list[str]) -> None:
    config = load_config(write(BASE), overrides)
    with pytest.raises(SelfloopError) as caught:
        build_loop(config)
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_builds_with_its_own_options(write, method: str) -> None:
    config = load_config(write(BASE), [f"method={method}", "iterations=2", "seed=5",
                                       "options.lr=1e-3"])
    loop = build_loop(config)
    assert isinstance(loop, Loop) and (loop.iterations, loop.seed) == (2, 5)
    assert loop.learn["solver"].optim.lr == 1e-3  # which YAML alone would read as text
    assert {"verifier", "metric", "seed", "iterations"} & set(options_of(method)) <= {"verifier"}


def test_modules_beside_the_file_are_found(write, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_own_rules.py").write_text(
        "from selfloop.recipes.star import star\n"
        "class Always:\n    def __call__(self, rollout, answer):\n        return True\n"
        "def method(verifier, seed, n=3):\n    return star(verifier, n=n, seed=seed)\n")
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    config = load_config(write(BASE), ["method=my_own_rules:method", "options.n=5",
                                       "verifier=my_own_rules:Always"])
    loop = build_loop(config)
    assert loop.sampler.n == 5 and loop.verifier(None, 1) is True  # type: ignore[union-attr,misc]


def test_short_names_of_verifiers() -> None:
    assert verifier_named("yes_no").__name__ == "yes_no"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("text", "value"), [
    ("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1.5 h", 5400)])
def test_lengths_of_time(text: str, value: float) -> None:
    assert seconds(text) == value


def test_lengths_of_time_that_are_none() -> None:
    for text in ("", "h", "soon", "10 minutes"):
        with pytest.raises(ValueError, match="no length of time"):
            seconds(text)
    assert [time_of(s) for s in (4.5, 45, 720, 12600, 200000, None)] == [
        "4.5 s", "45 s", "12 min", "3.5 h", "2.3 days", "unknown"]


def test_a_config_is_a_value() -> None:
    config = RunConfig.model_validate({
        "model": "m", "data": {"train": "t"}, "verifier": "exact"})
    assert config.method == "auto" and config.budget is None


def test_the_gate_and_what_must_not_be_forgotten_are_set_in_the_file(tmp_path):
    from clidata import with_splits

    path = with_splits(tmp_path)
    plain = build_loop(load_config(path))
    assert plain.evaluation.suites == () and plain.gate.acting.patience is None
    path.write_text(path.read_text() + """\
gate: {alpha: 0.1, min_gain: 0.02, patience: 3}
suites:
  - {path: dev/dev.jsonl, verifier: exact, epsilon: 0.1}
""")
    loop = build_loop(load_config(path))
    assert (loop.gate.alpha, loop.gate.min_gain, loop.gate.acting.patience) == (0.1, 0.02, 3)
    assert [s.name for s in loop.evaluation.suites] == ["dev"]
    assert loop.evaluation.suites[0].epsilon == 0.1 and len(loop.evaluation.suites[0].samples) == 8
    shipped = build_loop(load_config(path, ["suites=default"]))
    assert {s.name for s in shipped.evaluation.suites} == {"refusal", "over-refusal",
                                                          "instructions"}
    with pytest.raises(SelfloopError, match="gate"):
        load_config(path, ["gate.alpha=2"])


def test_other_models_are_asked_what_they_must_not_forget(tmp_path):
    from clidata import quick_model, with_splits

    loop = build_loop(load_config(with_splits(tmp_path, model=str(quick_model(tmp_path)))))
    assert len(loop.evaluation.suites) == 3
    assert build_loop(load_config(tmp_path / "run.yaml", ["suites=none"])).evaluation.suites == ()
