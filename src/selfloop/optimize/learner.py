"""The learner: signals and a loss in, gradients and AdamW steps out. It knows no method by name.

Each term of a loss is a sum over the micro-batch, divided once by the term's unit count over the
whole batch, so micro-batching cannot change the mathematics.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from selfloop.optimize.assemble import Update, chunks, gaps, micro_batches
from selfloop.optimize.batch import Batch, Policy
from selfloop.optimize.memory import fitting
from selfloop.optimize.monitors import Sums, added, watched
from selfloop.optimize.monitors import means as monitored
from selfloop.optimize.rows import Row
from selfloop.optimize.versions import Versions, contiguous
from selfloop.optimize.wide import alike, checked, widened
from selfloop.roles import Known, Loss, Optim, SelfloopError
from selfloop.types import AnySignal, Branch

_LEAST = 16
"""Tokens of a micro-batch below which it holds one signal, whatever its size."""


class Learner(Versions):
    """Holds the optimizer of one policy's trainable tensors, beside their versions."""

    def __init__(self, policy: Policy, *, tokens_per_batch: int = 16384) -> None:
        super().__init__(policy)
        self.tokens_per_batch = self.asked_per_batch = tokens_per_batch
        self._optimizer: torch.optim.AdamW | None = None
        self.states: dict[str, dict[str, float]] = {}
        """What losses carry from update to update, by their description."""
        self._decay: float | None = None
        """Of the averaged weights; None until a loss asks for them."""

    def restart(self) -> None:
        """Back to the seed: its weights as version 0, a fresh optimizer, nothing remembered."""
        self._forget()
        self.reset_optimizer()
        self.states, self._decay = {}, None

    # -- scoring ----------------------------------------------------------------------------

    def logprobs(self, branches: Sequence[Branch], version: int | str = "current", *,
                 others: Sequence[Sequence[Sequence[int]]] | None = None, top: int = 0
                 ) -> list[Any]:
        """Log-probs of each branch's trained tokens, rows concatenated: a list of floats a branch.

        With `others` (for each branch, each token, K ids) those tokens' log-probs, K a token; with
        `top` the (id, log-prob) of the so many likeliest tokens in place of each.
        """
        rows_of = [self.policy.rows(branch) for branch in branches]
        if others is not None or top:
            ids = others if others is not None else [None] * len(branches)
            rows_of = [widened(rows, mine, top) for rows, mine in zip(rows_of, ids, strict=True)]
        flat = alike([row for rows in rows_of for row in rows])
        with torch.no_grad(), self.at_version(version):
            most = sum(len(row.token_ids) for row in flat)
            found = fitting(lambda: self._scores(flat), lambda why: self._halve(why, most))
        scored = iter(found)
        each = [[x for _ in rows for x in next(scored)] for rows in rows_of]
        if top:
            return [[_likeliest(x, top) for x in tokens] for tokens in each]
        return each if others is None else [[x[1:] for x in tokens] for tokens in each]

    def _scores(self, rows: Sequence[Row]) -> list[list[Any]]:
        found: list[list[Any]] = []
        for chunk in chunks(rows, self.tokens_per_batch * 4):
            mine = [rows[i] for i in chunk]
            logps, _ = self.policy.logps(mine)
            checked(self.policy, mine, logps)
            found += [lp.tolist() for lp in logps]
        return found

    # -- learning ---------------------------------------------------------------------------

    def forward_backward(self, signals: Sequence[AnySignal], loss: Loss, known: Known
                         ) -> dict[str, float]:
        """Accumulate gradients of the loss over all signals; returns its terms and monitors.

        Where memory runs out, all of it again in micro-batches half as large. Where anything else
        goes wrong the gradients are what they were before.
        """
        before = {p: None if p.grad is None else p.grad.clone()
                  for p in self.policy.trainable().values()}
        asked = self.tokens_per_batch

        def back() -> None:
            for parameter, gradient in before.items():
                parameter.grad = None if gradient is None else gradient.clone()

        def smaller(why: str) -> None:
            back()
            self._halve(why, sum(
                len(row.token_ids) for s in signals for branch in s.branches.values()
                for row in self.policy.rows(branch)))

        try:
            found = fitting(lambda: self._forward_backward(signals, loss, known), smaller)
        except BaseException:  # an interruption, too: half of a batch must not be stepped on
            back()
            raise
        if self.tokens_per_batch < asked:
            warnings.warn(f"out of memory: micro-batches are cut from {asked} to "
                          f"{self.tokens_per_batch} tokens from here on", stacklevel=2)
        return found

    def _halve(self, why: str, most: int) -> None:
        if self.tokens_per_batch <= _LEAST:
            raise SelfloopError(
                f"out of memory on a single signal ({why}): use smaller pictures or shorter "
                "answers, checkpointing, LoRA or bfloat16")
        self.tokens_per_batch = min(self.tokens_per_batch, most) // 2

    def _forward_backward(self, signals: Sequence[AnySignal], loss: Loss, known: Known
                          ) -> dict[str, float]:
        update = Update.of(self.policy, signals, loss, known)
        units = loss.units(signals, update.tokens)
        chunks = micro_batches(self.policy, signals, update.rows, self.tokens_per_batch)
        state = self.states.get(_described(loss), {})
        whole = self._measured(update, chunks, state)
        weighed: dict[str, float] = {}
        means: dict[str, float] = {}
        gap: list[float] = []
        sums: Sums = {}
        for chunk in chunks:
            batch = update.batch(chunk, update.names(chunk), state, whole)
            terms = loss(batch)
            self._backward(sum(w * x / max(units[name], 1e-12)
                               for name, (w, x) in terms.items()), batch)
            for name, (w, x) in terms.items():
                share = float(x.detach()) / max(units[name], 1e-12)
                means[name] = means.get(name, 0.0) + share
                weighed[name] = weighed.get(name, 0.0) + w * share
            gap += gaps(batch)
            added(sums, watched(loss, batch))
        self._carry(loss, state, means, whole)
        every = [row for named in update.rows for rs in named.values() for row in rs]
        weighed["tokens_read"] = float(sum(len(row.token_ids) for row in every))
        weighed["tokens_trained"] = float(update.trained())
        return monitored(sums) | weighed | ({"sampler_gap": max(gap)} if gap else {})

    def _measured(self, update: Update, chunks: Sequence[list[int]], state: Mapping[str, float]
                  ) -> dict[str, torch.Tensor]:
        """The loss's statistics of the whole update, by a first pass without gradients."""
        loss: Any = update.loss
        whole: dict[str, torch.Tensor] = {}
        if "statistics" not in loss.needs:
            return whole
        for chunk in chunks:
            names = update.names(chunk, measuring=True)
            if not names:  # of signals that another part of a mixture reads
                continue
            with torch.no_grad():
                batch = update.batch(chunk, names, state, {},
                                     getattr(loss, "measures_policy", True))
                for name, found_B in loss.measure(batch).items():
                    whole.setdefault(name, found_B.new_full((len(update.signals),), torch.nan)
                                     )[chunk] = found_B
        return whole

    def _carry(self, loss: Any, state: Mapping[str, float], means: Mapping[str, float],
               whole: Mapping[str, torch.Tensor]) -> None:
        """What the loss remembers of this update; whether it wants averaged weights kept."""
        if hasattr(loss, "adapt"):
            self.states[_described(loss)] = loss.adapt(state, means, whole)
        self._decay = getattr(loss, "ema", None) or self._decay

    def _backward(self, total: Any, batch: Batch) -> None:
        if not torch.isfinite(total):
            samples = ", ".join(sorted({s.sample for s in batch.signals})[:8])
            raise SelfloopError(
                f"the loss became {float(total.detach())} on samples {samples}: nothing was "
                "stepped; lower Optim.lr or look at these samples with `selfloop show`")
        total.backward()

    def optim_step(self, optim: Optim, lr: float) -> dict[str, float]:
        """Clip, step, clear. Refuses to step on a gradient that is not finite."""
        parameters = list(self.policy.trainable().values())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, optim.clip))
        if norm != norm or norm == float("inf"):
            for parameter in parameters:  # clipping has spread it over all of them
                parameter.grad = None
            raise SelfloopError(
                f"the gradient norm became {norm}: nothing was stepped; lower Optim.lr ({lr:g})")
        optimizer = self._adamw(optim)
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = optim.weight_decay
            group["betas"] = optim.betas
        before = self._copy() if self._decay and not self._average else {}
        optimizer.step()
        if self._decay:
            self._average_in(self._decay, before)
        optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm}

    def _adamw(self, optim: Optim) -> torch.optim.AdamW:
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(
                list(self.policy.trainable().values()), lr=optim.lr, betas=optim.betas,
                weight_decay=optim.weight_decay, fused=True)
        return self._optimizer

    def reset_optimizer(self) -> None:
        """Forget the moments."""
        self._optimizer = None
        for parameter in self.policy.trainable().values():
            parameter.grad = None

    # -- state ------------------------------------------------------------------------------

    def settled(self) -> dict[str, Any]:
        """What running out of memory has decided: it decides in which order sums are taken."""
        return {"asked_per_batch": self.asked_per_batch, "tokens_per_batch": self.tokens_per_batch}

    def settle(self, found: Mapping[str, Any]) -> None:
        """The inverse of `settled`, where the same budget was asked for."""
        if found.get("asked_per_batch") == self.asked_per_batch:
            self.tokens_per_batch = int(found["tokens_per_batch"])

    def save_state(self, folder: Path) -> None:
        """Trainable weights, moments and published versions: safetensors and JSON only."""
        folder.mkdir(parents=True, exist_ok=True)
        about = self._save_weights(folder)
        moments: dict[str, torch.Tensor] = {}
        if self._optimizer is not None:
            for name, parameter in self.policy.trainable().items():
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    moments[f"{key}/{name}"] = value
        save_file(contiguous(moments), folder / "optimizer.safetensors")
        (folder / "learner.json").write_text(json.dumps(
            about | {"losses": self.states, "decay": self._decay} | self.settled()))

    def load_state(self, folder: Path) -> None:
        """The inverse of `save_state`, bit for bit."""
        about = json.loads((folder / "learner.json").read_text())
        self._load_weights(folder, about)
        self.states, self._decay = about.get("losses", {}), about.get("decay")
        self.settle(about)
        self.reset_optimizer()
        moments = load_file(folder / "optimizer.safetensors")
        if moments:
            state = self._adamw(Optim()).state
            for name, parameter in self.policy.trainable().items():
                state[parameter] = {
                    key: found.to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if (found := moments.get(f"{key}/{name}")) is not None}


def _likeliest(columns: Sequence[float], top: int) -> list[tuple[int, float]]:
    """(id, log-prob) of the likeliest tokens, from what `rows.Wide` gives for one place."""
    logps, ids = columns[1:1 + top], columns[1 + top:1 + 2 * top]
    if logps[-1] == -float("inf"):
        raise SelfloopError(f"top={top}: fewer tokens can be drawn at all; ask for less")
    return [(int(i), lp) for i, lp in zip(ids, logps, strict=True)]


def _described(loss: Loss) -> str:
    """A loss's repr without addresses, which change from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(loss))
