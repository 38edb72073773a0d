"""Requests of many connections, answered together: one thread asks the engine, all others wait.

Requests that arrive within a short window, or while an earlier batch is being answered, go to the
engine in one call. What one request draws depends on its own key only, so it does not matter
which others it meets there (beyond the floating-point noise of a batch).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

from selfloop.roles import Engine, Request, SelfloopError
from selfloop.serving import data_urls
from selfloop.serving.limits import Limits
from selfloop.serving.reading import Asked
from selfloop.serving.refusals import Refusal
from selfloop.types import Branch, Media, Turn


@dataclass(frozen=True)
class Answer:
    """One answer as the engine's thread leaves it, so that no other thread needs the engine."""

    turn: Turn
    text: str
    scored: tuple[tuple[str, float], ...] | None = None
    """If asked for: what each drawn token adds to the text, and its log-prob."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """One request in the queue."""

    asked: Asked
    key: str
    future: Future[list[Answer]] = field(default_factory=Future)

    @property
    def request(self) -> Request:
        """What the engine is asked."""
        return Request(context=self.asked.context, key=self.key, n=self.asked.n,
                       sampling=self.asked.sampling)


class Batcher:
    """The only user of the engine while it runs. `start` it, `submit` to it, `stop` it."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self.batches = 0
        """Calls of the engine so far."""
        self._files: dict[str, bytes] = {}
        self._waiting: deque[Ticket] = deque()
        self._changed = Condition()
        self._open = True
        self._thread = Thread(target=self._work, name="selfloop-serve", daemon=True)

    def start(self) -> None:
        """Take the engine: its pictures are from now on those of the requests."""
        self.engine.bind(self._picture)
        self._thread.start()

    def stop(self) -> None:
        """Refuse whoever waits, finish the running batch, and end."""
        with self._changed:
            self._open = False
            while self._waiting:
                self._waiting.popleft().future.set_exception(_closed())
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are being answered."""
        return self._open and self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait until it has ended, at most so many seconds."""
        self._thread.join(timeout)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def submit(self, ticket: Ticket) -> None:
        """Queue a request; its future is set in time. Raises Refusal: 429 when there is no room."""
        with self._changed:
            if not self._open:
                raise _closed()
            if len(self._waiting) >= self.limits.queue:
                raise Refusal(429, f"{self.limits.queue} requests are waiting already, which is "
                                   "this server's limit: try again in a moment")
            self._waiting.append(ticket)
            self._changed.notify_all()

    def withdraw(self, ticket: Ticket) -> None:
        """Take a request back; one that is being answered is answered to nobody."""
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
        ticket.future.cancel()

    # -- the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._next():
            running = [t for t in batch if t.future.set_running_or_notify_cancel()]
            if running:
                self._answer(running)

    def _next(self) -> list[Ticket]:
        """Those that wait, a moment after the first of them came; empty at the end."""
        with self._changed:
            while self._open:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                self._changed.wait_for(
                    lambda: not self._open or len(self._waiting) >= self.limits.batch,
                    timeout=self.limits.window)
                if self._open and self._waiting:  # else the one who came has withdrawn
                    most = min(self.limits.batch, len(self._waiting))
                    return [self._waiting.popleft() for _ in range(most)]
            return []

    def _answer(self, tickets: Sequence[Ticket]) -> None:
        """All in one call; where that fails, each alone, so that only the culprit is refused."""
        try:
            answers = self._draw(tickets)
        except Exception as error:
            if len(tickets) == 1:
                tickets[0].future.set_exception(error)
            else:
                for ticket in tickets:
                    self._answer([ticket])
            return
        for ticket, answered in zip(tickets, answers, strict=True):
            ticket.future.set_result(answered)

    def _draw(self, tickets: Sequence[Ticket]) -> list[list[Answer]]:
        self._files = {name: data for t in tickets for name, data in t.asked.files.items()}
        self.batches += 1
        try:
            drawn = self.engine.generate([t.request for t in tickets], self.engine.version)
            return [[self._read(ticket, turn) for turn in turns]
                    for ticket, turns in zip(tickets, drawn, strict=True)]
        finally:
            self._files = {}

    def _read(self, ticket: Ticket, turn: Turn) -> Answer:
        text = self.engine.decode(turn.token_ids)
        if not ticket.asked.logprobs:
            return Answer(turn, text)
        logprobs = turn.logprobs
        if logprobs is None:  # greedy draws report none, so they are scored
            branch = Branch(context=ticket.asked.context, turns=(turn,))
            logprobs = tuple(self.engine.logprobs([branch])[0])
        return Answer(turn, text, tuple(zip(self._pieces(turn.token_ids), logprobs, strict=True)))

    def _pieces(self, token_ids: Sequence[int]) -> list[str]:
        """What each token adds to the text: alone, many tokenizers drop a leading space."""
        pieces, before = [], ""
        for i, token in enumerate(token_ids):
            now = self.engine.decode(token_ids[:i + 1])
            # Characters of several tokens read differently once they are whole.
            pieces.append(now[len(before):] if now.startswith(before)
                          else self.engine.decode([token]))
            before = now
        return pieces

    def _picture(self, media: Media) -> Any:
        name = f"picture {media.sha256[:12]}"
        data = self._files.get(media.sha256)
        if data is None:
            raise SelfloopError(f"{name} is not one of the request's")
        return data_urls.opened(data, name, self.limits)


def _closed() -> Refusal:
    return Refusal(503, "the server is shutting down")
