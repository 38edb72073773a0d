"""YAML files whose keys know their lines, so that an error can name one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from selfloop.roles import SelfloopError

_DATA = (".jsonl", ".ndjson", ".parquet")
"""How data files end, of which some are YAML by chance."""


def read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The file's values, and the line of every key."""
    if path.suffix in _DATA and path.is_file():
        raise SelfloopError(f"{path}: this is data, and a run.yaml is wanted here: `selfloop init` "
                            f"makes one; or write data: {{train: {path.name}}} into yours")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SelfloopError(f"{path}: no such file: make one with `selfloop init IMAGES --labels "
                            "LABELS`, or name another") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SelfloopError(f"{path}: cannot be read: {error}") from None
    try:
        lines: dict[tuple[str, ...], int] = {}
        _number(yaml.compose(text, Loader=yaml.SafeLoader), (), lines, path)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        kind = "" if path.suffix in (".yaml", ".yml") else \
            "; a run.yaml is wanted here: `selfloop init` makes one of data"
        raise SelfloopError(f"{path}{where}: not YAML: {what}{kind}") from None
    if not isinstance(values, dict):
        raise SelfloopError(f"{path}: expected keys such as model: and data:, not "
                            f"{type(values).__name__}")
    return values, lines


def _number(node: Any, at: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*at, str(key.value))
        if here in lines:
            raise SelfloopError(f"{path}, line {key.start_mark.line + 1}: {'.'.join(here)!r} is "
                                f"given twice (first in line {lines[here]}): keep one")
        lines[here] = key.start_mark.line + 1
        _number(value, here, lines, path)


def override(values: dict[str, Any], given: str) -> None:
    """Set one dotted key of `values` from "key=value"."""
    name, equals, text = given.partition("=")
    if not equals or not name:
        raise SelfloopError(f"{given!r}: expected key=value, such as seed=1 or options.n=4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *outer, last = name.split(".")
    inside = values
    for key in outer:
        if not isinstance(inside.setdefault(key, {}), dict):
            raise SelfloopError(f"{given!r}: {key!r} holds a single value, not further keys")
        inside = inside[key]
    inside[last] = value
