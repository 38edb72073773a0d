"""One request to an OpenAI-compatible server: bounded in time, and asked again where that helps.

Waits grow exponentially with jitter (full wait down to half of it), drawn from the request's own
hash, so a test or a resumed run waits the same. A Retry-After of the server comes first, and then
holds back every other request, too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from selfloop import keys
from selfloop.engines.openai_messages import Refused, Reply, reply_of
from selfloop.roles import SelfloopError

MOST_BYTES = 16 * 2**20
"""Of one answer."""
_AGAIN = (408, 409, 425, 429)
_TRANSPORT = ("httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for one request, and how often to ask again."""

    timeout: float = 60.0
    """Seconds for one attempt."""
    deadline: float = 600.0
    """Seconds for one request: all of its attempts, and the waits between them."""
    retries: int = 5
    """Further attempts of one request."""
    retry_budget: int = 500
    """Further attempts of all requests while the engine lives."""
    first: float = 0.5
    """Seconds before the first further attempt; doubled each time."""
    most: float = 30.0
    """Seconds of one wait, unless the server asks for more."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("retries", "retry_budget", "first") else 1e-3
            if not value >= least:
                raise SelfloopError(f"{field.name}={value}: it must be at least {least:g}")


class _Failed(Exception):
    """One attempt that failed: what happened, whether it may go better, how long to wait."""

    def __init__(self, what: str, again: bool, wait: float | None = None) -> None:
        super().__init__(what)
        self.again, self.wait = again, wait


class Caller:
    """A server that can be asked by several threads. Raises SelfloopError if it cannot be."""

    def __init__(self, base_url: str, api_key_env: str | None, patience: Patience) -> None:
        self.patience, self.host = patience, host_of(base_url)
        self._key = _key(api_key_env)
        self._client = _client(base_url, self._key, self.host)
        self._lock, self._held_until = Lock(), 0.0
        self.attempts = self.retries = 0

    def __call__(self, asked: Mapping[str, Any], name: str) -> Reply:
        """The answer to `asked`, whose hash is `name`. Raises SelfloopError with the last reason
        when it cannot be had."""
        until = time.monotonic() + self.patience.deadline
        attempt = 0
        while True:
            try:
                self._hold(until)
                return self._attempt(asked, until)
            except _Failed as failed:
                stop = self._no_more(failed, attempt)
                wait = self._wait(failed, name, attempt)
                if not stop and time.monotonic() + wait > until:
                    stop = f"; the deadline of {self.patience.deadline:g} s leaves no time for more"
                if stop:
                    times = "" if not attempt else f" (attempt {attempt + 1})"
                    raise SelfloopError(self._safe(f"{self.host}: {failed}{times}{stop}")) from None
            time.sleep(wait)
            attempt += 1

    def _no_more(self, failed: _Failed, attempt: int) -> str:
        """Why there is no further attempt; "" if there is one, which is then counted."""
        if not failed.again:
            return "; asking again would not help"
        if attempt >= self.patience.retries:
            return f"; {self.patience.retries} retries did not help"
        with self._lock:
            if self.retries >= self.patience.retry_budget:
                return f"; the retry budget of {self.patience.retry_budget} is spent"
            self.retries += 1
        return ""

    def _wait(self, failed: _Failed, name: str, attempt: int) -> float:
        if failed.wait is not None:
            with self._lock:
                self._held_until = max(self._held_until, time.monotonic() + failed.wait)
            return failed.wait
        full = min(self.patience.most, self.patience.first * 2.0**min(attempt, 30))
        jitter = float(keys.uniforms(f"{name}/retry/{attempt}", 1)[0])
        return full * (0.5 + 0.5 * jitter)

    def _hold(self, until: float) -> None:
        """Wait as long as the server has asked for, whichever request it was told to; a request
        that would have to wait past its own deadline fails at once."""
        wait = self._held_until - time.monotonic()
        if self._held_until > until:
            raise _Failed(f"it wants no further request for {wait:.0f} s, which is beyond the "
                          f"deadline of {self.patience.deadline:g} s", again=False)
        if wait > 0:
            time.sleep(wait)

    # -- one attempt --------------------------------------------------------------------------

    def _attempt(self, asked: Mapping[str, Any], until: float) -> Reply:
        import openai

        with self._lock:
            self.attempts += 1
        seconds = min(self.patience.timeout, max(1e-3, until - time.monotonic()))
        rest = {k: v for k, v in asked.items() if k not in ("model", "messages")}
        try:
            with self._client.chat.completions.with_streaming_response.create(
                    model=asked["model"], messages=asked["messages"], extra_body=rest,
                    timeout=seconds) as answer:
                data = _bounded(answer.iter_bytes(), time.monotonic() + seconds)
        except _Failed:
            raise
        except openai.APIStatusError as error:
            raise _refused(error) from None
        except Exception as error:
            raise _broken(error, seconds) from None
        try:
            return reply_of(json.loads(data))
        except Refused as error:  # the same request, of the same seed, would end so again
            raise _Failed(f"no usable answer ({error})", again=False) from None
        except (ValueError, RecursionError) as error:
            raise _Failed(f"no usable answer ({str(error)[:300]})", again=True) from None

    def _safe(self, text: str) -> str:
        """The text in one line, without the key, which some servers repeat."""
        line = " ".join(text.split())
        return line.replace(self._key, "[key]") if self._key else line


def _bounded(parts: Iterable[bytes], until: float) -> bytes:
    """All parts. A server that drips or never ends is cut off."""
    found = bytearray()
    for part in parts:
        found += part
        if len(found) > MOST_BYTES:
            raise _Failed(f"its answer is longer than {MOST_BYTES // 2**20} MiB", again=False)
        if time.monotonic() > until:
            raise _Failed("its answer was not complete in time", again=True)
    return bytes(found)


def _refused(error: Any) -> _Failed:
    """A status of 3xx, 4xx or 5xx."""
    status, code = int(error.status_code), getattr(error, "code", None)
    body = error.body if isinstance(error.body, dict) else {}
    what = str(body.get("message") or error.message)[:300]
    again = (status in _AGAIN or status >= 500) and code != "insufficient_quota"
    return _Failed(f"status {status}: {what}", again, _asked_wait(error.response.headers))


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: retry-after-ms, or Retry-After in either form."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        said = headers.get("retry-after")
        if said is None:
            return None
        try:
            wait = float(said)
        except ValueError:
            wait = parsedate_to_datetime(said).timestamp() - time.time()
        return max(0.0, wait) if wait == wait else None
    except (ValueError, TypeError, OverflowError):
        return None


def _broken(error: Exception, seconds: float) -> _Failed:
    """No status at all: no connection, a broken one, none that is allowed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SelfloopError):  # egress.py, or the picture
            return _Failed(str(cause), again=False)
        cause = cause.__cause__ or cause.__context__
    import openai

    if isinstance(error, openai.APITimeoutError) or "Timeout" in type(error).__name__:
        return _Failed(f"no answer within {seconds:.3g} s", again=True)
    if isinstance(error, openai.APIConnectionError | OSError) \
            or type(error).__module__.split(".")[0] in _TRANSPORT:
        why = error.__cause__ or error
        return _Failed(f"the connection failed ({type(why).__name__}: {why})"[:300], again=True)
    return _Failed(f"{type(error).__name__}: {error}"[:300], again=False)


# -- who is asked, and with what key --------------------------------------------------------------

def host_of(base_url: str) -> str:
    """The host of an address. Raises SelfloopError for one that is none, or that holds secrets."""
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise SelfloopError(f"base_url = {base_url!r}: expected an address as in "
                            "https://judge.example.org/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise SelfloopError(f"base_url with host {host}: leave out user names, passwords and "
                            "whatever follows a ?: a key comes from the environment, by "
                            "api_key_env")
    return host


def _key(api_key_env: str | None) -> str:
    if api_key_env is None:
        return ""
    key = os.environ.get(api_key_env, "")
    if not key:
        raise SelfloopError(f"the environment variable {api_key_env} is not set: it is where the "
                            "engine's API key is read from (export it, or take api_key_env out)")
    return key


def _client(base_url: str, key: str, host: str) -> Any:
    try:
        import openai
    except ImportError:
        raise SelfloopError("an engine with a base_url needs the openai library: "
                            "pip install 'selfloop[openai]'") from None
    from selfloop.egress import is_here

    client = openai.OpenAI(
        api_key=key or "none", base_url=base_url, max_retries=0,
        # A redirect could lead to a host that nobody named; a proxy is of no use on this machine.
        http_client=openai.DefaultHttpxClient(follow_redirects=False, trust_env=not is_here(host)))
    client.organization = client.project = None  # of the environment, and nobody else's business
    return client
