"""The learner: signals and a loss in, gradients and AdamW steps out. It knows no method by name.

Each term of a loss is a sum over the micro-batch, divided once by the term's unit count over the
whole batch, so micro-batching cannot change the mathematics.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from selfloop.optimize.assemble import advantages, chunks, gaps, micro_batches, scored
from selfloop.optimize.batch import Batch, Policy, Scored
from selfloop.optimize.memory import fitting
from selfloop.optimize.rows import Row
from selfloop.roles import Known, Loss, Optim, SelfloopError
from selfloop.types import AnySignal, Branch, Pair

_LEAST = 16
"""Tokens of a micro-batch below which it holds one signal, whatever its size."""


class Learner:
    """Holds the optimizer and the published versions of one policy's trainable tensors."""

    def __init__(self, policy: Policy, *, tokens_per_batch: int = 16384) -> None:
        self.policy = policy
        self.tokens_per_batch = self.asked_per_batch = tokens_per_batch
        self.version = 0
        self._optimizer: torch.optim.AdamW | None = None
        self._seed = self._copy()
        self._published: dict[int, dict[str, torch.Tensor]] = {}

    # -- versions ---------------------------------------------------------------------------

    def _copy(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.policy.trainable().items()}

    def _put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.policy.trainable().items():
                parameter.copy_(tensors[name])

    def publish(self, version: int, keep: int) -> None:
        """Name the current weights; with keep > 0 older versions stay for sampling."""
        if keep > 0 and self.version != version and self.version not in self._published:
            raise SelfloopError(
                f"version {self.version} was overwritten before {version} was published")
        self.version = version
        if keep > 0:
            self._published[version] = self._copy()
            for old in [v for v in self._published if v < version - keep]:
                del self._published[old]

    @contextmanager
    def at_version(self, version: int | str) -> Iterator[None]:
        """Run with another version's weights: "current", "seed" or a published number."""
        if version == "current" or version == self.version:
            yield
            return
        tensors = self._seed if version == "seed" else self._published.get(int(version))
        if tensors is None:
            raise SelfloopError(
                f"asked for policy version {version}, but the engine holds {self.version}"
                f"{' and ' + str(sorted(self._published)) if self._published else ''}"
            )
        now = self._copy()
        self._put(tensors)
        try:
            yield
        finally:
            self._put(now)

    def restart(self) -> None:
        """Back to the seed: its weights as version 0, a fresh optimizer, nothing else published."""
        self._put(self._seed)
        self.reset_optimizer()
        self.version, self._published = 0, {}

    # -- scoring ----------------------------------------------------------------------------

    def logprobs(self, branches: Sequence[Branch], version: int | str = "current"
                 ) -> list[list[float]]:
        """Log-probs of each branch's trained tokens, rows concatenated."""
        rows_of = [self.policy.rows(branch) for branch in branches]
        flat = [row for rows in rows_of for row in rows]
        with torch.no_grad(), self.at_version(version):
            most = sum(len(row.token_ids) for row in flat)
            found = fitting(lambda: self._scores(flat), lambda why: self._halve(why, most))
        scored = iter(found)
        return [[x for _ in rows for x in next(scored)] for rows in rows_of]

    def _scores(self, rows: Sequence[Row]) -> list[list[float]]:
        found: list[list[float]] = []
        for chunk in chunks(rows, self.tokens_per_batch * 4):
            logps, _ = self.policy.logps([rows[i] for i in chunk])
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
        rows = [{name: self.policy.rows(branch) for name, branch in s.branches.items()
                 if not (s.kind == "distill" and name == "teacher")} for s in signals]
        refused = next((s for s in signals if not loss.accepts(s)), None)
        if refused is not None:
            raise SelfloopError(
                f"loss {type(loss).__name__} cannot read a {refused.kind} with branches "
                f"{sorted(refused.branches)} (sample {refused.sample})")
        names = sorted({name for r in rows for name in r})
        tokens = {n: [sum(x.count for x in r.get(n, ())) for r in rows] for n in names}
        units = loss.units(signals, tokens)
        totals: dict[str, float] = {}
        gap: list[float] = []
        for chunk in micro_batches(self.policy, signals, rows, self.tokens_per_batch):
            batch = self._batch([signals[i] for i in chunk], [rows[i] for i in chunk], chunk,
                                loss, known)
            terms = loss(batch)
            total = sum(w * x / max(units[name], 1e-12) for name, (w, x) in terms.items())
            self._backward(total, batch)
            for name, (w, x) in terms.items():
                share = w * float(x.detach()) / max(units[name], 1e-12)
                totals[name] = totals.get(name, 0.0) + share
            gap += gaps(batch)
        every = [row for named in rows for rs in named.values() for row in rs]
        totals["tokens_read"] = float(sum(len(row.token_ids) for row in every))
        totals["tokens_trained"] = float(sum(row.count for row in every))
        if gap:
            totals["sampler_gap"] = max(gap)
        return totals

    def _backward(self, total: Any, batch: Batch) -> None:
        if not torch.isfinite(total):
            samples = ", ".join(sorted({s.sample for s in batch.signals})[:8])
            raise SelfloopError(
                f"the loss became {float(total.detach())} on samples {samples}: nothing was "
                "stepped; lower Optim.lr or look at these samples with `selfloop show`")
        total.backward()

    def _batch(self, signals: list[AnySignal], rows: list[dict[str, list[Row]]], index: list[int],
               loss: Loss, known: Known) -> Batch:
        names = sorted(rows[0])
        flat = [row for n in names for r in rows for row in r[n]]
        logps, entropies = self.policy.logps(flat, entropy="entropy" in loss.needs)
        at = 0
        branches: dict[str, Scored] = {}
        for name in names:
            parts: list[Any] = []
            entropy: list[Any] = []
            for r in rows:
                upto = at + len(r[name])
                parts.append(torch.cat(logps[at:upto]))
                if entropies is not None:
                    entropy.append(torch.cat(entropies[at:upto]))
                at = upto
            branches[name] = scored(name, parts, entropy, [r[name] for r in rows], index, known)
        answer = branches.get("answer")
        like = {"dtype": logps[0].dtype, "device": logps[0].device}
        return Batch(
            tuple(signals), branches, torch.tensor([s.weight for s in signals], **like),
            advantages(signals, answer) if answer is not None else None,
            torch.tensor([s.margin if isinstance(s, Pair) else 0.0 for s in signals], **like),
        )

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
        optimizer.step()
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
        save_file(_contiguous(self._copy()), folder / "trainable.safetensors")
        for version, tensors in self._published.items():
            save_file(_contiguous(tensors), folder / f"published-{version}.safetensors")
        moments: dict[str, torch.Tensor] = {}
        if self._optimizer is not None:
            for name, parameter in self.policy.trainable().items():
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    moments[f"{key}/{name}"] = value
        save_file(_contiguous(moments), folder / "optimizer.safetensors")
        (folder / "learner.json").write_text(json.dumps(
            {"version": self.version, "published": sorted(self._published), **self.settled()}))

    def load_state(self, folder: Path) -> None:
        """The inverse of `save_state`, bit for bit."""
        about = json.loads((folder / "learner.json").read_text())
        self._put(load_file(folder / "trainable.safetensors"))
        self.version = about["version"]
        self._published = {
            v: load_file(folder / f"published-{v}.safetensors") for v in about["published"]}
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


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies that share no storage, as safetensors asks."""
    return {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
