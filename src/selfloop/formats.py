"""The row shapes that peers use, each recognised by its columns, and what they mean as a Sample.

A row becomes messages (texts and marks of media in order), media, gold values and the rest:

- selfloop's own Sample JSON, or a table with it in the column `json`;
- `conversations` (ShareGPT, LLaVA, LLaMA-Factory) and `messages` (ms-swift, TRL): a last turn of
  the assistant is the answer, or the rationale where the row has an answer of its own;
- `question` with options `A`, `B`, ... (VLMEvalKit tables);
- `prompt`, `question`, `problem` or `query`, as text or messages (TRL, verl, EasyR1).
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from selfloop.roles import SelfloopError
from selfloop.row_media import PARTS, Given, Mark, mark_of, media_of, unread_beside

QUESTIONS = ("prompt", "question", "problem", "query")
ANSWERS = ("answer", "label", "solution", "ground_truth", "answers")
RATIONALES = ("rationale", "chain", "cot")
UNREAD = ("chosen", "rejected", "completion")
"""Columns of preference data that a Sample has no place for; left out with a note."""
_OPTIONS = "ABCDEFGHIJ"
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "observation": "tool",
          "function_response": "tool", "function_call": "assistant", "tool_call": "assistant"}

Row = Mapping[str, Any]


class BadRow(SelfloopError):
    """What is wrong with one row: the field, what was found, and how to mend it."""

    def __init__(self, field: str, what: str, mend: str) -> None:
        super().__init__(f"field {field!r}: {what}; {mend}" if field else f"{what}; {mend}")
        self.field, self.what, self.mend = field, what, mend


Messages = list[tuple[str, list[str | Mark]]]


@dataclass
class Draft:
    """A row, understood: not yet a Sample, because its media are not yet found."""

    messages: Messages
    media: list[Given]
    answer: JsonValue = None
    rationale: str | None = None
    meta: dict[str, JsonValue] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def draft(row: Row, *, task: str | None = None, answer: str | None = None) -> Draft:
    """Recognise a row's shape. `task` is the question where there is none; `answer` the column.

    Raises BadRow naming the columns that exist when nothing fits.
    """
    row = {name: value for name, value in row.items() if value is not None}
    messages, used = _messages(row, task)
    media, columns = media_of(row)
    if beside := unread_beside(row):
        raise BadRow(beside[1], f"it holds what {beside[0]!r} does not, and only {beside[0]!r} is "
                     "shown", f"put everything into {beside[0]!r}")
    found = Draft(messages=messages, media=media)
    used |= columns | _gold(row, found, answer)
    if used & {"conversations", "messages"}:
        _last_turn(found)
    _rest(row, used, found)
    return found


# -- what is asked ------------------------------------------------------------------------------


def _conversations(row: Row) -> tuple[Messages, set[str]] | None:
    if "conversations" not in row:
        return None
    system: Messages = [("system", [str(row["system"])])] if row.get("system") else []
    return system + _chat("conversations", row["conversations"]), {"conversations", "system"}


def _chat_column(row: Row) -> tuple[Messages, set[str]] | None:
    return (_chat("messages", row["messages"]), {"messages"}) if "messages" in row else None


def _options(row: Row) -> tuple[Messages, set[str]] | None:
    if "question" not in row or not {"A", "B"} <= set(row):
        return None
    letters = [letter for letter in _OPTIONS if letter in row]
    lines = [f"Hint: {row['hint']}"] if row.get("hint") else []
    lines += [str(row["question"]), *(f"{letter}. {row[letter]}" for letter in letters)]
    return [("user", ["\n".join(lines)])], {"question", "hint", *letters}


def _question(row: Row) -> tuple[Messages, set[str]] | None:
    column = next((name for name in QUESTIONS if row.get(name)), None)
    return (_chat(column, row[column]), {column}) if column else None


SHAPES: tuple[Callable[[Row], tuple[Messages, set[str]] | None], ...] = (
    _conversations, _chat_column, _options, _question
)


def _messages(row: Row, task: str | None) -> tuple[Messages, set[str]]:
    for shape in SHAPES:
        if (found := shape(row)) is not None:
            return found
    if task is not None:
        return [("user", [task])], set()
    if (empty := next((name for name in QUESTIONS if name in row), None)) is not None:
        raise BadRow(empty, "it is empty", "give the row a question")
    raise BadRow("", f"no question: the row has {_listed(row)}",
                 f"name a column {', '.join(QUESTIONS)}, messages or conversations{_like(row)}, "
                 "or give task= as the question for every row")


def _listed(row: Row) -> str:
    return f"the columns {', '.join(sorted(row))}" if row else "no columns"


def _like(row: Row) -> str:
    for name in row:
        near = difflib.get_close_matches(name.lower(), QUESTIONS, 1, 0.7)
        if near:
            return f" (did you mean {near[0]!r} by {name!r}?)"
    return ""


def _chat(column: str, value: Any) -> Messages:
    """Text, or a list of messages in any of the usual spellings."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with contextlib.suppress(ValueError):  # a question may only look like JSON
            value = json.loads(value)
    if isinstance(value, str):
        return [("user", [value])]
    if not isinstance(value, list) or not all(isinstance(m, Mapping) for m in value):
        raise BadRow(column, f"a {type(value).__name__}", "expected text or a list of messages")
    if not value:
        raise BadRow(column, "an empty list of messages", "expected at least one")
    found: Messages = []
    for message in value:
        role = str(message.get("role") or message.get("from") or "user")
        role = _ROLES.get(role, role)
        if role not in ("system", "user", "assistant", "tool"):
            raise BadRow(column, f"the role {role!r}", "expected system, user, assistant or tool")
        content = message.get("content")
        content = message.get("value", "") if content is None else content
        found.append((role, [content] if isinstance(content, str) else _parts(column, content)))
    return found


def _parts(column: str, content: Any) -> list[str | Mark]:
    pieces: list[str | Mark] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            pieces.append(part)
            continue
        kind = part.get("type") or "text" if isinstance(part, Mapping) else None
        if kind == "text":
            pieces.append(str(part.get("text") or ""))
        elif kind in PARTS:
            pieces.append(mark_of(column, part))
        else:
            raise BadRow(column, f"a content part {kind or type(part).__name__!r}",
                         "expected parts of type text, image, video or audio")
    return pieces


# -- gold values ----------------------------------------------------------------------------------


def _gold(row: Row, found: Draft, answer: str | None) -> set[str]:
    """Fill in the answer and rationale. Every gold column is used up: none may reach `meta`."""
    if answer is not None and answer not in row:
        near = difflib.get_close_matches(answer, list(row), 1, 0.5)
        raise BadRow(answer, f"no such label column; the row has {_listed(row)}",
                     f"did you mean {near[0]!r}?" if near else "name one of these")
    if isinstance(row.get("label"), bool) and "completion" in row:
        raise BadRow("label", "says whether a completion is good, not what the answer is (KTO)",
                     "give rows with an answer")
    columns = [*([answer] if answer else []), *(n for n in ANSWERS if n in row and n != answer)]
    golds = [_json(row[name], name) for name in columns]
    reward = row.get("reward_model")
    if not answer and isinstance(reward, Mapping) and reward.get("ground_truth") is not None:
        golds.insert(0, _json(reward["ground_truth"], "reward_model"))
        columns.insert(0, "reward_model.ground_truth")
    chains = [row[name] for name in RATIONALES if row.get(name)]
    if golds:
        found.answer = golds[0]
    for name, value in zip(columns[1:], golds[1:], strict=True):
        if name == "solution" and isinstance(value, str) and value != found.answer:
            chains.append(value)  # a worked solution beside a short answer
        elif value != found.answer:
            found.notes.append(f"column {name!r} is not used: {columns[0]!r} is the answer")
    found.rationale = str(chains[0]) if chains else None
    if not golds:
        _refuse_misspelt(row)
    return {*ANSWERS, *RATIONALES, "reward_model", *([answer] if answer else [])}


def _refuse_misspelt(row: Row) -> None:
    for name in row:
        near = difflib.get_close_matches(name.lower(), ANSWERS, 1, 0.75)
        if near and abs(len(name) - len(near[0])) <= 1 and name not in ANSWERS:
            raise BadRow(name, f"no label column among {_listed(row)}",
                         f"if {name!r} is the {near[0]}, rename it or give answer={name!r}; if "
                         "not, rename it to something else")


def _last_turn(found: Draft) -> None:
    """A conversation's last turn, where the assistant's, is what the model should say."""
    if found.messages[-1][0] != "assistant":
        return
    said = "".join(piece for piece in found.messages[-1][1] if isinstance(piece, str))
    found.messages = found.messages[:-1]
    if found.answer is None:
        found.answer = said
    elif found.rationale is None and said != found.answer:
        found.rationale = said


# -- the rest -----------------------------------------------------------------------------------


def _rest(row: Row, used: set[str], found: Draft) -> None:
    meta = row.get("meta")
    plain = {**meta, **row} if isinstance(meta, Mapping) else dict(row)
    for name, value in plain.items():
        if name in used or (name == "meta" and value is meta):
            continue
        if name in UNREAD:
            found.notes.append(f"column {name!r} is not read: a Sample has no place for it")
            continue
        if name == "extra_info" and isinstance(value, Mapping):
            value = _without_gold(value, found)
        try:
            found.meta[name] = _json(value, name)
        except BadRow as error:
            found.notes.append(f"column {name!r} is left out: {error.what}")


def _without_gold(info: Mapping[str, Any], found: Draft) -> dict[str, Any]:
    """verl rows repeat the worked solution in `extra_info`, where nothing would guard it."""
    gold = [info[name] for name in (*ANSWERS, *RATIONALES) if info.get(name) is not None]
    worked = [value for value in gold if isinstance(value, str) and value != found.answer]
    if worked and found.rationale is None:
        found.rationale = worked[0]
    return {k: v for k, v in info.items() if k not in (*ANSWERS, *RATIONALES)}


def _json(value: Any, name: str) -> Any:
    """The value as plain JSON; NaN, which tables use for empty cells, is None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(k): _json(v, name) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(v, name) for v in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise BadRow(name, f"a {type(value).__name__}, which is not plain data", "expected text, "
                 "numbers or lists")
