"""What a run will cost, stage by stage: tokens, FLOPs, floor, expected seconds and memory.

Tokens come from the loop and the lengths that the probe saw, FLOPs and floors from floor.py,
expected seconds from the probe's measured rates. All are estimates, and say what they leave out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from selfloop import floor
from selfloop.evaluate.answering import SHARD
from selfloop.floor import Machine, Shape, Work
from selfloop.loop import Loop
from selfloop.probing import Probed

LOGITS = 2.0**26
"""Most logits that are held at a time (optimize/head.py)."""


@dataclass(frozen=True)
class Stage:
    """One row of a plan. None: not known, or not counted."""

    name: str
    read: int = 0
    """Tokens that are run as prompts or as answers that are there already."""
    drawn: int = 0
    trained: int = 0
    """Tokens that carry the loss; they are among those read."""
    flops: float | None = None
    floor: float | None = None
    """Least seconds on the machine that is planned for."""
    seconds: float | None = None
    """Expected seconds, by the probe's rates."""
    memory: float | None = None
    """Peak bytes, roughly, without the program itself."""


@dataclass(frozen=True)
class Counts:
    """What a loop reads, draws and learns, over all of its steps. Tokens, mean lengths."""

    prompt: float
    answer: float
    problems: float
    """Prompts that answers are drawn for, all steps together."""
    draws: float
    """Answers a prompt."""
    batch: float
    """Answers that are decoded together."""
    contexts: float
    """Prompts that are trained on (a group's once), all updates together."""
    group: float
    """Answers to each of these."""
    updates: float
    scored: float
    """Prompts scored before learning, where a loss needs a reference; `group` answers each."""
    asked: float
    """Dev questions answered with their pictures, all evaluations together."""
    blind: float
    """And without."""
    pictures: float
    """Pictures a question."""
    train: float = math.inf
    dev: float = math.inf
    """Different questions of each: a vision tower that does not learn needs to see theirs once."""

    @property
    def saving(self) -> float:
        """S of floor.saving for what is trained on."""
        return floor.saving(self.group, self.prompt, self.answer) if self.contexts else 1.0


# -- counting -------------------------------------------------------------------------------------

def draws_of(loop: Loop) -> int:
    """Draws a problem."""
    if loop.sampler is None:
        return 0
    told = getattr(loop.sampler, "per_problem", None)
    if told is not None:
        return max(1, round(float(told)))
    n = int(getattr(loop.sampler, "n", 8))
    if hasattr(loop.sampler, "questions"):
        return n * int(loop.sampler.questions) * (int(getattr(loop.sampler, "views", 0)) + 1)
    return n


def signals_of(loop: Loop, probed: Probed) -> float:
    """About how many signals a step makes."""
    learn = next(iter(loop.learn.values()))
    maker = getattr(learn.organizer, "maker", None)
    copies = getattr(maker, "copies", 1)
    maker = getattr(maker, "maker", maker)
    problems = loop.samples or probed.train
    if learn.optim.whole_groups:
        same = probed.zero_variance
        return problems * draws_of(loop) * _share(same.n - same.k, same.n)
    best = probed.pass_at_draws
    solved = _share(best.k, best.n) if loop.sampler else 1.0
    return problems * getattr(maker, "per_sample", 1) * solved * copies


def _share(k: int, n: int) -> float:
    """k of n; none of a few is still not never, and nothing known is taken as all."""
    return max(k, 0.5) / n if n else 1.0


def counts(loop: Loop, probed: Probed) -> Counts:
    """The workload of a loop, by the lengths and shares that the probe saw."""
    machine, steps = probed.machine, loop.iterations * loop.steps
    prompt, answer = machine.get("prompt_tokens", 64.0), machine.get("answer_tokens", 64.0)
    learn = next(iter(loop.learn.values()))
    optim, signals = learn.optim, signals_of(loop, probed)
    makes = getattr(learn.organizer, "makes", ())
    branches = len(makes[0].branches) if makes else 1
    seen = optim.updates * optim.batch if optim.updates else optim.epochs * signals
    group = max(1.0, float(draws_of(loop))) if optim.whole_groups else float(branches)
    rows = steps * seen * branches
    problems = loop.samples or probed.train
    longest = float(getattr(getattr(loop.sampler, "sampling", None), "max_new_tokens", 0)
                    or getattr(loop.sampler, "max_new_tokens", 0) or answer)
    draws = draws_of(loop)
    held = max(1.0, machine.get("batch_tokens", 32768.0) // (prompt + draws * longest))
    how, looks = loop.evaluation, loop.iterations + 1
    needs = bool(learn.loss.needs & {"reference", "teacher", "old"})
    return Counts(
        prompt=prompt, answer=answer, problems=steps * problems if draws else 0.0,
        draws=draws, batch=max(1.0, min(held, loop.shard, problems) * draws),
        contexts=rows / group, group=group,
        updates=steps * (optim.updates or max(1.0, math.ceil(seen / optim.batch))),
        scored=steps * signals * branches / group if needs else 0.0,
        asked=looks * probed.dev * (1 + how.draws) if how else 0.0,
        blind=looks * probed.dev if how and how.no_image else 0.0,
        pictures=machine.get("pictures", 1.0), train=probed.train, dev=probed.dev)


def tokens(n: Counts) -> dict[str, int]:
    """Tokens by what is done with them, prompts that are shared counted once."""
    return {
        "read": round(n.problems * n.prompt),
        "drawn": round(n.problems * n.draws * n.answer),
        "trained": round(n.contexts * (n.prompt + n.group * n.answer)),
        "scored": round(n.scored * (n.prompt + n.group * n.answer)),
        "evaluated": round((n.asked + n.blind) * (n.prompt + n.answer)),
        "evaluation_drawn": round((n.asked + n.blind) * n.answer),
    }


# -- the stages -----------------------------------------------------------------------------------

def seconds(n: Counts, probed: Probed, shape: Shape | None) -> dict[str, float]:
    """Expected seconds a stage and in total, by the probe's measured rates."""
    drawing = probed.machine.get("seconds_per_drawn_token", math.nan)
    reading = probed.machine.get("seconds_per_read_token", drawing)
    passes = floor.equivalents(shape.trained_share, shape.recompute) if shape else 3.0
    count = tokens(n)
    parts = {
        "collect": count["drawn"] * drawing,
        "learn": (passes * count["trained"] + count["scored"]) * reading,
        # Here every answer has a prompt of its own, which the rate of drawing shares out.
        "evaluate": count["evaluation_drawn"] * drawing
        + (count["evaluated"] - count["evaluation_drawn"]) * reading,
    }
    return {**parts, "total": sum(parts.values())}


def stages(n: Counts, shape: Shape | None, machine: Machine | None,
           expected: Mapping[str, float], memory: Mapping[str, float]) -> tuple[Stage, ...]:
    """Collect, verify, learn, evaluate, the vision tower's share of each apart, and the total.

    `expected` is empty for another machine than the one that was probed. Rules cost no
    FLOPs; what a judge asks of a model is counted in judging_costs.py.
    """
    count = tokens(n)
    held = sum(memory.get(k, 0.0) for k in ("weights", "seed copy", "optimizer"))
    drawing = held + memory["cache"] if memory else None
    work = _works(n, shape, machine) if shape else {}
    rows = [
        Stage("collect", count["read"], count["drawn"], memory=drawing),
        Stage("verify"),
        Stage("learn", count["trained"] + count["scored"], 0,
              round(n.contexts * n.group * n.answer), memory=memory.get("total")),
        Stage("evaluate", count["evaluated"] - count["evaluation_drawn"],
              count["evaluation_drawn"], memory=drawing),
    ]
    found: list[Stage] = []
    for row in rows:
        found.append(_costed(row, work.get(row.name), machine, expected.get(row.name)))
        if (seen := work.get(f"{row.name}, vision")) is not None:
            found.append(_costed(Stage(f"{row.name}, vision tower"), seen, machine, None))
    return (*found, _total(found, memory.get("total")))


def _costed(row: Stage, work: Work | None, machine: Machine | None, expected: float | None
            ) -> Stage:
    if work is None:
        return replace(row, seconds=expected)
    return replace(row, flops=work.flops, floor=work.seconds if machine else None,
                   seconds=expected)


def _total(rows: list[Stage], memory: float | None) -> Stage:
    def whole(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) if known else None

    return Stage("total", sum(r.read for r in rows), sum(r.drawn for r in rows),
                 sum(r.trained for r in rows), whole([r.flops for r in rows]),
                 whole([r.floor for r in rows]), whole([r.seconds for r in rows]), memory)


def _works(n: Counts, shape: Shape, given: Machine | None) -> dict[str, Work | None]:
    """FLOPs and floor of each stage, and of the vision tower in it ("..., vision")."""
    machine = given or Machine(1.0, 1.0)  # then only FLOPs are used
    lengths = {"prompt": n.prompt, "answer": n.answer}
    picture = n.pictures * (shape.picture_tokens or 0.0)
    learn = floor.training(machine, shape, prompts=n.contexts, group=n.group, updates=n.updates,
                           **lengths) \
        + floor.forward(machine, shape, prompts=n.scored, group=n.group, **lengths)
    evaluate = floor.rollouts(machine, shape, prompts=n.asked, group=1, batch=SHARD, **lengths) \
        + floor.rollouts(machine, shape, prompts=n.blind, group=1, batch=SHARD, answer=n.answer,
                         prompt=max(1.0, n.prompt - picture))
    passes = floor.equivalents(1.0, shape.recompute) if shape.vision_trained else 1.0

    def see(asked: float, most: float, passes: float) -> Work | None:
        share = 1.0 if shape.vision_trained or not asked else min(1.0, most / asked)
        return floor.seeing(machine, shape, asked * share * n.pictures, passes * share)

    return {
        "collect": floor.rollouts(machine, shape, prompts=n.problems, group=n.draws,
                                  batch=n.batch, **lengths) if n.problems else None,
        "collect, vision": see(n.problems, n.train, n.problems * n.draws / n.batch)
        if n.problems else None,
        "learn": learn,
        "learn, vision": see(passes * n.contexts + n.scored, 0.0 if n.problems else n.train,
                             passes * n.updates),
        "evaluate": evaluate,
        "evaluate, vision": see(n.asked, n.dev, n.asked / SHARD),
    }


# -- memory ---------------------------------------------------------------------------------------

def memory(n: Counts, shape: Shape, budget: float, rows: float) -> dict[str, float]:
    """Peak bytes while learning, by part, and "total"; "cache" is that of drawing. Rough.

    `rows`: answers an update, `budget`: tokens a micro-batch may run. The shared prompt is held
    once, answers without padding, and logits only of answers. {} where the width is not known.
    """
    if shape.width is None or shape.layers is None:
        return {}
    run = min(budget, max(1.0, rows / n.group) * (n.prompt + n.group * n.answer))
    answers = run * n.group * n.answer / (n.prompt + n.group * n.answer)
    learns, b = shape.trained, shape.bytes
    parts = {
        "weights": (shape.resident or shape.parameters) * b, "seed copy": learns * b,
        "gradients": learns * b, "optimizer": 2 * learns * b,
        "activations": run * activations(shape) + _pictures(n, shape, run),
        "logits": min(answers * shape.vocabulary, LOGITS) * (2 * b + 4),
    }
    # AdamW's own buffers (one number a parameter that learns) come when the others are gone.
    passing = max(parts["activations"] + parts["logits"], learns * b)
    total = sum(parts.values()) - parts["activations"] - parts["logits"] + passing
    return {**parts, "total": total, "cache": floor.kv_bytes(shape, min(
        budget, n.batch * (n.answer + n.prompt / max(1.0, n.draws))))}


def activations(shape: Shape) -> float:
    """Bytes a token that all layers keep for the backward pass.

    A layer keeps two norms (6 d), queries, keys and values before and after their rotation and
    what attention gives (3 H + 3 kv), and a gated feed-forward layer's four tensors (4 inner).
    Measured as the peak of the process on LLaVA shapes of width 128 and 256, in float32: 21.8 to
    25 d a token, on either path, where this says 22.6 d. With recomputing: its input, and one
    whole layer with its gradients (measured: 1.3 of a layer).
    """
    d = shape.width or 0.0
    inner = shape.inner or 4 * d
    query, kv = shape.query or d, shape.kv or d
    layers = (shape.layers or 0.0) + shape.window_layers + shape.other_layers
    each = (6 * d + 3 * query + 3 * kv + 4 * inner) * shape.bytes
    return layers * d * shape.bytes + 4 / 3 * each if shape.recompute else layers * each


def _pictures(n: Counts, shape: Shape, run: float) -> float:
    """Bytes that the vision tower keeps, if it learns, for the pictures of `run` tokens."""
    if not shape.vision_trained or shape.patches is None or not shape.vision_layers:
        return 0.0
    pictures = run / (n.prompt + n.group * n.answer) * n.pictures
    each = 18 * (shape.vision_width or 0.0) * shape.bytes
    kept = shape.vision_width * shape.bytes if shape.recompute and shape.vision_width else each
    return pictures * shape.patches * shape.vision_layers * kept
