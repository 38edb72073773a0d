"""The engine for OpenAI-compatible servers: against a scripted server, our own, and in runs."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest
from PIL import Image

import toyland
from judge_server import Reply, judge, said, scripted
from selfloop import egress
from selfloop.collect.independent import Independent
from selfloop.doors import Doors, Stopped, user
from selfloop.engines.json_schema import check_schema, mismatch, parsed
from selfloop.engines.only_answers import Fixed
from selfloop.engines.openai import OpenAIEngine, Patience, Pictures, Prices
from selfloop.engines.openai_messages import Reply as Answer
from selfloop.engines.openai_messages import decoded, reply_of, turn
from selfloop.engines.recording import Records
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.judging import judge as judge_all
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.judges import PointwiseJudge
from selfloop.pictures import Library
from selfloop.roles import Request, Sampling, SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Context, Group, Part, Rollout, Turn

pytest.importorskip("openai", reason="pip install 'selfloop[openai]'")

QUICK = Patience(timeout=2.0, deadline=8.0, retries=3, first=0.01, most=0.05)
GREEDY = Sampling(temperature=0.0, max_new_tokens=16)


def asked(text="what is it ?", key="k", **how) -> Request:
    return Request(context=Context(prompt=user(text)), key=key, **how)


def texts(engine, *requests) -> list[list[str]]:
    return [[engine.decode(t.token_ids) for t in turns] for turns in engine.generate(requests, 0)]


def refused(says, *, patience=QUICK, request=None, **options) -> tuple[str, list]:
    """(the error's line, what the server was asked) of one request that must fail."""
    with scripted(says) as (url, script):
        engine = OpenAIEngine("m", url, patience=patience, **options)
        (error,) = engine.attempt([request or asked(sampling=GREEDY)], 0)
    assert isinstance(error, SelfloopError) and "\n" not in str(error), error
    return str(error), script.asked


# -- what is asked ---------------------------------------------------------------------------------

def test_sampling_becomes_a_body_and_each_draw_has_a_seed_of_its_own():
    with scripted(lambda body, n: said(str(body.get("seed")))) as (url, script):
        engine = OpenAIEngine("m", url, extra={"reasoning_effort": "low"})
        how = Sampling(temperature=0.7, top_p=0.9, top_k=5, max_new_tokens=33, stop=("END",))
        (three,) = texts(engine, asked(n=3, sampling=how))
        (again,) = texts(OpenAIEngine("m", url), asked(n=3, sampling=how))
        (other,) = texts(OpenAIEngine("m", url), asked(n=1, key="other", sampling=how))
    body = script.asked[0]
    assert body["messages"] == [{"role": "user", "content": "what is it ?"}]
    assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"], body["stop"],
            body["reasoning_effort"]) == (0.7, 0.9, 5, 33, ["END"], "low")
    assert "min_p" not in body and len(set(three)) == 3
    assert again == three and other[0] not in three


def test_greedy_draws_are_one_request_and_have_no_seed():
    with scripted(lambda body, n: said(f"call {n}")) as (url, script):
        engine = OpenAIEngine("m", url, max_tokens_as="max_completion_tokens")
        found = texts(engine, asked(n=3, sampling=GREEDY), asked(key="other", sampling=GREEDY))
    assert found == [["call 0"] * 3, ["call 0"]] and len(script.asked) == 1
    assert "seed" not in script.asked[0] and script.asked[0]["max_completion_tokens"] == 16


def test_conversations_and_pictures_are_sent_in_order_and_within_bounds(tmp_path):
    big, small = (toyland.pictures(tmp_path, 2)[i] for i in range(2))
    Image.effect_noise((900, 300), 90).convert("RGB").save(tmp_path / "big.png")
    big = Library(tmp_path / "kept").add_bytes((tmp_path / "big.png").read_bytes())
    context = Context(prompt=user("look"), media=()).said("assistant", "where ?") \
        .said("user", small, "here and ", big, "there")
    with scripted(lambda body, n: said()) as (url, script):
        engine = OpenAIEngine("m", url, pictures=Pictures(side=300, kilobytes=40))
        engine.bind(Library(tmp_path / "kept").open)
        texts(engine, Request(context=context, key="k", sampling=GREEDY))
    first, second, third = script.asked[0]["messages"]
    assert (first["content"], second) == ("look", {"role": "assistant", "content": "where ?"})
    kinds = [p["type"] for p in third["content"]]
    assert kinds == ["image_url", "text", "image_url", "text"]
    one, two = (p["image_url"]["url"] for p in third["content"] if p["type"] == "image_url")
    assert one.startswith("data:image/png;base64,") and two.startswith("data:image/jpeg;base64,")
    opened = Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2])))
    assert opened.convert("RGB").tobytes() == Library().open(small).tobytes()
    shrunk = Image.open(io.BytesIO(base64.b64decode(two.partition(",")[2])))
    assert shrunk.size == (300, 100)


def test_what_no_server_can_be_told_is_an_error_of_that_request_alone():
    with scripted(lambda body, n: said("fine")) as (url, script):
        engine = OpenAIEngine("m", url)
        bad, good = engine.attempt(
            [asked(sampling=Sampling(prefix="Answer:")), asked(sampling=GREEDY)], 0)
        with pytest.raises(SelfloopError, match=r"Sampling\.prefix"):
            engine.generate([asked(sampling=Sampling(prefix="Answer:"))], 0)
    assert "Sampling.prefix" in str(bad) and engine.decode(good[0].token_ids) == "fine"
    assert len(script.asked) == 1


# -- what is answered ------------------------------------------------------------------------------

@pytest.mark.parametrize(
    "text", ["", "a", "plain words\nand lines", "ünïcödé 漢字 🙂", "\0\0 zeros"])
@pytest.mark.parametrize("counted", [None, 0, 1, 4, 50])
def test_any_text_survives_as_token_ids_and_counts_as_the_server_counted(text, counted):
    made = turn(Answer(text=text, finish_reason="stop", completion_tokens=counted), (), 0.0)
    assert decoded(made.token_ids) == text and made.logprobs is None
    if counted and len(text.encode()) <= 7 * counted:
        assert len(made.token_ids) == counted  # so that a verdict's cost is in true tokens
    assert Turn.from_json(made.to_json()) == made


def test_logprobs_are_kept_where_they_make_up_the_text():
    def listed(*tokens):
        return {"logprobs": {"content": [{"token": t, "logprob": -0.5} for t in tokens]}}

    for more, expected in ((listed("a ", "cat", "<end>"), (-0.5, -0.5)),
                           (listed("a ", "dog"), None), ({"logprobs": None}, None),
                           ({"logprobs": {"content": "odd"}}, None)):
        with scripted(lambda body, n, more=more: said("a cat", **more)) as (url, script):
            engine = OpenAIEngine("m", url, logprobs=True)
            ((found,),) = engine.generate([asked(sampling=GREEDY)], 0)
        assert found.logprobs == expected and engine.decode(found.token_ids) == "a cat"
        assert script.asked[0]["logprobs"] is True


def test_length_refusals_and_unusual_ends():
    no = {"content": None, "refusal": "I will not"}
    answers = [said("cut", "length"), said(None, message=no)]
    with scripted(lambda body, n: answers[n]) as (url, _):
        engine = OpenAIEngine("m", url)
        ((cut,), (no,)) = (engine.generate([asked(t, sampling=GREEDY)], 0)[0] for t in "ab")
    assert cut.finish_reason == "length" and engine.decode(no.token_ids) == "I will not"
    line, _ = refused(lambda body, n: said("", "content_filter"))
    assert "content_filter" in line


def test_what_cannot_be_written_down_ends_no_run(tmp_path):
    """Half a surrogate pair of a cut emoji, and log-probs that are no numbers."""
    odd = said("cat \ud83d", logprobs={"content": [{"token": "cat \ud83d", "logprob": -1.0}]})
    nan = said("a cat", logprobs={"content": [{"token": "a cat", "logprob": float("nan")}]})
    with scripted(lambda body, n: [odd, nan][n]) as (url, _):
        engine = OpenAIEngine("m", url, logprobs=True, records=tmp_path / "said.jsonl")
        found = [engine.generate([asked(t, sampling=GREEDY)], 0)[0][0] for t in "ab"]
    again = OpenAIEngine("m", url, logprobs=True, records=tmp_path / "said.jsonl", replay_only=True)
    assert [again.generate([asked(t, sampling=GREEDY)], 0)[0][0] for t in "ab"] == found
    assert engine.decode(found[0].token_ids) == "cat \ufffd"
    assert [t.logprobs for t in found] == [(-1.0,), None]


def test_an_answer_that_the_server_ended_is_not_asked_for_again():
    line, bodies = refused(lambda body, n: said("", "content_filter"))
    assert len(bodies) == 1 and "asking again would not help" in line


# -- failures --------------------------------------------------------------------------------------

def once(first, then="fine"):
    """The first reply, then a good one."""
    return lambda body, n: first if n == 0 else said(then)


@pytest.mark.parametrize("first", [
    Reply({"error": {"message": "slow down"}}, 429),
    Reply({"error": {"message": "oops"}}, 500), Reply(b"<html>bad gateway</html>", 502),
    Reply(b"{ no json"), Reply({"choices": []}), Reply(json.dumps(said()).encode(), length=5000),
    Reply(hang_up=True), Reply(b"[" * 100_000), Reply({"error": {"message": "busy"}}),
], ids=["429", "500", "502", "garbage", "no choices", "truncated", "hang up", "deep",
        "error in 200"])
def test_passing_failures_are_asked_again(first):
    with scripted(once(first)) as (url, script):
        engine = OpenAIEngine("m", url, patience=QUICK)
        assert texts(engine, asked(sampling=GREEDY)) == [["fine"]]
    assert len(script.asked) == 2 and engine.account()["retries"] == 1
    assert script.asked[0] == script.asked[1]


@pytest.mark.parametrize(("reply", "line"), [
    (Reply({"error": {"message": "no such model"}}, 404), "status 404: no such model"),
    (Reply({"error": {"message": "bad key"}}, 401), "bad key"),
    (Reply({"error": {"message": "pay", "code": "insufficient_quota"}}, 429), "pay"),
    (Reply(b"", 302, {"Location": "http://192.0.2.1/"}), "302"),
])
def test_lasting_failures_are_asked_once(reply, line):
    found, bodies = refused(lambda body, n: reply)
    assert line in found and "would not help" in found and len(bodies) == 1


def test_slow_and_dripping_servers_end_at_the_timeout():
    began = time.monotonic()
    slow = Patience(timeout=0.2, deadline=5.0, retries=1, first=0.01)
    for reply in (Reply(wait=1.0), Reply(drip=0.05)):
        line, bodies = refused(lambda body, n, r=reply: r, patience=slow)
        assert len(bodies) == 2 and ("within" in line or "in time" in line)
    assert time.monotonic() - began < 4


def test_the_deadline_covers_all_attempts():
    patience = Patience(timeout=0.2, deadline=0.5, retries=50, first=0.1)
    began = time.monotonic()
    line, bodies = refused(lambda body, n: Reply(status=500), patience=patience)
    assert "deadline of 0.5 s" in line and time.monotonic() - began < 1.5 and 1 < len(bodies) < 8


@pytest.mark.parametrize("header", [
    lambda: {"Retry-After": "0.4"}, lambda: {"retry-after-ms": "400"},
    lambda: {"Retry-After": formatdate(time.time() + 1.5, usegmt=True)}])
def test_retry_after_is_honoured_and_holds_back_the_others(header):
    def says(body, n):
        times.append(time.monotonic())
        return Reply(status=429, headers=header()) if n == 0 else said("fine")

    times: list[float] = []
    with scripted(says) as (url, _):
        engine = OpenAIEngine("m", url, patience=QUICK, concurrency=1)
        assert texts(engine, *(asked(t, sampling=GREEDY) for t in "ab")) == [["fine"]] * 2
    assert times[1] - times[0] >= 0.35


def test_a_wait_beyond_the_deadline_is_not_waited_for():
    began = time.monotonic()
    line, bodies = refused(lambda body, n: Reply(status=429, headers={"Retry-After": "3600"}))
    assert "deadline" in line and len(bodies) == 1 and time.monotonic() - began < 2


def test_a_request_held_back_beyond_its_deadline_fails_at_once():
    """The wait was asked of another request; this one must not sleep its deadline away first."""
    with scripted(lambda body, n: Reply(status=429, headers={"Retry-After": "86400"})) as (url, _):
        engine = OpenAIEngine("m", url, patience=Patience(deadline=30, retries=1), concurrency=1)
        began = time.monotonic()
        lines = []
        for words in "abc":
            with pytest.raises(SelfloopError) as refusal:
                engine._caller({"model": "m", "messages": []}, words)
            lines.append(str(refusal.value))
    assert time.monotonic() - began < 5 and "wants no further request" in lines[1]
    assert "deadline of 30 s" in lines[2] and len(lines) == 3


def test_waits_are_drawn_from_the_request_and_grow():
    with scripted(lambda body, n: said()) as (url, _):
        caller = OpenAIEngine("m", url)._caller
        waits = [[caller._wait(type("F", (), {"wait": None}), name, i) for i in range(4)]
                 for name in ("a", "a", "b")]
    assert waits[0] == waits[1] != waits[2]
    for i, wait in enumerate(waits[0]):
        assert 0.25 * 2**i <= wait <= 0.5 * 2**i


def test_the_retry_budget_is_for_all_requests_together():
    with scripted(lambda body, n: Reply(status=500)) as (url, script):
        engine = OpenAIEngine("m", url, patience=Patience(
            retries=5, retry_budget=3, first=0.001, most=0.01), concurrency=1)
        errors = engine.attempt([asked(t, sampling=GREEDY) for t in "abcd"], 0)
    assert len(script.asked) == 4 + 3 and "retry budget of 3" in str(errors[-1])


def test_no_more_than_concurrency_are_under_way_and_order_is_kept():
    def says(body, n):
        time.sleep(0.03)
        return said(body["messages"][0]["content"])

    with scripted(says) as (url, script):
        engine = OpenAIEngine("m", url, concurrency=3)
        found = texts(engine, *(asked(f"q{i}", sampling=GREEDY) for i in range(12)))
    assert found == [[f"q{i}"] for i in range(12)] and 1 < script.most_busy <= 3


def test_no_server_at_all():
    engine = OpenAIEngine("m", "http://127.0.0.1:9/v1", patience=Patience(retries=1, first=0.01))
    (error,) = engine.attempt([asked()], 0)
    assert "connection failed" in str(error) and "127.0.0.1" in str(error)


# -- keys and hosts --------------------------------------------------------------------------------

def test_the_key_comes_from_the_environment_and_stays_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody-else")
    with pytest.raises(SelfloopError, match="JUDGE_KEY is not set"):
        OpenAIEngine("m", "http://localhost/v1", api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-1234")
    echo = {"error": {"message": "bad key sk-secret-1234"}}
    with scripted(lambda body, n: Reply(echo, 401) if n else said("fine")) as (url, script):
        engine = OpenAIEngine("m", url, api_key_env="JUDGE_KEY", records=tmp_path / "r.jsonl")
        texts(engine, asked(sampling=GREEDY))
        (error,) = engine.attempt([asked("b")], 0)
        texts(OpenAIEngine("m", url, records=tmp_path / "r.jsonl"), asked(sampling=GREEDY))
    assert script.headers[0]["authorization"] == "Bearer sk-secret-1234"
    assert not any("somebody" in str(h) for h in script.headers)
    for text in (str(error), (tmp_path / "r.jsonl").read_text(), str(engine.account()),
                 engine.fingerprint(), repr(engine)):
        assert "secret" not in text
    assert "[key]" in str(error) and len(script.asked) == 2


@pytest.mark.parametrize("url", ["judge.example.org/v1", "ftp://a/v1", "https://me:pw@host/v1",
                                 "https://host/v1?key=1", "https://host:x/v1"])
def test_addresses_that_are_none_or_hold_secrets_are_refused(url):
    with pytest.raises(SelfloopError, match="base_url") as caught:
        OpenAIEngine("m", url)
    assert "pw" not in str(caught.value)


def test_a_host_that_is_not_named_is_not_reached():
    engine = OpenAIEngine("m", "http://192.0.2.7:80/v1", patience=QUICK)
    with egress.only("none"):
        (error,) = engine.attempt([asked()], 0)
    assert "network: [192.0.2.7]" in str(error) and engine.account()["attempts"] == 1


def test_an_allowed_host_may_be_reached_by_many_threads_at_its_changing_addresses(monkeypatch):
    given = iter([["198.51.100.1"], ["198.51.100.2", "198.51.100.3"]])
    lock, looked = threading.Lock(), []

    def look_up(host, port):
        time.sleep(0.05)
        with lock:
            looked.append(host)
            now = next(given, ["198.51.100.3"])
        return [(0, 0, 0, "", (a, 0)) for a in now]

    monkeypatch.setattr(egress.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(egress._WATCH, "addresses", {})
    with egress.only(("judge.example.org",)):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(egress._WATCH.check, ["judge.example.org", "198.51.100.1"]))
        egress._WATCH.check("198.51.100.2")  # a new one, after the first look-up
        egress._WATCH.check("198.51.100.1")  # and the old one still is
        with pytest.raises(SelfloopError, match=r"198\.51\.100\.9"):
            egress._WATCH.check("198.51.100.9")
        with pytest.raises(SelfloopError, match=r"other\.example"):
            egress._WATCH.check("other.example")
    assert set(looked) == {"judge.example.org"}


def test_without_the_library_the_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(SelfloopError, match=r"pip install 'selfloop\[openai\]'"):
        OpenAIEngine("m", "http://localhost/v1")


# -- structured output -----------------------------------------------------------------------------

SCHEMA = {"type": "object", "required": ["score"], "additionalProperties": False,
          "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 10}}}


def test_an_answer_that_does_not_fit_the_schema_is_an_error_and_is_not_asked_again():
    replies = ['{"score": 7}', '{"score": 11}', "seven", '{"score": 7', '{"score": 7, "x": 1}']
    with scripted(lambda body, n: said(replies[int(body["messages"][0]["content"])],
                                       "length" if n == 3 else "stop")) as (url, script):
        engine = OpenAIEngine("m", url, json_schema=SCHEMA, concurrency=1)
        good, *bad = engine.attempt([asked(str(i), sampling=GREEDY) for i in range(5)], 0)
        again = engine.attempt([asked(str(i), sampling=GREEDY) for i in range(5)], 0)
    assert engine.decode(good[0].token_ids) == '{"score": 7}'
    assert all(isinstance(b, SelfloopError) and "json_schema" in str(b) for b in bad)
    assert "more than 10" in str(bad[0]) and "cut off" in str(bad[2]) and "$.x" in str(bad[3])
    assert len(script.asked) == 5 and [str(x) for x in again[1:]] == [str(x) for x in bad]
    assert script.asked[0]["response_format"]["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(("value", "schema", "wrong"), [
    (1, {"type": "integer"}, ""), (1.0, {"type": "integer"}, ""), (1.5, {"type": "integer"}, "$"),
    (True, {"type": "number"}, "$"), (None, {"type": ["null", "string"]}, ""),
    ("b", {"enum": ["a"]}, "none of"), (1, {"const": True}, "$"), (True, {"const": True}, ""),
    ([1, "a"], {"items": {"type": "number"}}, "$[1]"), ([], {"minItems": 1}, "fewer"),
    ({"a": {"b": 1}}, {"properties": {"a": {"properties": {"b": {"type": "string"}}}}}, "$.a.b"),
    ({"z": 1}, {"additionalProperties": {"type": "string"}}, "$.z"),
    ("abc", {"maxLength": 2}, "longer"), (3, {"anyOf": [{"type": "string"}, {"minimum": 4}]}, "$"),
    (5, {"anyOf": [{"type": "string"}, {"minimum": 4}]}, ""), (-1, {"minimum": 0}, "less"),
])
def test_the_schema_words(value, schema, wrong):
    check_schema(schema)
    found = mismatch(value, schema)
    assert wrong in found if wrong else not found


def test_schemas_and_json_that_are_none():
    for schema in ({"pattern": "a"}, {"properties": {"a": {"$ref": "#"}}}, {"type": "text"}, []):
        with pytest.raises(SelfloopError, match="json_schema"):
            check_schema(schema)
    for text in ("NaN", '{"a": Infinity}', "", "[" * 100_000):
        with pytest.raises(ValueError, match="no JSON"):
            parsed(text, {})


# -- records and budgets ---------------------------------------------------------------------------

def test_what_was_answered_is_replayed_and_a_torn_line_asked_again(tmp_path):
    path = tmp_path / "asked" / "judge.jsonl"
    with scripted(lambda body, n: said(f"call {n} ü\u2028")) as (url, script):
        first = OpenAIEngine("m", url, records=path, concurrency=1)
        whole = first.generate([asked(t, n=2) for t in "ab"], 0)
        again = OpenAIEngine("m", url, records=path)
        assert again.generate([asked(t, n=2) for t in "ab"], 5) == whole
        assert again.account()["attempts"] == 0 and len(script.asked) == 4
        assert again.account()["prompt_tokens"] == 40
        path.write_bytes(path.read_bytes()[:-7])  # killed in the middle of a line
        torn = OpenAIEngine("m", url, records=path)
        assert len(torn.generate([asked(t, n=2) for t in "ab"], 0)) == 2
        assert len(script.asked) == 5 and len(path.read_bytes().splitlines()) == 4
    only = OpenAIEngine("m", "http://192.0.2.1/v1", records=path, replay_only=True)
    assert only.generate([asked("a", n=2)], 0)[0] == whole[0]
    with pytest.raises(Stopped, match=r"replay_only.*not among the 4 answers"):
        only.attempt([asked("new")], 0)
    path.write_text('{"asked": 1}\n')
    with pytest.raises(SelfloopError, match=r"judge\.jsonl, line 1"):
        Records(path)


def test_budgets_count_what_was_recorded_before_and_then_refuse(tmp_path):
    prices = Prices(prompt=1000.0, completion=2000.0)  # 10 and 5 tokens: two cents an answer
    with scripted(lambda body, n: said()) as (url, script):
        def engine(**how):
            return OpenAIEngine("m", url, records=tmp_path / "r.jsonl", concurrency=1, **how)

        found = engine(prices=prices, budget=0.05).attempt([asked(t) for t in "abcde"], 0)
        assert [isinstance(f, SelfloopError) for f in found] == [False] * 3 + [True] * 2
        assert "$0.05 is spent ($0.06 for 3 answers)" in str(found[4])
        later = engine(prices=prices, budget=0.05)
        assert isinstance(later.attempt([asked("f")], 0)[0], SelfloopError)
        assert not isinstance(later.attempt([asked("a")], 0)[0], SelfloopError)  # is recorded
        assert later.account()["dollars"] == pytest.approx(0.06)
        (more,) = engine(token_budget=45).attempt([asked("g")], 0)
        assert "45 tokens is spent" in str(more) and len(script.asked) == 3
    with pytest.raises(SelfloopError, match="prices"):
        OpenAIEngine("m", url, budget=1.0)


def test_a_budget_needs_a_server_that_counts():
    def silent(body, n):
        return {k: v for k, v in said().items() if k != "usage"}

    with scripted(silent) as (url, _):
        engine = OpenAIEngine("m", url, token_budget=1000, concurrency=1)
        first, second = engine.attempt([asked("a"), asked("b")], 0)
        free = OpenAIEngine("m", url, prices=Prices(prompt=1, completion=1))
        free.generate([asked("a")], 0)
    assert not isinstance(first, SelfloopError) and "does not say" in str(second)
    assert free.account()["dollars"] is None and free.account()["uncounted"] == 1


@pytest.mark.parametrize(("how", "said_"), [
    ({"concurrency": 0}, "concurrency"), ({"token_budget": -1}, "token_budget"),
    ({"extra": {"seed": 1}}, "extra.seed"), ({"max_tokens_as": "tokens"}, "max_tokens_as"),
])
def test_options_that_cannot_be(how, said_):
    with pytest.raises(SelfloopError, match=said_):
        OpenAIEngine("m", "http://localhost/v1", **how)
    with pytest.raises(SelfloopError, match="timeout"):
        Patience(timeout=0)


# -- as a judge ------------------------------------------------------------------------------------

def groups_of(tmp_path, *answers: str) -> list[Group]:
    return [Group(sample=s, rollouts=tuple(
        Rollout(id=f"{s.id}/{i}", sample=s.id, context=s.context, turns=(Turn(token_ids=(1,)),),
                output=(Part(text=a),)) for i, a in enumerate(answers)))
            for s in toyland.samples(tmp_path, 2)]


def test_one_failed_request_is_one_error_verdict_and_costs_are_tokens(tmp_path):
    def says(body, n):
        text = json.dumps(body)
        return Reply({"error": {"message": "too long"}}, 400) if "maybe" in text else judge(body)

    with scripted(says) as (url, _):
        engine = OpenAIEngine("m", url, patience=QUICK)
        engine.bind(Library().open)
        found = judge_all(PointwiseJudge(), groups_of(tmp_path, "yes", "no", "maybe"),
                          Doors({"solver": ToyEngine(), "judge": engine}, 0, "t"))
    for group in found.groups:
        yes, no, maybe = group.verdicts
        assert (yes.score, no.score, maybe.score) == (1.0, 0.0, None)
        assert yes.cost == no.cost == 20 and maybe.error and "too long" in maybe.rationale
    assert sum(v.error for g in found.groups for v in g.verdicts) == 2


def loop(**more) -> Loop:
    return Loop(name="judged", sampler=Independent(n=4, max_new_tokens=3),
                verifier=PointwiseJudge(), learn=toyland._learn(GroupAdvantage(), GRPO()),
                iterations=2, samples=4, shard=2, **more)


def engines(url: str, **how) -> dict:
    how = {"patience": QUICK, "concurrency": 2, **how}
    return {"solver": ToyEngine(("yes", "no"), seed=1), "judge": OpenAIEngine("m", url, **how)}


def contents(folder: Path) -> dict[str, bytes | list[bytes]]:
    """As test_contracts.contents; recorded answers come in any order."""
    return {str(p.relative_to(folder)): sorted(p.read_bytes().splitlines())
            if p.suffix == ".jsonl" else p.read_bytes()
            for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "events.jsonl"}


def test_a_run_with_a_remote_judge_learns_what_it_pays_for(tmp_path):
    samples = toyland.samples(tmp_path / "data", 6)
    with scripted(lambda body, n: judge(body)) as (url, script):
        done = run(loop(), samples, engines(url, prices=Prices(prompt=1.0, completion=2.0)),
                   tmp_path / "run")
        folder = RunFolder(tmp_path / "run")
        spent = [e for e in folder.events() if e["event"] == "spent"]
        n = len(script.asked)
        replayed = {"replay_only": True, "records": tmp_path / "run/asked/judge.jsonl"}
        run(loop(), samples, engines("http://192.0.2.1/v1", **replayed), tmp_path / "again")
    assert [i.counts["errors"] for i in done] == [0, 0] and n == spent[-1]["answers"] > 8
    assert spent[-1]["dollars"] == pytest.approx(n * (100 + 2 * 20) / 1e6)
    assert not (tmp_path / "run/checkpoints/000000/judge").exists()
    assert len(script.asked) == n, "the second run asked nobody"
    assert contents(tmp_path / "again").keys() | {"asked/judge.jsonl"} \
        == contents(tmp_path / "run").keys()


def test_a_replay_that_is_asked_something_new_ends_the_run(tmp_path):
    with pytest.raises(Stopped, match="replay_only"):
        run(loop(), toyland.samples(tmp_path / "data", 6),
            engines("http://192.0.2.1/v1", replay_only=True), tmp_path / "run")


def test_an_empty_purse_ends_the_run_with_the_reason_and_more_money_goes_on(tmp_path):
    samples = toyland.samples(tmp_path / "data", 6)
    with scripted(lambda body, n: judge(body)) as (url, script):
        with pytest.raises(SelfloopError, match=r"failed on \d+ of \d+.*budget of 500 tokens"):
            run(loop(), samples, engines(url, token_budget=500), tmp_path / "run")
        paid = len(script.asked)
        run(loop(), samples, engines(url), tmp_path / "run")
        run(loop(), samples, engines(url), tmp_path / "whole")
    assert 4 < paid < 9
    cut, whole = contents(tmp_path / "run"), contents(tmp_path / "whole")
    assert cut == whole


KILLED = """
import sys
from pathlib import Path
import toyland
from test_openai_engine import engines, loop
from selfloop.running import run
run(loop(), toyland.samples(Path(sys.argv[1]), 6), engines(sys.argv[2]), Path(sys.argv[3]))
"""


def test_killed_while_judging_and_resumed_no_answer_is_asked_for_twice(tmp_path):
    child: list[subprocess.Popen] = []

    def says(body, n):
        if n == 7:  # in the middle of a shard: some of its answers are recorded
            os.kill(child[0].pid, signal.SIGKILL)
            child[0].wait()
            return Reply(hang_up=True)
        return judge(body)

    samples = toyland.samples(tmp_path / "data", 6)
    with scripted(says) as (url, script):
        child.append(subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "data"), url, str(tmp_path / "cut")],
            cwd=Path(__file__).parent, env={**os.environ, "OMP_NUM_THREADS": "1"}))
        assert child[0].wait(120) == -signal.SIGKILL
        recorded = (tmp_path / "cut/asked/judge.jsonl").read_bytes().count(b"\n")
        run(loop(), samples, engines(url), tmp_path / "cut")
    answered = script.answered
    # One answer at most is lost: two are under way at a time, and of one the line was cut.
    assert recorded > 3 and len(answered) - len(set(answered)) <= 1
    with scripted(lambda body, n: judge(body)) as (url, script):
        run(loop(), samples, engines(url), tmp_path / "whole")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(script.asked) == len(set(answered))


# -- our own server --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def own():
    """(the embedded model, a server around another copy of it)."""
    from selfloop.demo import make_engine
    from selfloop.serving.server import Limits, serve

    with serve(make_engine(), limits=Limits(window=0.02)) as server:
        yield make_engine(), server


def test_greedy_answers_of_our_own_server_equal_the_local_engine(own, tmp_path):
    from selfloop.data import load
    from selfloop.testbeds import digits

    local, server = own
    samples = list(load(digits.write(tmp_path, "test", 16, 5)))
    library = Library()
    remote = OpenAIEngine("embedded", server.url, concurrency=8)
    for engine in (local, remote):
        engine.bind(library.open)
    local.publish(0, 0)
    requests = [Request(context=s.context, key=s.id, sampling=GREEDY) for s in samples]
    ours, theirs = texts(local, *requests), texts(remote, *requests)
    assert theirs == ours and len({t for (t,) in ours}) > 5
    again = OpenAIEngine("embedded", server.url)
    again.bind(library.open)
    drawn = [Request(context=s.context, key=s.id, n=3) for s in samples[:4]]
    assert texts(remote, *drawn) == texts(again, *drawn)
    account = remote.account()
    assert account["uncounted"] == 0 and account["completion_tokens"] > 16
    scored = OpenAIEngine("embedded", server.url, logprobs=True)
    scored.bind(library.open)
    (found,) = scored.generate(requests[:1], 0)[0]
    assert found.logprobs is None or len(found.logprobs) == len(found.token_ids)
    assert scored.decode(found.token_ids) == ours[0][0]


def test_a_local_engine_in_a_fixed_role_draws_the_same_and_is_never_saved(own, tmp_path):
    local, _ = own
    fixed = Fixed(local)
    assert "learn" not in fixed.supports and fixed.fingerprint() == local.fingerprint()
    fixed.publish(7, 0)
    assert texts(fixed, asked(sampling=GREEDY)) == [
        [local.decode(t.token_ids) for t in local.generate([asked(sampling=GREEDY)], 0)[0]]]
    fixed.save_state(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(SelfloopError, match="cannot learn"):
        fixed.forward_backward([], None, {})


def test_a_role_that_learns_cannot_be_a_server(tmp_path):
    with pytest.raises(SelfloopError, match="learn"):
        run(loop(), toyland.samples(tmp_path, 4),
            {"solver": OpenAIEngine("m", "http://127.0.0.1:9/v1")}, tmp_path / "run")


# -- run.yaml --------------------------------------------------------------------------------------

def configured(tmp_path, engines_: str, network: str = "none"):
    from clidata import with_splits

    path = with_splits(tmp_path)
    (tmp_path / "judged.py").write_text(
        "from selfloop.organize.verify.judges import PointwiseJudge\n"
        "from selfloop.roles import Sampling\n"
        "judge = PointwiseJudge(sampling=Sampling(temperature=0.0, max_new_tokens=24))\n"
        "SCHEMA = {'type': 'object'}\n")
    path.write_text(path.read_text() + f"network: {network}\nengines:\n{engines_}")
    return path


def test_the_command_line_judges_with_a_server_and_the_report_tells_its_cost(
        tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from selfloop.cli import main
    from selfloop.report.facts import gather
    from selfloop.report.sections import cost

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-1234")

    def grades(body, n):
        text = body["messages"][-1]["content"][-1]["text"]
        mark = text.split("score ")[1][:8]
        return said(f"score {mark}: {int(mark, 16) % 11}", prompt=100, drawn=20)

    with scripted(grades) as (url, script):
        configured(tmp_path, f"""\
  judge: {{model: m, base_url: "{url}", api_key_env: JUDGE_KEY, timeout: 10s,
           prices: {{prompt: 1, completion: 2}}}}
audit: {{allow: ["selfloop.organize.verify.judges:PointwiseJudge"]}}
""")
        result = CliRunner().invoke(main, ["run", "verifier=judged:judge"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "star"
    assert script.asked and script.headers[0]["authorization"] == "Bearer sk-secret-1234"
    for path in folder.rglob("*"):
        assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path
    rows = {what: figure for what, figure, _ in cost(gather(folder))}
    assert rows["Asked of m (judge)"].startswith(f"{len(script.answered):,} answers")


@pytest.mark.parametrize(("text", "said_"), [
    ("  judge: {model: m, base_url: 'https://judge.example.org/v1'}\n",
     ["engines.judge", "network: [judge.example.org]"]),
    ("  judge: {model: m, base_url: 'http://127.0.0.1/v1', api_key_env: NO_SUCH_KEY}\n",
     ["engines.judge", "NO_SUCH_KEY"]),
    ("  judge: {model: m, base_url: 'http://127.0.0.1/v1', json_schema: {pattern: x}}\n",
     ["engines.judge", "json_schema.pattern"]),
])
def test_mistakes_in_engines_are_one_line_when_they_are_built(tmp_path, text, said_):
    from selfloop.casting import cast
    from selfloop.config import load_config

    config = load_config(configured(tmp_path, text))
    with pytest.raises(SelfloopError) as caught:
        cast(config, ToyEngine())
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in said_)


@pytest.mark.parametrize(("text", "said_"), [
    ("  judge: {modle: m}\n", ["unknown key 'judge.modle'", "did you mean 'model'"]),
    ("  judge: {model: m, timeout: 9}\n", ["timeout is for a server", "base_url"]),
    ("  judge: {model: m, base_url: 'http://h/v1', dtype: float32, device: cuda}\n",
     ["device is for a local model"]),
    ("  judge: {model: m, base_url: 'http://me:pw@h/v1'}\n", ["api_key_env"]),
    ("  solver: model\n", ["solver"]), ("  judge: gpt\n", ["'gpt'", "model"]),
])
def test_mistakes_in_engines_are_one_line_when_they_are_read(tmp_path, text, said_):
    from selfloop.config import load_config

    with pytest.raises(SelfloopError) as caught:
        load_config(configured(tmp_path, text))
    line = str(caught.value)
    assert "\n" not in line and "run.yaml, line" in line and all(part in line for part in said_)


def test_the_proof_has_the_same_cast_in_every_process(tmp_path):
    import pickle

    from selfloop.config import load_config
    from selfloop.own_proof import study_of

    study = study_of(load_config(configured(tmp_path, """\
  judge: {model: m, base_url: "http://127.0.0.1:9/v1"}
""")))
    found = pickle.loads(pickle.dumps(study.cast))(ToyEngine())
    assert list(found) == ["solver", "judge"] and isinstance(found["judge"], OpenAIEngine)


def test_what_is_kept_reads_back_and_builds_the_same_cast(tmp_path):
    from selfloop.casting import cast
    from selfloop.config import load_config

    config = load_config(configured(tmp_path, """\
  critic: model
  proposer: {model: embedded, threads: 1}
  judge: {model: m, base_url: 'https://judge.example.org/v1', json_schema: 'judged:SCHEMA',
          records: kept.jsonl, deadline: 2m, extra: {reasoning_effort: low}}
""", "[judge.example.org]"))
    (tmp_path / "again.yaml").write_text(config.as_yaml())
    again = load_config(tmp_path / "again.yaml")
    assert again.engines == config.engines
    solver = ToyEngine()
    found = cast(again, solver)
    assert found["critic"] is solver and isinstance(found["proposer"], Fixed)
    judge_ = found["judge"]
    assert judge_.records.path == tmp_path / "kept.jsonl" and judge_.schema == {"type": "object"}
    assert judge_._caller.patience.deadline == 120 and judge_.fingerprint() \
        == cast(config, solver)["judge"].fingerprint()


def test_half_a_surrogate_pair_in_a_reply_is_text_that_can_be_stored():
    reply = reply_of({"choices": [{"message": {"content": "a \ud83d cat"}, "finish_reason": "stop",
                                   "logprobs": {"content": [{"token": "a \ud83d cat",
                                                             "logprob": -1.0}]}}]})
    assert reply.text == "a \ufffd cat" and reply.pieces == (("a \ufffd cat", -1.0),)
