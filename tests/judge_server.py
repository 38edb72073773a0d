"""A server whose every reply a test writes, and a judge's replies on the toy world's questions."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def said(text: str | None = "fine", finish: str = "stop", *, prompt: int = 10, drawn: int = 5,
         **more: Any) -> dict[str, Any]:
    """A chat completion."""
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [
        {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text},
         **more}], "usage": {"prompt_tokens": prompt, "completion_tokens": drawn,
                             "total_tokens": prompt + drawn}}


@dataclass
class Reply:
    """What is sent back: `body` as JSON, or as raw bytes."""

    body: Any = field(default_factory=said)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    """Seconds before the first byte."""
    drip: float = 0.0
    """Seconds between the bytes of the body."""
    length: int | None = None
    """A false Content-Length: more than there is means a connection that breaks off."""
    hang_up: bool = False


class Script:
    """`says(body, n)` answers the n-th request (from 0); every body is kept."""

    def __init__(self, says) -> None:
        self.says, self.asked, self.headers = says, [], []
        self.lock, self.busy, self.most_busy = threading.Lock(), 0, 0
        self.answered: list[str] = []
        """Hashes of the bodies that were answered in full with 200."""


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass

    def do_POST(self) -> None:
        script = self.server.script
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        with script.lock:
            n = len(script.asked)
            script.asked.append(json.loads(raw))
            script.headers.append({k.lower(): v for k, v in self.headers.items()})
            script.busy += 1
            script.most_busy = max(script.most_busy, script.busy)
        try:
            reply = script.says(json.loads(raw), n)
            time.sleep(reply.wait if isinstance(reply, Reply) else 0)
            with script.lock:  # a client that has its answer may ask again before we are done
                script.busy -= 1
            self._send(reply if isinstance(reply, Reply) else Reply(reply))
            if not isinstance(reply, Reply) or (reply.status == 200 and not reply.hang_up):
                with script.lock:
                    script.answered.append(hashlib.sha256(raw).hexdigest())
        except OSError:
            pass  # the client has gone

    def _send(self, reply: Reply) -> None:
        if reply.hang_up:
            self.connection.close()
            return
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(reply.length or len(data)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not reply.drip:
            self.wfile.write(data)
        for byte in data if reply.drip else b"":
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(reply.drip)
        if reply.length:
            self.close_connection = True


@contextmanager
def scripted(says):
    """(its base URL, the script) of a running server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads, server.script = True, Script(says)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", server.script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def judge(body: dict[str, Any]) -> dict[str, Any]:
    """A strict judge of the toy world: ten points for an answer that begins with yes."""
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    mark = re.search(r"score (\w{8}): N", text)[1]
    answer = text.split("Answer to judge:")[1].splitlines()[2]
    points = 10 if answer.startswith("yes") else 0
    return said(f"It says {answer!r}.\nscore {mark}: {points}", prompt=100, drawn=20)
