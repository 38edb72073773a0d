"""One task = one section at one point; it is made ready for each side in the same way."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import transformers

from bench import models, work
from bench.generate_peer import Generate
from bench.grid import Point
from bench.ours import Ours
from bench.questions import Question, ask, layout

SECTIONS = ("update", "dpo", "dpo-step", "step", "rollouts")
"""What is timed: GRPO's update alone, DPO's update alone and with its reference, GRPO's whole step,
rollouts alone."""


@dataclass(frozen=True)
class Task:
    """Everything that decides what is run."""

    section: str
    kind: str
    point: Point
    prompts: int = 1
    checkpointing: bool = False
    head: str = "lean"
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    out: str = "runs/bench"
    large: bool = False
    vocabulary: int = models.TINY.vocabulary
    width: int = models.TINY.width

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Task:
        """The inverse of `fields`."""
        return cls(**{**fields, "point": Point(**fields["point"])})

    @property
    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @property
    def size(self) -> models.Size:
        """Widths and depths."""
        return models.LARGE if self.large else models.small(self.width, self.vocabulary)

    @property
    def folder(self) -> Path:
        """The model's folder, made when first asked for."""
        _, side = layout(self.point.prompt)
        return models.build(self.kind, side, Path(self.out) / "models", self.size)


def peers(section: str, device: str) -> tuple[str, ...]:
    """Whom ours is compared with in this process (vLLM on a CPU has one of its own)."""
    if section == "rollouts":
        return ("generate",)
    colocated = section == "step" and device == "cuda" and importlib.util.find_spec("vllm")
    return ("TRL", "TRL + vLLM") if colocated else ("TRL",)


Findings = tuple[torch.Tensor, float, dict[str, torch.Tensor]]
"""Log-probs (means over an answer's tokens for DPO, where TRL has only sums), loss, gradients."""


@dataclass(frozen=True)
class Ready:
    """One side: its work, and what it finds with the seed's weights (drawn tokens for rollouts)."""

    work: Callable[[], object]
    check: Callable[[], Any] | None = None
    remark: Callable[[], str] = str
    """Said beside the figures; "" for nothing."""


def prepare(task: Task, sides: Sequence[str]) -> dict[str, Ready]:
    """The asked sides, each with a model of its own."""
    models.images_only()
    makers = {"ours": _ours, "TRL": _trl, "generate": _generate,
              "TRL + vLLM": partial(_trl, use_vllm=True, vllm_mode="colocate")}
    return {side: makers[side](task) for side in sides}


def _ours(task: Task) -> Ready:
    """Ours says so when it could not share the prompt: its figure is then the plain path's."""
    side = Ours(task.folder, checkpointing=task.checkpointing, device=task.device,
                dtype=task.dtype)

    def remark() -> str:
        path = side.engine.training_path
        return f"ours took the {path}" if path.startswith("plain") else ""

    return replace(_our_work(task, side), remark=remark)


FRESH = 36
"""Whole steps read a new picture each, as in training: nothing kept from the last one helps."""


def questions(task: Task) -> list[Question]:
    """The task's prompts."""
    processor = transformers.AutoProcessor.from_pretrained(task.folder)
    count = FRESH if task.section == "step" else task.prompts
    return ask(task.kind, processor, task.point.prompt, count)


def _choices(task: Task, processor: Any) -> list[work.Choice]:
    count = FRESH if task.section == "dpo-step" else 1
    return work.choices(task.kind, processor, task.point, count)


def _never(processor: Any) -> list[int]:
    """Placeholders would stand for pictures that are not there; an end would shorten answers."""
    return sorted({*processor.tokenizer.convert_tokens_to_ids(list(models.SPECIALS))})


def _our_work(task: Task, side: Ours) -> Ready:
    if task.section in ("step", "rollouts"):
        asked = questions(task)
        side.suppress(_never(side.processor))
        for question in asked:
            side.show(question)
        if task.section == "step":
            new = cycle(asked)
            return Ready(lambda: side.step(next(new), task.point))
        return Ready(lambda: side.rollouts(asked, task.point),
                     lambda: side.greedy(asked, task.point))
    side.suppress([])
    if task.section == "update":
        signals = side.grpo_signals(work.group(task.kind, side.processor, task.point))
        branches = [signal.branches["answer"] for signal in signals]
        return Ready(side.update(signals), lambda: (
            side.logps(branches), side.grpo_loss(signals), side.gradients()))
    pairs = [side.pair(choice) for choice in _choices(task, side.processor)]
    pair, new = pairs[0], cycle(pairs)
    known = side.reference(pair)
    return Ready(
        side.dpo_update(pair, known) if task.section == "dpo" else lambda: side.dpo_step(next(new)),
        lambda: (side.logps([pair.branches["chosen"], pair.branches["rejected"]]).mean(-1),
                 side.dpo_loss(pair, known), side.gradients()))


def _trl(task: Task, **more: Any) -> Ready:
    from bench.trl_peer import Dpo, Grpo

    processor = transformers.AutoProcessor.from_pretrained(task.folder)
    settings = {"checkpointing": task.checkpointing, "device": task.device, "dtype": task.dtype,
                "lean": task.head == "lean" and task.device == "cpu"}
    out = Path(task.out) / "trl"
    if task.section in ("update", "step"):
        side = Grpo(task.folder, out, task.point, never=_never(processor), **settings,
                    **more)
        if task.section == "step":
            asked = cycle(questions(task))
            return Ready(lambda: side.step(next(asked)))
        batch = side.batch(work.group(task.kind, processor, task.point))
        return Ready(side.update(batch), lambda: (
            side.logps(batch), side.loss(batch), side.gradients()))
    choices = _choices(task, processor)
    pairs, new = Dpo(task.folder, out, choices[0], **settings), cycle(choices)
    scored = pairs.with_reference(pairs.collate(choices[0]))
    sums = torch.stack([scored["ref_chosen_logps"], scored["ref_rejected_logps"]])[:, 0]

    def check() -> Findings:
        pairs.trainer.precompute_ref_logps = True
        return sums.cpu() / task.point.answer, pairs.loss(scored), pairs.gradients()

    return Ready(pairs.update(scored) if task.section == "dpo" else lambda: pairs.step(next(new)),
                 check)


def _generate(task: Task) -> Ready:
    processor = transformers.AutoProcessor.from_pretrained(task.folder)
    side = Generate(task.folder, _never(processor), task.device, task.dtype)
    inputs = side.inputs(questions(task))
    return Ready(lambda: side.draw(inputs, task.point),
                 lambda: side.draw(inputs, task.point, greedy=True).cpu())
