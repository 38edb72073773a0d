"""From drawn turns to OpenAI's JSON: one completion, or the same as a stream of chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.serving.batching import Answer
from selfloop.serving.reading import Asked


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every reply begins with."""

    id: str
    model: str
    created: int
    """Seconds since 1970."""
    fingerprint: str
    """Which weights answered."""

    def json(self, kind: str) -> dict[str, Any]:
        """The fields that a reply and its chunks share; `kind` is the `object`."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model,
                "system_fingerprint": self.fingerprint}


def completion(head: Head, asked: Asked, answers: Sequence[Answer]) -> dict[str, Any]:
    """The reply as one object."""
    return {**head.json("chat.completion"), "choices": _choices(asked, answers),
            "usage": _usage(answers)}


def stream(head: Head, asked: Asked, answers: Sequence[Answer]) -> Iterator[bytes]:
    """The reply as server-sent events: for each choice its text and its end, then [DONE]."""
    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        text = json.dumps({**head.json("chat.completion.chunk"), "choices": choices, **more})
        return b"data: " + text.encode() + b"\n\n"

    # Where token counts are asked for, every chunk has the field, and only the last has figures.
    empty = {"usage": None} if asked.usage else {}
    for choice in _choices(asked, answers):
        said = {"role": "assistant", "content": choice["message"]["content"]}
        yield event([{"index": choice["index"], "delta": said, "logprobs": choice["logprobs"],
                      "finish_reason": None}], **empty)
        yield event([{"index": choice["index"], "delta": {}, "logprobs": None,
                      "finish_reason": choice["finish_reason"]}], **empty)
    if asked.usage:
        yield event([], usage=_usage(answers))
    yield b"data: [DONE]\n\n"


def _choices(asked: Asked, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    found = []
    for index, answer in enumerate(answers):
        text = _before(answer.text, asked.sampling.stop)
        found.append({
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": "stop" if len(text) < len(answer.text) else answer.turn.finish_reason,
            "logprobs": None if answer.scored is None else {
                "content": _tokens(answer.scored, len(text)), "refusal": None}})
    return found


def _before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop text, which is not part of the reply."""
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[:min(places)] if places else text


def _tokens(scored: Sequence[tuple[str, float]], length: int) -> list[dict[str, Any]]:
    """The tokens of the first `length` characters, with their log-probs."""
    found: list[dict[str, Any]] = []
    for piece, logprob in scored:
        if length <= 0:  # only the end of turn is left, or what a stop text cut off
            break
        found.append({"token": piece, "logprob": logprob, "bytes": list(piece.encode()),
                      "top_logprobs": []})
        length -= len(piece)
    return found


def _usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens read (once for all answers) and drawn, the end of turn included."""
    read = len(answers[0].turn.prompt_token_ids)
    drawn = sum(len(answer.turn.token_ids) for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}
