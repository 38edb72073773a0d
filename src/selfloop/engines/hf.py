"""Any Hugging Face vision-language model as an engine: generate, score, learn, save.

The optimizer and the published versions come from `Learner`; this file is the policy side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from selfloop.engines import hf_adapters, hf_roles, hf_save, hf_size, tokens
from selfloop.engines.attempting import Attempting, sayable
from selfloop.engines.feature_store import FeatureStore
from selfloop.engines.hf_decode import Job, Sampler
from selfloop.engines.hf_features import Features
from selfloop.engines.hf_guided import guides
from selfloop.engines.hf_hiding import cannot_hide
from selfloop.engines.hf_jobs import turn
from selfloop.engines.hf_load import LoRA, load
from selfloop.engines.hf_prompt import Prompts
from selfloop.engines.precision import computing, differentiable, must_mix
from selfloop.optimize.checkpointing import enable
from selfloop.optimize.learner import Learner
from selfloop.optimize.memory import fitting
from selfloop.optimize.parts import frozen_parts, parts_of
from selfloop.optimize.prefix import Shared
from selfloop.optimize.rows import Row, Weight, rows_of
from selfloop.roles import Request, SelfloopError
from selfloop.types import Branch, Context, Media, Turn

__all__ = ["FeatureStore", "HFEngine", "LoRA"]


class HFEngine(Attempting, Learner):
    """A local model folder (or hub id) that draws, scores and learns.

    `dtype`: float32, bfloat16, float16, float64, or auto (as saved). `compute`: bfloat16 for mixed
    precision over float32 weights (precision.py). `device`: auto, cpu, cuda. `freeze`: some of
    "vision", "projector", "language"; or `learn`: all not frozen. With `lora`, only adapters learn.
    `max_batch_tokens` bounds prompt and answer tokens of one forward pass. `checkpointing`
    recomputes layers in the backward pass: less memory for about a third more time. `features`
    keeps picture features where the vision side is frozen (a `FeatureStore`, or True for 1 GiB of
    memory; engine.features counts). Remote code is never run.

    Raises SelfloopError, in one line, for a folder that is not such a model.
    """

    supports = frozenset({"images", "forced_prefix", "stop", "history", "learn", "contrast",
                          "diversity"})
    """With "masked_attention" where attention is all that carries pictures (`cannot_hide`)."""

    def __init__(self, model: str | Path, *, lora: LoRA | None = None, dtype: str = "float32",
                 device: str = "auto", threads: int | None = None, max_batch_tokens: int = 32768,
                 freeze: tuple[str, ...] = (), learn: tuple[str, ...] = (),
                 compute: str | None = None, checkpointing: bool = False,
                 features: FeatureStore | bool = True,
                 sharded: Callable[[Any, str], Any] | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.name = str(model)
        self.compute, self.frozen = must_mix(compute, dtype), frozen_parts(freeze, learn)
        self.loaded = load(model, lora=lora, dtype=dtype, freeze=self.frozen,
                           device=device if sharded is None else "cpu")
        self.steps = sharded and sharded(self.loaded.model, device)
        self.lora, self.max_batch_tokens = lora, max_batch_tokens
        self.others: dict[str, HFEngine] = {}
        """Engines with adapters of their own on this base model (`beside`)."""
        self.model, self.processor = self.loaded.model, self.loaded.processor
        if checkpointing:
            enable(self.model)
        self._wire(max_batch_tokens)
        store = FeatureStore() if features is True else features or None
        self.features = self.prompts.features = Features(
            self.model, self.processor, self.prompts.placed_pixels, store)
        super().__init__(self, tokens_per_batch=max_batch_tokens)

    def _wire(self, budget: int) -> None:
        """Token rules, prompts, the sampler and the scorer, all over one mask of banned tokens."""
        net, text = self.model, self.model.config.get_text_config(decoder=True)
        generation = net.generation_config
        width = net.get_output_embeddings().weight.shape[0]
        self.cannot_hide = cannot_hide(net)
        if not self.cannot_hide:
            self.supports = self.supports | {"masked_attention"}
        self.never = tokens.suppressed(net.config, self.processor, width, generation)
        """Token id -> why it is never sampled."""
        ends = tokens.ends(self.processor.tokenizer, generation)
        first, self.limit = next(net.parameters()), hf_size.positions(text)
        self.prompts = Prompts(
            self.processor, placeholders=tokens.placeholders(self.never), limit=self.limit,
            device=first.device, ends=ends, dtype=net.dtype)
        ends |= {self.prompts.chat.end[-1]}
        self.prompts.chat.ends = ends
        self.never = {token: why for token, why in self.never.items() if token not in ends}
        self.banned_V = banned_V = torch.zeros(width, dtype=torch.bool, device=first.device)
        banned_V[sorted(self.never)] = True
        self.sampler = Sampler(net, self.prompts, banned_V, ends, self.decode, budget)
        self.scorer = Shared(net, self.prompts, banned_V, budget)
        self.scorer.vision = self._vision_tokens

    # -- text and pictures ------------------------------------------------------------------

    def bind(self, open_media: Callable[..., Any]) -> None:
        """Give the engine the reader that turns a Media into a PIL RGB picture."""
        self.prompts.open_media = open_media

    def render(self, context: Context) -> tuple[tuple[int, ...], tuple[Media, ...]]:
        """Prompt ids, placeholders expanded, and the pictures in order. Never truncated."""
        return self.prompts.render(context)

    def encode(self, text: str) -> tuple[int, ...]:
        """An answer's ids with the chat template's end of turn. Refuses placeholders in it."""
        return sayable(text, self.prompts.chat.encode(text), self.never, self.prompts.chat)

    def forced(self, prefix: str) -> tuple[int, ...]:
        """Ids of the text that an answer begins with. Raises Unsayable, also for an end within."""
        ids = self.prompts.chat.encode(prefix, closed=False) if prefix else ()
        return sayable(prefix, ids, self.never, self.prompts.chat, self.prompts.chat.ends)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Drawn tokens as text, without special tokens."""
        return str(self.processor.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # -- drawing ----------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], version: int) -> list[list[Turn]]:
        """n turns for each request, drawn by exactly `version`; SelfloopError if it is gone.

        Forced prefix tokens come first, with loss_mask 0 and log-prob 0.0. Answers are cut
        ("length") where the model's positions end.
        """
        with self._running(), self.at_version(version):
            mine = self.team.share(requests, [r.n * r.sampling.max_new_tokens for r in requests])
            jobs = [self._job(request) for request in mine]
            drawn = fitting(lambda: self.team.looking(lambda: self.sampler.draw(jobs)),
                            lambda why: self.sampler.smaller(why, jobs))
        return self.team.joined([[turn(job, d) for d in row]
                                 for job, row in zip(jobs, drawn, strict=True)])

    def _job(self, request: Request) -> Job:
        prompt, media = self.prompts.extend(request.context, request.history) \
            if request.history else self.prompts.render(request.context)
        forced = self.forced(request.sampling.prefix)
        length = len(prompt) + len(forced)
        self.prompts.check_length(length, len(media))
        if request.sampling.hidden and self.cannot_hide:
            raise SelfloopError(f"Sampling(hidden=...): {self.name} cannot hide its pictures from "
                                f"text ({self.cannot_hide}); use Sampling(contrast=...)")
        blind, other = guides(self.prompts, request, prompt, forced)
        length = max(length, len(other.ids) if other else 0)
        room = self.limit - length if self.limit is not None else request.sampling.max_new_tokens
        return Job(prompt, media, forced, request.key, request.n, request.sampling, room, blind,
                   other)

    # -- scoring and learning (the Policy of optimize/batch.py) -------------------------------

    def rows(self, branch: Branch) -> list[Row]:
        """The branch as token sequences; drawn tokens are kept, texts are tokenised."""
        return rows_of(branch, self.render, self.encode)

    def logps(self, rows: list[Row], *, entropy: bool = False
              ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """For each row its trained tokens' log-probs [count], as the sampler defines them.

        float32 (float64 for a float64 model), with graph when grad is enabled; entropies in nats.
        Prompts shared by several rows are run once where that is exact (`training_path`).
        """
        for row in rows:
            self.prompts.check_length(len(row.token_ids) - 1, len(row.media))
        with self._running():
            return self.scorer(rows, entropy=entropy)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Where the model runs: one thread at a time, under its own adapter, in `compute`."""
        with self.loaded.turn, differentiable(), computing(self.compute, self.banned_V.device):
            if self.loaded.peft is not None:
                hf_adapters.wear(self.loaded.peft, self.loaded.adapter)
            yield

    @property
    def training_path(self) -> str:
        """"shared prefix", or "plain: " and why."""
        return f"plain: {self.scorer.why_not}" if self.scorer.why_not else "shared prefix"

    def compare(self, rows: list[Row]) -> tuple[float, float]:
        """Both training paths on some rows of one prompt: (log-prob gap in nats, gradient gap).

        The gradient gap is relative to the gradients' norm. On too large a gap the engine takes
        the plain path from here on (`training_path` says why).
        """
        with self._running():
            return self.scorer.check(rows) if not self.scorer.why_not else (math.nan, math.nan)

    def prime(self, rows: Sequence[Row]) -> None:
        """Find out beforehand what any part of these rows would at first use."""
        with self._running():
            self.scorer.prime(rows)
            for way in (self.scorer, self.scorer.together):
                way.why_not = max(self.team.gathered(way.why_not))

    def weigh(self, row: Row) -> Weight:
        """What a row adds to a forward pass, in tokens; a shared prompt counts once."""
        return self.scorer.weigh(row)

    def _vision_tokens(self, media: tuple[Media, ...]) -> int:
        """Patches of these pictures, as language tokens that would keep as much for backward."""
        patch = hf_size.patch_of(self.model)
        if not patch or "vision" in self.frozen:
            return 0
        numbers = sum(t.numel() for t in self.prompts.pixels(media).values()
                      if t.is_floating_point())
        return hf_size.as_tokens(self.model, numbers / (3 * patch * patch))

    def trainable(self) -> dict[str, torch.Tensor]:
        """Name -> parameter that learns, in the model's own order (of adapters: this one's)."""
        if self.loaded.peft is None:
            return dict(self._learns)
        hf_adapters.wear(self.loaded.peft, self.loaded.adapter)
        return {hf_adapters.plain(n, self.loaded.adapter): p
                for n, p in self.model.named_parameters() if p.requires_grad}

    @cached_property
    def _learns(self) -> dict[str, torch.Tensor]:
        """Without adapters this never changes, and is asked for several times an update."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @cached_property
    def parts(self) -> dict[str, str]:
        """Name of a parameter that learns -> vision, projector or language."""
        return parts_of(self.model, self.trainable())

    def beside(self, adapter: str, lora: LoRA | None = None) -> HFEngine:
        """An engine on the same base model with an adapter of its own; see hf_roles.py."""
        return hf_roles.beside(self, adapter, lora)

    # -- files and accounts -----------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """A from_pretrained folder with its processor; with LoRA, the PEFT adapter folder."""
        with self.at_version(self.version):
            hf_save.save(self.loaded, Path(folder))

    def save_state(self, folder: Path) -> None:
        """The learner's state; with LoRA also the adapters' settings, for `selfloop export`."""
        super().save_state(folder)
        if self.loaded.peft is not None:
            hf_save.save_adapter_settings(self.loaded, Path(folder))

    def settled(self) -> dict[str, Any]:
        """The learner's, with the sampler's budget and which fast paths were found wanting."""
        return {**super().settled(), "tokens_per_draw": self.sampler.budget, "off": {
            name: part.why_not for name, part in self._fast() if part.why_not}}

    def settle(self, found: Mapping[str, Any]) -> None:
        """The inverse: a resumed run takes the paths that the uninterrupted one would take."""
        super().settle(found)
        if found.get("asked_per_batch") == self.asked_per_batch:
            self.sampler.budget = int(found.get("tokens_per_draw", self.sampler.budget))
        for name, part in self._fast():
            part.why_not = part.why_not or str(found.get("off", {}).get(name, ""))

    def _fast(self) -> list[tuple[str, Any]]:
        return [("training", self.scorer), ("training in one pass", self.scorer.together),
                ("sampling", self.sampler), ("guided sampling", self.sampler.guided),
                ("features", self.features)]

    def save_merged(self, folder: Path) -> None:
        """Full weights with the adapters merged in (the same as `save` without LoRA)."""
        with self.at_version(self.version):
            hf_save.save_merged(self.loaded, Path(folder))

    def flops(self, forward_tokens: int, trained_tokens: int) -> float:
        """2N a token read and 6N a token trained on (4N with LoRA: no weight gradients).

        N = parameters without the input embeddings (Kaplan et al. 2020, table 1); the vision
        tower's are counted as if every token passed it.
        """
        return self._size * (2.0 * forward_tokens + (4.0 if self.lora else 6.0) * trained_tokens)

    @cached_property
    def _size(self) -> int:
        return hf_size.size(self.model)

    def fingerprint(self) -> str:
        """Hash of weight files, configs, processor files, LoRA settings, dtypes and freezing."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hf_save.fingerprint(
            self.loaded, [str(self.lora), str(self.model.dtype), *self.frozen,
                          *([self.compute] if self.compute else [])])
