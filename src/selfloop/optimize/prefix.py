"""The shared-prefix forward: a prompt with its pictures is run once for all of its answers.

First the prompts, with gradients on; then all answers end to end, without padding, against what
the prompts left behind (optimize/fork.py). It is one graph, so gradients into the prompt and the
vision tower are exactly the sum over the answers. Token cost falls from G(P + R) to P + GR, the
vision tower's from G to 1 (Liu et al., PrefixGrouper, arXiv 2506.05433, does so for one model).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from selfloop.optimize import fork as forks
from selfloop.optimize import together, wide
from selfloop.optimize.checkpointing import answering
from selfloop.optimize.head import Head
from selfloop.optimize.layout import Layout, padding, prompt_key
from selfloop.optimize.memory import out_of_memory
from selfloop.optimize.positions import Positions, joined, positions, spread, watched
from selfloop.optimize.rows import Row, Weight
from selfloop.optimize.score import Plain, Reader
from selfloop.optimize.selfcheck import difference, few
from selfloop.types import Media

WORTH = 64
"""Tokens that sharing must save in a call: answers take a second pass through the layers."""
LEAST = 12
"""It must save one in so many, pictures counted: attention in two parts costs some percent more."""


class Shared:
    """Both paths behind one call: shared where rows share a prompt and it is exact, else plain."""

    def __init__(self, model: Any, reader: Reader, banned_V: torch.Tensor, budget: int,
                 worth: int = WORTH) -> None:
        self.model, self.reader, self.banned_V, self.budget = model, reader, banned_V, budget
        self.worth = worth
        self.head = Head(model, banned_V)
        self.plain = Plain(model, reader, banned_V, budget, self.head)
        self.why_not = unsupported(model)
        """Why the shared path is not used; "" while it is."""
        self.vision: Callable[[tuple[Media, ...]], int] = lambda media: 0
        """What pictures add to a forward pass with gradients, in tokens of the language model."""
        self.checked_to = (0, 0)
        """Longest (row, answer) for which both paths have been compared."""
        self.together = together.Way("answers keep a state" if forks.stateful(_text(model)) else "")
        """Whether one prompt and its answers are run in one pass instead of two."""

    @property
    def checked(self) -> bool:
        """Whether both paths have been compared on this model, answers included."""
        return self.checked_to[1] > 0

    def __call__(self, rows: Sequence[Row], *, entropy: bool = False
                 ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Per row, in order, the log-probs of its trained tokens (and entropies if asked)."""
        logps: list[Any] = [None] * len(rows)
        entropies: list[Any] = [None] * len(rows)

        def put(index: Sequence[int], found: Any) -> None:
            for place, i in enumerate(index):
                logps[i], entropies[i] = found[0][place], found[1][place] if found[1] else None

        for batch in self._batches(rows):
            mine = [rows[i] for i in batch]
            # A window or a chunk of attention may begin only at some length: look again as
            # rows or answers grow, at each doubling.
            if any(a > b for a, b in zip(_lengths(mine), self.checked_to, strict=True)):
                self.check(mine)
            if self.why_not:
                break
            put(batch, self.forward(mine, entropy))
        rest = [i for i in range(len(rows)) if logps[i] is None]
        put(rest, self.plain([rows[i] for i in rest], entropy=entropy))
        return logps, entropies if entropy else None

    @torch.no_grad()
    def prime(self, rows: Sequence[Row]) -> None:
        """All that is found out or compared at first use, for these rows and any part of them."""
        self.plain(rows[:1])
        for batch in self._batches(rows):
            mine = [rows[i] for i in batch]
            if not self.why_not and any(a > b for a, b in zip(_lengths(mine), self.checked_to,
                                                              strict=True)):
                self.check(mine)
        a, b = (max(pair) for pair in zip(self.checked_to, _lengths(rows), strict=True))
        self.checked_to = (a, b)

    def cost(self, rows: Sequence[Row]) -> int:
        """Tokens that are run for these rows: a shared prompt counts once."""
        units = [] if self.why_not else self._units(rows)
        return sum(len(row.token_ids) for row in rows) - sum(
            rows[unit[0]].prompt * (len(unit) - 1) for unit in units)

    def weigh(self, row: Row) -> Weight:
        """What a row adds to a forward pass."""
        answer = row.token_ids[row.prompt:]
        alone = bool(self.why_not) or not self.reader.placeholders.isdisjoint(answer)
        return Weight(id(row) if alone else prompt_key(row),
                      row.prompt + self.vision(row.media), len(answer))

    # -- which rows go together ---------------------------------------------------------------

    def _units(self, rows: Sequence[Row]) -> list[list[int]]:
        """Rows of one prompt on the same pictures, at least two; no picture after the prompt."""
        groups: dict[Any, list[int]] = {}
        for i, row in enumerate(rows):
            answer = row.token_ids[row.prompt:]
            if not answer or not self.reader.placeholders.isdisjoint(answer):
                continue
            groups.setdefault(prompt_key(row), []).append(i)
        units = [group for group in groups.values() if len(group) > 1]
        seen = [self.vision(rows[u[0]].media) for u in units]
        saved = sum((rows[u[0]].prompt + n) * (len(u) - 1)
                    for u, n in zip(units, seen, strict=True))
        one_pass = len(units) == 1 and not self.together.why_not
        worth = min(self.worth, together.WORTH) if one_pass else self.worth
        whole = sum(len(rows[i].token_ids) for u in units for i in u) + sum(
            len(u) * n for u, n in zip(units, seen, strict=True))
        return units if saved > worth and LEAST * (saved + padding(rows, units)) > whole else []

    def _batches(self, rows: Sequence[Row]) -> list[list[int]]:
        """Units in order of their prompts' lengths, each batch within the token budget."""
        if self.why_not:
            return []
        units = sorted(self._units(rows), key=lambda unit: (
            rows[unit[0]].prompt, repr(self.reader.signature(rows[unit[0]].media))))
        found: list[list[int]] = [[]]
        spent = 0
        for unit in units:
            for piece, size in self._pieces(rows, unit):
                if found[-1] and spent + size > self.budget:
                    found.append([])
                    spent = 0
                found[-1] += piece
                spent += size
        return [batch for batch in found if batch]

    def _pieces(self, rows: Sequence[Row], unit: list[int]) -> list[tuple[list[int], int]]:
        """A unit within the budget; one that is larger is cut, and each part runs its prompt."""
        prompt = rows[unit[0]].prompt
        pieces: list[tuple[list[int], int]] = [([], prompt)]
        for i in unit:
            answer = len(rows[i].token_ids) - prompt
            piece, size = pieces[-1]
            if piece and size + answer > self.budget:
                pieces.append(([], prompt))
                piece, size = pieces[-1]
            pieces[-1] = ([*piece, i], size + answer)
        return pieces

    # -- in two passes, or in one -------------------------------------------------------------

    def forward(self, rows: Sequence[Row], entropy: bool = False
                ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Rows through the shared path, with gradients as in the plain one."""
        laid = Layout(rows, self.reader)
        if self.together.open and together.fits(laid):
            return self._in_one(rows, laid, entropy)
        return self._in_two(rows, laid, entropy)

    def _in_one(self, rows: Sequence[Row], laid: Layout, entropy: bool
                ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        hidden_MD = together.hidden(self.model, self.head, self.reader, rows, laid,
                                    self.together.short)
        return self._scored(rows, laid, hidden_MD, entropy)

    def _in_two(self, rows: Sequence[Row], laid: Layout, entropy: bool
                ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        ran = [self._prompts([rows[context[0]] for context in block]) for block in laid.blocks]
        device = ran[0].last_CD.device
        hidden = [torch.cat([block.last_CD for block in ran])[_index(laid.firsts, device)]]
        if laid.later:
            hidden.append(self._answers(rows, laid, ran))
        return self._scored(rows, laid, torch.cat(hidden), entropy)

    def _scored(self, rows: Sequence[Row], laid: Layout, hidden_MD: torch.Tensor, entropy: bool
                ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        device = hidden_MD.device
        logp_M, entropy_M = self.head.logps(
            hidden_MD, _index(laid.ids, device), torch.tensor(laid.temperatures, device=device),
            entropy, wide.asked(rows, laid.places, device))
        back_M, counts = _index(laid.back, device), [row.count for row in rows]
        return (list(torch.split(logp_M[back_M], counts)),
                list(torch.split(entropy_M[back_M], counts)) if entropy_M is not None else None)

    def _prompts(self, firsts: Sequence[Row]) -> _Ran:
        """Prompts of one length with alike pixels, run once each."""
        prompt = firsts[0].prompt
        cache = forks.PrefixCache(_text(self.model))
        inputs = self.reader.inputs([(row.token_ids[:prompt], row.media) for row in firsts])
        last = _index([prompt - 1], inputs["input_ids"].device)
        with watched(self.model) as seen:
            hidden_C1D = self.head.hidden(
                {**inputs, "past_key_values": cache, "use_cache": True}, last)
        return _Ran(cache, prompt, hidden_C1D[:, 0],
                    positions(seen, len(firsts), prompt, last.device))

    def _answers(self, rows: Sequence[Row], laid: Layout, ran: Sequence[_Ran]) -> torch.Tensor:
        """Hidden states [M, D] at the answer tokens after which a trained one comes."""
        kept = [b for b, counts in enumerate(laid.counts) if any(counts)]
        device = ran[0].last_CD.device
        fork = forks.Fork([forks.Block(ran[b].cache, ran[b].length, tuple(laid.counts[b]))
                           for b in kept], laid.lengths, device)
        counts = [n for b in kept for n in laid.counts[b]]
        owner_T = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device)
        ids_T = _index([t for i in laid.order for t in rows[i].token_ids[rows[i].prompt:-1]],
                       device)
        numbered = joined([ran[b].positions for b in kept])
        positions_T = fork.start_T + fork.offset_T + numbered.offset_C[owner_T]
        keep_M = _index(laid.later, device)
        alone = forks.stateful(_text(self.model))  # a state belongs to a row of the batch
        if alone:
            ids_NR, positions_NR = fork.own.pad(ids_T), fork.own.pad(positions_T)
        else:
            ids_NR, positions_NR = ids_T[None], positions_T[None]
        cache = forks.BranchCache(fork, owner_T[fork.offset_T == 0])
        with answering(self.model, fork):
            hidden_NKD = self.head.hidden(
                {"input_ids": ids_NR, "past_key_values": cache, "use_cache": True,
                 "position_ids": spread(positions_NR, numbered.dimensions)},
                torch.arange(ids_NR.shape[1], device=device) if alone else keep_M)
        return fork.own.unpad(hidden_NKD)[keep_M] if alone else hidden_NKD[0]

    # -- the check ----------------------------------------------------------------------------

    def check(self, rows: Sequence[Row]) -> tuple[float, float]:
        """Compare with the plain path; on a difference fall back, loudly.

        Returns the largest log-prob gap (nats) and the relative gradient gap.
        """
        # An answer of one token is predicted by its prompt alone: it shows nothing.
        rows_to, answers_to = _lengths(rows)
        self.checked_to = (2 * rows_to, 2 * answers_to if answers_to > 1 else 0)
        narrow = [wide.narrow(row) for row in rows]
        worst, gap, self.why_not = self._beside_plain(self._in_two, narrow)
        if not self.why_not and not self.together.why_not:
            alone = few(narrow)[-2:]  # two answers to the longest prompt
            if together.fits(Layout(alone, self.reader)):
                found = self.together.settle(lambda: self._beside_plain(self._in_one, alone))
                worst, gap = max(worst, found[0]), max(gap, found[1])
        if self.why_not:
            warnings.warn(f"shared prefix off for {type(self.model).__name__}: {self.why_not}; "
                          "training uses the plain path, which is slower", stacklevel=2)
        return worst, gap

    def _beside_plain(self, way: Callable[..., Any], rows: Sequence[Row]
                      ) -> tuple[float, float, str]:
        """(log-prob gap, gradient gap, why this way is not taken)."""
        try:
            return difference(self.model, lambda mine, entropy: way(
                mine, Layout(mine, self.reader), entropy), self.plain, rows)
        except Exception as error:  # any failure here has a correct answer: the plain path
            if out_of_memory(error):
                raise
            lines = str(error).splitlines() or [""]
            return float("inf"), float("inf"), f"{type(error).__name__}: {lines[0][:200]}"


@dataclass(frozen=True)
class _Ran:
    """C prompts after their forward pass."""

    cache: forks.PrefixCache
    length: int
    last_CD: torch.Tensor
    """Hidden states that predict each answer's first token."""
    positions: Positions


def unsupported(model: Any) -> str:
    """Why a prompt of this model cannot be forked at all; "" if it may."""
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder models have no shared prefix"
    if getattr(_text(model), "cross_attention_layers", None):
        return "cross-attention to pictures is not part of a prompt's cache"
    try:
        forks.PrefixCache(_text(model))
    except NotImplementedError as error:
        return str(error)
    return ""


def _lengths(rows: Sequence[Row]) -> tuple[int, int]:
    """The longest row and the longest answer, up to their last trained tokens: beyond them
    nothing is computed that a comparison could see."""
    return (max(row.prompt + row.reach for row in rows), max(row.reach for row in rows))


def _text(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def _index(values: Sequence[int], device: Any) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.long, device=device)
