"""TRL's side: its GRPO and DPO trainers, with what only costs time switched off.

Off: logging, progress bars, saving, data-loader workers, W&B and kin, and the Trainer's own loop
(steps are called directly). The batch holds the whole group. Optimizer: the trainers' own default.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.grid import Point
from bench.models import images_only
from bench.questions import Question
from bench.trl_head import put_lean_head
from bench.work import LEARNING_RATE, Choice, Group, reward


def _settings(out: Path, checkpointing: bool, device: str, dtype: str) -> dict[str, Any]:
    low = device == "cuda" and dtype == "bfloat16"
    return {
        "output_dir": str(out), "gradient_checkpointing": checkpointing, "bf16": low,
        "use_cpu": device == "cpu", "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
        "adam_beta2": 0.95, "max_grad_norm": 1.0, "report_to": "none", "save_strategy": "no",
        "logging_strategy": "no", "disable_tqdm": True, "dataloader_num_workers": 0,
        "gradient_accumulation_steps": 1, "max_steps": 1000, "seed": 0,
    }


class _Trained:
    """What both trainers share: one optimizer step, seed weights, gradients."""

    name = "TRL"
    trainer: Any

    def _prepare(self, lean: bool) -> None:
        if self.trainer.args.gradient_checkpointing:  # the Trainer's loop would do it
            self.trainer.model.activation_checkpointing_enable()
        self.trainer.create_optimizer_and_scheduler(1000)
        self.model = self.trainer.model
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.model_wrapped = self.model
        self.seed = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        if lean:
            put_lean_head(self.model)
        self.model.train()

    def restart(self) -> None:
        """Seed weights, fresh optimizer."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.seed[name])
        self.model.zero_grad(set_to_none=True)
        self.trainer.optimizer.state.clear()

    def loss(self, batch: dict[str, Any]) -> float:
        """Loss, with gradients added to the weights."""
        self.model.train()
        found = self.trainer.compute_loss(self.model, batch)
        self.trainer.accelerator.backward(found)
        return float(found.detach())

    def step_optimizer(self) -> None:
        """Clip, AdamW, clear."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradients by the parameter's name in the model; they are cleared."""
        found = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return found

    def update(self, batch: dict[str, Any]) -> Callable[[], None]:
        """The work of one update on a ready batch."""
        def work() -> None:
            self.loss(batch)
            self.step_optimizer()
        return work


class Grpo(_Trained):
    """GRPOTrainer: beta 0 (no reference), DAPO's token mean, which is our default too."""

    def __init__(self, folder: Path, out: Path, point: Point, *, checkpointing: bool,
                 never: Sequence[int], device: str = "cpu", dtype: str = "float32",
                 lean: bool = True, **more: Any) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        model, processor = _load(folder, device, dtype)
        args = GRPOConfig(
            per_device_train_batch_size=point.group, num_generations=point.group,
            steps_per_generation=1, max_completion_length=point.answer, beta=0.0,
            temperature=1.0, shuffle_dataset=False,
            generation_kwargs={"suppress_tokens": list(never)},
            **_settings(out, checkpointing, device, dtype), **more)

        def spread(completions: list[Any], **_: Any) -> list[float]:
            return [reward(c[0]["content"]) for c in completions]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trainer = GRPOTrainer(
                model, reward_funcs=spread, args=args, processing_class=processor,
                train_dataset=Dataset.from_list([{"prompt": "never read"}]))
        self._prepare(lean)
        self.group = point.group

    def batch(self, work: Group) -> dict[str, Any]:
        """The group as `_compute_loss` reads it, pixels ready, one copy an answer (TRL's way)."""
        count, device = len(work.answers), self.trainer.accelerator.device
        pixels = _pixels(self.trainer.processing_class, work.question, count, work.prompt_ids)
        prompt = torch.tensor([work.prompt_ids] * count)
        answers = torch.tensor(work.answers)
        found = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt),
                 "completion_ids": answers, "completion_mask": torch.ones_like(answers),
                 "advantages": torch.tensor(work.advantages),
                 "num_items_in_batch": torch.tensor(float(answers.numel())), **pixels}
        for kinds in {"mm_token_type_ids", "token_type_ids"} & found.keys():
            found[kinds] = torch.cat([found[kinds], torch.zeros_like(answers)], 1)
        placed = {name: value.to(device) for name, value in found.items()}
        placed["num_images"] = [len(work.question.pictures)] * count
        now = self.logps(placed)
        placed["old_per_token_logps"] = (now + torch.tensor(work.noise, dtype=now.dtype)).to(device)
        return placed

    @torch.no_grad()
    def logps(self, batch: dict[str, Any]) -> torch.Tensor:
        """[answers, tokens], under the current weights."""
        names = ("pixel_values", "image_grid_thw", "mm_token_type_ids", "token_type_ids",
                 "num_images")
        found, _, _ = self.trainer._get_per_token_logps_and_entropies(
            self.model, torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            batch["completion_ids"].shape[1], **{n: batch[n] for n in names if n in batch})
        return found.cpu()

    def step(self, question: Question) -> None:
        """Generate, reward, loss, backward, optimizer: `training_step` and one AdamW step."""
        rows = [dict(question.row) for _ in range(self.group)]
        self.trainer.training_step(self.model, rows, None)
        self.step_optimizer()
        self.trainer.state.global_step += 1


class Dpo(_Trained):
    """DPOTrainer with a separate reference model (its way for full weights)."""

    def __init__(self, folder: Path, out: Path, work: Choice, *, checkpointing: bool,
                 device: str = "cpu", dtype: str = "float32", lean: bool = True) -> None:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        model, processor = _load(folder, device, dtype)
        args = DPOConfig(per_device_train_batch_size=1, beta=0.1, max_length=None,
                         **_settings(out, checkpointing, device, dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trainer = DPOTrainer(
                model, args=args, processing_class=processor,
                train_dataset=Dataset.from_list([_pair(work)]))
        self._prepare(lean)
        if lean:
            put_lean_head(self.trainer.ref_model)

    def collate(self, work: Choice) -> dict[str, Any]:
        """Tokens and pixels of the pair, by TRL's own collator."""
        device = self.trainer.accelerator.device
        batch = self.trainer.data_collator([_pair(work)])
        return {name: value.to(device) for name, value in batch.items()}

    def with_reference(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the reference's log-probs, which the loss then does not compute."""
        self.trainer.precompute_ref_logps = True
        chosen, rejected = self.trainer.compute_ref_log_probs(self.trainer.ref_model, batch)
        return {**batch, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def step(self, work: Choice) -> None:
        """Collate, score the reference, loss, backward, optimizer."""
        self.trainer.precompute_ref_logps = False
        self.loss(self.collate(work))
        self.step_optimizer()


def _pair(work: Choice) -> dict[str, Any]:
    """A row of TRL's preference data."""
    return {**work.question.row, "chosen": [{"role": "assistant", "content": work.chosen}],
            "rejected": [{"role": "assistant", "content": work.rejected}]}


def _load(folder: Path, device: str, dtype: str) -> tuple[Any, Any]:
    """Model and processor, as TRL loads them (eager images, left padding)."""
    images_only()
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, dtype)).to(device)
    processor = transformers.AutoProcessor.from_pretrained(folder, padding_side="left")
    return model, processor


def _pixels(processor: Any, question: Question, count: int, expected: list[int]) -> dict[str, Any]:
    text = processor.apply_chat_template(question.messages, add_generation_prompt=True)
    out = dict(processor(text=[text] * count, images=[list(question.pictures)] * count,
                         return_tensors="pt"))
    if out.pop("input_ids")[0].tolist() != expected:
        raise AssertionError("TRL's prompt differs from ours")
    out.pop("attention_mask")
    return out
