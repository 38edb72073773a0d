"""HTTP around the desk, by the standard library: one thread a connection, every step bounded."""

from __future__ import annotations

import ipaddress
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6, MSG_PEEK, SHUT_WR, socket
from typing import Any, cast
from urllib.parse import unquote

import selfloop
from selfloop.serving.desk import GET, POST, Desk, HungUp, unknown
from selfloop.serving.limits import Budget
from selfloop.serving.refusals import Refusal, unexpected

DRAINED = 64 * 2**20
"""Bytes of a refused body that are read and thrown away, so that the client reads why."""


class Http(ThreadingHTTPServer):
    """Accepts connections for a desk, up to a number."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], desk: Desk) -> None:
        self.desk = desk
        self.local = is_loopback(address[0])
        self.connections = Budget(desk.limits.connections)
        self.held = Budget(desk.limits.held_bytes)
        if ":" in address[0]:
            self.address_family = AF_INET6
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or 503 when too many are open."""
        if self.connections.take(1):
            super().process_request(request, client_address)
            return
        refusal = Refusal(503, "too many open connections: try again in a moment")
        body = json.dumps(refusal.json).encode()
        with suppress(OSError):  # it may have gone already
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json"
                            b"\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
                            % (len(body), body))
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, from its first request to its last."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.give(1)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only what is ours to mend is worth a line; clients may go when they like."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # so that even nonsense is answered with headers
    server_version = f"selfloop/{selfloop.__version__}"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Silent connections are not kept for ever."""
        self.http = cast(Http, self.server)
        self.desk, self.limits = self.http.desk, self.http.desk.limits
        super().setup()
        self.connection.settimeout(self.limits.idle)

    def do_GET(self) -> None:
        """The health and the model."""
        self._reply(self._get)

    def do_POST(self) -> None:
        """Completions."""
        self._reply(self._post)

    def _get(self) -> None:
        path = self._path()
        if path != "/health":  # whoever watches the process need not know the token
            self.desk.admit(self.headers.get("Authorization"))
        if path in POST:
            raise Refusal(405, f"{path} wants POST")
        self._send(200, json.dumps(self.desk.get(path)).encode())

    def _post(self) -> None:
        size = self._size()
        try:
            path = self._path()
            self.desk.admit(self.headers.get("Authorization"))
            if path not in POST:
                raise Refusal(405, f"{path} wants GET") if path in GET else unknown(path)
            self._check_size(size)
        except Refusal:
            self._drain(size)
            raise
        try:
            self._chat(self._body(size))
        finally:
            self.http.held.give(size)

    def _chat(self, body: bytes) -> None:
        id, reply = self.desk.chat(body, self._gone)
        if isinstance(reply, dict):
            self._send(200, json.dumps(reply).encode(), id=id)
        else:
            # The answer is whole by now, so that even a stream has a known length.
            self._send(200, b"".join(reply), kind="text/event-stream", id=id)

    # -- what comes in ------------------------------------------------------------------------

    def _path(self) -> str:
        """The path. Raises Refusal for what a web page of another site might send here."""
        # A name that resolves to this machine (DNS rebinding) must not open a local server.
        if self.http.local and not _names_loopback(self.headers.get("Host")):
            raise Refusal(403, "this server is for its own machine: call it localhost or by its "
                               "address")
        return unquote(self.path.partition("?")[0]).rstrip("/")

    def _size(self) -> int:
        """Content-Length. Without one it is unknown where the next request starts."""
        given = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not (given.isascii() and given.isdigit()):
            self.close_connection = True
            raise Refusal(411, "a POST wants a Content-Length, and no Transfer-Encoding")
        return min(int(given[:20]), sys.maxsize)

    def _check_size(self, size: int) -> None:
        """Raises Refusal, or takes `size` from what may be held."""
        kind = self.headers.get_content_type()
        if kind != "application/json":  # which other sites' pages cannot send without asking
            raise Refusal(415, f"the body is {kind[:60]}; expected Content-Type: application/json")
        if size > self.limits.body_bytes:
            raise Refusal(413, f"the body has {size:,} bytes, which is over this server's limit "
                               f"of {self.limits.body_bytes:,}: send fewer or smaller pictures")
        if not self.http.held.take(size):
            raise Refusal(429, "too much is being read and answered already: try again in a "
                               "moment")

    def _body(self, size: int) -> bytes:
        until = time.monotonic() + self.limits.seconds
        found = bytearray()
        while len(found) < size:
            part = self.rfile.read1(min(size - len(found), 2**20))
            if not part:
                raise HungUp
            found += part
            if time.monotonic() > until:
                self.close_connection = True
                raise Refusal(408, f"the body did not arrive within {self.limits.seconds:g} "
                                   "seconds")
        return bytes(found)

    def _drain(self, size: int) -> None:
        """Read what is refused: a client that is still sending would not see why."""
        if size > DRAINED:
            self.close_connection = True
        left = min(size, DRAINED)
        until = time.monotonic() + self.limits.idle
        while left and time.monotonic() < until:
            part = self.rfile.read1(min(left, 2**20))
            if not part:
                raise HungUp
            left -= len(part)
        self.close_connection = self.close_connection or left > 0

    def _gone(self) -> bool:
        """Whether the client has closed the connection; never waits."""
        sock = cast(socket, self.connection)
        before = sock.gettimeout()
        sock.settimeout(0)
        try:
            return not sock.recv(1, MSG_PEEK)  # a next request's first byte stays where it is
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        finally:
            sock.settimeout(before)

    # -- what goes out ------------------------------------------------------------------------

    def _reply(self, act: Callable[[], None]) -> None:
        """Whatever goes wrong is JSON with one sentence, and the server goes on."""
        try:
            act()
        except Refusal as refusal:
            self._refuse(refusal)
        except (HungUp, OSError):
            self.close_connection = True
        except Exception as error:
            self._refuse(unexpected(error))

    def _refuse(self, refusal: Refusal) -> None:
        if refusal.status == 500:
            print(f"error: {refusal.message}", file=sys.stderr, flush=True)
        try:
            self._send(refusal.status, json.dumps(refusal.json).encode())
            if self.close_connection:
                cast(socket, self.connection).shutdown(SHUT_WR)
        except OSError:
            self.close_connection = True

    def _send(self, status: int, body: bytes, *, kind: str = "application/json",
              id: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if id:
            self.send_header("x-request-id", id)
        if status in (429, 503):
            self.send_header("Retry-After", "1")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None
                   ) -> None:
        """What the standard library refuses (a broken request line, an unknown method)."""
        self.close_connection = True
        self.command = getattr(self, "command", None) or ""
        self._refuse(Refusal(code, message or explain or "this is no HTTP request"))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they hold people's pictures and questions."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names_loopback(header: str | None) -> bool:
    if header is None:  # HTTP/1.0, which browsers do not speak
        return True
    host = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    return is_loopback(host.strip("[]").lower())
