"""Real evaluation tools against `selfloop serve embedded`, and our own evaluation beside them.

All ask the same questions greedily, so their answers must be ours, one by one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfloop.data import load
from selfloop.demo import make_engine
from selfloop.evaluate.answering import answer
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.roles import Sampling
from selfloop.testbeds import digits

HERE = Path(__file__).parent
CLIENTS = Path(os.environ["SELFLOOP_CLIENTS"]).absolute()
QUESTIONS = int(os.environ.get("SELFLOOP_QUESTIONS", "200"))
SERVE = ("import typer; from selfloop.commands.serving import serve; app = typer.Typer(); "
         "app.command()(serve); app()")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(HERE)}


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return digits.write(tmp_path_factory.mktemp("questions"), "test", QUESTIONS, 11)


@pytest.fixture(scope="module")
def own(questions):
    """(our answers in the file's order, our accuracy)."""
    engine = make_engine()
    engine.bind(Library().open)
    samples = list(load(questions))
    found = {a.sample: a for a in answer(
        samples, {"solver": engine}, engine.version, exact,
        Sampling(temperature=0.0, max_new_tokens=16), arm="greedy")}
    in_order = [found[s.id] for s in samples]
    assert len(in_order) == QUESTIONS
    return [a.text for a in in_order], sum(bool(a.right) for a in in_order) / QUESTIONS


@pytest.fixture(scope="module")
def url():
    """The server, as a process of its own."""
    server = subprocess.Popen([sys.executable, "-c", SERVE, "embedded", "--port", "0", "--json"],
                              stdout=subprocess.PIPE, text=True)
    told = ""
    while not told.rstrip().endswith("}"):
        line = server.stdout.readline()
        assert line, "the server did not start"
        told += line
    yield json.loads(told)["url"]
    server.terminate()
    server.wait(10)


def client(name, script, url, questions, out):
    """What a script wrote, run by an environment's own Python."""
    subprocess.run([CLIENTS / name / "bin" / "python", HERE / script, url, questions, out],
                   check=True, env={**os.environ, **OFFLINE}, timeout=600)
    return json.loads(out.read_text())


def told(tool, answers, accuracy, own):
    """The figure, for whoever reads the log (pytest -s)."""
    same = sum(a == b for a, b in zip(answers, own[0], strict=True))
    print(f"\n{tool}: accuracy {accuracy:.4f}, our own {own[1]:.4f}; {same} of {len(answers)} "
          "answers equal")
    assert same == len(answers) and accuracy == pytest.approx(own[1])


def test_openais_own_client(url, questions, own, tmp_path):
    found = client("inspect", "ask_openai.py", url, questions, tmp_path / "out.json")
    right = [json.loads(line)["answer"] for line in questions.read_text().splitlines()]
    accuracy = sum(a.rpartition("=")[2].strip() == b for a, b in
                   zip(found["answers"], right, strict=True)) / len(right)
    told("openai", found["answers"], accuracy, own)
    assert found["streamed"] == own[0][0]
    assert found["drawn"] == found["again"] == found["tokens"]
    assert found["refused"]["BadRequestError"][0] == "BadRequestError"
    assert found["refused"]["NotFoundError"][0] == "NotFoundError"
    assert "--max-tokens" in found["refused"]["BadRequestError"][1]


def test_inspect_ai(url, questions, own, tmp_path):
    found = client("inspect", "ask_inspect.py", url, questions, tmp_path / "out.json")
    told("inspect_ai", found["answers"], found["accuracy"], own)


def test_lmms_eval(url, questions, own, tmp_path):
    from serving.digits_task import TASK

    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    lines = [json.dumps({**row, "path": str(questions.parent / row["images"][0])}) for row in rows]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    (folder / "digits.yaml").write_text(TASK.format(questions=folder / "questions.jsonl"))
    shutil.copy(HERE / "digits_task.py", folder)
    subprocess.run(
        [CLIENTS / "lmms-eval" / "bin" / "python", "-m", "lmms_eval", "--model", "openai",
         "--model_args", f"model_version=embedded,base_url={url},api_key=sk-any,timeout=300",
         "--tasks", "selfloop_digits", "--include_path", folder, "--batch_size", "1",
         "--log_samples", "--output_path", tmp_path / "out"],
        check=True, timeout=900, cwd=tmp_path,
        env={**os.environ, **OFFLINE, "HF_HOME": str(tmp_path / "hf")})
    results = json.loads(next((tmp_path / "out").rglob("*results.json")).read_text())
    samples = next((tmp_path / "out").rglob("*samples_*.jsonl")).read_text().splitlines()
    logged = sorted(map(json.loads, samples), key=lambda row: row["doc_id"])
    accuracy = next(value for name, value in results["results"]["selfloop_digits"].items()
                    if name.startswith("concluded,"))
    said = [row["filtered_resps"] for row in logged]  # a text, or a list of one
    told("lmms-eval", [a if isinstance(a, str) else a[0] for a in said], accuracy, own)
