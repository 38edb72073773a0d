"""Forking a prompt: what its forward pass leaves behind, and caches that lend it to many answers.

`PrefixCache` is written while the prompts run and `BranchCache` is read while their answers run.
Both are idempotent: a layer that is run a second time (gradient checkpointing) leaves and finds
the same. Keys and values are never copied for the answers; attention reads them where they lie
(optimize/attend.py). Layers that keep a state instead of keys (linear attention, short
convolutions) hand each answer its own copy of the state, which is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import cache_utils


@dataclass(frozen=True)
class Block:
    """C prompts of one length, run in one batch, and the answers drawn from them."""

    prefix: PrefixCache
    length: int
    counts: tuple[int, ...]
    """Answer tokens of each of the C prompts; they lie one after another."""


class Fork:
    """How T answer tokens, laid end to end, hang on their prompts.

    Tokens are ordered by block, prompt and row. `blocks` and `rows` (lengths of the N answers)
    are all that is needed; index tensors are made once and serve every layer.
    """

    inside = False
    """Whether the prompts run in the same pass (optimize/together.py)."""
    note: Callable[[Any], Any] | None = None
    """Takes a mask's rule for later, while a step is recorded (engines/hf_step_trace.py)."""

    def __init__(self, blocks: Sequence[Block], rows: Sequence[int], device: Any) -> None:
        self.blocks, self.rows, self.device = tuple(blocks), tuple(rows), device
        self.tokens = sum(rows)

    @cached_property
    def own(self) -> Padding:
        """The T tokens as N rows."""
        return Padding(self.rows, self.device)

    @cached_property
    def shared(self) -> tuple[Padding, ...]:
        """For each block, its own stretch of tokens as C rows: one for each prompt."""
        return tuple(Padding(block.counts, self.device) for block in self.blocks)

    @cached_property
    def start_T(self) -> torch.Tensor:
        """Length of the prompt that each token follows."""
        lengths = torch.tensor([b.length for b in self.blocks])
        counts = torch.tensor([sum(b.counts) for b in self.blocks])
        return lengths.repeat_interleave(counts).to(self.device)

    @cached_property
    def offset_T(self) -> torch.Tensor:
        """Place of each token within its answer, from 0."""
        return torch.cat([torch.arange(n) for n in self.rows]).to(self.device)

    @property
    def longest(self) -> int:
        """Longest prompt."""
        return max(block.length for block in self.blocks)

    @property
    def reach(self) -> int:
        """Answer tokens that an answer token may look at, at most."""
        return max(self.rows)


class Padding:
    """Between T tokens laid end to end and rows of them padded on the right to M."""

    def __init__(self, counts: Sequence[int], device: Any) -> None:
        self.counts, self.most = tuple(counts), max(counts)
        self.even = all(n == self.most for n in counts)
        self.real_NM: torch.Tensor | None = None
        if not self.even:
            counts_N, place_M = torch.tensor(self.counts), torch.arange(self.most)
            real_NM = place_M < counts_N[:, None]
            self.at_2T = tuple(at_T.to(device) for at_T in real_NM.nonzero(as_tuple=True))
            self.real_NM = real_NM.to(device)
            start_N = counts_N.cumsum(0) - counts_N
            # Padding repeats a row's last token: it stays in range, and its results are dropped.
            index_NM = start_N[:, None] + torch.minimum(place_M, counts_N[:, None] - 1)
            self.index_NM = index_NM.clamp(min=0).to(device)

    def pad(self, flat_T: torch.Tensor) -> torch.Tensor:
        """[T, ...] -> [N, M, ...]."""
        if self.real_NM is None:
            return flat_T.reshape(len(self.counts), self.most, *flat_T.shape[1:])
        return flat_T[self.index_NM]

    def unpad(self, padded_NM: torch.Tensor) -> torch.Tensor:
        """[N, M, ...] -> [T, ...]. By numbers: a GPU is waited for at each use of a mask."""
        if self.real_NM is None:
            return padded_NM.reshape(-1, *padded_NM.shape[2:])
        return padded_NM[self.at_2T]

    def fill(self, padded_NM: torch.Tensor, value: float) -> torch.Tensor:
        """Padding set to `value`."""
        if self.real_NM is None:
            return padded_NM
        return padded_NM.masked_fill(~self.real_NM[(..., *[None] * (padded_NM.dim() - 2))], value)


FORK: ContextVar[Fork | None] = ContextVar("selfloop_fork", default=None)
"""The fork whose answers are being run, for attention and mask functions."""


@contextmanager
def forking(fork: Fork | None) -> Iterator[None]:
    """Within it, attention that is asked for by the name of attend.NAME belongs to `fork`."""
    token = FORK.set(fork)
    try:
        yield
    finally:
        FORK.reset(token)


# transformers' classes, unchecked: their signatures are looser than what is written here.
_Keys: Any = cache_utils.DynamicLayer
_State: Any = cache_utils.LinearAttentionLayer
_Cache: Any = cache_utils.Cache


# -- caches -------------------------------------------------------------------------------------

class PrefixKeys(_Keys):  # type: ignore[misc]
    """Keys and values [C, K, P, D] of one attention layer; written once, never appended to."""

    keys: Any
    values: Any

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Note them and hand them on as they are."""
        if self.keys is None:
            self.keys, self.values = key_states, value_states
            self.is_initialized = True
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Nothing lies before a prompt."""
        return 0


class PrefixState(_State):  # type: ignore[misc]
    """Convolution and recurrent states of one layer after the prompt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.record_past = True  # keeps models off their in-place one-token kernels

    def update_conv_state(self, conv_states: Any, state_idx: int = 0,
                          conv_kernel_size: int | None = None, **_: Any) -> Any:
        """Keep the last columns (zeros before the first token); the layer sees its own input."""
        size = conv_kernel_size or conv_states.shape[-1]
        if self.conv_states[state_idx] is None:
            short = max(0, size - conv_states.shape[-1])
            self.conv_states[state_idx] = torch.nn.functional.pad(conv_states, (short, 0))[
                ..., -size:]
            self.conv_kernel_size[state_idx] = size
        return conv_states

    def update_recurrent_state(self, recurrent_states: Any, state_idx: int = 0, **_: Any) -> Any:
        """Keep the state after the last token."""
        if self.recurrent_states[state_idx] is None:
            self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


class PrefixCache(_Cache):  # type: ignore[misc]
    """What C prompts of one length leave behind. Raises NotImplementedError for other layers."""

    def __init__(self, config: Any) -> None:
        made = [_prefix_layer(layer) for layer in cache_utils.DynamicCache(config=config).layers]
        if made:
            super().__init__(layers=made)
        else:
            super().__init__(layer_class_to_replicate=PrefixKeys)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing lies before a prompt."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """The prompt's own keys."""
        return query_length, 0


def _prefix_layer(layer: Any) -> Any:
    kind = type(layer)
    if kind in (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer):
        return PrefixKeys()  # windows are masks; the keys are all kept
    if kind is cache_utils.LinearAttentionLayer:
        return PrefixState(number_of_states=layer.number_of_states)
    if kind is cache_utils.DummyLayer:
        return layer
    raise NotImplementedError(f"cache layers of kind {kind.__name__} cannot be forked")


def stateful(config: Any) -> bool:
    """Whether some layers keep a state, so that answers must stay rows of a batch."""
    layers = cache_utils.DynamicCache(config=config).layers
    return any(type(layer) is cache_utils.LinearAttentionLayer for layer in layers)


class BranchKeys(_Keys):  # type: ignore[misc]
    """One attention layer while answers run: hands on their keys, marked with their prompts'."""

    def __init__(self, prefixes: Sequence[Any]) -> None:
        super().__init__()
        self.prefixes = tuple(prefixes)

    @property
    def lent(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """(keys, values), each [C, K, P, D], of every block."""
        return tuple((prefix.keys, prefix.values) for prefix in self.prefixes)

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The answers' own keys. The mark survives layers that share another layer's keys."""
        key_states.lent_by = self
        return key_states, value_states


class BranchState(_State):  # type: ignore[misc]
    """One layer's states [N, ...] while answers run. `grows` (decoding) moves them on."""

    def __init__(self, prefixes: Sequence[Any], owner_N: torch.Tensor, grows: bool) -> None:
        super().__init__(number_of_states=prefixes[0].number_of_states)
        self.record_past, self.grows = True, grows
        for i in range(self.number_of_states):
            for mine, theirs, has in (
                (self.conv_states, [p.conv_states[i] for p in prefixes],
                 self.is_conv_states_initialized),
                (self.recurrent_states, [p.recurrent_states[i] for p in prefixes],
                 self.is_recurrent_states_initialized)):
                if theirs[0] is not None:
                    mine[i] = torch.cat(theirs).index_select(0, owner_N)
                    has[i] = self.has_previous_state[i] = True

    def update_conv_state(self, conv_states: Any, state_idx: int = 0, **_: Any) -> Any:
        """The prompt's last columns followed by the answer's."""
        before = self.conv_states[state_idx]
        whole = torch.cat([before, conv_states], -1)
        if self.grows:
            self.conv_states[state_idx] = whole[..., -before.shape[-1]:]
        return whole

    def update_recurrent_state(self, recurrent_states: Any, state_idx: int = 0, **_: Any) -> Any:
        """Kept only while decoding: in training each answer is run once."""
        if self.grows:
            self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states

    def select(self, keep_M: torch.Tensor) -> None:
        """Only these rows go on."""
        for states in (self.conv_states, self.recurrent_states):
            for i, state in states.items():
                if state is not None:
                    states[i] = state.index_select(0, keep_M)


class BranchCache(_Cache):  # type: ignore[misc]
    """The caches of a fork's blocks, lent to its N answers."""

    def __init__(self, fork: Fork, owner_N: torch.Tensor, *, keys: Any = BranchKeys,
                 grows: bool = False) -> None:
        self.longest = fork.longest
        columns = zip(*(block.prefix.layers for block in fork.blocks), strict=True)
        layers: list[Any] = []
        for column in columns:
            if isinstance(column[0], PrefixState):
                layers.append(BranchState(column, owner_N, grows))
            elif isinstance(column[0], PrefixKeys):
                layers.append(keys(column))
            else:
                layers.append(column[0])
        super().__init__(layers=layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest prompt: models only ask whether anything went before."""
        return self.longest

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As far as an answer may look. (Masks of a fork are made by attend.mask; models that
        keep a table of positions size it by this.)"""
        fork = FORK.get()
        return self.longest + max(query_length, fork.reach if fork is not None else 0), 0
