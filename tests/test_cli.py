"""The command line as a new user meets it: the first half hour, and every bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clidata import pictures, selfloop, with_splits
from selfloop import store
from selfloop.cli import main
from selfloop.config import SEED


def call(*args: str, code: int = 0):
    found = CliRunner().invoke(main, list(args))
    assert found.exit_code == code, f"{found.stdout}\n{found.stderr}\n{found.exception!r}"
    return found


def refused(*args: str, code: int = 2) -> str:
    """The one line of an error; nothing else may stand on stdout."""
    found = call(*args, code=code)
    lines = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and found.stderr.rstrip().endswith(lines[0]), found.stderr
    assert "Traceback" not in found.stderr and not found.stdout
    return lines[0]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFLOOP_TRACEBACK", raising=False)


def test_alone_it_says_what_to_do_first() -> None:
    text = call().stdout
    order = [text.index(f"selfloop {c}") for c in ("init", "probe", "plan", "run ", "show")]
    assert order == sorted(order)


def test_help_and_version_need_no_torch() -> None:
    script = ("import sys; from selfloop.cli import main\n"
              "try: main(sys.argv[1:])\n"
              "except SystemExit as e: code = e.code\n"
              "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)")
    for args in (["--help"], ["run", "--help"], ["version"], ["show", "nothing"]):
        done = subprocess.run([selfloop()[0], "-c", script, *args], capture_output=True, text=True)
        assert done.returncode == (2 if args[0] == "show" else 0), done.stderr
    assert json.loads(call("version", "--json").stdout)["selfloop"]


def test_the_first_half_hour_on_own_pictures(tmp_path: Path) -> None:
    images, labels = pictures(tmp_path)
    said = call("init", str(images), "--labels", str(labels), "--json")
    made = json.loads(said.stdout)
    assert made["verifier"].endswith(":number") and sum(made["counts"].values()) >= 36
    assert "already there" in refused("init", str(images), "--labels", str(labels))

    assert "selfloop probe" in refused("plan")
    probed = json.loads(call("probe", "--questions", "4", "--draws", "3", "threads=1",
                             "options.max_new_tokens=12", "--json").stdout)
    assert probed["accuracy"]["n"] == 4 and "probe.json" in os.listdir()
    changes = ["threads=1", "options.max_new_tokens=12"]
    planned = json.loads(call("plan", "method=star", *changes, "--json").stdout)
    assert planned["method"] == "star" and planned["seconds"]["total"] > 0
    assert "not " in call("plan", *changes).stdout
    checked = json.loads(call("check", "--json").stdout)
    assert checked["ok"] and checked["gold_checked"] > 20

    short = [*changes, "method=star", "iterations=1", "options.updates=2", "options.batch=4",
             "options.n=2"]
    first = call("run", *short, "--name", "mine", "--json")
    summary = json.loads(first.stdout)
    assert len(summary["iterations"]) == 1
    assert re.search(r"iteration 1: (promoted|held|rolled back): ", first.stderr)
    assert "problems/s" in first.stderr and "updates (" in first.stderr
    again = call("run", *short, "--name", "mine")  # finished: nothing is done twice
    assert "iteration 1" not in again.stderr and "show" in again.stdout
    shown = json.loads(call("show", "mine", "--json").stdout)
    assert len(shown["iterations"]) == 1


def test_auto_probes_first_and_says_why(tmp_path: Path) -> None:
    path = with_splits(tmp_path, method="auto")
    found = CliRunner().invoke(main, ["run", str(path), "options.n=2"])
    assert "probing first" in found.stderr and (tmp_path / "probe.json").exists()
    assert found.exit_code == 0 or "no method fits" in found.stderr


def test_auto_refuses_before_its_probe_what_no_method_takes(tmp_path: Path) -> None:
    path = str(with_splits(tmp_path, method="auto"))
    for change, told in (("options.clipp=0.2", "options.clipp: none of the methods that auto picks "
                          "from (star, dpo, grpo, agreement, supervised) has such an option"),
                         ("options.clip_high=0.3", "options.clip_high: of the methods that auto "
                          "picks from only grpo has it, and no method has all of these"),
                         ("options.lr=much", "options.lr = 'much'"),
                         ("verifier=nubmer", "did you mean 'number'?"),
                         ("data.dev=null", "data.dev is missing")):
        assert told in refused("run", path, change)
        assert change == "data.dev=null" or told in refused("check", path, change)
    assert not (tmp_path / "probe.json").exists()
    one = call("check", path, "options={n: 2, clip_high: 0.3}").stdout
    assert "; grpo would be" in one
    assert "there are no dev samples" in call("check", path, "data.dev=null", code=1).stdout


def test_doctor(tmp_path: Path) -> None:
    found = json.loads(call("doctor", "--json").stdout)
    assert found["worst"] == "ok"
    bad = call("doctor", str(tmp_path), code=1).stdout
    assert "config.json" in bad


# -- bad input -------------------------------------------------------------------------------------

def test_misspelt_commands_options_and_keys(tmp_path: Path) -> None:
    path = str(with_splits(tmp_path))
    assert "'run'" in refused("runn")
    assert "--budget" in refused("run", "--bugdet", "1m")
    assert "'options.n'" in refused("run", path, "n=4")
    assert "'lr'" in refused("run", path, "options.lrr=1")
    assert "unexpected argument 'more'" in refused("run", path, "more")
    assert "10m" in refused("run", path, "--budget", "soon")
    Path(path).write_text(Path(path).read_text() + "itrations: 3\n")
    line = refused("check", path)
    assert "line 11" in line and "'iterations'" in line


def test_a_missing_and_a_broken_picture(tmp_path: Path) -> None:
    images, labels = pictures(tmp_path, 14)
    names = sorted(p.name for p in images.iterdir())
    (images / names[0]).unlink()
    from PIL import Image

    jpeg = images / names[1]
    Image.open(jpeg).convert("RGB").resize((64, 64)).save(jpeg, "JPEG")
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    said = call("init", str(images), "--labels", str(labels)).stdout
    lines = [line for line in said.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 2
    assert any(names[0] in line and "row 1" in line for line in lines)
    assert any(names[1] in line for line in lines)
    picture = sorted((tmp_path / "raw" / "images").iterdir())[5]
    picture.write_bytes(picture.read_bytes()[:-30])
    found = call("check", code=1).stdout
    assert picture.name in found and "row" in found


def test_a_picture_that_is_gone_when_the_run_starts(tmp_path: Path) -> None:
    path = with_splits(tmp_path)
    row = json.loads((tmp_path / "train" / "train.jsonl").read_text().splitlines()[2])
    (tmp_path / "train" / row["images"][0]).unlink()
    line = refused("run", str(path))
    assert "row 3" in line and row["images"][0] in line


def test_what_check_says_of_a_model_that_is_not_there(tmp_path: Path) -> None:
    path = str(with_splits(tmp_path))
    assert json.loads(call("check", path, "--json").stdout)["ok"]
    assert json.loads(call("check", path, "model=owner/name", "--json").stdout)["ok"]  # not asked
    (tmp_path / "empty").mkdir()
    for model, said in (("nosuch", "model: no model folder at "), ("empty", "has no config.json")):
        found = json.loads(call("check", path, f"model={model}", "--json", code=1).stdout)["found"]
        assert [f["where"] for f in found] == ["model"] and said in f"model: {found[0]['what']}"
    judge = "engines.judge={model: ./gone}"
    found = json.loads(call("check", path, judge, "--json", code=1).stdout)["found"]
    assert found[0]["where"] == "engines.judge" and "no model folder at" in found[0]["what"]


def test_what_check_reads_in_a_model_folder_without_loading_it(tmp_path: Path) -> None:
    path, model = str(with_splits(tmp_path)), tmp_path / "model"
    shutil.copytree(SEED, model)
    said = call("check", path, "model=model", "lora={targets: [q_proj, qproj]}").stdout
    assert "lora.targets: no weight of " in said and "'qproj'" in said and "'q_proj'" not in said
    for name in ("chat_template.jinja", "chat_template.json"):
        (model / name).unlink(missing_ok=True)
    for name in ("processor_config.json", "tokenizer_config.json"):
        kept = json.loads((model / name).read_text())
        kept.pop("chat_template", None)
        (model / name).write_text(json.dumps(kept))
    assert "model has no chat template; put a" in call("check", path, "model=model", code=1).stdout
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "default.jinja").write_text("x")
    assert "all is well" in call("check", path, "model=model").stdout


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    path = str(with_splits(tmp_path))
    line = refused("run", path, "device=xpu:3")
    assert "device='xpu:3': this torch cannot use it" in line and "device=auto" in line


def test_options_that_cannot_be_meant_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    path = str(with_splits(tmp_path))
    for name in ("../up", "a/b", "..", ".", "", str(tmp_path / "x")):
        assert "expected a plain name" in refused("run", path, "--name", name)
    assert not (tmp_path / "runs").exists()
    dev = ["eval", "embedded", "--on", str(tmp_path / "dev" / "dev.jsonl")]
    assert "no prompt style 'nosuch'" in refused(*dev, "--style", "nosuch")
    assert "--adjust nosuch: expected " in refused(*dev, "--adjust", "nosuch")
    assert "given as `--on FILE` alone" in refused("eval", "embedded", "--on", f"mine={path}")
    assert not (tmp_path / "runs").exists()
    assert "run.yaml is a file: `selfloop demo` takes the folder" in refused("demo", path)
    rows = str(tmp_path / "dev" / "dev.jsonl")
    assert "a run.yaml is wanted here: `selfloop init`" in refused("run", rows)


def test_a_label_column_that_is_missing(tmp_path: Path) -> None:
    images, labels = pictures(tmp_path, 6)
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    labels.write_text("".join(json.dumps({"file": r["file"], "nothing": 1}) + "\n" for r in rows))
    line = refused("init", str(images), "--labels", str(labels), "--task", "how many?")
    assert "labels.jsonl: no column holds the labels (there are: file, nothing)" in line
    assert "--labels" in refused("init", str(images), "--labels", "gone.jsonl")


def test_a_model_folder_without_a_chat_template(tmp_path: Path) -> None:
    from selfloop.testbeds.tiny_vlm import build

    model = build(tmp_path / "model", width=32, layers=1)
    for name in ("chat_template.jinja", "processor_config.json", "tokenizer_config.json"):
        file = model / name
        if file.suffix == ".jinja":
            file.unlink(missing_ok=True)
        elif file.exists():
            values = json.loads(file.read_text())
            values.pop("chat_template", None)
            file.write_text(json.dumps(values))
    path = with_splits(tmp_path, model="model")
    assert "chat_template.jinja" in refused("run", str(path))
    assert "chat_template.jinja" in call("doctor", str(model), code=1).stdout
    assert "no model folder" in refused("run", str(path), "model=./gone")


def test_a_verifier_that_raises_stops_the_run_and_keeps_what_was_drawn(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_splits(tmp_path)
    (tmp_path / "raising_one.py").write_text(
        "def rule(rollout, answer):\n    raise KeyError('colour')\n")
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    line = refused("run", str(path), "verifier=raising_one:rule", "--name", "r")
    for part in ("raising_one:rule", "KeyError", "colour", "kept"):
        assert part in line
    assert list((tmp_path / "runs" / "r").rglob("rollouts-*.parquet"))


def test_a_loss_that_is_not_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selfloop.optimize.losses.sft import SFT

    plain = SFT.__call__
    monkeypatch.setattr(SFT, "__call__", lambda self, batch: {
        name: (weight, total * float("nan"))
        for name, (weight, total) in plain(self, batch).items()})
    path = with_splits(tmp_path)
    line = refused("run", str(path), "--name", "n")
    assert "loss became nan" in line and "lower" in line and "samples" in line
    assert list((tmp_path / "runs" / "n").rglob("verdicts-*.parquet"))
    monkeypatch.setattr(SFT, "__call__", plain)
    assert "iteration 1" in call("run", str(path), "--name", "n").stderr  # it goes on


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, writes = with_splits(tmp_path), os.replace, []

    def replace(source: object, target: object) -> None:
        if "verdicts" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        writes.append(target)
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(store.os, "replace", replace)
    line = refused("run", str(path), "--name", "d")
    assert "disk full" in line and "verdicts" in line and "same command" in line
    assert any("rollouts" in str(w) for w in writes)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert "iteration 1" in call("run", str(path), "--name", "d").stderr


def test_memory_and_our_own_bugs_are_one_line_too(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import selfloop.checking

    def fails(error: BaseException):
        def check(config: object) -> None:
            raise error
        monkeypatch.setattr(selfloop.checking, "check", check)

    path = str(with_splits(tmp_path))
    fails(MemoryError())
    assert "out of memory" in refused("check", path)
    fails(OSError(errno.ENOSPC, "No space left on device", "/x/y"))
    assert "disk full while writing /x/y" in refused("check", path)
    fails(ZeroDivisionError("by\nzero"))
    assert "SELFLOOP_TRACEBACK=1" in refused("check", path, code=1)
    fails(KeyboardInterrupt())
    found = call("check", path, code=130)
    assert f"to go on: selfloop check {path}" in found.stderr
    monkeypatch.setenv("SELFLOOP_TRACEBACK", "1")
    fails(ZeroDivisionError("by zero"))
    assert isinstance(CliRunner().invoke(main, ["check", path]).exception, ZeroDivisionError)


def test_an_interruption_says_how_to_go_on_and_leaves_no_traceback(tmp_path: Path) -> None:
    path = with_splits(tmp_path)
    args = ["run", str(path), "--name", "i", "iterations=500"]
    child = subprocess.Popen(selfloop(*args), stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    events = tmp_path / "runs" / "i" / "events.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (
            events.exists() and '"learned"' in events.read_text()):
        assert child.poll() is None, child.stderr.read()  # type: ignore[union-attr]
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("interrupted: ")
    assert f"to go on: selfloop run {path} --name i iterations=500" in said


def test_unknown_runs_name_those_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "loop.json").write_text("{}")
    assert "runs here: one" in refused("show", "two")
    assert "selfloop[trackio]" in refused("run", str(with_splits(tmp_path)), "--sink", "trackio")
    assert "'trackio'" in refused("run", str(with_splits(tmp_path)), "--sink", "trakio")


# -- progress and sinks ----------------------------------------------------------------------------

EVENTS = [
    ("opened", {"loop": "star", "samples": 10, "dev": 5, "iterations": 2, "steps": 1}),
    ("evaluated", {"version": 0, "greedy": 0.5, "no_image": 0.1}),
    ("drawn", {"step": 0, "done": 5, "of": 10}),
    ("gathered", {"step": 0, "seconds": 4.0, "monitors": {"mean_score": 0.5}, "counts": {
        "problems": 10, "drawn": 80, "right": 40, "unjudged": 8, "signals_solver": 12}}),
    ("update", {"step": 0, "role": "solver", "done": 3, "of": 6}),
    ("learned", {"step": 0, "seconds": 2.0, "metrics": {
        "solver": {"updates": 6.0, "nll": 0.25, "tokens_read": 10.0}}}),
    ("gathered", {"step": 1, "seconds": 4.0, "monitors": {}, "counts": {
        "problems": 2, "drawn": 6, "right": 0, "unjudged": 6, "signals_solver": 3}}),
    ("decided", {"iteration": 0, "action": "hold", "why": "held: 50 -> 51", "greedy": 0.51}),
    ("learned", {"step": 1, "seconds": 2.0, "metrics": {"solver": {"updates": 0.0}}}),
    ("stopped", {"why": "the budget of 5 s is spent", "step": 1, "iterations": 1}),
    ("finished", {"iterations": 2, "best": 0}),
    ("whatever", {}),
]


def test_progress_in_words() -> None:
    import io

    from rich.console import Console

    from selfloop.progress import Shown

    for terminal in (False, True):
        out, now = io.StringIO(), iter(range(0, 10_000, 11))
        console = Console(file=out, force_terminal=terminal, width=150)
        with Shown(console, clock=lambda now=now: float(next(now))) as shown:
            for event, facts in EVENTS:
                shown(event, facts)
        text = out.getvalue()
        for part in ("50.0 % right, 10.0 % right without the picture", "80 answers to 10 problems",
                     "50 % right", "10 % unjudged", "12 signals", "2.5 problems/s",
                     "6 updates (2.0 s, 3.0/s): nll 0.25", "iteration 1: held: 50 -> 51",
                     "about 6.0 s left", "nothing to learn from", "same command goes on",
                     "nothing was promoted"):
            assert part in text, part
        assert text.count("% right,") == 2, "of answers that nobody judged, none is called wrong"


def test_a_sink_gets_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    from selfloop.sinks import sink

    logged: list[dict] = []
    fake = types.SimpleNamespace(init=lambda **about: logged.append(about),
                                 log=logged.append, finish=lambda: logged.append({"done": True}))
    monkeypatch.setitem(sys.modules, "trackio", fake)
    watch = sink("trackio", run="mine", config={"seed": 1})
    for event, facts in EVENTS[:8] + EVENTS[9:10]:
        watch(event, facts)
    assert logged[0]["name"] == "mine" and logged[0]["config"] == {"seed": 1}
    every = {name: value for one in logged for name, value in one.items()}
    assert every["collect/mean_score"] == 0.5 and every["learn/solver/nll"] == 0.25
    assert every["dev/greedy"] == 0.51 and logged[-1] == {"done": True}


def test_a_kill_and_the_same_command_give_the_same_run(tmp_path: Path) -> None:
    path = with_splits(tmp_path)
    rest = ["iterations=2", "options.updates=3"]
    call("run", str(path), "--name", "whole", *rest)
    child = subprocess.Popen(selfloop("run", str(path), "--name", "killed", *rest), cwd=tmp_path,
                             stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={
                                 **os.environ, "OMP_NUM_THREADS": "1", "SELFLOOP_KILL_AT": "20"})
    assert child.wait(timeout=60) == -signal.SIGKILL
    call("run", str(path), "--name", "killed", *rest)
    first, second = (store.RunFolder(tmp_path / "runs" / name) for name in ("whole", "killed"))
    assert first.iterations() == second.iterations()
    for part in sorted((first.path / "checkpoints").rglob("*.safetensors")):
        assert part.read_bytes() == (second.path / part.relative_to(first.path)).read_bytes()
