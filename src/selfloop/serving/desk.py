"""What the server does with a request, without any HTTP: paths in, JSON or events out."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any

from selfloop.roles import Engine, SelfloopError
from selfloop.serving import replies
from selfloop.serving.batching import Answer, Batcher, Ticket
from selfloop.serving.limits import Limits
from selfloop.serving.reading import Asked, read
from selfloop.serving.refusals import Refusal, unexpected

Gone = Callable[[], bool]
"""Whether the client has hung up."""
LOOK = 0.1
"""Seconds between two looks at whether the client is still there."""
GET, POST = ("/health", "/v1/models"), ("/v1/chat/completions",)
"""What can be asked."""


class HungUp(Exception):
    """Nobody waits for the reply any more."""


@dataclass
class Desk:
    """One engine's front desk."""

    engine: Engine
    model: str
    """The name that clients call it by."""
    limits: Limits = Limits()
    token: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.engine, self.limits)
        self.fingerprint = f"{self.engine.fingerprint()[:16]}-{self.engine.version}"

    def admit(self, header: str | None) -> None:
        """Raises Refusal (401) unless the Authorization header carries the token."""
        if self.token is None:
            return
        given = (header or "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise Refusal(401, "this server wants its token: send the header Authorization: "
                               "Bearer TOKEN", code="invalid_api_key")

    def get(self, path: str) -> dict[str, Any]:
        """The JSON behind a path. Raises Refusal for others, and 503 when nothing is answered."""
        if path == "/health":
            if not self.batcher.alive:
                raise Refusal(503, "the server is not answering: start it again")
            return {"status": "ok", "model": self.model, "waiting": self.batcher.waiting}
        about = {"id": self.model, "object": "model", "created": self.created,
                 "owned_by": "selfloop"}
        if path == "/v1/models":
            return {"object": "list", "data": [about]}
        if path == f"/v1/models/{self.model}":
            return about
        raise unknown(path)

    def chat(self, body: bytes, gone: Gone) -> tuple[str, list[bytes] | dict[str, Any]]:
        """(id, the completion or the events of its stream). Raises Refusal and HungUp."""
        asked = read(body, self.model, self.limits)
        ticket = Ticket(asked, self._key(asked))
        self.batcher.submit(ticket)
        answers = self._wait(ticket, gone)
        head = replies.Head(id=f"chatcmpl-{secrets.token_hex(12)}", model=self.model,
                            created=int(time.time()), fingerprint=self.fingerprint)
        if asked.stream:
            return head.id, list(replies.stream(head, asked, answers))
        return head.id, replies.completion(head, asked, answers)

    def _key(self, asked: Asked) -> str:
        """With a seed, the same for the same messages; else new each time."""
        if asked.seed is None:
            return f"serve/{secrets.token_hex(16)}"
        return f"serve/{asked.seed}/{asked.context.identity}"

    def _wait(self, ticket: Ticket, gone: Gone) -> list[Answer]:
        until = time.monotonic() + self.limits.seconds
        while not wait([ticket.future], timeout=LOOK).done:
            if gone():
                self.batcher.withdraw(ticket)
                raise HungUp
            if time.monotonic() > until:
                self.batcher.withdraw(ticket)
                raise Refusal(504, f"no answer within {self.limits.seconds:g} seconds, which is "
                                   "this server's limit: ask for fewer tokens, or later")
        try:
            return ticket.future.result()
        except SelfloopError as error:
            raise Refusal(400, str(error)) from None
        except Refusal:
            raise
        except Exception as error:  # also an OSError, which is none of the connection's here
            raise unexpected(error) from error


def unknown(path: str) -> Refusal:
    """404, with what there is."""
    return Refusal(404, f"no {path[:100]!r} here; there are GET {', '.join(GET)} and POST "
                        f"{', '.join(POST)}")
