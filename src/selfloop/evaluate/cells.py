"""Cells of published tables that hold several texts, as a list or as a list written out."""

from __future__ import annotations

import ast
from typing import Any


def texts_of(cell: Any) -> list[str]:
    """The texts of a cell: a list, a list of texts written as Python or JSON, or one text.

    "[2010, 2014]" stays one text: a written list counts only if it quotes texts. Empty texts and
    None are left out.
    """
    if isinstance(cell, str) and cell.startswith("["):
        cell = _written(cell)
    values = cell if isinstance(cell, list | tuple) else [cell]
    return [str(value) for value in values if value is not None and str(value).strip()]


def _written(text: str) -> Any:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    is_texts = isinstance(found, list) and all(isinstance(value, str) for value in found)
    return found if is_texts else text
