"""What pydantic finds wrong with a run.yaml, in the words of who wrote the file.

pydantic names its own types ("a valid tuple") and, where a key may be one of several things, lists
what was wrong with each. Here that is one key, what was expected there and how to write it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

_EXPECTED = {
    "bool": "true or false", "dict": "keys and values: write {name: value}",
    "float": "a number", "int": "a whole number", "path": "one path", "string": "text",
    "tuple": "a list", "list": "a list",
}
"""Of pydantic's types of error (bool_parsing, bool_type, ...) what comes first -> what was
expected."""


def first(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """The key that is wrong, and one line on it: its value, what was expected, how to mend it."""
    found = error.errors()
    top = found[0]["loc"][:1]
    rivals = [e for e in found if e["loc"][:1] == top]
    deepest = max(len(_keys(e)) for e in rivals)
    # Of several things a key may be, the one that was meant is the one that fitted furthest.
    rivals = [e for e in rivals if len(_keys(e)) == deepest]
    at = _keys(rivals[0])
    rivals = [e for e in rivals if _keys(e) == at]
    key = ".".join(at)
    if rivals[0]["type"] == "missing":
        return at, f"the key {key!r} is missing: add it"
    if rivals[0]["type"] == "extra_forbidden":
        return at, f"unknown key {key!r}"
    given = rivals[0]["input"]
    wanted = list(dict.fromkeys(_wanted(e, at[-1] if at else "", given) for e in rivals))
    value = repr(given)
    value = value if len(value) <= 80 else value[:77] + "..."
    return at, f"{key} = {value}: {', or '.join(wanted).replace(', or expected', ', or')}"


def where(at: tuple[str, ...], lines: Mapping[tuple[str, ...], int], path: Path,
          overrides: Sequence[str]) -> str:
    """The override that gave a key, else the file and its line."""
    for override in overrides:
        name = tuple(override.partition("=")[0].split("."))
        if name == at[:len(name)] or at == name[:len(at)]:
            return repr(override)
    line = next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), None)
    return f"{path}, line {line}" if line else str(path)


def infinite(value: object, at: tuple[str, ...] = (),
             within: tuple[int, ...] = ()) -> tuple[str, ...] | None:
    """The place of the first number that is not finite (.inf, .nan), where any value may stand.
    `within`: what holds the value; an alias may put a list into itself (`&a [*a]`)."""
    if isinstance(value, float) and not math.isfinite(value):
        return at
    if not isinstance(value, dict | list) or id(value) in within:
        return None
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return next((found for key, item in inside if (
        found := infinite(item, (*at, str(key)), (*within, id(value)))) is not None), None)


def _keys(error: Any) -> tuple[str, ...]:
    """Where it is, without the names that pydantic gives to the things a key may be."""
    named = {part.__name__ for part in _parts()}
    return tuple(str(step) for step in error["loc"]
                 if not (isinstance(step, str) and ("[" in step or step in named)))


def _wanted(error: Any, key: str, given: Any) -> str:
    kind = str(error["type"])
    told: dict[str, Any] = error.get("ctx") or {}
    if kind == "literal_error":
        return f"expected {told['expected']}"
    if kind == "model_type":
        return _section(told["class_name"], key, given)
    start, _, rest = kind.partition("_")
    if start in _EXPECTED and rest in ("type", "parsing", "from_float"):
        how = f": write {key}: [{_yaml(given)}]" if start in ("tuple", "list") else ""
        return f"expected {_EXPECTED[start]}{how}"
    return str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")


def _section(name: str, key: str, given: Any) -> str:
    """A section was expected: its keys, and how it begins. A file's name is put where it goes."""
    fields = next(part.model_fields for part in _parts() if part.__name__ == name)
    lead, field = next(iter(fields.items()))
    inside = _yaml(given) if field.annotation is Path and isinstance(given, str) else "..."
    start = f"{{{lead}: {inside}}}"
    return (f"expected keys of its own ({', '.join(fields)}): write "
            f"{start if key.isdigit() else f'{key}: {start}'}")


def _yaml(given: object) -> str:
    """A value as one would write it, if it is a short one."""
    try:
        text = yaml.safe_dump(given, default_flow_style=True, width=10_000, allow_unicode=True)
    except yaml.YAMLError:
        return "..."
    text = text.removesuffix("...\n").strip()
    return text if len(text) <= 60 else "..."


def _parts(parent: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    """Every section there is."""
    for kind in parent.__subclasses__():
        if kind.__module__.startswith("selfloop."):
            yield kind
        yield from _parts(kind)
