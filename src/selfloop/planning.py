"""`selfloop plan`: which method fits, what it will cost, and the smallest gain that could show.

Costs are those of field measurement (2N a token read, 6N a token trained, 4N with adapters), and
times are those that the probe measured on this machine. They are estimates, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from selfloop.choosing import Choice, choose
from selfloop.config import RunConfig, build_loop, load_data
from selfloop.evaluate.gate import Gate
from selfloop.evaluate.statistics import SequentialAlpha, smallest_detectable_gain
from selfloop.loop import Loop
from selfloop.methods import options_of
from selfloop.probing import Probed, Share, probe, stored
from selfloop.roles import SelfloopError

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
    seconds: dict[str, float]
    """collect, learn, evaluate and total, for all iterations; empty if nothing fits."""
    tokens: dict[str, int]
    flops: float
    memory: dict[str, float]
    """weights, seed copy, gradients, optimizer, activations and total, in bytes (rough)."""
    dev: int
    smallest_gain: float | None
    """What the gate's first look can detect with 80 % power (a fraction); None = nothing."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def plan(config: RunConfig, probed: Probed | None = None) -> Plan:
    """The plan of a config by its stored probe (or the one given).

    With method auto it chooses; else it says what that method costs. Raises SelfloopError when
    there is no probe of this model and data yet.
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
        return Plan("", chosen.why, chosen.others, {}, {}, {}, 0.0, {}, probed.dev, gain,
                    tuple(notes))
    options = suggested(config, chosen.method, probed)
    if config.method != "auto" and options:
        listed = ", ".join(f"{name}={value}" for name, value in options.items())
        notes.append(f"method: auto would also set {listed}; as options they count here, too")
        options = {}
    loop = build_loop(settled(config, chosen.method, options))
    tokens = _tokens(loop, probed)
    return Plan(chosen.method, chosen.why, chosen.others, options, _seconds(tokens, probed),
                tokens, _flops(tokens, probed), _memory(loop, probed), probed.dev, gain,
                tuple(notes))


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
        passes = round(_PASSES * _signals(loop, probed) / batch)
        found["updates"] = max(120 if tiny else 40, min(400, passes))
    if method == "supervised":
        found |= labels_of(config)
    return {name: value for name, value in found.items() if name not in config.options}


def labels_of(config: RunConfig) -> dict[str, Any]:
    """labels=answer for `supervised` where no sample has a worked solution to imitate."""
    return {} if any(s.rationale for s in load_data(config).train) else {"labels": "answer"}


def smallest_gain(config: RunConfig) -> float | None:
    """The gain that the gate's first look finds with 80 % power on the labelled dev samples."""
    dev = [s for s in load_data(config).dev or () if s.answer is not None]
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


# -- costs --------------------------------------------------------------------------------------

def _draws(loop: Loop) -> int:
    """Draws a problem."""
    if loop.sampler is None:
        return 0
    n = int(getattr(loop.sampler, "n", 8))
    if hasattr(loop.sampler, "questions"):
        return n * int(loop.sampler.questions) * (int(getattr(loop.sampler, "views", 0)) + 1)
    return n


def _problems(loop: Loop, probed: Probed) -> int:
    return loop.samples or probed.train


def _signals(loop: Loop, probed: Probed) -> float:
    """About how many signals a step makes."""
    optim = next(iter(loop.learn.values())).optim
    maker = getattr(next(iter(loop.learn.values())).organizer, "maker", None)
    copies = getattr(maker, "copies", 1)
    maker = getattr(maker, "maker", maker)
    problems = _problems(loop, probed)
    if optim.whole_groups:
        mixed = 1 - probed.zero_variance.value if probed.zero_variance.n else 1.0
        return problems * _draws(loop) * mixed
    each = getattr(maker, "per_sample", 1)
    solved = probed.pass_at_draws.value if probed.pass_at_draws.n and loop.sampler else 1.0
    return problems * each * solved * copies


def _tokens(loop: Loop, probed: Probed) -> dict[str, int]:
    """Tokens read and drawn while collecting, trained on, and of the evaluations; all steps."""
    prompt = probed.machine.get("prompt_tokens", 64.0)
    answer = probed.machine.get("answer_tokens", 64.0)
    steps = loop.iterations * loop.steps
    learn = next(iter(loop.learn.values()))
    rows = learn.optim.updates * learn.optim.batch if learn.optim.updates else \
        learn.optim.epochs * _signals(loop, probed)
    makes = getattr(learn.organizer, "makes", ())
    branches = len(makes[0].branches) if makes else 1
    problems, looks = _problems(loop, probed), loop.iterations + 1
    arms = 2 if loop.evaluation is not None and loop.evaluation.no_image else 1
    # Prompts of a group are read and trained on once (the shared prefix).
    shared = problems * prompt if learn.optim.whole_groups else rows * branches * prompt
    return {
        "read": round(steps * problems * prompt * (1 if loop.sampler else 0)),
        "drawn": round(steps * problems * _draws(loop) * answer),
        "trained": round(steps * (shared + rows * branches * answer)),
        "evaluated": round(looks * arms * probed.dev * (prompt + answer)),
        "evaluation_drawn": round(looks * arms * probed.dev * answer),
    }


def _seconds(tokens: dict[str, int], probed: Probed) -> dict[str, float]:
    drawing = probed.machine.get("seconds_per_drawn_token", math.nan)
    reading = probed.machine.get("seconds_per_read_token", drawing)
    parts = {
        "collect": tokens["drawn"] * drawing,
        # A backward pass is twice a forward pass.
        "learn": 3 * tokens["trained"] * reading,
        "evaluate": tokens["evaluation_drawn"] * drawing,
    }
    return {**parts, "total": sum(parts.values())}


def _flops(tokens: dict[str, int], probed: Probed) -> float:
    read = tokens["read"] + tokens["drawn"] + tokens["evaluated"]
    return read * probed.machine.get("flops_per_read_token", 0.0) \
        + tokens["trained"] * probed.machine.get("flops_per_trained_token", 0.0)


def _memory(loop: Loop, probed: Probed) -> dict[str, float]:
    """Rough: activations a layer are about 34 bytes a token and channel at two bytes a number
    (Korthikanti et al., arXiv 2205.05198), without recomputation; logits in float32."""
    machine = probed.machine
    if "parameters" not in machine:
        return {}
    size, learns = machine["bytes"], machine["trainable"]
    optim = next(iter(loop.learn.values())).optim
    length = machine.get("prompt_tokens", 64.0) + machine.get("answer_tokens", 64.0)
    tokens = min(machine["batch_tokens"], optim.batch * length)
    parts = {
        "weights": machine["parameters"] * size, "seed copy": learns * size,
        "gradients": learns * size, "optimizer": 2 * learns * size,
        "activations": tokens * (17 * size * machine["width"] * machine["layers"]
                                 + 8 * machine["vocabulary"]),
    }
    return {**parts, "total": sum(parts.values())}
