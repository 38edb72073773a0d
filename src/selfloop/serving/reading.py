"""From the body of a chat completion request to what the engine is asked.

A field that would change the answer and is not supported is refused, never passed over: whoever
measures a model must know what was measured. Fields are those of OpenAI's API reference (Chat
Completions, create), and `top_k` and `min_p` as vLLM and others have them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from selfloop.roles import Sampling
from selfloop.serving import data_urls
from selfloop.serving.limits import Limits
from selfloop.serving.refusals import Refusal
from selfloop.types import Context, Media, Message, Part

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_READ = {"messages", "model", "temperature", "top_p", "top_k", "min_p", "max_tokens",
         "max_completion_tokens", "n", "stop", "seed", "logprobs", "top_logprobs", "stream",
         "stream_options"}
_OF_NO_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier",
                 "prompt_cache_key", "parallel_tool_calls", "reasoning_effort", "verbosity"}
"""Accepted with any value: they do not bear on what this model answers."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,),
    "logit_bias": ({},), "response_format": ({"type": "text"},), "tools": ([],),
    "functions": ([],), "tool_choice": ("none", "auto"), "modalities": (["text"],)}
"""Accepted with the value that changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, checked."""

    context: Context
    files: Mapping[str, bytes]
    """sha256 -> the bytes of the context's pictures."""
    sampling: Sampling
    n: int = 1
    seed: int | None = None
    logprobs: bool = False
    stream: bool = False
    usage: bool = False
    """Whether a stream ends with a chunk of token counts."""


def read(body: bytes, model: str, limits: Limits) -> Asked:
    """The request in `body`, for the model that is served as `model`.

    Raises Refusal: 400 naming the field, 404 for another model.
    """
    fields = _Fields(_json(body))
    fields.refuse_unsupported()
    named = fields.of_type("model", str, model)
    if named != model:
        raise Refusal(404, f"no model {named[:100]!r} here; this server has {model!r}",
                      param="model", code="model_not_found")
    context, files = _conversation(fields.given.get("messages"), limits)
    if fields.whole("top_logprobs", 0, 0, 20):
        raise Refusal(400, "top_logprobs: only the log-probabilities of the drawn tokens are known "
                           "here; leave it out or give 0", param="top_logprobs")
    options = fields.of_type("stream_options", dict, {})
    return Asked(
        context=context, files=files, sampling=_sampling(fields, limits),
        n=fields.whole("n", 1, 1, limits.answers),
        seed=fields.whole("seed", None, -2**63, 2**63 - 1),
        logprobs=fields.of_type("logprobs", bool, False),
        stream=fields.of_type("stream", bool, False),
        usage=bool(options.get("include_usage")))


def _json(body: bytes) -> dict[str, Any]:
    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no JSON")

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, f"the body is not JSON: {why[:200]}") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"the body is a JSON {type(value).__name__}; expected an object")
    return value


class _Fields:
    """The request's fields; null is the same as left out."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = {name: value for name, value in given.items() if value is not None}

    def refuse_unsupported(self) -> None:
        """Raises Refusal for the first field that is not known, or known and not supported."""
        for name, value in self.given.items():
            if name in _READ or name in _OF_NO_EFFECT:
                continue
            if name not in _ONLY:
                raise Refusal(400, f"{name[:60]}: this server does not know the field; leave it "
                                   "out", param=name[:60])
            if value not in _ONLY[name]:
                allowed = " or ".join(json.dumps(v) for v in _ONLY[name])
                raise Refusal(400, f"{name}: not supported by this server; leave it out or give "
                                   f"{allowed}", param=name)

    def of_type(self, name: str, kind: type, default: Any) -> Any:
        """A field of exactly this type."""
        value = self.given.get(name, default)
        if not isinstance(value, kind):
            words = {str: "a text", bool: "true or false", dict: "an object"}
            raise Refusal(400, f"{name}: expected {words[kind]}, not {_shown(value)}", param=name)
        return value

    def whole(self, name: str, default: int | None, low: int, high: int) -> Any:
        """A whole number within [low, high]."""
        value = self.given.get(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Refusal(400, f"{name}: expected a whole number from {low} to {high}, not "
                               f"{_shown(value)}", param=name)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A finite number within [low, high]."""
        value = self.given.get(name, default)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not low <= value <= high:
            raise Refusal(400, f"{name}: expected a number from {low:g} to {high:g}, not "
                               f"{_shown(value)}", param=name)
        return float(value)


def _sampling(fields: _Fields, limits: Limits) -> Sampling:
    top_p = fields.number("top_p", 1.0, 0, 1)
    min_p = fields.number("min_p", 0.0, 0, 1)
    if top_p == 0 or min_p == 1:
        name = "top_p" if top_p == 0 else "min_p"
        raise Refusal(400, f"{name}: {fields.given[name]} leaves no token; for the likeliest one "
                           "give temperature 0", param=name)
    top_k = fields.whole("top_k", 0, -1, 10**6)  # vLLM's word for all is -1
    return Sampling(
        temperature=fields.number("temperature", 1.0, 0, 2), top_p=top_p, min_p=min_p,
        top_k=max(0, top_k), max_new_tokens=_length(fields, limits), stop=_stops(fields))


def _length(fields: _Fields, limits: Limits) -> int:
    name = "max_completion_tokens" if "max_completion_tokens" in fields.given else "max_tokens"
    value = fields.given.get(name)
    if isinstance(value, int) and value > limits.tokens:
        raise Refusal(400, f"{name}: {_shown(value)} is over this server's limit of "
                           f"{limits.tokens}; ask for less, or start it with a larger "
                           "--max-tokens", param=name)
    return int(fields.whole(name, limits.tokens, 1, limits.tokens))


def _stops(fields: _Fields) -> tuple[str, ...]:
    given = fields.given.get("stop", [])
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or len(stops) > 16 \
            or not all(isinstance(s, str) and 0 < len(s) <= 256 for s in stops):
        raise Refusal(400, "stop: expected a text or at most 16 of them, each of 1 to 256 "
                           "characters", param="stop")
    return tuple(stops)


# -- messages --------------------------------------------------------------------------------------

def _conversation(given: Any, limits: Limits) -> tuple[Context, dict[str, bytes]]:
    """The messages as a context, and the bytes of their pictures."""
    if not isinstance(given, list) or not given:
        raise Refusal(400, "messages: expected a list of at least one message", param="messages")
    reader = _Messages(limits)
    prompt = tuple(reader.message(m, f"messages[{i}]") for i, m in enumerate(given))
    if prompt[-1].role == "assistant":
        raise Refusal(400, f"messages[{len(prompt) - 1}]: the last message is the assistant's own; "
                           "answers cannot be continued, end with the user's", param="messages")
    return Context(prompt=prompt, media=tuple(reader.media)), reader.files


class _Messages:
    """Reads messages, and adds up what they hold."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.characters = limits, 0
        self.media: list[Media] = []
        self.files: dict[str, bytes] = {}

    def message(self, given: Any, where: str) -> Message:
        """One message. Raises Refusal naming it."""
        if not isinstance(given, dict):
            raise Refusal(400, f"{where}: expected an object, not {_shown(given)}", param=where)
        named = given.get("role")
        role = _ROLES.get(named) if isinstance(named, str) else None
        if role is None:
            raise Refusal(400, f"{where}.role: expected {', '.join(_ROLES)}, not "
                               f"{_shown(named)}", param=f"{where}.role")
        for name, value in given.items():
            if name not in ("role", "content", "name") and value not in (None, []):
                raise Refusal(400, f"{where}.{name[:60]}: not supported by this server",
                              param=f"{where}.{name[:60]}")
        content = given.get("content")
        where = f"{where}.content"
        if isinstance(content, str):
            return Message(role=role, content=(self.text(content, where),))
        if not isinstance(content, list) or not content:
            raise Refusal(400, f"{where}: expected a text or a list of parts, not "
                               f"{_shown(content)}", param=where)
        return Message(role=role, content=tuple(
            self.part(part, f"{where}[{i}]") for i, part in enumerate(content)))

    def part(self, given: Any, where: str) -> Part:
        """One part: {type: text, text} or {type: image_url, image_url: {url}}."""
        kind = given.get("type") if isinstance(given, dict) else None
        value = given.get(kind) if isinstance(kind, str) else None
        if kind == "text" and isinstance(value, str):
            return self.text(value, where)
        if kind != "image_url":
            raise Refusal(400, f"{where}: expected a part of type text or image_url, not "
                               f"{_shown(given if kind is None else kind)}", param=where)
        url = value.get("url") if isinstance(value, dict) else value
        where = f"{where}.image_url.url"
        if not isinstance(url, str):
            raise Refusal(400, f"{where}: expected a data URL, not {_shown(url)}", param=where)
        if len(self.media) == self.limits.pictures:
            raise Refusal(400, f"{where}: more than {self.limits.pictures} pictures, which is this "
                               "server's limit for one request", param=where)
        media, data = data_urls.picture(url, where, self.limits)
        self.media.append(media)
        self.files[media.sha256] = data
        return Part(type="image")

    def text(self, given: str, where: str) -> Part:
        """A text, within what a request may hold."""
        self.characters += len(given)
        if self.characters > self.limits.characters:
            raise Refusal(400, f"{where}: the messages have more than "
                               f"{self.limits.characters:,} characters, which is this server's "
                               "limit for one request", param=where)
        # Half a surrogate pair is valid JSON and no text; hashing and tokenizers choke on it.
        return Part(text=given.encode("utf-8", "replace").decode("utf-8"))


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
