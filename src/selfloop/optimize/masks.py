"""What answers see of their prompts and of themselves where causality alone does not say it.

transformers asks for a mask once for each kind of layer (windows, chunks) and hands it to all of
them. Nothing is known here about windows or chunks: the model's own rule is asked, for each length
of prompt and each place of an answer, and what it says is laid out once a pass as the kernels want
it, a number that is added to each score.

Shapes: T answer tokens end to end in N answers of at most M, which look at S places of their own;
B blocks of C prompts each, of P tokens.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function

from selfloop.optimize.fork import FORK, Fork
from selfloop.optimize.kernels import ALIGNED

_HIDDEN = -1e30
"""Added to a score that no softmax is to see: finite, so that rows which see nothing of a part stay
numbers, whose weight in the merge is 0."""


class Mask:
    """What the answers of one fork see."""

    def __init__(self, fork: Fork, far: Sequence[torch.Tensor], first: Sequence[int],
                 own_NMS: torch.Tensor | None) -> None:
        """`far`: of each block bool [its tokens, P - first], the places from `first` on, before
        which nobody sees any. `own_NMS`: bool, of all answers ([1, M, S]) or of each; None:
        causality alone."""
        self.fork, self.first, self.own_NMS = fork, tuple(first), own_NMS
        self._far = tuple(far)
        self._laid: dict[Hashable, torch.Tensor] = {}

    def own(self, dtype: torch.dtype) -> torch.Tensor | None:
        """To be added to scores of answers' own keys [N or 1, 1, M, S]; None: causality alone."""
        own_NMS = self.own_NMS
        if own_NMS is None:
            return None
        return self._once(("own", dtype), lambda: _added(own_NMS[:, None], dtype))

    def far(self, block: int, times: int, dtype: torch.dtype) -> torch.Tensor:
        """To be added to scores of a block's prompts from `first` on [C, 1, times M, P - first],
        where `times` query heads stand in one row with their key head."""
        def laid() -> torch.Tensor:
            seen_CMP = self.fork.shared[block].pad(self._far[block])
            return _added(seen_CMP[:, None].repeat(1, 1, times, 1), dtype)

        return self._once((block, times, dtype), laid)

    def without(self, hidden_TP: torch.Tensor) -> Mask:
        """The same, but that each token does not see those places of its prompt."""
        far = [seen_TP & ~hidden_tP[:, first:block.length] for block, first, seen_TP, hidden_tP
               in zip(self.fork.blocks, self.first, self._far, stretches(self.fork, hidden_TP),
                      strict=True)]
        return Mask(self.fork, far, self.first, self.own_NMS)

    def carried(self) -> torch.Tensor:
        """A tensor for the model to hand to its layers, which find this mask by `of`."""
        one = torch.empty(1, 1, 1, 1, dtype=torch.bool)
        carrier = one.expand(1, 1, self.fork.tokens, self.fork.longest + self.fork.reach
                             ).as_subclass(_Carrier)
        carrier.mask = self
        return carrier

    def _once(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if key not in self._laid:
            self._laid[key] = make()
        return self._laid[key]


class _Carrier(torch.Tensor):
    """Of a mask's shape [1, 1, T, P + S], and empty."""

    mask: Mask

    def __getitem__(self, at: Any) -> Any:
        """Some models cut their masks, of a fork's without leaving anything out."""
        found: Any = super().__getitem__(at)
        if found.shape == self.shape:
            found.mask = self.mask
        return found


def of(carrier: Any) -> Mask | None:
    """The mask that a layer was handed; None: everything up to the token itself is seen."""
    if carrier is None:
        return None
    if not isinstance(found := getattr(carrier, "mask", None), Mask):
        raise NotImplementedError("the model changes its masks")
    return found


def mask(*, mask_function: Any = causal_mask_function, attention_mask: Any = None, **_: Any
         ) -> torch.Tensor | None:
    """The function that transformers calls for the mask of the fork whose answers are run."""
    fork = FORK.get()
    if fork is None or (attention_mask is not None and not fork.inside):
        raise NotImplementedError("answers of a fork have no padding of their own")
    if mask_function is causal_mask_function:
        return None
    if fork.inside:
        raise NotImplementedError("a mask of another kind than causality")
    if fork.note is not None:
        return fork.note(mask_function)  # type: ignore[no-any-return]
    found = ruled(fork, mask_function)
    return None if found is None else found.carried()


def whole(fork: Fork) -> Mask:
    """Everything is seen."""
    far = [torch.ones(sum(block.counts), block.length, dtype=torch.bool, device=fork.device)
           for block in fork.blocks]
    return Mask(fork, far, [0] * len(far), None)


def ruled(fork: Fork, rule: Any) -> Mask | None:
    """The mask of a rule over (batch, head, query, key); None where it hides nothing.

    Whatever has to be known here is read back at once: a GPU is waited for at each reading.
    """
    device, lengths = fork.device, [block.length for block in fork.blocks]
    least = fork.reach - max(fork.rows)  # while decoding each answer runs its last token alone
    place_M = torch.arange(least, fork.reach, device=device)
    own_S = torch.arange(fork.reach, device=device)
    prompt_P = torch.arange(fork.longest, device=device)
    length_B11 = torch.tensor(lengths, device=device)[:, None, None]
    zero, query_BM1 = place_M.new_zeros(()), length_B11 + place_M[:, None]
    real_B1P, causal_MS = prompt_P < length_B11, own_S <= place_M[:, None]
    shape = len(lengths), len(place_M), -1  # of a rule that asks for keys alone, too
    far_BMP = (rule(zero, zero, query_BM1, prompt_P) & real_B1P).expand(shape)
    own_BMS = (rule(zero, zero, query_BM1, length_B11 + own_S) & causal_MS).expand(shape)
    # A prompt's last place counts as seen, so that some are left where nobody sees any.
    first_B = (far_BMP.any(1) | (prompt_P == length_B11[:, 0] - 1)).long().argmax(-1)
    everything, causal, alike, *first = torch.cat([torch.stack([
        (far_BMP == real_B1P).all(), (own_BMS == causal_MS).all(), (own_BMS == own_BMS[:1]).all(),
    ]), first_B]).tolist()
    if everything and causal:
        return None
    far = [far_MP[place_T - least, at:length] for far_MP, place_T, at, length in zip(
        far_BMP, stretches(fork, fork.offset_T), first, lengths, strict=True)]
    own_NMS = None if causal else own_BMS[:1] if alike else own_BMS[_blocks_of(fork)]
    return Mask(fork, far, first, own_NMS)


def causality(most: int, like: torch.Tensor) -> torch.Tensor:
    """To be added to scores of answers' own keys where no mask says more [M, M]."""
    seen_MM = torch.ones(most, most, dtype=torch.bool, device=like.device).tril()
    return _added(seen_MM, like.dtype)


def stretches(fork: Fork, x_T: Any) -> list[Any]:
    """Each block's tokens."""
    if len(fork.blocks) == 1:
        return [x_T]
    return list(torch.split(x_T, [sum(block.counts) for block in fork.blocks]))


def _blocks_of(fork: Fork) -> torch.Tensor:
    """Each answer's block [N]."""
    ends = list(accumulate(sum(block.counts) for block in fork.blocks))
    starts = [0, *accumulate(fork.rows)][:-1]
    return torch.tensor([min(bisect(ends, at), len(ends) - 1) for at in starts],
                        device=fork.device)


def _added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where something is seen; rows begin where kernels want them, so that none copies it."""
    keys = seen.shape[-1]
    room = torch.zeros(*seen.shape[:-1], keys + -keys % ALIGNED, dtype=dtype, device=seen.device)
    return room[..., :keys].masked_fill_(~seen, max(_HIDDEN, torch.finfo(dtype).min))
