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

from selfloop.optimize import sharding
from selfloop.optimize.again import Pass
from selfloop.optimize.assemble import Update, chunks, gaps, micro_batches
from selfloop.optimize.batch import Policy
from selfloop.optimize.divergence import Guard, not_a_loss
from selfloop.optimize.found import Found
from selfloop.optimize.memory import fitting
from selfloop.optimize.monitors import added, gradient_norms, watched
from selfloop.optimize.processes import Team
from selfloop.optimize.rows import Row
from selfloop.optimize.versions import Versions, contiguous
from selfloop.optimize.wide import alike, as_lists, checked, likeliest, widened
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
        """Of the averaged weights; None until a loss or Optim.ema asks for them."""
        self.guard = Guard()
        self.team = Team()  # the processes that share the work: this one alone

    def restart(self) -> None:
        """Back to the seed: its weights as version 0, a fresh optimizer, nothing remembered."""
        self._forget()
        self.reset_optimizer()
        self.states, self._decay = {}, None
        self.guard.forget()

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
            self.team.prime(self.policy, flat)
            mine = self.team.share(flat, [len(row.token_ids) for row in flat])
            found = fitting(lambda: self.team.looking(lambda: self._scores(mine)),
                            lambda why: self._halve(why, most))
        scored = iter(self.team.joined(found))
        each = [[x for _ in rows for x in next(scored)] for rows in rows_of]
        if top:
            return [[likeliest(x, top) for x in tokens] for tokens in each]
        return each if others is None else [[x[1:] for x in tokens] for tokens in each]

    def _scores(self, rows: Sequence[Row]) -> list[list[Any]]:
        found: list[list[Any]] = []
        for chunk in chunks(rows, self.tokens_per_batch * 4):
            mine = [rows[i] for i in chunk]
            logps, _ = self.policy.logps(mine)
            checked(self.policy, mine, logps)
            found += as_lists(logps)
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
        chunks = self._chunks(update)
        state = self.states.get(_described(loss), {})
        whole = self.team.merged(self.team.looking(lambda: self._measured(update, chunks, state)))
        done = Pass(update, chunks, units, state, whole)
        kept = self.team.set_aside(self.policy.trainable())
        mine = self.team.agreed(lambda: self._learned(done, loss))
        self.team.add_up(self.policy.trainable(), kept)
        found = Found.of(self.team.gathered(mine))
        self._carry(loss, state, found.means, whole)
        self.guard.saw(_described(loss), done, sum(found.weighed.values()))
        every = [row for named in update.rows for rs in named.values() for row in rs]
        return {**found.figures(), "tokens_read": float(sum(len(row.token_ids) for row in every)),
                "tokens_trained": float(update.trained())}

    def _chunks(self, update: Update) -> list[list[int]]:
        """This process's micro-batches, as indices of signals."""
        def plan(index: Sequence[int], budget: float) -> list[list[int]]:
            planned = micro_batches(self.policy, [update.signals[i] for i in index],
                                    [update.rows[i] for i in index], budget)
            return [[index[i] for i in chunk] for chunk in planned]

        rows_of = [[row for rows in named.values() for row in rows] for named in update.rows]
        self.team.prime(self.policy, [row for rows in rows_of for row in rows])
        return self.team.share_of_update(plan, [sum(len(row.token_ids) for row in rows)
                                                for rows in rows_of], self.tokens_per_batch)

    def _learned(self, done: Pass, loss: Loss) -> Found:
        """Gradients of this process's micro-batches, and what was seen in them."""
        found = Found()

        def total(chunk: Sequence[int]) -> Any:
            batch = done.batch(chunk)
            terms = loss(batch)
            value = done.total(terms)
            if not torch.isfinite(value):
                raise not_a_loss(done, batch, float(value.detach()))
            for name, (w, x) in terms.items():
                found.term(name, w, float(done.share(name, x.detach())))
            found.gaps += gaps(batch)
            added(found.sums, watched(loss, batch))
            return value

        for chunk in self.team.rounds(done.chunks):
            self.team.differentiate(total, chunk)
        return found

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

    def optim_step(self, optim: Optim, lr: float) -> dict[str, float]:
        """Clip, step, clear. Refuses an update that divergence.Guard does not let pass."""
        parameters = list(self.policy.trainable().values())
        total, norms = gradient_norms(self.policy.trainable(), self._parts())
        divisor = sharding.clip(parameters, optim.clip, total)
        try:
            self.guard.check(float(total), optim, lr)
        except SelfloopError:
            for parameter in parameters:  # clipping may have spread it over all of them
                parameter.grad = None
            raise
        self._decay = optim.ema or self._decay
        optimizer: Any = self._adamw(optim)
        optimizer.grad_scale = divisor  # where GradScaler puts its own
        for group in optimizer.param_groups:
            group.update(lr=lr, weight_decay=optim.weight_decay, betas=optim.betas)
        before = self._copy() if self._decay and not self._average else {}
        optimizer.step()
        if self._decay:
            self._average_in(self._decay, before)
        for parameter in parameters:  # as zero_grad does, which looks at each in many ways
            parameter.grad = None
        self.serves_average = optim.publish == "ema"
        return {"grad_norm": float(total), **norms}

    def _parts(self) -> Mapping[str, str]:
        """Parameter -> part of the model, where the policy tells them apart."""
        told: Mapping[str, str] = getattr(self.policy, "parts", {})
        return told

    def _adamw(self, optim: Optim) -> torch.optim.AdamW:
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(
                sharding.groups(self.policy.trainable().values()), lr=optim.lr, betas=optim.betas,
                weight_decay=optim.weight_decay, fused=True)
        return self._optimizer

    def reset_optimizer(self) -> None:
        """Forget the moments."""
        self._optimizer = None
        self.guard.forget(bands=False)
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
            about | {"losses": self.states, "decay": self._decay,
                     "bands": self.guard.state()} | self.settled()))

    def load_state(self, folder: Path) -> None:
        """The inverse of `save_state`, bit for bit."""
        about = json.loads((folder / "learner.json").read_text())
        self._load_weights(folder, about)
        self.states, self._decay = about.get("losses", {}), about.get("decay")
        self.guard.load(about.get("bands", {}))
        self.settle(about)
        self.reset_optimizer()
        moments = load_file(folder / "optimizer.safetensors")
        if moments:
            state = self._adamw(Optim()).state
            for name, parameter in self.policy.trainable().items():
                state[parameter] = {
                    key: sharding.like(found, parameter)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if (found := moments.get(f"{key}/{name}")) is not None}


def _described(loss: Loss) -> str:
    """A loss's repr without addresses, which change from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(loss))
