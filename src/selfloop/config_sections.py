"""The sections of run.yaml: adapters, data, gate, suites. See config.py for the whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
)


class ConfigPart(BaseModel):
    """A section. Numbers are finite: nothing is meant by others, and nan passes every limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _used(value: object) -> object:
    if isinstance(value, str):
        return {"use": value}
    if not isinstance(value, dict) or not isinstance(value.get("use"), str):
        raise ValueError("write it as {use: NAME, option: value}, or as the name alone")
    return value


Part = Annotated[dict[str, JsonValue], BeforeValidator(_used)]
"""Something by name, and its options: {use: TreeSearch, budget: 20}; see composing.py."""


def spelled(value: object) -> object:
    """A verifier given as {use: NAME, option: value}, in one line as its name would be."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip() \
        if isinstance(value, dict) else value


def _placed(value: object) -> object:
    if isinstance(value, str) and not _DEVICE.fullmatch(value):
        raise ValueError("expected auto, cpu, cuda or, of several, cuda:1")
    return value


_DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu|npu|hpu|mtia|xla)(:\d+)?")
Device = Annotated[str, BeforeValidator(_placed)]
"""Where a model runs; whether it is there is told when the model is loaded."""
VerifierName = Annotated[str, BeforeValidator(spelled)]
"""What methods.verifier_named reads: exact, module:name, {use: Quantity, relative: 0.05}."""


class OrganizeConfig(ConfigPart):
    """What changes in the solver's chain of organizers."""

    steps: tuple[Part, ...] | None = None
    """Refinement after the method's own steps."""
    maker: Part | None = None
    """What makes signals of the groups, in place of the method's."""
    wave: int | None = Field(None, ge=0)
    """Draw further problems until so many groups have answers that differ in their scores."""


class EvaluationConfig(ConfigPart):
    """What changes in how dev is answered."""

    sampler: Part | None = None
    """How a dev question is answered where one turn is not enough: an EnvSampler with n: 1."""
    draws: int | None = Field(None, ge=0)
    """Also draw so many answers at temperature 1, for pass@k and the vote."""
    no_image: bool | None = None


class LoRAConfig(ConfigPart):
    """Low-rank adapters instead of full weights."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    targets: tuple[str, ...] | None = None
    """Last names of linear layers; None = all of the language model's."""
    dora: bool = False
    """Learn sizes apart from directions (DoRA)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank)."""
    bits: Literal[4] | None = None
    """4: the language model's own weights in 4 bits (QLoRA); needs bitsandbytes."""


class OptimConfig(ConfigPart):
    """What every role's optimizer is told beside its method's own options; see roles.Optim."""

    clip: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    ema: float | None = Field(None, gt=0, lt=1)
    """Keep a running average of the weights."""
    publish: Literal["current", "ema"] | None = None
    """Which weights are drawn from, evaluated and saved as best."""
    diverged: float | Literal["never"] | None = None
    """Stop where loss or gradient norm leave their running band by this factor."""


class DataConfig(ConfigPart):
    """Files that `selfloop.data.load` reads."""

    train: Path
    dev: Path | None = None
    test: Path | None = None
    """Probe, plan and run take only hashes of it, to leave known training rows out; `selfloop
    check` compares its pictures with the others."""
    frames: int = Field(8, ge=1)
    """Of a video at most so many frames are shown, at even distances."""
    decontaminate: Literal["exact", "looks", "raise", "none"] = "exact"
    """Leave out training rows that dev, test or a file of `suites` knows: the same question,
    picture (bytes or pixels) or 13 words (exact), also pictures that look alike (looks); refuse the
    run, naming them (raise, as exact); or keep all (none)."""


class GateConfig(ConfigPart):
    """When a model is promoted, and when the run has tried often enough."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    min_gain: float = Field(0.0, ge=0, lt=1)
    """Least gain on dev, as a fraction: 0.02 is two points."""
    strikes: int | None = Field(2, ge=1)
    """Looks with a fired guard or shown harm since the last promotion before the run stops."""
    patience: int | None = Field(None, ge=1)
    """Looks in a row without a promotion before the run stops."""


class SuiteConfig(ConfigPart):
    """Questions that must not get worse: refusals, instructions, an old task."""

    path: Path
    verifier: VerifierName
    epsilon: float = Field(0.05, ge=0, lt=1)
