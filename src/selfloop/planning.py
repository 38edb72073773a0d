"""`selfloop plan`: which method fits, what it will cost, and the smallest gain that could show.

Costs come from costs.py: FLOPs and floors by arithmetic, times by the rates that the probe
measured. They are estimates, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from selfloop import costs
from selfloop.choosing import Choice, choose
from selfloop.config import RunConfig, build_loop, load_data
from selfloop.durations import time_of
from selfloop.evaluate.gate import Gate
from selfloop.evaluate.statistics import SequentialAlpha, smallest_detectable_gain
from selfloop.floor import Machine, Shape
from selfloop.judging_costs import (
    PROBLEMS,
    Judging,
    judging,
    over_budget,
    with_judging,
)
from selfloop.machines import machine_named
from selfloop.methods import options_of
from selfloop.probing import Probed, Share, probe, stored
from selfloop.roles import SelfloopError
from selfloop.step_memory import crowded, free_memory

TINY = 20e6
"""Parameters below which a model learns at the rates of the embedded one (see demo.py)."""
_TINY_RATE = {"star": 5e-4, "agreement": 5e-4, "supervised": 5e-4, "dpo": 5e-5, "grpo": 1e-4}
_PASSES = 3


@dataclass(frozen=True)
class Plan:
    """What `selfloop run` would do and cost. Seconds, tokens, FLOPs and bytes."""

    method: str
    why: str
    others: dict[str, str]
    options: dict[str, Any]
    """With method auto: what the run will set because run.yaml leaves it open."""
    dev: int
    smallest_gain: float | None
    """What the gate's first look can detect with 80 % power (a fraction); None = nothing."""
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """collect, learn, evaluate and total, for all iterations, by the probe's rates; empty if
    nothing fits, or for a machine that was not probed."""
    tokens: dict[str, int] = field(default_factory=dict)
    flops: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)
    """weights, seed copy, gradients, optimizer, activations, logits and total while learning, and
    the cache while drawing, in bytes (rough)."""
    stages: tuple[costs.Stage, ...] = ()
    judges: tuple[Judging, ...] = ()
    """What verifiers that ask a model will ask, by role; each is also one of `notes`."""
    saving: float = 1.0
    """S = G (P + R) / (P + G R) of the rows that are trained on."""
    lengths: dict[str, float] = field(default_factory=dict)
    """Tokens of a prompt and of an answer, and answers to a prompt, that S is of."""
    machine: Machine | None = None
    """What the floors are of; None = the probe did not measure it."""
    money: float | None = None
    """The price an hour times the expected seconds; where these are not known, the floor's."""
    uncounted: tuple[str, ...] = ()
    """What the FLOPs and floors leave out."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def plan(config: RunConfig, probed: Probed | None = None, *, machine: str | None = None,
         price_per_hour: float | None = None) -> Plan:
    """The plan of a config by its stored probe (or the one given).

    With method auto it chooses; else it says what that method costs. `machine`: a name of
    machines.KNOWN to plan for, in the place of the one that was probed. Raises SelfloopError when
    there is no probe of this model and data yet, or no such machine.
    """
    probed = probed or stored(config)
    if probed is None:
        raise SelfloopError("there is no probe of this model and data yet: run `selfloop probe` "
                            "first, or give --assume to plan with guesses")
    chosen = choose(probed)
    notes = _notes(probed)
    if config.method != "auto":
        if chosen.method != config.method:
            notes.append(f"the probe would rather have {chosen.method or 'nothing'}: {chosen.why}")
        chosen = Choice(config.method, "it is the method that was asked for", {})
    gain = smallest_gain(config)
    if gain is None:
        notes.append("the dev set is too small to show any gain: label more dev samples")
    elif probed.accuracy.n and 1 - probed.accuracy.value < gain:
        notes.append(f"only {100 * (1 - probed.accuracy.value):.0f} points are left to gain, less "
                     f"than the dev set can show ({100 * gain:.1f}): label more dev samples")
    if not chosen.method:
        return Plan("", chosen.why, chosen.others, {}, probed.dev, gain, tuple(notes))
    options = suggested(config, chosen.method, probed)
    if config.method != "auto" and options:
        listed = ", ".join(f"{name}={value}" for name, value in options.items())
        notes.append(f"method: auto would also set {listed}; as options they count here, too")
        options = {}
    made = Plan(chosen.method, chosen.why, chosen.others, options, probed.dev, gain, tuple(notes))
    return _costed(made, settled(config, chosen.method, options), probed,
                   machine_named(machine, config.dtype) if machine else None, price_per_hour)


def _costed(made: Plan, config: RunConfig, probed: Probed, other: Machine | None,
            price: float | None) -> Plan:
    """The plan with what it costs on the probed machine, or on another one."""
    loop = build_loop(config)
    probed = replace(probed, machine={**probed.machine,
                                      "batch_tokens": float(config.max_batch_tokens)})
    n, shape = costs.counts(loop, probed), shape_of(probed, config.checkpointing)
    machine = other or probed_machine(probed)
    machine = replace(machine, price_per_hour=price) if machine else None
    expected = costs.seconds(n, probed, shape)
    held = costs.memory(n, shape, probed.machine["batch_tokens"],
                        n.contexts * n.group / max(1.0, n.updates)) if shape else {}
    few = list(islice(load_data(config, asking=True).train, PROBLEMS))
    judges, unasked = judging(loop, config, n, few, shape, machine)
    stages = with_judging(costs.stages(n, shape, machine, {} if other else expected, held), judges)
    total = stages[-1]
    spent = total.floor if other else total.seconds
    uncounted = shape.unknown() if shape else ["FLOPs and floors (the model's sizes are not known)"]
    if shape and not machine:
        uncounted.append("floors (this probe measured no machine: run `selfloop probe` again, or "
                         "give --machine)")
    if len(loop.learn) > 1:
        first, *more = loop.learn
        uncounted.append(f"what {' and '.join(more)} learn beside {first}, and the prompts that "
                         "the roles write for each other")
    if loop.max_waves > 1:
        uncounted.append(f"further waves (organize.wave draws up to {loop.max_waves} a step)")
    tight = None if other else crowded(loop, probed.train, n.draws, n.prompt, n.answer,
                                       free_memory())
    return replace(
        made, judges=judges, notes=(
            *made.notes, *map(str, judges), *over_budget(judges, config),
            *([tight] if tight else []), *_cut_short(config, {} if other else expected)),
        seconds={} if other else expected, tokens=costs.tokens(n), flops=total.flops or 0.0,
        memory=held, stages=stages, saving=n.saving, machine=machine,
        lengths={"prompt": n.prompt, "answer": n.answer, "group": n.group},
        money=spent * price / 3600 if price is not None and spent is not None else None,
        uncounted=(*uncounted, *unasked))


def _cut_short(config: RunConfig, expected: Mapping[str, float]) -> list[str]:
    """A note where the run's budget will end it, by the seconds that are expected."""
    total = expected.get("total", math.nan)
    if config.budget is None or not total > config.budget:
        return []
    return [f"budget: {time_of(config.budget)} end the run after some "
            f"{100 * config.budget / total:.0f} % of what is planned ({time_of(total)})"]


def shape_of(probed: Probed, recompute: bool = False) -> Shape | None:
    """The model's shape as the probe saw it; of an older probe, what little it says."""
    known = {k.removeprefix("shape."): v for k, v in probed.machine.items()
             if k.startswith("shape.")}
    if "parameters" not in known:
        known = _sizes(probed.machine)
    return Shape.of({**known, "recompute": recompute}) if known else None


def _sizes(machine: Mapping[str, float]) -> dict[str, float]:
    if "parameters" not in machine or "flops_per_read_token" not in machine:
        return {}
    return {"parameters": machine["flops_per_read_token"] / 2, "bytes": machine["bytes"],
            "resident": machine["parameters"], "trained": machine["trainable"],
            "trained_share": min(1.0, machine["trainable"] / machine["parameters"]),
            **{name: machine[name] for name in ("width", "layers", "vocabulary")}}


def probed_machine(probed: Probed) -> Machine | None:
    """The machine that was probed, as it was measured then; None where it was not."""
    found = probed.machine
    if "peak_flops" not in found:
        return None
    return Machine(found["peak_flops"], found["peak_bandwidth"], source="as the probe found it")


def settled(config: RunConfig, method: str, options: dict[str, Any]) -> RunConfig:
    """The config with its method chosen; what run.yaml sets wins over what the plan suggests."""
    return config.model_copy(update={"method": method, "options": {**options, **config.options}})


def assumed(config: RunConfig, tell: Callable[[str], None] = lambda _: None) -> Probed:
    """Middling guesses for every figure, with rates measured in a short slice of two questions."""
    tell("timing a short slice")
    short = probe(config, questions=4, draws=8, tell=tell, save=False)
    return replace(short, questions=20, draws=8, accuracy=Share(6, 20), pass_at_draws=Share(12, 20),
                   vote=Share(7, 20), calibration_error=0.2, vote_share=0.5, parsed=Share(20, 20),
                   zero_variance=Share(9, 20))


def suggested(config: RunConfig, method: str, probed: Probed) -> dict[str, Any]:
    """Options that suit the model's size and the data, for those that run.yaml leaves open.

    Recipes' defaults are those of papers on billions of parameters and many samples: with few
    samples one pass is a handful of updates, and a tiny model hardly moves at such rates.
    """
    takes = options_of(method)
    found: dict[str, Any] = {}
    tiny = probed.machine.get("parameters", math.inf) < TINY
    if "lr" in takes and method in _TINY_RATE:
        default = takes["lr"].default
        if tiny:
            found["lr"] = _TINY_RATE[method]
        elif config.lora is not None:
            found["lr"] = default * 10
    if tiny and "copies" in takes:
        found["copies"] = 2
    if "updates" in takes and "epochs" not in config.options:
        loop = build_loop(settled(config, method, {}))
        batch = next(iter(loop.learn.values())).optim.batch
        passes = round(_PASSES * costs.signals_of(loop, probed) / batch)
        found["updates"] = max(120 if tiny else 40, min(400, passes))
    if method == "supervised":
        found |= labels_of(config)
    return {name: value for name, value in found.items() if name not in config.options}


def labels_of(config: RunConfig) -> dict[str, Any]:
    """labels=answer for `supervised` where no sample has a worked solution to imitate."""
    train = load_data(config, asking=True).train
    return {} if any(s.rationale for s in train) else {"labels": "answer"}


def smallest_gain(config: RunConfig) -> float | None:
    """The gain that the gate's first look finds with 80 % power on the labelled dev samples."""
    dev = [s for s in load_data(config, asking=True).dev or () if s.answer is not None]
    clusters = len({s.cluster for s in dev})
    if not dev:
        return None
    found = smallest_detectable_gain(len(dev), alpha=SequentialAlpha(Gate().alpha).at(0),
                                     design_effect=len(dev) / clusters)
    return found if math.isfinite(found) else None


def _notes(probed: Probed) -> list[str]:
    notes = []
    best = probed.best_structure
    if best != "as given":
        share, own = probed.structures[best], probed.structures["as given"]
        notes.append(f'the prompt "{best}" does better ({share}) than the question as given '
                     f"({own}): try `prompt: {best}` in run.yaml")
    if probed.truncated.n and probed.truncated.value > 0.1:
        notes.append(f"{probed.truncated} of the draws were cut: raise options.max_new_tokens")
    blind = probed.no_image
    if blind.n and probed.accuracy.n and blind.value >= 0.8 * probed.accuracy.value > 0:
        notes.append(f"without the picture it is right as often ({blind}): the questions can be "
                     "guessed from their text, and a gain may not be about seeing")
    return notes
