"""Runs tasks: check that both sides do the same, time them in turn, measure memory in children."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
import transformers

from bench import memory, vllm_peer
from bench.agreement import Disagreement, compare
from bench.grid import peak_bytes
from bench.measure import Ratio, race, ratio
from bench.questions import layout
from bench.results import Result
from bench.tasks import Ready, Task, peers, prepare, questions


def run(task: Task, repeats: int, *, measure_memory: bool, vllm: Path | None = None
        ) -> Iterator[Result]:
    """One result a peer. Raises Disagreement; what cannot be measured says why not."""
    others = peers(task.section, task.device)
    blank = Result(task.section, task.kind, task.checkpointing, task.point, task.prompts,
                   others[0], Ratio(0.0, 0.0, 0.0), {})
    if refused := too_large(task):
        yield dataclasses.replace(blank, why_not=refused)
        return
    try:
        sides = prepare(task, ("ours", *others))
    except (TypeError, ImportError) as error:
        yield dataclasses.replace(blank, why_not=f"not possible here: {error}")
        return
    found = agree(task, sides, others[0])
    worker = _worker(task, vllm) if vllm and task.section == "rollouts" else None
    works = {name: side.work for name, side in sides.items()}
    if worker:
        works["vLLM"] = worker.draw
    try:
        seconds = race(works, repeats)
    finally:
        if worker:
            worker.close()
    remark = sides["ours"].remark()
    del sides, works
    peaks = {side: memory.in_child(task.fields, side) for side in ("ours", *others)} \
        if measure_memory else {}
    for name in seconds:
        if name != "ours":
            yield dataclasses.replace(
                blank, peer=name, ratio=ratio(seconds[name], seconds["ours"]), memory=peaks,
                seconds={"ours": seconds["ours"], name: seconds[name]}, agreement=found,
                remark=remark)


def agree(task: Task, sides: dict[str, Ready], peer: str) -> dict[str, float]:
    """The differences found; empty where a section draws at random (its parts are checked)."""
    ours, theirs = sides["ours"].check, sides[peer].check
    if ours is None or theirs is None:
        return {}
    if task.section == "rollouts":
        one, other = ours(), theirs()
        same = float((one == other).float().mean())
        if same < 1.0 and task.dtype == "float32":
            raise Disagreement(f"greedy answers are equal in {100 * same:.0f} % of tokens only")
        return {"equal_greedy_tokens": same}
    a, b = ours(), theirs()
    return dataclasses.asdict(compare((a[0], b[0]), (a[1], b[1]), (a[2], b[2]), task.dtype))


def too_large(task: Task) -> str:
    """Why the task's plain side would not fit, or ""."""
    pictures, side = layout(task.point.prompt)
    patches = pictures * side * side * (1 if task.kind == "llava" else 4)
    if task.section == "rollouts" or task.device != "cpu":
        return ""
    size = task.size
    need = peak_bytes(task.point, patches=patches, width=size.width, layers=size.layers,
                      vocabulary=size.vocabulary, checkpointing=task.checkpointing)
    free = psutil.virtual_memory().available
    if need <= 0.7 * free:
        return ""
    return f"skipped: needs some {need / 2**30:.0f} GiB, {free / 2**30:.0f} are free"


def _worker(task: Task, vllm: Path) -> vllm_peer.Vllm | None:
    """vLLM, for models that it loads: it wants a Qwen2.5-VL (not transformers 5's LLaVA + CLIP)."""
    interpreter = vllm_peer.python(vllm)
    if interpreter is None or task.kind != "qwen2_5_vl":
        return None
    processor = transformers.AutoProcessor.from_pretrained(task.folder)
    return vllm_peer.Vllm(
        interpreter, task.folder, processor, questions(task), task.point,
        out=Path(task.out) / "vllm", dtype=task.dtype, threads=torch.get_num_threads())
