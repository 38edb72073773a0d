"""Whether a model's JSON is what was asked for: the part of JSON Schema that servers enforce.

A schema with a word that is not checked here is refused when it is given, so that "valid" never
means less than it says (JSON Schema 2020-12; the words are those of structured outputs).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from selfloop.roles import SelfloopError

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int | float) and not isinstance(v, bool)
    and float(v).is_integer(),
}
_BOUNDS: dict[str, tuple[type, Callable[[Any, Any], bool], str]] = {
    "minimum": (float, lambda v, b: v >= b, "less than {}"),
    "maximum": (float, lambda v, b: v <= b, "more than {}"),
    "minLength": (str, lambda v, b: len(v) >= b, "shorter than {}"),
    "maxLength": (str, lambda v, b: len(v) <= b, "longer than {}"),
    "minItems": (list, lambda v, b: len(v) >= b, "fewer than {}"),
    "maxItems": (list, lambda v, b: len(v) <= b, "more than {}"),
}
_NOTES = frozenset({"title", "description", "default", "examples", "$schema"})
_WORDS = frozenset({"type", "properties", "required", "additionalProperties", "items", "enum",
                    "const", "anyOf", *_BOUNDS})


def check_schema(schema: Any, at: str = "json_schema") -> None:
    """Raises SelfloopError naming the place and the word that is not understood."""
    if not isinstance(schema, Mapping):
        raise SelfloopError(f"{at}: expected a JSON Schema object, got {type(schema).__name__}")
    odd = sorted(set(schema) - _WORDS - _NOTES)
    if odd:
        raise SelfloopError(f"{at}.{odd[0]}: not checked here, so it is refused; there are "
                            f"{', '.join(sorted(_WORDS))}")
    names = schema.get("type", [])
    for name in [names] if isinstance(names, str) else names:
        if name not in _TYPES:
            raise SelfloopError(f"{at}.type = {name!r}: expected {', '.join(_TYPES)}")
    for name, inner in schema.get("properties", {}).items():
        check_schema(inner, f"{at}.properties.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema and not isinstance(schema[name], bool):
            check_schema(schema[name], f"{at}.{name}")
    for i, inner in enumerate(schema.get("anyOf", ())):
        check_schema(inner, f"{at}.anyOf[{i}]")


def parsed(text: str, schema: Mapping[str, Any]) -> Any:
    """The JSON value of `text`. Raises ValueError, in a few words, where it is not as asked."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({error})") from None
    wrong = mismatch(value, schema)
    if wrong:
        raise ValueError(wrong)
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def mismatch(value: Any, schema: Mapping[str, Any], at: str = "$") -> str:
    """Where and how a value differs from a checked schema; "" where it does not."""
    names = schema.get("type")
    if names is not None:
        wanted = [names] if isinstance(names, str) else list(names)
        if not any(_TYPES[name](value) for name in wanted):
            return f"{at} is not {' or '.join(wanted)}"
    if "enum" in schema and not any(_equal(value, v) for v in schema["enum"]):
        return f"{at} is none of {json.dumps(list(schema['enum']))}"
    if "const" in schema and not _equal(value, schema["const"]):
        return f"{at} is not {json.dumps(schema['const'])}"
    if "anyOf" in schema and all(mismatch(value, s, at) for s in schema["anyOf"]):
        return f"{at} fits none of its alternatives"
    return _out_of_bounds(value, schema, at) or _inside(value, schema, at)


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)  # 1 is not true


def _out_of_bounds(value: Any, schema: Mapping[str, Any], at: str) -> str:
    for word, (kind, holds, said) in _BOUNDS.items():
        mine = isinstance(value, kind) or (kind is float and _TYPES["number"](value))
        if word in schema and mine and not holds(value, schema[word]):
            return f"{at} is {said.format(schema[word])}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{at} is no finite number"
    return ""


def _inside(value: Any, schema: Mapping[str, Any], at: str) -> str:
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        found = (mismatch(v, schema["items"], f"{at}[{i}]") for i, v in enumerate(value))
        return next(filter(None, found), "")
    if not isinstance(value, dict):
        return ""
    for name in schema.get("required", ()):
        if name not in value:
            return f"{at}.{name} is missing"
    known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, inner in value.items():
        if name not in known and more is False:
            return f"{at}.{name} was not asked for"
        rule = known.get(name, more)
        wrong = mismatch(inner, rule, f"{at}.{name}") if isinstance(rule, Mapping) else ""
        if wrong:
            return wrong
    return ""
