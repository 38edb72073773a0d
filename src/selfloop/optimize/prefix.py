"""The shared-prefix forward: a prompt with its pictures is run once for all of its answers.

The prompt fills a key-value cache with gradients on; each answer attends to its prompt's entries
and only its own tokens are run. It is one graph, so gradients into the prompt and the vision tower
are exactly the sum over the answers. Token cost falls from G(P + R) to P + GR.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from selfloop.optimize.rows import Row
from selfloop.optimize.score import Plain, Reader, token_logps

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest |shared - plain| log-prob that passes the check; other dtypes: 0.1 (their own noise)."""

_ATTENTION = {"full_attention", "sliding_attention"}


class Shared:
    """Both paths behind one call: shared where rows share a prompt and it is exact, else plain."""

    def __init__(self, model: Any, reader: Reader, banned_V: torch.Tensor, budget: int) -> None:
        self.model, self.reader, self.banned_V, self.budget = model, reader, banned_V, budget
        self.plain = Plain(model, reader, banned_V, budget)
        self.why_not = unsupported(model)
        """Why the shared path is not used; "" while it is."""
        self.checked = False

    def __call__(self, rows: Sequence[Row], *, entropy: bool = False
                 ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Per row, in order, the log-probs of its trained tokens (and entropies if asked)."""
        units = self._units(rows) if not self._refused() else []
        logps: list[Any] = [None] * len(rows)
        entropies: list[Any] = [None] * len(rows)
        for unit in self._batches(rows, units):
            if not self.checked:
                self.check([rows[i] for i in unit])
            if self._refused():
                break
            found, measured = self.forward([rows[i] for i in unit], entropy)
            for place, i in enumerate(unit):
                logps[i], entropies[i] = found[place], measured[place] if measured else None
        rest = [i for i in range(len(rows)) if logps[i] is None]
        found, measured = self.plain([rows[i] for i in rest], entropy=entropy)
        for place, i in enumerate(rest):
            logps[i], entropies[i] = found[place], measured[place] if measured else None
        return logps, entropies if entropy else None

    def _refused(self) -> bool:
        # Checkpointing may be switched on at any time, and transformers then drops the cache.
        return bool(self.why_not) or _checkpointing(self.model)

    def _units(self, rows: Sequence[Row]) -> list[list[int]]:
        """Rows of one prompt on the same pictures, at least two; no picture after the prompt."""
        groups: dict[Any, list[int]] = {}
        for i, row in enumerate(rows):
            answer = row.token_ids[row.prompt:]
            if not answer or not self.reader.placeholders.isdisjoint(answer):
                continue
            groups.setdefault(_prompt_key(row), []).append(i)
        return [group for group in groups.values() if len(group) > 1]

    def _batches(self, rows: Sequence[Row], units: list[list[int]]) -> list[list[int]]:
        """Units of equal prompt length and alike pixels together, within the token budget."""
        alike: dict[Any, list[list[int]]] = {}
        for unit in units:
            row = rows[unit[0]]
            key = (row.prompt, self.reader.signature(row.media))
            most = max(2, self.budget // max(len(rows[i].token_ids) for i in unit))
            # An oversized group is cut: each part then runs its prompt again.
            parts = [unit[at:at + most] for at in range(0, len(unit), most)]
            alike.setdefault(key, []).extend(parts)
        found: list[list[int]] = []
        for parts in alike.values():
            batch: list[int] = []
            for part in parts:
                # Copies of the cached prompt count too: they are what fills the memory.
                size = max(len(rows[i].token_ids) for i in batch + part) * len(batch + part)
                if batch and size > self.budget:
                    found.append(batch)
                    batch = []
                batch = batch + part
            found.append(batch)
        return found

    def forward(self, rows: Sequence[Row], entropy: bool = False
                ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Rows of equal prompt length through the shared path, with gradients as in plain."""
        prompt = rows[0].prompt
        contexts: dict[Any, int] = {}
        owner = [contexts.setdefault(_prompt_key(row), len(contexts)) for row in rows]
        firsts = [rows[owner.index(c)] for c in range(len(contexts))]
        # Plain layers keep every key, so sliding windows are masks and stay exact with gradients.
        cache = DynamicCache()
        inputs = self.reader.inputs([
            (row.token_ids[:prompt], row.media) for row in firsts])
        out = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        mrope, device = mrope_offsets(self.model), out.logits.device
        owner_N = torch.tensor(owner, device=device)
        ids_NR, trained_NR = _answers(rows, prompt, device)
        temperature_N = torch.tensor([row.temperature for row in rows], device=device)
        kept = [self._logps(out.logits[:, -1].index_select(0, owner_N), ids_NR[:, 0],
                            temperature_N, entropy)]
        where_M = torch.zeros(0, dtype=torch.long, device=device)
        if ids_NR.shape[1] > 1:
            select(cache, owner_N)
            positions = after(prompt, ids_NR.shape[1] - 1, owner_N, mrope)
            logits_NRV = self.model(
                input_ids=ids_NR[:, :-1], position_ids=positions, past_key_values=cache,
                use_cache=True).logits
            later_NR = trained_NR[:, 1:]
            where_M = later_NR.nonzero()[:, 0]
            kept.append(self._logps(logits_NRV[later_NR], ids_NR[:, 1:][later_NR],
                                    temperature_N[where_M], entropy))
        return (_by_row([k[0] for k in kept], trained_NR),
                _by_row([k[1] for k in kept], trained_NR) if entropy else None)

    def _logps(self, logits_MV: Any, ids_M: Any, temperature_M: Any, entropy: bool) -> Any:
        return token_logps(logits_MV, ids_M, temperature_M, self.banned_V, entropy)

    def check(self, rows: Sequence[Row]) -> float:
        """Compare with the plain path once; on a difference fall back, loudly. Returns it."""
        self.checked = True
        worst = float("inf")
        try:
            with torch.no_grad():
                shared, _ = self.forward(rows)
                plain, _ = self.plain(rows)
            gap_N = (torch.cat(shared) - torch.cat(plain)).abs()
            worst = float(gap_N.max()) if len(gap_N) else 0.0
            limit = TOLERANCE.get(next(self.model.parameters()).dtype, 0.1)
            if not worst <= limit:  # also true for NaN
                self.why_not = f"log-probs differ from the plain path by {worst:.3g} > {limit:g}"
        except Exception as error:  # any failure here has a correct answer: the plain path
            self.why_not = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if self.why_not:
            warnings.warn(f"shared prefix off for {type(self.model).__name__}: {self.why_not}; "
                          "training uses the plain path, which is slower", stacklevel=2)
        return worst


def unsupported(model: Any) -> str:
    """Why a model's state after the prompt is more than keys and values; "" if it is not."""
    text = model.config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ()) - _ATTENTION
    if kinds:
        return f"layers of kind {', '.join(sorted(kinds))} keep other state than keys and values"
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder models have no shared prefix"
    return ""


def _checkpointing(model: Any) -> bool:
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):  # new name, old name
        if hasattr(type(model), name):
            return bool(getattr(model, name))
    return False


def select(cache: Any, owner_N: torch.Tensor) -> None:
    """Row n of the cache becomes its former row owner_N[n]; differentiable."""
    for layer in cache.layers:
        if type(layer).__name__ != "DynamicLayer":
            raise NotImplementedError(f"cache layer {type(layer).__name__}")
        if layer.is_initialized:
            layer.keys = layer.keys.index_select(0, owner_N)
            layer.values = layer.values.index_select(0, owner_N)


def mrope_offsets(model: Any) -> tuple[bool, torch.Tensor | None]:
    """(whether positions are three-dimensional, offsets [C, 1] noted in the last prefill).

    M-RoPE models keep each prompt's offset as hidden state in `rope_deltas`; it is read right
    after the prompt's forward pass and never left to the model to guess from.
    """
    keeper = next((m for m in model.modules() if hasattr(m, "rope_deltas")), None)
    return keeper is not None, keeper.rope_deltas if keeper is not None else None


def after(start: int, count: int, owner_N: torch.Tensor,
          mrope: tuple[bool, torch.Tensor | None]) -> torch.Tensor:
    """Position ids [N, R] of `count` tokens after `start` prompt tokens; [3, N, R] for M-RoPE."""
    positions_R = torch.arange(start, start + count, device=owner_N.device)
    positions_NR = positions_R.expand(len(owner_N), count)
    three, offsets = mrope
    if not three:
        return positions_NR
    if offsets is not None:
        positions_NR = positions_NR + offsets.to(owner_N.device)[owner_N].view(-1, 1)
    return positions_NR.expand(3, *positions_NR.shape)


def _prompt_key(row: Row) -> Any:
    return row.token_ids[:row.prompt], tuple(m.identity for m in row.media)


def _answers(rows: Sequence[Row], prompt: int, device: Any
             ) -> tuple[torch.Tensor, torch.Tensor]:
    """Answer ids [N, R] padded right with zeros, and which are trained."""
    longest = max(len(row.token_ids) for row in rows) - prompt
    ids_NR = torch.zeros(len(rows), longest, dtype=torch.long)
    trained_NR = torch.zeros(len(rows), longest, dtype=torch.bool)
    for n, row in enumerate(rows):
        ids_NR[n, :len(row.token_ids) - prompt] = torch.tensor(row.token_ids[prompt:])
        trained_NR[n, :len(row.trained) - prompt] = torch.tensor(row.trained[prompt:])
    return ids_NR.to(device), trained_NR.to(device)


def _by_row(kept: list[torch.Tensor], trained_NR: torch.Tensor) -> list[torch.Tensor]:
    """First tokens' values [N] and later ones' values (row-major) as one tensor a row."""
    full_NR = torch.zeros(trained_NR.shape, dtype=kept[0].dtype, device=trained_NR.device)
    first = torch.cat([kept[0][:, None], full_NR[:, 1:]], 1)
    if len(kept) > 1:
        later_NR = trained_NR.clone()
        later_NR[:, 0] = False
        first = first.masked_scatter(later_NR, kept[1])
    return list(torch.split(first[trained_NR], trained_NR.sum(1).tolist()))
