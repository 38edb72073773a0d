"""How each framework wants its rows: pure functions from a Row to columns.

Checked against: TRL 1.16, by training with it; LLaMA-Factory's ShareGPT converter, ms-swift's
custom datasets and verl's RLHFDataset and MultiTurnSFTDataset, by their documented columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from selfloop.exporting.rows import Kind, Row
from selfloop.roles import SelfloopError
from selfloop.row_media import MARKER, MARKERS
from selfloop.types import Context, Media, Message

Picture = Callable[[Media], Any]
"""A picture as the format holds it: a relative path, or bytes."""
Columns = dict[str, Any]


def parts_of(message: Message) -> list[dict[str, str | None]]:
    """A message's content as typed parts; a picture is a place without a payload."""
    return [{"type": p.type, "text": p.text if p.type == "text" else None}
            for p in message.content]


MARKING = ("ms-swift", "llama-factory", "verl")
"""Formats that read <image>, <video> and <audio> in any text, an answer's too, as a medium's place.
Their loaders count them against the row's media, and stop at the row or drop it if these differ."""


def marker_in(text: str | None) -> str | None:
    """What in a text marks a medium's place, if anything does."""
    return next((marker for marker in MARKERS if marker in (text or "")), None)


def marked(message: Message, sample: str) -> str:
    """A message's content as one text with <image> at each picture's place."""
    for part in message.content:
        if part.type == "text" and (marker := marker_in(part.text)):
            raise SelfloopError(f"sample {sample}: its text itself says {marker}, which this "
                                "format reads as a medium's place: change the text, or use "
                                "--format trl, whose places are typed")
    return "".join(p.text if p.type == "text" else MARKER for p in message.content)


def _said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def as_text(truth: Any) -> str:
    """A gold value as text: itself, or JSON."""
    return truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False)


# -- TRL ----------------------------------------------------------------------------------------

def trl(row: Row, kind: Kind, picture: Picture) -> Columns:
    """prompt, completion | chosen, rejected | completion, label | solution, truth_from; images."""
    _same_question(row, "TRL")
    columns: Columns = {
        "prompt": [{"role": m.role, "content": parts_of(m)} for m in row.context.prompt],
        "images": [picture(m) for m in row.context.media]}
    if kind == "dpo":
        return {**columns, "chosen": _said(row.answer or ""), "rejected": _said(row.rejected or "")}
    if kind == "grpo":
        return {**columns, "solution": as_text(row.truth), "truth_from": row.truth_from}
    columns["completion"] = _said(row.answer or "")
    return {**columns, "label": row.good} if kind == "kto" else columns


def _same_question(row: Row, name: str) -> None:
    if row.rejected_context is not None:
        raise SelfloopError(
            f"sample {row.sample}: the rejected answer was given to another prompt or picture than "
            f"the chosen one, and {name} asks one question a pair: use --format ms-swift, which "
            "has rejected_messages and rejected_images, or --format datasets")


# -- ms-swift -----------------------------------------------------------------------------------

def ms_swift(row: Row, kind: Kind, picture: Picture) -> Columns:
    """messages, images; rejected_response (or rejected_messages, rejected_images), label,
    solution and truth_from."""
    asked = _texts(row.context, row.sample)
    images = [picture(m) for m in row.context.media]
    if kind == "grpo":
        return {"messages": asked, "images": images, "solution": as_text(row.truth),
                "truth_from": row.truth_from}
    columns: Columns = {"messages": _answered(asked, row.answer), "images": images}
    if kind == "kto":
        columns["label"] = row.good
    if kind == "dpo" and row.rejected_context is None:
        columns["rejected_response"] = row.rejected
    elif row.rejected_context is not None:
        columns["rejected_messages"] = _answered(_texts(row.rejected_context, row.sample),
                                                 row.rejected)
        columns["rejected_images"] = [picture(m) for m in row.rejected_context.media]
    return columns


def _texts(context: Context, sample: str) -> list[dict[str, str]]:
    return [{"role": m.role, "content": marked(m, sample)} for m in context.prompt]


def _answered(asked: list[dict[str, str]], answer: str | None) -> list[dict[str, str]]:
    return [*asked, {"role": "assistant", "content": answer or ""}]


# -- LLaMA-Factory ------------------------------------------------------------------------------

def llama_factory(row: Row, kind: Kind, picture: Picture) -> Columns:
    """messages, images; chosen, rejected | label. Its converter drops what does not alternate."""
    if kind == "grpo":
        raise SelfloopError("LLaMA-Factory has no trainer that draws answers and compares them "
                            "with a gold one: use --format trl, ms-swift or verl")
    _same_question(row, "LLaMA-Factory")
    asked = _texts(row.context, row.sample)
    _must_alternate([m["role"] for m in asked], row.sample)
    images = [picture(m) for m in row.context.media]
    if kind == "dpo":
        return {"messages": asked, "images": images,
                "chosen": {"role": "assistant", "content": row.answer},
                "rejected": {"role": "assistant", "content": row.rejected}}
    columns: Columns = {"messages": _answered(asked, row.answer), "images": images}
    return {**columns, "label": row.good} if kind == "kto" else columns


def _must_alternate(roles: list[str], sample: str) -> None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wanted = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if turns != wanted or len(turns) % 2 == 0:
        raise SelfloopError(f"sample {sample}: its messages are of {', '.join(roles)}; "
                            "LLaMA-Factory takes user and assistant in turn, the user first and "
                            "last, after at most one system message: use --format trl or ms-swift")


def dataset_info(kind: Kind) -> dict[str, Any]:
    """LLaMA-Factory's dataset_info.json for one exported file."""
    columns = {"messages": "messages", "images": "images"}
    if kind == "dpo":
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    if kind == "kto":
        columns["kto_tag"] = "label"
    return {"selfloop": {
        "file_name": "train.jsonl", "formatting": "sharegpt", "columns": columns,
        **({"ranking": True} if kind == "dpo" else {}),
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                 "assistant_tag": "assistant", "system_tag": "system"}}}


# -- verl ---------------------------------------------------------------------------------------

def verl(row: Row, kind: Kind, picture: Picture) -> Columns:
    """data_source, prompt, images, ability, reward_model, extra_info; sft: messages, images."""
    if kind in ("dpo", "kto"):
        raise SelfloopError(f"verl has no trainer of {kind} rows: use --format trl, ms-swift or "
                            "llama-factory; --as grpo gives verl the questions and gold answers")
    asked = _texts(row.context, row.sample)
    images = [picture(m) for m in row.context.media]
    if kind == "sft":
        return {"messages": _answered(asked, row.answer), "images": images}
    return {"data_source": "selfloop", "prompt": asked, "images": images, "ability": "vqa",
            "reward_model": {"style": "rule", "ground_truth": as_text(row.truth)},
            "extra_info": {"split": "train", "sample": row.sample,
                           "truth_from": row.truth_from}}
