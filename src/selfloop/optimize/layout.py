"""Where answers lie in a shared-prefix pass, and where their log-probs come from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from selfloop.optimize.rows import Row
from selfloop.optimize.score import Reader


def prompt_key(row: Row) -> Hashable:
    """Rows of equal key share their prompt and its pictures."""
    return row.token_ids[:row.prompt], tuple(m.identity for m in row.media)


class Layout:
    """Where each row's tokens lie: blocks of prompts of equal length, contexts, rows."""

    def __init__(self, rows: Sequence[Row], reader: Reader) -> None:
        alike: dict[Any, dict[Any, list[int]]] = {}
        for i, row in enumerate(rows):
            key = (row.prompt, reader.signature(row.media))
            alike.setdefault(key, {}).setdefault(prompt_key(row), []).append(i)
        self.blocks = [list(contexts.values()) for contexts in alike.values()]
        self.counts: list[list[int]] = []
        """Answer tokens that are run, for each context of each block (an answer's last is not)."""
        self.lengths: list[int] = []
        """The same for each row that has any."""
        self.order: list[int] = []
        """Rows as they lie."""
        self.firsts: list[int] = []
        """Contexts whose last hidden state predicts a trained token."""
        self.later: list[int] = []
        """Answer tokens (as they lie) whose hidden state predicts a trained one."""
        self.ids: list[int] = []
        """What is predicted there: `firsts`, then `later`."""
        self.temperatures: list[float] = []
        self.places: list[tuple[int, int]] = []
        """(row, which of its trained tokens) of each of `ids`."""
        self.back: list[int] = []
        """For each row in the given order, places of its trained tokens in `ids`."""
        self._lay(rows)

    def _lay(self, rows: Sequence[Row]) -> None:
        first: dict[int, int] = {}
        later: dict[int, list[int]] = {}
        context, flat = 0, 0
        for block in self.blocks:
            self.counts.append([])
            for mine in block:
                before = flat
                for i in mine:
                    row, p = rows[i], rows[i].prompt
                    fed = len(row.token_ids) - p - 1
                    if row.trained[p]:
                        first[i] = context
                    later[i] = [k for k in range(fed) if row.trained[p + 1 + k]]
                    self.later += [flat + k for k in later[i]]
                    self.lengths += [fed] if fed else []
                    self.order.append(i)
                    flat += fed
                self.counts[-1].append(flat - before)
                context += 1
        self.firsts = list(first.values())
        place: dict[int, list[int]] = {i: [n] for n, i in enumerate(first)}
        self.ids = [rows[i].token_ids[rows[i].prompt] for i in first]
        self.temperatures = [rows[i].temperature for i in first]
        self.places = [(i, 0) for i in first]
        for i in self.order:
            p, at = rows[i].prompt, len(self.ids)
            place.setdefault(i, []).extend(range(at, at + len(later[i])))
            self.ids += [rows[i].token_ids[p + 1 + k] for k in later[i]]
            self.temperatures += [rows[i].temperature] * len(later[i])
            self.places += [(i, n + (i in first)) for n in range(len(later[i]))]
        self.back = [n for i in range(len(rows)) for n in place[i]]


def padding(rows: Sequence[Row], units: Sequence[Sequence[int]]) -> int:
    """Tokens that the plain path adds to these rows to make each unit's as long as another."""
    lengths = [[len(rows[i].token_ids) for i in unit] for unit in units]
    return sum(max(unit) * len(unit) - sum(unit) for unit in lengths)
