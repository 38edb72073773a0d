"""run.yaml: what a run is made of, checked when it is read, and turned into a Loop and an engine.

Whatever is wrong is said in one line that names the file, the line and the key, and the key that
was probably meant. Only `yaml.safe_load`'s types are ever built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError, ValidationInfo, field_validator

from selfloop import casting, config_errors, yaml_lines
from selfloop.auditing import setting
from selfloop.calling import closest
from selfloop.config_errors import where
from selfloop.config_sections import (
    ConfigPart,
    DataConfig,
    Device,
    EvaluationConfig,
    GateConfig,
    LoRAConfig,
    OptimConfig,
    OrganizeConfig,
    Part,
    SuiteConfig,
    VerifierName,
)
from selfloop.durations import seconds
from selfloop.engines.model_folder import Dtype
from selfloop.methods import METHODS, build_loop, options_of
from selfloop.optimize.parts import LearningPart, frozen_parts
from selfloop.roles import SelfloopError

if TYPE_CHECKING:
    from selfloop.data import Samples
    from selfloop.roles import Engine

__all__ = ["SEED", "Data", "RunConfig", "build_engine", "build_loop", "load_config", "load_data"]

SEED = Path(__file__).parent / "testbeds" / "seed"
"""What `model: embedded` means: the seed model that ships with the package."""
_ENGINE = ("dtype", "compute", "device", "threads", "checkpointing", "freeze", "learn",
           "max_batch_tokens")


class RunConfig(ConfigPart):
    """One run.yaml. Paths are absolute once loaded."""

    model: str
    """A from_pretrained folder, a hub id, or "embedded"."""
    lora: LoRAConfig | None = None
    dtype: Dtype = "float32"
    compute: Literal["bfloat16"] | None = None
    """bfloat16: mixed precision, over float32 weights and moments."""
    device: Device = "auto"
    checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, about a third more time."""
    freeze: tuple[LearningPart, ...] = ()
    """Parts that do not learn: vision, projector, language."""
    learn: tuple[LearningPart, ...] = ()
    """Or the parts that do: all others are frozen."""
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig.model_validate({}))
    features: bool = True
    """Keep picture features where vision and projector are frozen (1 GiB of memory)."""
    features_folder: Path | None = None
    """Keep them in this folder as well (20 GiB), for later runs."""
    max_batch_tokens: int = Field(32768, ge=16)
    """Tokens of one forward pass; halved, with a warning, when memory runs out."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; results repeat bit for bit only at an equal number."""
    processes: int = Field(1, ge=1)
    """Processes of this machine that play the model together; docs/scaling.md."""
    shard: bool = False
    """Cut the decoder's layers over them, for a model that one device does not hold."""
    data: DataConfig
    verifier: VerifierName
    """exact, number, choice, yes_no, text, {use: NAME, option: value}, or module:name."""
    method: str = "auto"
    """auto, a name of methods.METHODS, or module:function that returns a Loop."""
    prompt: str = "as it is"
    """A structured prompt of collect/guided.py that ends every question."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Passed on to the recipe."""
    sampler: Part | None = None
    reward: Part | None = None
    organize: OrganizeConfig = OrganizeConfig.model_validate({})
    evaluation: EvaluationConfig = EvaluationConfig.model_validate({})
    """Parts in place of the method's own; see composing.py."""
    iterations: int = Field(3, ge=1)
    seed: int = 0
    budget: float | None = Field(None, gt=0)
    """Seconds; written as 90, "10m", "2h" or "1h30m"."""
    gate: GateConfig = Field(default_factory=lambda: GateConfig.model_validate({}))
    suites: Literal["auto", "default", "none"] | tuple[SuiteConfig, ...] = "auto"
    """What must not be forgotten: the shipped suites (auto: for any model but the embedded one,
    which knows no English), none, or one's own."""
    network: Literal["none"] | tuple[str, ...] = "none"
    """Hosts that the run may reach: a remote judge's, a tracker's. Enforced; see egress.py."""
    audit: setting.Setting = setting.AuditConfig()
    """The verifier is attacked before the first draw: off, or what is accepted, a probe, limits."""
    max_errors: float | None = Field(None, ge=0, le=1)
    max_unjudged: float | None = Field(None, ge=0, le=1)
    """Shares of verdicts that may be failures and abstentions; None: what Loop says."""
    engines: casting.Engines = Field(default_factory=dict)
    """Role -> who plays it; a verifier's judge, say. Roles not named are played by `model`."""
    out: Path | None = None
    """The run folder; by default runs/METHOD beside the file."""
    home: Path = Field(default=Path("."), exclude=True)
    """The folder of run.yaml: where its paths start and its own modules are looked for."""

    @field_validator("budget", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return seconds(value) if isinstance(value, str) else value

    @field_validator("lora", mode="before")
    @classmethod
    def _rank(cls, value: Any) -> Any:
        """`lora: 16` and `lora: true` are short for its rank and its defaults."""
        if value is False:
            return None
        if value is True:
            return {}
        return {"rank": value, "alpha": 2 * value} if isinstance(value, int) else value

    @field_validator("prompt")
    @classmethod
    def _known(cls, value: str) -> str:
        from selfloop.collect.guided import STRUCTURES

        if value not in ("as it is", *STRUCTURES):
            raise ValueError("no such prompt" + closest(value, ["as it is", *STRUCTURES]))
        return value

    @field_validator("freeze", "learn")
    @classmethod
    def _something_learns(cls, value: tuple[str, ...], told: ValidationInfo) -> tuple[str, ...]:
        frozen = value if told.field_name == "freeze" else told.data.get("freeze", ())
        try:
            frozen_parts(frozen, value if told.field_name == "learn" else ())
        except SelfloopError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.out or self.home / "runs" / re.sub(r"\W+", "-", self.method)

    def as_yaml(self) -> str:
        """The whole config, as it is kept in the run folder: every path absolute."""
        values = self.model_dump(mode="json", exclude_none=True)
        return str(yaml.safe_dump({**values, "model": self.model_path}, sort_keys=False,
                                  allow_unicode=True))

    @property
    def model_path(self) -> str:
        """What the engine loads."""
        return str(SEED) if self.model == "embedded" else self.model


# -- reading ------------------------------------------------------------------------------------

def load_config(path: str | Path = "run.yaml", overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run.yaml; `overrides` are dotted: "seed=1", "options.n=4".

    Raises SelfloopError in one line naming the file, the line if known, the key and the mend.
    """
    path = Path(path).expanduser().absolute()
    values, lines = yaml_lines.read(path)
    for override in overrides:
        yaml_lines.override(values, override)
    _refuse_unknown(values, lines, path, overrides)
    if (at := config_errors.infinite(values)) is not None:
        raise SelfloopError(f"{where(at, lines, path, overrides)}: {'.'.join(at)}: expected a "
                            "finite number")
    try:
        config = RunConfig.model_validate({**values, "home": path.parent})
    except ValidationError as error:
        raise SelfloopError(_first(error, lines, path, overrides)) from None
    return _absolute(config, path.parent)


_FIELDS: dict[str, type[BaseModel]] = {
    "": RunConfig, "data": DataConfig, "lora": LoRAConfig, "optim": OptimConfig,
    "gate": GateConfig, "audit": setting.AuditConfig, "organize": OrganizeConfig,
    "evaluation": EvaluationConfig}


def _refuse_unknown(values: Mapping[str, Any], lines: Mapping[tuple[str, ...], int], path: Path,
                    overrides: Sequence[str]) -> None:
    for section, model in _FIELDS.items():
        found = values if not section else values.get(section)
        valid = set(model.model_fields) - {"home"}
        for key in found if isinstance(found, dict) else ():
            if key in valid:
                continue
            full = f"{section}.{key}" if section else str(key)
            hint = closest(str(key), valid)
            if not section and key in _recipe_options(values.get("method", "auto")):
                hint = f"; did you mean 'options.{key}'? {hint.rpartition('; ')[2].lstrip(';? ')}"
            raise SelfloopError(f"{where(tuple(full.split('.')), lines, path, overrides)}: "
                                f"unknown key {full!r}{hint}")


def _recipe_options(method: Any) -> set[str]:
    if method not in METHODS and method != "auto":
        return set()
    return {o for m in (METHODS if method == "auto" else [method]) for o in options_of(m)}


def _first(error: ValidationError, lines: Mapping[tuple[str, ...], int], path: Path,
           overrides: Sequence[str]) -> str:
    """The first thing that pydantic found, as one line."""
    at, what = config_errors.first(error)
    return f"{where(at, lines, path, overrides)}: {what}"[:500]


def _absolute(config: RunConfig, home: Path) -> RunConfig:
    """Paths start at the file's own folder; a model that is a folder there is one, too."""
    data = config.data.model_copy(update={
        name: (home / Path(p).expanduser()) for name in ("train", "dev", "test")
        if (p := getattr(config.data, name)) is not None})
    engines = {role: casting.absolute(how, home) for role, how in config.engines.items()}
    out = config.out if config.out is None else home / config.out.expanduser()
    suites = config.suites if isinstance(config.suites, str) else tuple(
        s.model_copy(update={"path": home / s.path.expanduser()}) for s in config.suites)
    kept = config.features_folder and home / config.features_folder.expanduser()
    audit = config.audit
    if isinstance(audit, setting.AuditConfig) and audit.probe is not None:
        audit = audit.model_copy(update={"probe": home / audit.probe.expanduser()})
    return config.model_copy(update={"data": data, "out": out, "engines": engines,
                                     "model": casting.model_at(config.model, home),
                                     "features_folder": kept, "suites": suites, "audit": audit})


# -- building -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Data:
    """What a run may read: the test split is not here."""

    train: Samples
    dev: Samples | None
    notes: tuple[str, ...] = ()
    """Training rows left out because an evaluation set knows them; what was not compared."""


def load_data(config: RunConfig, *, asking: bool = False) -> Data:
    """Train and dev samples. Raises SelfloopError naming file, row and field of what is bad.
    `asking`: for a probe or plan, which trains nothing and needs no test file to be there yet."""
    from selfloop.cleaning import clean_train
    from selfloop.collect.guided import structured

    for name in ("train", "dev", "test"):
        path = getattr(config.data, name)
        if path is not None and not path.exists() and not (asking and name == "test"):
            raise SelfloopError(f"data.{name}: {path}: no such file: check the path, or make it "
                                "with `selfloop init`")
    found, dev = clean_train(config)
    return Data(structured(found.samples, config.prompt),
                dev if dev is None else structured(dev, config.prompt),
                tuple(dict.fromkeys((*found.notes, *(dev.notes if dev else ())))))


def build_engine(config: RunConfig) -> Engine:
    """The model as an engine. Raises SelfloopError, in one line, for a folder that is none."""
    from selfloop.engines.launching import launched

    if max(config.processes, launched()) == 1:
        if config.shard:
            raise SelfloopError("shard: true cuts the model over several processes: set "
                                "`processes: 2` or more, one for each device")
        return _build_alone(config)
    from selfloop.engines.processes import Processes

    made: Any = Processes(_build_alone, config, processes=config.processes, shard=config.shard)
    return made  # type: ignore[no-any-return]


def _build_alone(config: RunConfig, **more: Any) -> Engine:
    """The model in this process, which may be one of several."""
    from selfloop.engines.hf import FeatureStore, HFEngine, LoRA

    lora = LoRA(**config.lora.model_dump()) if config.lora else None
    store = FeatureStore(folder=config.features_folder) if config.features else False
    engine = HFEngine(config.model_path, lora=lora, features=store,
                      **{n: getattr(config, n) for n in _ENGINE}, **more)
    engine.name = config.model  # "embedded" means the same on every machine, its path does not
    return engine
