"""Any OpenAI-compatible server as an engine for roles that only answer: judge, critic, proposer.

The server's weights are its own, so nothing here learns or scores. Each draw is one request of its
own, with the seed of its key; what was answered once is recorded and never asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from selfloop.doors import Stopped
from selfloop.engines.json_schema import check_schema, parsed
from selfloop.engines.only_answers import OnlyAnswers
from selfloop.engines.openai_calling import Caller, Patience
from selfloop.engines.openai_messages import (
    OWN,
    Pictures,
    Reply,
    body,
    decoded,
    turn,
    with_pictures,
)
from selfloop.engines.recording import Account, Prices, Records
from selfloop.organize.verify.asking import BrokenReply
from selfloop.roles import Request, SelfloopError
from selfloop.types import Media, Turn, digest

__all__ = ["OpenAIEngine", "Patience", "Pictures", "Prices"]


@dataclass(frozen=True)
class _Ask:
    """One draw: its hash, its body with pictures by name, and whose it is."""

    name: str
    body: Mapping[str, Any]
    request: Request
    draw: int


class OpenAIEngine(OnlyAnswers):
    """`model` at `base_url` (the address that ends in /v1), asked by `openai`'s own client.

    `api_key_env` names the environment variable that holds the key; the key itself is kept
    nowhere. At most `concurrency` requests are under way. `patience` bounds time and retries.
    `budget` (dollars; needs `prices`) and `token_budget` are for all answers that are recorded,
    those of an earlier process of the same run included; what is under way when they are reached
    is still paid for. `json_schema` asks for structured output: an answer that does not fit is an
    error of its request. `extra` goes into every request as it is (reasoning_effort ...).
    `records` is a file of recorded answers; without it a run keeps them in its own folder. With
    `replay_only` nothing is ever asked, and a request that is not recorded ends the run.

    A request that fails is an error of its own (`attempt`); `generate` raises the first one.
    Raises SelfloopError, in one line, for options that cannot be, and without the library.
    """

    supports = frozenset({"images", "stop", "history"})

    def __init__(self, model: str, base_url: str, *, api_key_env: str | None = None,
                 concurrency: int = 8, patience: Patience | None = None,
                 prices: Prices | None = None, budget: float | None = None,
                 token_budget: int | None = None, json_schema: Mapping[str, Any] | None = None,
                 logprobs: bool = False, seeds: bool = True, pictures: Pictures | None = None,
                 max_tokens_as: str = "max_tokens", extra: Mapping[str, Any] | None = None,
                 records: str | Path | None = None, replay_only: bool = False) -> None:
        self.name, self.base_url, self.prices = model, base_url, prices
        self.concurrency, self.budget, self.token_budget = concurrency, budget, token_budget
        self.schema, self.replay_only = json_schema, replay_only
        self.pictures = pictures or Pictures()
        self._said: dict[str, Any] = {
            "seeds": seeds, "logprobs": logprobs, "length": max_tokens_as,
            "response_format": _format(json_schema), "extra": dict(extra or {})}
        self._check()
        self._own_file = records is not None
        self.records = Records(Path(records) if records is not None else None)
        self._caller = None if replay_only else Caller(base_url, api_key_env,
                                                       patience or Patience())
        self._failed, self._lock = 0, Lock()
        self._open: Callable[[Media], Any] = _nobody

    def _check(self) -> None:
        if self.concurrency < 1:
            raise SelfloopError(f"concurrency={self.concurrency}: it must be at least 1")
        if self.budget is not None and self.prices is None:
            raise SelfloopError("budget is in dollars: give prices=Prices(prompt=..., "
                                "completion=...), or token_budget instead")
        if min(self.budget or 0, self.token_budget or 0) < 0:
            raise SelfloopError("budget and token_budget must be 0 or more")
        if self._said["length"] not in ("max_tokens", "max_completion_tokens"):
            raise SelfloopError(f"max_tokens_as={self._said['length']!r}: expected max_tokens or "
                                "max_completion_tokens")
        own = sorted(set(self._said["extra"]) & set(OWN))
        if own:
            raise SelfloopError(f"extra.{own[0]}: the engine sets this field itself, from the "
                                "request's sampling or from an option of its own")

    # -- what the loop asks ---------------------------------------------------------------------

    def bind(self, open_media: Callable[..., Any]) -> None:
        """Give the engine the reader that turns a Media into a PIL RGB picture."""
        self._open = open_media

    def keep_records(self, path: Path) -> None:
        """Record in this file, and answer from it; no change where `records` was given."""
        if not self._own_file and self.records.path != path:
            self.records = Records(path)

    def generate(self, requests: Sequence[Request], version: int) -> list[list[Turn]]:
        """n turns for each request, drawn by the server's one and only version.

        Raises the SelfloopError of the first request that failed.
        """
        found: list[list[Turn]] = []
        for turns in self.attempt(requests, version):
            if isinstance(turns, SelfloopError):
                raise turns
            found.append(turns)
        return found

    def attempt(self, requests: Sequence[Request], version: int
                ) -> list[list[Turn] | SelfloopError]:
        """n turns for each request, or why there are none for that one."""
        asks = [self._asks(request) for request in requests]
        new = {ask.name: ask for some in asks if not isinstance(some, SelfloopError)
               for ask in some if self.records.get(ask.name) is None}
        if new and self.replay_only:
            raise Stopped(self._unseen(next(iter(new.values()))))
        with ThreadPoolExecutor(self.concurrency) as pool:
            outcomes = dict(zip(new, pool.map(self._answer, new.values()), strict=True))
        return [some if isinstance(some, SelfloopError) else self._turns(some, outcomes)
                for some in asks]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a turn of this engine (any other's tokens mean nothing here)."""
        return decoded(token_ids)

    def fingerprint(self) -> str:
        """Hash of the model's name and of what else decides the answers. The address is not in
        it: the same model may be served elsewhere when a run is resumed."""
        return digest(["openai", self.name, self._said, asdict(self.pictures)])

    def account(self) -> dict[str, Any]:
        """What was recorded cost, and what else was tried: for a run's event log."""
        spent = asdict(self.records.account(self.prices))
        tried = {"attempts": self._caller.attempts, "retries": self._caller.retries} \
            if self._caller else {}
        return {"model": self.name, **spent, **tried, "failed": self._failed}

    # -- one draw -------------------------------------------------------------------------------

    def _asks(self, request: Request) -> list[_Ask] | SelfloopError:
        try:
            bodies = [body(self.name, request, i, pictures=self.pictures, **self._said)
                      for i in range(request.n)]
        except SelfloopError as error:
            return error
        return [_Ask(digest(["asked", b], size=16), b, request, i) for i, b in enumerate(bodies)]

    def _answer(self, ask: _Ask) -> Reply | SelfloopError:
        try:
            self._check_budget()
            assert self._caller is not None  # else attempt() has stopped
            sent = with_pictures(dict(ask.body), ask.request.context.media, self.pictures,
                                 self._open)
            reply = self._caller(sent, ask.name)
            self.records.put(ask.name, f"{ask.request.key}/{ask.draw}", reply)
        except SelfloopError as error:
            with self._lock:
                self._failed += 1
            return SelfloopError(f"{self.name} at {error}" if self._caller and str(error)
                                 .startswith(self._caller.host) else f"{self.name}: {error}")
        return reply

    def _check_budget(self) -> None:
        """Raises SelfloopError when nothing more may be spent, or when nobody could tell."""
        spent: Account = self.records.account(self.prices)
        limited = self.budget is not None or self.token_budget is not None
        if limited and spent.uncounted:
            raise SelfloopError("the server does not say how many tokens an answer took, so no "
                                "budget can be kept: take budget and token_budget out, or use a "
                                "server that reports usage")
        if self.budget is not None and (spent.dollars or 0.0) >= self.budget:
            raise SelfloopError(f"the budget of ${self.budget:g} is spent (${spent.dollars:.4g} "
                                f"for {spent.answers} answers): raise the engine's budget to go on")
        if self.token_budget is not None and spent.tokens >= self.token_budget:
            raise SelfloopError(f"the budget of {self.token_budget:,} tokens is spent "
                                f"({spent.tokens:,} for {spent.answers} answers): raise the "
                                "engine's token_budget to go on")

    def _turns(self, asks: Sequence[_Ask], outcomes: Mapping[str, Reply | SelfloopError]
               ) -> list[Turn] | SelfloopError:
        found: list[Turn] = []
        for ask in asks:
            reply = outcomes.get(ask.name) or self.records.get(ask.name)
            if not isinstance(reply, Reply):
                return reply or SelfloopError(f"{self.name}: no answer")
            if self.schema is not None:
                try:
                    parsed(reply.text, self.schema)
                except ValueError as error:
                    cut = ", cut off at max_new_tokens" if reply.finish_reason == "length" else ""
                    return BrokenReply(f"{self.name}: the answer is not what json_schema asks "
                                       f"for: {error}{cut}")
            found.append(turn(reply, ask.request.context.media, ask.request.sampling.temperature))
        return found

    def _unseen(self, ask: _Ask) -> str:
        where = self.records.path or "memory"
        return (f"{self.name} is replay_only, and the request {ask.name} of {ask.request.key} is "
                f"not among the {self.records.account().answers} answers recorded in {where}: "
                "restore what was asked, or take replay_only out to ask for it")


def _format(schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if schema is None:
        return None
    check_schema(schema)
    return {"type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}


def _nobody(media: Media) -> Any:
    raise SelfloopError("pictures cannot be opened: bind(open_media) was not called")
