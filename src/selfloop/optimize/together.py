"""One prompt and all of its answers in a single pass, where causality alone rules attention.

The prompt's tokens come first, then the answers end to end; each answer sees the prompt and itself.
Next to two passes (prefix.py) every weight is read once and gets one gradient, which is what small
batches spend most of their time on. Windows, pictures whose tokens see each other both ways, and
layers that keep a state for each row need two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch

from selfloop.optimize.checkpointing import answering
from selfloop.optimize.fork import Block, Fork
from selfloop.optimize.head import Head
from selfloop.optimize.layout import Layout
from selfloop.optimize.rows import Row
from selfloop.optimize.score import Reader
from selfloop.optimize.tail import last_layer

WORTH = 16
"""Tokens that sharing must save where answers take no second pass."""


@dataclass
class Way:
    """Whether a model can be run so: compared with the plain path before it is trusted."""

    why_not: str = ""
    checked: bool = False
    short: bool = False
    """Whether the last layer is run only where it is read (tail.py)."""

    @property
    def open(self) -> bool:
        """Whether it is taken."""
        return self.checked and not self.why_not

    def settle(self, compare: Callable[[], tuple[float, float, str]]) -> tuple[float, float]:
        """Find out by comparing, first with a short last layer, then without: the gaps (0 where
        neither way is exact)."""
        self.checked = True
        for short in (True, False):
            self.short = short
            worst, gap, self.why_not = compare()
            if not self.why_not:
                return worst, gap
        return 0.0, 0.0


class Together(Fork):
    """A fork whose one prompt runs in the same pass, in front of its answers."""

    inside = True

    def __init__(self, prompt: int, rows: Sequence[int], device: Any,
                 last: Sequence[Any] = ()) -> None:
        super().__init__([Block(cast(Any, None), prompt, (sum(rows),))], rows, device)
        self.whole = prompt + self.tokens
        self.last = last
        """Modules of the layer of which only the prompt's last token and the answers are read."""
        self.read_from = prompt - 1 if last else 0
        self.seen = False
        """Whether that layer's attention has been run (tail.py)."""
        self._hidden: dict[torch.dtype, torch.Tensor] = {}

    def hidden_SS(self, dtype: torch.dtype) -> torch.Tensor:
        """What each of the P + T tokens does not see, as numbers to add to scores: 0 or -inf."""
        if dtype not in self._hidden:
            answer_S = torch.tensor([-1] * self.longest + [
                n for n, count in enumerate(self.rows) for _ in range(count)], device=self.device)
            sees_SS = ((answer_S[:, None] == answer_S) | (answer_S < 0)).tril()
            self._hidden[dtype] = torch.zeros(
                sees_SS.shape, dtype=dtype, device=self.device).masked_fill(~sees_SS, -torch.inf)
        return self._hidden[dtype]


def fits(laid: Layout) -> bool:
    """Whether these rows hang on one prompt, and some answer token is run."""
    return len(laid.blocks) == 1 and len(laid.blocks[0]) == 1 and bool(laid.lengths)


def hidden(model: Any, head: Head, reader: Reader, rows: Sequence[Row], laid: Layout,
           short: bool) -> torch.Tensor:
    """Hidden states [M, D] from which `laid.ids` are predicted, of rows that `fits` admits."""
    first, p = rows[0], rows[0].prompt
    answers = [t for i in laid.order for t in rows[i].token_ids[p:-1]]
    inputs = reader.inputs([((*first.token_ids[:p], *answers), first.media)])
    device = inputs["input_ids"].device
    keep_M = torch.tensor([p - 1] * len(laid.firsts) + [p + k for k in laid.later], device=device)
    fork = Together(p, laid.lengths, device, last_layer(model) if short else ())
    with answering(model, fork), _numbered(model, fork):
        return head.hidden({**inputs, "use_cache": False}, keep_M)[0]


@contextmanager
def _numbered(model: Any, fork: Fork) -> Iterator[None]:
    """Every answer begins to count where its prompt ends (positions.py), whatever the model has
    made of tokens that lie end to end."""
    p = fork.longest

    def number(module: Any, args: Any, named: dict[str, Any]) -> Any:
        ids = named.get("position_ids")
        if ids is None:
            ids = torch.arange(p + fork.tokens, device=fork.device)[None]
        ids = ids.clone()
        if ids.dim() == 3 and ids.shape[0] == 4:  # plain numbers first, for masks only
            ids[0, :, p:], counted = p + fork.offset_T, ids[1:]
        else:
            counted = ids
        counted[..., p:] = counted[..., :p].max() + 1 + fork.offset_T
        return args, {**named, "position_ids": ids}

    with model.get_decoder().register_forward_pre_hook(number, with_kwargs=True):
        yield
