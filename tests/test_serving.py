"""The OpenAI-compatible server: over real sockets, on the embedded model and on one that waits."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from selfloop.commands import serving
from selfloop.data import load
from selfloop.demo import make_engine
from selfloop.evaluate.answering import answer
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.roles import Sampling, SelfloopError
from selfloop.serving import data_urls, reading
from selfloop.serving.limits import Budget
from selfloop.serving.refusals import Refusal
from selfloop.serving.server import Limits, Server, serve
from selfloop.testbeds import digits
from selfloop.types import Turn

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "what is the sum ?"}]


# -- a client ----------------------------------------------------------------------------------

def ask(server, body, *, path=CHAT, headers=None, method=None):
    """(status, headers, raw body) of one request; a dict is sent as JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}", data, method=method,
        headers={"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def chat(server, messages=HELLO, **more):
    """The reply's JSON; the request must succeed."""
    status, _, raw = ask(server, {"model": server.desk.model, "messages": messages, **more})
    assert status == 200, raw
    return json.loads(raw)


def refused(server, body, **how):
    """(status, error) of a request that must fail, in OpenAI's shape and in one line."""
    status, _, raw = ask(server, body, **how)
    assert status >= 400, raw
    error = json.loads(raw)["error"]
    assert error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return status, error


def text_of(reply, index=0):
    return reply["choices"][index]["message"]["content"]


def data_url(data: bytes, kind="png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png(size=(32, 32), colour=0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (colour,) * 3).save(out, "PNG")
    return out.getvalue()


def shown(picture: bytes, text: str, kind="png"):
    return [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": data_url(picture, kind)}},
        {"type": "text", "text": text}]}]


def raw(server, data: bytes) -> bytes:
    """What comes back on a bare connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(data)
        found = b""
        while part := sock.recv(65536):
            found += part
    return found


# -- on the embedded model -----------------------------------------------------------------------

@pytest.fixture(scope="module")
def engine():
    return make_engine()


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return list(load(digits.write(tmp_path_factory.mktemp("digits"), "test", 30, 5)))


@pytest.fixture(scope="module")
def own(engine, samples):
    """Our own evaluation of the same questions: text and the picture's file by sample."""
    library = Library()
    engine.bind(library.open)
    found = answer(samples, {"solver": engine}, engine.version, exact,
                   Sampling(temperature=0.0, max_new_tokens=16), arm="greedy")
    texts = {a.sample: a.text for a in found}
    return [(s, library.bytes_of(s.media[0]), texts[s.id]) for s in samples]


@pytest.fixture(scope="module")
def server(engine, own):
    with serve(engine, limits=Limits(window=0.02)) as running:
        yield running


def test_who_is_there(server):
    listed = json.loads(ask(server, None, path="/v1/models")[2])
    assert [m["id"] for m in listed["data"]] == ["embedded"] and listed["object"] == "list"
    assert json.loads(ask(server, None, path="/v1/models/embedded")[2]) == listed["data"][0]
    status, _, health = ask(server, None, path="/health")
    assert status == 200 and json.loads(health)["status"] == "ok"


def test_greedy_answers_equal_our_own_evaluation_in_any_company(server, own):
    def one(case):
        sample, picture, _ = case
        reply = chat(server, shown(picture, sample.context.text), temperature=0, max_tokens=16)
        assert reply["usage"]["total_tokens"] == \
            reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]
        return text_of(reply)

    before = server.desk.batcher.batches
    with ThreadPoolExecutor(15) as pool:
        texts = list(pool.map(one, own))
    assert texts == [text for _, _, text in own] and len(set(texts)) > 10
    assert server.desk.batcher.batches - before < len(own) / 2  # they were answered together


def test_a_seed_gives_the_same_answers_in_any_company(server, own):
    sample, picture, _ = own[0]
    asked = {"messages": shown(picture, sample.context.text), "temperature": 1.2, "n": 6,
             "max_tokens": 16}

    def texts(seed):
        more = {} if seed is None else {"seed": seed}
        return [c["message"]["content"] for c in chat(server, **asked, **more)["choices"]]

    alone = texts(7)
    with ThreadPoolExecutor(12) as pool:
        crowd = list(pool.map(texts, [7, 8, 9, None, None, 7, 10, 11, None, 7]))
    assert crowd[0] == crowd[5] == crowd[9] == alone
    others = [tuple(t) for i, t in enumerate(crowd) if i not in (0, 5, 9)]
    assert len(set(others)) == len(others) and tuple(alone) not in others


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_logprobs_are_those_of_the_drawn_tokens(server, engine, own, temperature):
    from selfloop.types import Branch, Context, Message, Part

    sample, picture, _ = own[1]
    reply = chat(server, shown(picture, sample.context.text), temperature=temperature, seed=3,
                 logprobs=True, top_logprobs=0, max_tokens=16)
    content = reply["choices"][0]["logprobs"]["content"]
    assert "".join(t["token"] for t in content) == text_of(reply)
    assert all(bytes(t["bytes"]).decode() == t["token"] for t in content)
    media, data = data_urls.picture(data_url(picture), "here", Limits())
    context = Context(media=(media,), prompt=(
        Message(role="user", content=(Part(type="image"), Part(text=sample.context.text))),))
    ids = engine.encode(text_of(reply))
    scored = engine.logprobs([Branch(context=context, turns=(
        Turn(token_ids=ids, temperature=temperature or 1.0),))])[0]
    assert data == picture
    assert [t["logprob"] for t in content] == pytest.approx(scored[:len(content)], abs=1e-4)


def test_a_stop_text_ends_the_answer_and_is_left_out(server, own):
    sample, picture, whole = own[2]
    assert " =" in whole
    reply = chat(server, shown(picture, sample.context.text), temperature=0, stop=" =",
                 logprobs=True)
    assert text_of(reply) == whole[:whole.index(" =")]
    assert reply["choices"][0]["finish_reason"] == "stop"
    tokens = [t["token"] for t in reply["choices"][0]["logprobs"]["content"]]
    assert "".join(tokens) == text_of(reply)
    assert reply["usage"]["completion_tokens"] < 8  # nothing was drawn after it


def test_an_answer_that_is_cut_says_so(server, own):
    sample, picture, whole = own[2]
    reply = chat(server, shown(picture, sample.context.text), temperature=0,
                 max_completion_tokens=2)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert whole.startswith(text_of(reply)) and reply["usage"]["completion_tokens"] == 2


def test_a_stream_says_the_same(server, own):
    sample, picture, whole = own[3]
    body = {"messages": shown(picture, sample.context.text), "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "n": 2}
    status, headers, sent = ask(server, body)
    assert status == 200 and headers["Content-Type"] == "text/event-stream"
    events = sent.decode().split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    said, ended = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        assert chunk["usage"] is None
        for choice in chunk["choices"]:
            said[choice["index"]] += choice["delta"].get("content", "")
            ended[choice["index"]] = choice["finish_reason"]
    assert said == [whole, whole] and ended == ["stop", "stop"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 4


def test_a_whole_conversation_is_read(server):
    spoken = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "a"},
              {"role": "assistant", "content": "b", "refusal": None},
              {"role": "user", "content": [{"type": "text", "text": "c"}]}]
    asked = reading.read(json.dumps({"messages": spoken}).encode(), "embedded", Limits())
    assert [m.role for m in asked.context.prompt] == ["system", "user", "assistant", "user"]
    assert asked.context.text == "be brief\na\nb\nc"
    assert asked.sampling == Sampling(temperature=1.0, max_new_tokens=2048)


# -- what is refused -----------------------------------------------------------------------------

PART = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def pictured(url):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


BAD = [
    ({}, 400, "messages", "at least one message"),
    ({"messages": []}, 400, "messages", "at least one message"),
    ({"messages": ["hello"]}, 400, "messages[0]", "expected an object"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages[0].role", "wizard"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "a text or a list"),
    ({"messages": [{"role": "user", "content": [3]}]}, 400, "messages[0].content[0]", "part"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400,
     "messages[0].content[0]", "input_audio"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "messages", "continued"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, 400,
     "messages[0].tool_calls", "not supported"),
    ({"messages": [{"role": "user", "content": [PART]}]}, 400,
     "messages[0].content[0].image_url.url", "fetches nothing"),
    ({"messages": pictured("file:///etc/passwd")}, 400, None, "file address"),
    ({"messages": pictured("/etc/passwd")}, 400, None, "fetches nothing"),
    ({"messages": pictured("data:text/html;base64,AAAA")}, 400, None, "text/html"),
    ({"messages": pictured("data:image/png;base64,?")}, 400, None, "base64"),
    ({"messages": pictured("data:image/png;base64,AAAA")}, 400, None, "not a picture"),
    ({"messages": pictured("data:image/png;base64,")}, 400, None, "empty file"),
    ({"messages": pictured(data_url(png((600, 600))))}, 400, None, "pixels are over the limit"),
    ({"messages": pictured(data_url(png())[:-40])}, 400, None, "broken or cut off"),
    ({"messages": HELLO, "model": "gpt-4"}, 404, "model", "'embedded'"),
    ({"messages": HELLO, "model": 3}, 400, "model", "a text"),
    ({"messages": HELLO, "temperature": -1}, 400, "temperature", "from 0 to 2"),
    ({"messages": HELLO, "temperature": "hot"}, 400, "temperature", '"hot"'),
    ({"messages": HELLO, "temperature": True}, 400, "temperature", "true"),
    ({"messages": HELLO, "top_p": 0}, 400, "top_p", "no token"),
    ({"messages": HELLO, "n": 0}, 400, "n", "from 1 to"),
    ({"messages": HELLO, "n": 1000}, 400, "n", "from 1 to"),
    ({"messages": HELLO, "max_tokens": 10**9}, 400, "max_tokens", "--max-tokens"),
    ({"messages": HELLO, "max_tokens": 1.5}, 400, "max_tokens", "whole number"),
    ({"messages": HELLO, "stop": ""}, 400, "stop", "characters"),
    ({"messages": HELLO, "stop": [1]}, 400, "stop", "characters"),
    ({"messages": HELLO, "seed": "a"}, 400, "seed", "whole number"),
    ({"messages": HELLO, "top_logprobs": 3, "logprobs": True}, 400, "top_logprobs", "drawn"),
    ({"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    ({"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "response_format",
     "not supported"),
    ({"messages": HELLO, "presence_penalty": 1}, 400, "presence_penalty", "not supported"),
    ({"messages": HELLO, "best_of": 3}, 400, "best_of", "does not know"),
    ({"messages": HELLO, "stream": "yes"}, 400, "stream", "true or false"),
    ({"messages": [{"role": "user", "content": "x" * 300}]}, 400, None, "characters"),
    ({"messages": [{"role": "user", "content": "sum " * 40}], "max_tokens": 4}, 0, None, ""),
    ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": data_url(png(colour=i))}}
        for i in range(4)]}]}, 400, None, "more than 3 pictures"),
    ({"messages": [{"role": "user", "content": "\ud800"}], "max_tokens": 2}, 0, None, ""),
    ([1], 400, None, "JSON list"),
    (b"{", 400, None, "not JSON"),
    (b"\xff\xfe{}", 400, None, "not JSON"),
    (b'{"messages": NaN}', 400, None, "NaN"),
    (b"[" * 100_000, 400, None, "not JSON"),
    (b'{"n": ' + b"9" * 10_000 + b"}", 400, None, "not JSON"),
    (b"", 400, None, "not JSON"),
]
"""(request, status, field, words of the message); status 0 is a good one among them."""


@pytest.fixture(scope="module")
def small():
    with serve(make_engine(), limits=Limits(pixels=100_000, characters=250, pictures=3)) as running:
        yield running


@pytest.mark.parametrize("case", range(len(BAD)))
def test_a_bad_request_is_refused_in_one_sentence(small, case):
    body, status, param, words = BAD[case]
    if not status:
        assert ask(small, body)[0] == 200
        return
    found, error = refused(small, body)
    assert found == status and words in error["message"], error
    assert param is None or error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_a_prompt_that_does_not_fit_is_not_cut(server):
    long = [{"role": "user", "content": "sum " * 600}]
    status, error = refused(server, {"messages": long})
    assert status == 400 and "does not fit" in error["message"]
    assert chat(server, max_tokens=2)["choices"]


def test_what_is_no_http_or_no_json_never_stops_the_server(server):
    host = b"Host: localhost\r\n"
    head = b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + host
    assert b" 400 " in raw(server, b"\x00\x01nonsense\r\n\r\n").split(b"\r\n")[0]
    assert b" 411 " in raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert b" 411 " in raw(server, head + b"Content-Length: -1\r\n\r\n")
    assert b" 501 " in raw(server, b"BREW / HTTP/1.1\r\n" + host + b"\r\n")
    assert b" 414 " in raw(server, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(head + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    assert refused(server, None, path="/v2/nowhere")[0] == 404
    assert refused(server, {}, path="/v1/completions")[0] == 404
    assert refused(server, {}, path="/health")[0] == 405
    assert refused(server, None, path=CHAT)[0] == 405
    assert refused(server, {"messages": HELLO}, headers={"Content-Type": "text/plain"})[0] == 415
    assert chat(server, max_tokens=2)["choices"]
    assert server.desk.batcher.alive


def test_other_sites_pages_cannot_reach_a_local_server(server):
    status, error = refused(server, {"messages": HELLO}, headers={"Host": "rebound.example:80"})
    assert status == 403 and "localhost" in error["message"]
    assert refused(server, None, path="/health", headers={"Host": "a.example"})[0] == 403
    assert ask(server, None, path="/health", headers={"Host": f"[::1]:{server.port}"})[0] == 200


def test_a_body_that_is_too_large_is_refused_and_said_so():
    with waiting(body_bytes=10_000, held_bytes=15_000) as (_, small):
        status, error = refused(small, b" " * 3_000_000)
        assert status == 413 and "10,000" in error["message"]
        assert small.desk.batcher.batches == 0
        http = small._http
        assert http.held.take(10_000)
        assert refused(small, b" " * 9_000)[0] == 429
        http.held.give(10_000)
        assert refused(small, b" " * 9_000)[0] == 400
        until(lambda: http.held.left == 15_000)


def test_a_token_is_wanted_where_one_is_set():
    engine = Waiting()
    engine.go.set()
    with serve(engine, token="sk-secret") as guarded:
        assert ask(guarded, None, path="/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer sk-other"}, {"Authorization": "\xe4"}):
            status, error = refused(guarded, {"messages": HELLO}, headers=headers)
            assert status == 401 and error["code"] == "invalid_api_key"
            assert refused(guarded, None, path="/v1/models", headers=headers)[0] == 401
        assert ask(guarded, {"messages": HELLO, "max_tokens": 2},
                   headers={"Authorization": "Bearer sk-secret"})[0] == 200


# -- as VLMEvalKit's wrapper asks ---------------------------------------------------------------

def vlmevalkit(server, items, *, temperature=0, max_tokens=16, retry=3):
    """VLMEvalKit's OpenAIWrapper.generate, by its protocol: (code, answer), code 0 is success.

    JPEG pictures of at most 512 pixels a side with a detail, n=1, the key as a bearer token, the
    body posted as JSON; anything but 2xx or an answer without choices is tried again.
    """
    content = []
    for kind, value in items:
        if kind == "text":
            content.append({"type": "text", "text": value})
            continue
        image = Image.open(io.BytesIO(value)).convert("RGB")
        image.thumbnail((512, 512))
        out = io.BytesIO()
        image.save(out, format="JPEG")
        content.append({"type": "image_url", "image_url": {
            "url": data_url(out.getvalue(), "jpeg"), "detail": "low"}})
    payload = {"model": "embedded", "messages": [
        {"role": "system", "content": "answer"}, {"role": "user", "content": content}],
        "n": 1, "temperature": temperature, "max_tokens": max_tokens}
    code, said = 1, ""
    for _ in range(retry):
        status, _, body = ask(server, payload, headers={"Authorization": "Bearer sk-any"})
        code = 0 if 200 <= status < 300 else status
        try:
            said = json.loads(body)["choices"][0]["message"]["content"].strip()
        except (KeyError, ValueError):
            continue
        if code == 0 and said:
            break
    return code, said


def test_vlmevalkits_requests_are_answered(server, engine, own):
    sample, picture, _ = own[4]
    items = [("image", picture), ("text", sample.context.text)]
    code, said = vlmevalkit(server, items)
    again = vlmevalkit(server, items)
    assert code == 0 and digits.parse(said) is not None and again == (0, said)
    assert vlmevalkit(server, [("text", "what is the sum ?")])[0] == 0
    assert vlmevalkit(server, items, max_tokens=10**6)[0] == 400


# -- a model that waits ----------------------------------------------------------------------------

class Waiting:
    """An engine that says one word once it is let go."""

    name, version = "waiting", 0

    def __init__(self):
        self.go, self.calls = threading.Event(), []

    def bind(self, open_media):
        self.open = open_media

    def fingerprint(self):
        return "0" * 20

    def decode(self, ids):
        return "".join(chr(i) for i in ids)

    def generate(self, requests, version):
        texts = [r.context.text for r in requests]
        self.calls.append(texts)
        assert self.go.wait(20)
        if any("crash" in text for text in texts):
            raise RuntimeError("a cable\nwas loose")
        if any("late" in text for text in texts):
            raise TimeoutError("of its own")
        if any("refuse" in text for text in texts):
            raise SelfloopError("this prompt is refused")
        return [[Turn(prompt_token_ids=(1,), token_ids=tuple(b"yes"))] * r.n for r in requests]


@contextmanager
def waiting(**limits):
    engine = Waiting()
    with serve(engine, limits=Limits(**limits)) as running:
        try:
            yield engine, running
        finally:
            engine.go.set()


def saying(text):
    return {"messages": [{"role": "user", "content": text}]}


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_is_429_and_the_others_are_answered():
    with waiting(queue=2, window=0.0) as (engine, server), ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, server, saying("a"))
        until(lambda: engine.calls)
        rest = [pool.submit(ask, server, saying(t)) for t in "bc"]
        until(lambda: server.desk.batcher.waiting == 2)
        status, headers, body = ask(server, saying("d"))
        assert status == 429 and headers["Retry-After"] == "1"
        assert json.loads(body)["error"]["type"] == "rate_limit_error"
        engine.go.set()
        assert [f.result()[0] for f in (first, *rest)] == [200] * 3
        assert engine.calls[1:] == [["b", "c"]] or engine.calls[1:] == [["c", "b"]]


def test_whoever_hangs_up_while_waiting_is_never_drawn_for():
    with waiting(window=0.0) as (engine, server), ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, server, saying("a"))
        until(lambda: engine.calls)
        body = json.dumps(saying("gone")).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
                         b"Content-Type: application/json\r\n\r\n%b"
                         % (CHAT.encode(), len(body), body))
            until(lambda: server.desk.batcher.waiting == 1)
        until(lambda: server.desk.batcher.waiting == 0)
        engine.go.set()
        assert first.result()[0] == 200 and ask(server, saying("b"))[0] == 200
        assert engine.calls == [["a"], ["b"]]
        until(lambda: server._http.held.left == Limits().held_bytes)


def test_no_answer_in_time_is_504():
    with waiting(seconds=0.3, window=0.0) as (engine, server):
        status, error = refused(server, saying("a"))
        assert status == 504 and "0.3 seconds" in error["message"]
        assert error["type"] == "server_error"
        engine.go.set()
        until(lambda: ask(server, saying("b"))[0] == 200)


@pytest.mark.parametrize(("bad", "status", "words"), [
    ("refuse", 400, "this prompt is refused"), ("crash", 500, "RuntimeError: a cable"),
    ("late", 500, "TimeoutError: of its own")])
def test_one_bad_request_does_not_spoil_its_batch(bad, status, words, capfd):
    with waiting(window=0.0) as (engine, server), ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, server, saying("a"))
        until(lambda: engine.calls)
        rest = {t: pool.submit(ask, server, saying(t)) for t in ("b", bad, "c")}
        until(lambda: server.desk.batcher.waiting == 3)
        engine.go.set()
        assert first.result()[0] == rest["b"].result()[0] == rest["c"].result()[0] == 200
        found, _, body = rest[bad].result()
        assert found == status and words in json.loads(body)["error"]["message"]
        assert len(engine.calls) == 5  # all three at once, then one by one
        assert "Traceback" not in capfd.readouterr().err


def test_a_server_that_stops_refuses_whoever_waits():
    engine = Waiting()
    with ThreadPoolExecutor(2) as pool:
        with serve(engine, limits=Limits(window=0.0)) as server:
            first = pool.submit(ask, server, saying("a"))
            until(lambda: engine.calls)
            second = pool.submit(ask, server, saying("b"))
            until(lambda: server.desk.batcher.waiting == 1)
            threading.Timer(0.2, engine.go.set).start()
        assert second.result()[0] == 503 and first.result()[0] == 200
    with pytest.raises(urllib.error.URLError):
        ask(server, saying("c"))


def test_too_many_connections_are_turned_away():
    with waiting(connections=2) as (engine, server):
        engine.go.set()
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        until(lambda: server._http.connections.left == 0)
        answered = raw(server, b"GET /health HTTP/1.1\r\n\r\n")
        assert b" 503 " in answered.split(b"\r\n")[0] and b"too many open" in answered
        for sock in held:
            sock.close()
        until(lambda: server._http.connections.left == 2)
        assert ask(server, saying("a"))[0] == 200


def test_a_body_that_does_not_arrive_is_not_waited_for():
    with waiting(seconds=0.1, idle=0.5) as (engine, server):
        head = (b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{" % CHAT.encode())
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
            slow.sendall(head)
            time.sleep(0.2)
            slow.sendall(b" ")
            assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
        assert raw(server, head) == b""  # silent for half a second: closed
        until(lambda: server._http.held.left == Limits().held_bytes)
        assert engine.calls == []


def test_a_connection_serves_several_requests():
    with waiting() as (engine, server):
        engine.go.set()
        body = json.dumps(saying("a")).encode()
        one = (b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
               b"Content-Length: %d\r\n" % (CHAT.encode(), len(body)))
        found = raw(server, one + b"\r\n" + body + one + b"Connection: close\r\n\r\n" + body)
        assert found.count(b"HTTP/1.1 200 OK") == 2


# -- the Python API's and the command's own errors ------------------------------------------------

def test_only_this_machine_unless_others_are_meant():
    with pytest.raises(SelfloopError, match="--allow-remote"), serve(Waiting(), host="0.0.0.0"):
        pass
    with waiting() as (_, server), pytest.raises(SelfloopError, match="another --port"), \
            serve(Waiting(), port=server.port):
        pass
    with pytest.raises(SelfloopError, match=r"Limits\.queue=0"):
        Limits(queue=0)


def test_a_budget_never_gives_more_than_there_is():
    budget = Budget(3)
    assert budget.take(2) and not budget.take(2) and budget.take(1)
    budget.give(2)
    assert budget.take(2)


def test_a_data_url_without_base64_is_read():
    data = png()
    quoted = "data:image/png," + "".join(f"%{byte:02x}" for byte in data)
    assert data_urls.picture(quoted, "here", Limits())[1] == data
    with pytest.raises(Refusal, match="no address"):
        data_urls.picture("a.png", "here", Limits())


def invoke(*words):
    app = typer.Typer()
    app.command()(serving.serve)
    return CliRunner().invoke(app, list(words))


def test_the_command_serves_until_interrupted(monkeypatch, tmp_path):
    asked = []

    def wait(server: Server) -> None:
        asked.append((server.url, chat(server, max_tokens=3, temperature=0)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "wait", wait)
    done = invoke("embedded", "--port", "0", "--json", "--name", "mine", "--max-tokens", "8")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == {"url": asked[0][0], "model": "mine"} and "stopped" in done.stderr
    assert asked[0][1]["model"] == "mine"
    done = invoke("embedded", "--port", "0", "--host", "0.0.0.0", "--allow-remote")
    assert done.exit_code == 0 and "warning: whoever reaches 0.0.0.0" in done.stderr


@pytest.mark.parametrize(("words", "message"), [
    (("embedded", "--host", "0.0.0.0"), "--allow-remote"),
    (("embedded", "--device", "cuda"), "--device"),
    (("./nowhere",), "no model folder")])
def test_the_commands_errors(words, message):
    done = invoke(*words)
    assert isinstance(done.exception, SelfloopError) and message in str(done.exception)


def test_a_run_is_served_by_its_best_model(tmp_path, monkeypatch):
    import shutil

    from selfloop.demo import SEED

    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "loop.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    done = invoke("mine")
    assert isinstance(done.exception, SelfloopError) and "promoted nothing" in str(done.exception)
    shutil.copytree(SEED, run / "best" / "solver")
    seen = []

    def wait(server: Server) -> None:
        seen.append((server.desk.model, text_of(chat(server, temperature=0))))
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "wait", wait)
    assert invoke("mine", "--port", "0").exit_code == 0
    assert seen == [("mine", "1 6 4 = 12")] and Path("runs/mine/loop.json").exists()
