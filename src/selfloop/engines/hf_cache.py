"""Decoding against a forked prompt: its keys are never copied, answers keep their own.

Every answer's keys stand in one growing buffer a layer; attention to the prompts and to these
is computed apart and merged, as in training (optimize/attend.py). Answers that have ended leave
the buffers in bulk, and a prompt whose answers have all ended leaves with them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch

from selfloop.engines import hf_products as products
from selfloop.engines.hf_hiding import Blind, hiding
from selfloop.optimize import attend, masks
from selfloop.optimize.checkpointing import answering
from selfloop.optimize.fork import (
    Block,
    BranchCache,
    BranchKeys,
    BranchState,
    Fork,
    PrefixCache,
    stateful,
)
from selfloop.optimize.kernels import kernel_for
from selfloop.optimize.positions import Positions, joined, positions, spread, watched
from selfloop.optimize.score import Reader
from selfloop.optimize.sharding import is_cut
from selfloop.optimize.tail import prompts
from selfloop.types import Media

_ROOM = 8
"""Least places of a buffer; it doubles when full."""


class Step(Fork):
    """A fork in which every answer runs one token, its `step`-th."""

    step = 0

    @cached_property
    def zero_N(self) -> torch.Tensor:
        """As many zeros as answers."""
        return torch.zeros(len(self.rows), dtype=torch.long, device=self.device)

    @property
    def offset_T(self) -> torch.Tensor:
        """The same place in every answer."""
        return self.zero_N + self.step

    @property
    def reach(self) -> int:
        """All tokens of the answer so far."""
        return self.step + 1


class DecodingKeys(BranchKeys):
    """One attention layer: the prompts' keys, and the answers' own in a buffer [N, K, S, D]."""

    def __init__(self, prefixes: Sequence[Any]) -> None:
        super().__init__(prefixes)
        # Under autocast keys were rotated in float32, and values projected in a narrow type.
        self.pairs = [(prefix.keys.to(prefix.values.dtype), prefix.values)
                      for prefix in self.prefixes]
        self.own: list[torch.Tensor] = []

    def attend(self, q_NHD: Any, k_NKD: Any, v_NKD: Any, fork: Step, scale: float,
               visible: Any, softcap: float | None) -> Any:
        """[N, H, D] for one token an answer; its key and value join the buffers."""
        self._write(k_NKD, v_NKD, fork.step)
        key, value = (buffer[:, :, :fork.step + 1] for buffer in self.own)
        if len(self.pairs) == 1 and visible is None and not softcap and products.suits(
                q_NHD, fork.blocks[0].counts, fork.longest + fork.reach, v_NKD):
            return products.attend(q_NHD, (key, value), self.pairs[0], scale)
        n, heads, d = q_NHD.shape
        q_NKGD = q_NHD.view(n, k_NKD.shape[1], heads // k_NKD.shape[1], d)
        mask = masks.of(visible)
        kernel = None if mask is not None or softcap else kernel_for(q_NHD, v_NKD)
        if kernel is not None:
            out, lse = kernel.forward(q_NKGD, key, value, False, scale)
        else:
            added = None if mask is None else mask.own(q_NHD.dtype)
            out, lse = attend.part(q_NKGD, key, value, scale, added, softcap)
        far = attend.far(q_NHD, fork, self.pairs, scale, mask, softcap, kernel)
        return attend.merge(out.flatten(1, 2), lse.flatten(1), *far)[0]

    def _write(self, k_NKD: Any, v_NKD: Any, step: int) -> None:
        if not self.own or step >= self.own[0].shape[2]:
            size = max(_ROOM, 2 * step)
            larger = [x.new_empty(*x.shape[:2], size, x.shape[2]) for x in (k_NKD, v_NKD)]
            for old, new in zip(self.own, larger, strict=False):
                new[:, :, :old.shape[2]] = old
            self.own = larger
        for buffer, new in zip(self.own, (k_NKD, v_NKD), strict=True):
            buffer[:, :, step] = new

    def select(self, keep_M: torch.Tensor, contexts: Sequence[torch.Tensor | None],
               used: int) -> None:
        """Only these answers go on; of each block these prompts (None: all, empty: none)."""
        self.own = [buffer[keep_M, :, :used] for buffer in self.own]  # the next token grows it
        self.pairs = [(k, v) if c is None else (k[c], v[c])
                      for (k, v), c in zip(self.pairs, contexts, strict=True)
                      if c is None or len(c)]


class Decoding:
    """The caches of N answers to C prompts, and which answers go on."""

    def __init__(self, blocks: Sequence[Block], owner: Sequence[int], device: Any) -> None:
        """`owner[n]`: answer n's prompt, counted over all blocks; in ascending order."""
        self.owner, self.device = list(owner), device
        self.prompts = [(block.length, len(block.counts)) for block in blocks]
        self.blocks = list(blocks)
        self.fork = self._fork()
        owner_N = torch.tensor(self.owner, device=device)
        self.cache = BranchCache(self.fork, owner_N, keys=DecodingKeys, grows=True)

    def _fork(self) -> Step:
        at, blocks = 0, []
        for block, (length, contexts) in zip(self.blocks, self.prompts, strict=True):
            counts = _counts(self.owner, at, contexts)
            blocks.append(Block(block.prefix, length, counts))
            at += contexts
        return Step(blocks, [1] * len(self.owner), self.device)

    def select(self, keep: Sequence[int]) -> None:
        """Only these answers go on."""
        self.owner = [self.owner[n] for n in keep]
        living, contexts, at = sorted(set(self.owner)), [], 0
        renumbered = {c: i for i, c in enumerate(living)}
        prompts, blocks = [], []
        for block, (length, count) in zip(self.blocks, self.prompts, strict=True):
            mine = [c - at for c in living if at <= c < at + count]
            contexts.append(None if len(mine) == count
                            else torch.tensor(mine, dtype=torch.long, device=self.device))
            if mine:
                prompts.append((length, len(mine)))
                blocks.append(block)
            at += count
        self.owner = [renumbered[c] for c in self.owner]
        self.prompts, self.blocks = prompts, blocks
        keep_M = torch.tensor(list(keep), dtype=torch.long, device=self.device)
        for layer in self.cache.layers:
            if isinstance(layer, DecodingKeys):
                layer.select(keep_M, contexts, self.fork.step + 1)
            elif isinstance(layer, BranchState):
                layer.select(keep_M)
        step = self.fork.step
        self.fork = self._fork()
        self.fork.step = step


def _counts(owner: Sequence[int], start: int, contexts: int) -> tuple[int, ...]:
    counted = [0] * contexts
    for c in owner:
        if start <= c < start + contexts:
            counted[c - start] += 1
    return tuple(counted)


class Asked(Protocol):
    """One answer that is asked for: prompt ids and pictures, and what text may not see of them."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def media(self) -> tuple[Media, ...]: ...
    @property
    def blind(self) -> Blind | None: ...


class Forked:
    """Each distinct prompt run once, prompts of one shape in one batch, then forked."""

    recorded: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    """What is called instead of `run` (hf_recorded.py)."""

    def __init__(self, model: Any, reader: Reader, jobs: Sequence[Asked]) -> None:
        self.model = model
        self.text = self.model.config.get_text_config(decoder=True)
        self.alone = stateful(self.text)
        # Nothing of a step outlives the draw, except layers that were gathered from others for it.
        self.light = not any(is_cut(p) for p in model.parameters())
        self.device = device = next(model.parameters()).device
        alike: dict[Hashable, dict[Hashable, list[int]]] = {}
        for n, job in enumerate(jobs):
            shape = (len(job.ids), reader.signature(job.media))
            context = (job.ids, tuple(m.identity for m in job.media), job.blind)
            alike.setdefault(shape, {}).setdefault(context, []).append(n)
        logits: list[torch.Tensor] = []
        numbered: list[Positions] = []
        blocks: list[Block] = []
        owner: list[int] = []
        order: list[int] = []
        for contexts in alike.values():
            firsts = [jobs[mine[0]] for mine in contexts.values()]
            cache = PrefixCache(self.text)
            inputs = reader.inputs([(job.ids, job.media) for job in firsts])
            length = len(firsts[0].ids)
            with watched(model) as seen, hiding(model, [job.blind for job in firsts], length), \
                    prompts(model, cache, length):
                out = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits.append(out.logits[:, -1])
            numbered.append(positions(seen, len(firsts), length, device))
            blocks.append(Block(cache, length, tuple(len(mine) for mine in contexts.values())))
            for mine in contexts.values():
                owner += [owner[-1] + 1 if owner else 0] * len(mine)
                order += mine
        self.decoding = Decoding(blocks, owner, device)
        whole, owner_N = joined(numbered), torch.tensor(owner, device=device)
        self.dimensions = whole.dimensions
        self.start_N = self.decoding.fork.start_T + whole.offset_C[owner_N]
        self.blinds = [jobs[n].blind for n in order]
        self._lie(order)
        self.logits_NV = self._outside(torch.cat(logits)[owner_N])

    def select(self, keep_M: torch.Tensor) -> None:
        """Only these rows (as asked for) go on."""
        renumbered = {n: i for i, n in enumerate(keep_M.tolist())}
        stay = [place for place, n in enumerate(self.order) if n in renumbered]
        self._lie([renumbered[self.order[place]] for place in stay])
        self.start_N = self.start_N[torch.tensor(stay, device=keep_M.device)]
        self.blinds = [self.blinds[place] for place in stay]
        self.decoding.select(stay)

    def advance(self, step: int, token_N: torch.Tensor) -> None:
        """Run each row's `step`-th token."""
        fork = self.decoding.fork
        fork.step = step
        ids_N = token_N if self.order_N is None else token_N[self.order_N]
        place_N = self.start_N + step
        ids, place = (ids_N[:, None], place_N[:, None]) if self.alone \
            else (ids_N[None], place_N[None])
        run = self.recorded or self.run
        self.logits_NV = self._outside(run(ids, spread(place, self.dimensions)))

    def run(self, ids: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] of the fork's step through the model's code, rows as they lie."""
        fork = self.decoding.fork
        mode = torch.inference_mode() if self.light else torch.no_grad()
        with mode, answering(self.model, fork), hiding(self.model, self.blinds, fork.longest):
            out = self.model(input_ids=ids, position_ids=place,
                             past_key_values=self.decoding.cache, use_cache=True)
        return out.logits.flatten(0, 1)  # type: ignore[no-any-return]

    def _lie(self, order: list[int]) -> None:
        """Rows lie by prompt inside; outside they keep the order in which they were asked for."""
        self.order, alike = order, order == sorted(order)
        self.order_N = None if alike else torch.tensor(order, device=self.device)
        self.back_N = None if self.order_N is None else self.order_N.argsort()

    def _outside(self, found_NV: torch.Tensor) -> torch.Tensor:
        return found_NV if self.back_N is None else found_NV[self.back_N]


class Copied:
    """Each draw with its own prompt, over the model's own cache: for caches that cannot be forked.
    """

    def __init__(self, model: Any, reader: Reader, jobs: Sequence[Asked]) -> None:
        self.model, self.length = model, len(jobs[0].ids)
        self.blinds = [job.blind for job in jobs]
        inputs = reader.inputs([(job.ids, job.media) for job in jobs])
        with watched(model) as seen, hiding(model, self.blinds, self.length):
            out = self.model(**inputs, use_cache=True, logits_to_keep=1)
        self.logits_NV, self.cache = out.logits[:, -1], out.past_key_values
        numbered = positions(seen, len(jobs), self.length, self.logits_NV.device)
        self.dimensions, self.start_N = numbered.dimensions, self.length + numbered.offset_C
        self.all_N = torch.arange(len(jobs), device=self.logits_NV.device)

    def select(self, keep_M: torch.Tensor) -> None:
        """Rows stay in the model's cache; only these are looked at."""
        self.all_N = self.all_N[keep_M]

    def advance(self, step: int, token_N: torch.Tensor) -> None:
        """Run each row's `step`-th token; rows that have left run a stand-in."""
        ids_N = torch.zeros_like(self.start_N).index_copy(0, self.all_N, token_N)
        place = spread((self.start_N + step)[:, None], self.dimensions)
        with hiding(self.model, self.blinds, self.length):
            out = self.model(input_ids=ids_N[:, None], position_ids=place,
                             past_key_values=self.cache, use_cache=True)
        self.logits_NV = out.logits[:, -1][self.all_N]
