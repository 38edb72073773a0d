"""`engines:` of run.yaml: who plays the judge, the critic, the proposer, and where it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from selfloop.config_sections import ConfigPart, Device, LoRAConfig
from selfloop.durations import seconds
from selfloop.engines.model_folder import Dtype
from selfloop.roles import SelfloopError, component_named

if TYPE_CHECKING:
    from selfloop.config import RunConfig
    from selfloop.roles import Engine

_JUDGES = "selfloop.organize.verify.judges"
_SCHEMAS = {"points": f"{_JUDGES}:POINTS_SCHEMA", "preference": f"{_JUDGES}:PREFER_SCHEMA"}
_LOCAL = ("dtype", "device", "threads", "max_batch_tokens")
_PATIENCE = ("timeout", "deadline", "retries", "retry_budget")
_SERVER = ("api_key_env", "concurrency", "budget", "token_budget", "logprobs", "seeds",
           "max_tokens_as", "extra", "records", "replay_only")


class PricesConfig(BaseModel):
    """Dollars for a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class EngineConfig(BaseModel):
    """One role's engine: a model on a server (with `base_url`), or a local folder or hub id."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    model: str
    base_url: str | None = None
    """The address that ends in /v1 of any OpenAI-compatible server."""
    api_key_env: str | None = None
    """The environment variable that holds the key; the key itself is written nowhere."""
    concurrency: int = Field(8, ge=1)
    timeout: float = Field(60.0, gt=0)
    deadline: float = Field(600.0, gt=0)
    retries: int = Field(5, ge=0)
    retry_budget: int = Field(500, ge=0)
    prices: PricesConfig | None = None
    budget: float | None = Field(None, ge=0)
    """Dollars that a run's recorded answers may cost."""
    token_budget: int | None = Field(None, ge=0)
    json_schema: dict[str, JsonValue] | str | None = None
    """Structured output: a JSON Schema, module:name of one, or points or preference, those of
    the judges that ship."""
    logprobs: bool = False
    seeds: bool = True
    max_tokens_as: str = "max_tokens"
    picture_side: int = Field(2048, ge=8)
    picture_kilobytes: int = Field(8192, ge=1)
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    records: str | None = None
    """A file of recorded answers; by default the run keeps its own."""
    replay_only: bool = False
    dtype: Dtype = "float32"
    device: Device = "auto"
    threads: int | None = Field(None, ge=1)
    max_batch_tokens: int = Field(32768, ge=16)

    @field_validator("timeout", "deadline", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return seconds(value) if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        from selfloop.engines.openai_calling import host_of

        if value is not None:
            try:
                host_of(value)
            except SelfloopError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> EngineConfig:
        given = {name for name, field in type(self).model_fields.items()
                 if name not in ("model", "base_url")
                 and getattr(self, name) != field.get_default(call_default_factory=True)}
        odd = sorted(given & set(_LOCAL)) if self.base_url else sorted(given - set(_LOCAL))
        if odd:
            what = "a local model" if self.base_url else "a server, so it needs base_url"
            raise ValueError(f"{odd[0]} is for {what}; take it out, or change base_url")
        return self


class AdapterConfig(ConfigPart):
    """A role that learns an adapter of its own on the run's base model."""

    adapter: LoRAConfig | Literal[True] = True
    """Its settings; true = those of the run's own `lora`."""


Cast = EngineConfig | AdapterConfig | str
"""An engine in run.yaml: its options, an adapter, or "model" for the run's own model."""


def cast(config: RunConfig, solver: Engine) -> dict[str, Engine]:
    """Every role's engine, the solver's first: what `run` is given as engines.

    Raises SelfloopError for a server that run.yaml's `network` does not name, and for whatever an
    engine refuses, naming the role.
    """
    found = {"solver": solver}
    for role, how in config.engines.items():
        try:
            if isinstance(how, AdapterConfig):
                found[role] = _beside(solver, role, how)
            else:
                found[role] = solver if isinstance(how, str) else _built(how, config)
        except SelfloopError as error:
            raise SelfloopError(f"engines.{role}: {error}") from None
    return found


def _built(how: EngineConfig, config: RunConfig) -> Engine:
    if how.base_url is None:
        from selfloop.config import SEED
        from selfloop.engines.hf import HFEngine
        from selfloop.engines.only_answers import Fixed

        options = {name: getattr(how, name) for name in _LOCAL}
        local = HFEngine(SEED if how.model == "embedded" else how.model, **options)
        local.name = how.model
        return Fixed(local)
    from selfloop.engines.openai import OpenAIEngine, Patience, Pictures, Prices

    _must_be_named(how.base_url, config.network)
    options = {name: getattr(how, name) for name in _SERVER}
    return OpenAIEngine(
        how.model, how.base_url, json_schema=_schema(how.json_schema, config.home),
        prices=Prices(**how.prices.model_dump()) if how.prices else None,
        patience=Patience(**{name: getattr(how, name) for name in _PATIENCE}),
        pictures=Pictures(side=how.picture_side, kilobytes=how.picture_kilobytes), **options)


def _beside(solver: Any, role: str, how: AdapterConfig) -> Engine:
    from selfloop.engines.hf import LoRA

    own = LoRA(**how.adapter.model_dump()) if isinstance(how.adapter, LoRAConfig) else None
    made: Engine = solver.beside(role, own)
    return made


def _must_be_named(base_url: str, network: str | tuple[str, ...]) -> None:
    from selfloop.egress import is_here
    from selfloop.engines.openai_calling import host_of

    host = host_of(base_url)
    named = () if isinstance(network, str) else network
    if not is_here(host) and host not in named:
        raise SelfloopError(f"{host} may not be reached (network: {', '.join(named) or 'none'}): "
                            f"write `network: [{', '.join((*named, host))}]` in run.yaml")


def _schema(given: Mapping[str, Any] | str | None, home: Path) -> Mapping[str, Any] | None:
    if not isinstance(given, str):
        return given
    from selfloop.calling import closest
    from selfloop.methods import look_in

    look_in(home)
    if ":" not in given and given not in _SCHEMAS:
        raise SelfloopError(f"json_schema: {given!r} is no schema{closest(given, _SCHEMAS)}, "
                            "module:name, or the schema itself")
    schema = component_named(_SCHEMAS.get(given, given))
    if not isinstance(schema, Mapping):
        raise SelfloopError(f"json_schema: {given} is {type(schema).__name__}, not a mapping")
    return schema


def absolute(how: Cast, home: Path) -> Cast:
    """The engine with paths that start at run.yaml's own folder."""
    if not isinstance(how, EngineConfig):
        return how
    records = how.records and str(home / Path(how.records).expanduser())
    model = how.model if how.base_url else model_at(how.model, home)
    return how.model_copy(update={"model": model, "records": records})


def model_at(model: str, home: Path) -> str:
    """A model's name beside a run.yaml in `home`: a folder there is one, absolute; else as is."""
    if model == "embedded" or not (model.startswith((".", "~")) or (home / model).is_dir()):
        return model
    return str((home / Path(model).expanduser()).resolve())


def _read(engines: Any) -> Any:
    """Each role's engine, built from what run.yaml says. Raises ValueError naming role and key."""
    if not isinstance(engines, Mapping):
        raise ValueError("expected a role and its engine a line, as in `judge: {model: ...}`")
    if "solver" in engines:
        raise ValueError("the solver is the model that learns: it is set by `model:`")
    return {str(role): _one(str(role), how) for role, how in engines.items()}


def _one(role: str, how: Any) -> Cast:
    from selfloop.calling import closest

    if isinstance(how, EngineConfig | AdapterConfig):
        return how
    if how == "model":
        return "model"
    if how == "adapter":
        return AdapterConfig()
    if not isinstance(how, Mapping):
        raise ValueError(f"{role} = {how!r}: expected `model` (the run's own), `adapter` (one of "
                         f"its own on the run's base) or options as in {{model: {how}}}")
    kind = AdapterConfig if "adapter" in how else EngineConfig
    odd = next((str(key) for key in how if key not in kind.model_fields), None)
    if odd is not None:
        raise ValueError(f"unknown key '{role}.{odd}'{closest(odd, kind.model_fields)}")
    try:
        return kind.model_validate(how)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join([role, *(str(x) for x in first["loc"] if x != LoRAConfig.__name__)])
        if first["type"] == "extra_forbidden":
            hint = closest(str(first["loc"][-1]), LoRAConfig.model_fields)
            raise ValueError(f"unknown key {at!r}{hint}") from None
        raise ValueError(f"{at}: {str(first['msg']).removeprefix('Value error, ')}") from None


Engines = Annotated[dict[str, Cast], BeforeValidator(_read)]
"""Role -> engine, as run.yaml names them."""
