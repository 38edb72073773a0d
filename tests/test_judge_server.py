"""The engine for OpenAI-compatible servers against a real one, `transformers serve`.

Run by scripts/test-judge-server, which makes the server's own environment.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from urllib.request import urlopen

import pytest

pytest.importorskip("openai", reason="pip install 'selfloop[openai]'")
COMMAND = os.environ.get("SELFLOOP_TRANSFORMERS", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not COMMAND, reason="run by scripts/test-judge-server")]
N = 40


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """`transformers serve` with the shipped seed model, greedy unless asked otherwise."""
    from selfloop.demo import SEED

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(log.parent)}
    with open(log, "w") as out, subprocess.Popen(
            [COMMAND, "serve", str(SEED), "--host", "127.0.0.1", "--port", str(port), "--device",
             "cpu", "--dtype", "float32"], stdout=out, stderr=out, env=environment) as server:
        try:
            _until_it_answers(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def _until_it_answers(address, server, log):
    deadline = time.monotonic() + 180
    while True:
        try:
            urlopen(address, timeout=2).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    from selfloop.data import load
    from selfloop.testbeds import digits

    return list(load(digits.write(tmp_path_factory.mktemp("digits"), "test", N, 5)))


def test_greedy_answers_about_pictures_are_those_of_the_local_engine(url, questions, tmp_path):
    from selfloop.demo import SEED, make_engine
    from selfloop.engines.openai import OpenAIEngine
    from selfloop.pictures import Library
    from selfloop.roles import Request, Sampling

    local = make_engine()
    remote = OpenAIEngine(str(SEED), url, concurrency=4, records=tmp_path / "asked.jsonl")
    requests = [Request(context=s.context, key=s.id,
                        sampling=Sampling(temperature=0.0, max_new_tokens=16)) for s in questions]

    def told_by(engine):
        engine.bind(Library().open)
        engine.publish(0, 0)
        began = time.monotonic()
        found = [engine.decode(t.token_ids) for (t,) in engine.generate(requests, 0)]
        print(f"{type(engine).__name__}: {time.monotonic() - began:.2f} s")
        return found

    told = {"local": told_by(local), "remote": told_by(remote)}
    again = OpenAIEngine(str(SEED), url, records=tmp_path / "asked.jsonl", replay_only=True)
    same = sum(a == b for a, b in zip(told["local"], told["remote"], strict=True))
    print(f"{same} of {N} answers equal; {remote.account()}")
    assert same == N and len(set(told["local"])) > N // 4
    assert told_by(again) == told["remote"] and again.account()["answers"] == N


def test_draws_differ_and_an_error_of_the_server_is_one_line(url, questions):
    from selfloop.demo import SEED
    from selfloop.engines.openai import OpenAIEngine, Patience
    from selfloop.pictures import Library
    from selfloop.roles import Request, Sampling, SelfloopError

    # This server samples only where the model's own generation config does, whatever temperature.
    engine = OpenAIEngine(str(SEED), url, extra={"generation_config": '{"do_sample": true}'})
    engine.bind(Library().open)
    hot = Sampling(temperature=3.0, max_new_tokens=16)
    (turns,) = engine.generate(
        [Request(context=questions[0].context, key="k", n=6, sampling=hot)], 0)
    texts = {engine.decode(t.token_ids) for t in turns}
    print(f"{len(texts)} texts in 6 draws: {sorted(texts)}")
    assert len(texts) > 1
    other = OpenAIEngine("no-such-model", url, patience=Patience(retries=1, first=0.01))
    (error,) = other.attempt([Request(context=questions[0].context, key="k")], 0)
    print(error)
    assert isinstance(error, SelfloopError) and "\n" not in str(error)
