"""Parts of a loop named in run.yaml: a sampler, refinement steps, a maker of signals, a reward.

    sampler: {use: TreeSearch, check: exact, budget: 20}
    organize: {steps: [{use: AccuracyBand, low: 0.2, high: 0.8}]}

`use` is the name of anything that ships in collect/, organize/ and beneath, or module:name. A
class is built with the other keys as its options; a function is called with them, or taken as it
is where there are none. Options may be parts in their turn.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Mapping, Set
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from selfloop.calling import closest, component_named
from selfloop.collect.swapped_pictures import Pool, pool_of
from selfloop.organize.chain import Chain
from selfloop.organize.refine.replay import SelectiveReplay
from selfloop.organize.verify.outside import Outside
from selfloop.organize.verify.similarity import Encoder, encoder_named
from selfloop.pictures import Library
from selfloop.roles import SelfloopError, name_of

if TYPE_CHECKING:
    from selfloop.config import RunConfig
    from selfloop.loop import Learn, Loop

PACKAGES = ("selfloop.collect", "selfloop.organize", "selfloop.organize.refine",
            "selfloop.organize.verify", "selfloop.answer_types")
"""Where names without a module are looked for."""
MOST_WAVES = 10
"""Waves of a step under `organize.wave`, the first among them: as many as in DAPO's released
configuration (arXiv 2503.14476, `max_num_gen_batches`)."""
_ROLE = "solver"


def composed(loop: Loop, config: RunConfig) -> Loop:
    """The method's loop with the parts that run.yaml names in place of its own.

    `sampler` and `reward` (the verifier of training answers; `verifier` stays the metric) stand
    in for the method's. `organize` changes the solver's chain: its `steps` come after the
    method's own, its `maker` and `wave` replace them. `evaluation` changes how dev
    is answered.

    Raises SelfloopError naming the key, the part and the option.
    """
    def part(key: str, value: Any) -> Any:
        stage = "selfloop.collect" if key.endswith("sampler") else "selfloop.organize"
        try:
            if key == "reward" and str(value["use"]).startswith("outside:"):
                return Outside.named(str(value["use"]).removeprefix("outside:"))
            return built(value, config, stage)
        except (SelfloopError, TypeError, ValueError) as error:
            raise SelfloopError(f"{key}: {error}") from error

    changed: dict[str, Any] = {}
    if config.sampler is not None:
        changed["sampler"] = part("sampler", config.sampler)
    if config.reward is not None:
        changed["verifier"] = part("reward", config.reward)
    how = config.organize
    said = {name: part(f"organize.{name}", value) for name in ("steps", "maker", "wave")
            if (value := getattr(how, name)) is not None}
    if said:
        changed["learn"] = {**loop.learn, _ROLE: _organized(loop, said)}
        if how.wave:
            changed["max_waves"] = _waves(loop, how.wave)
    dev = config.evaluation.model_dump(exclude_none=True)
    if dev and loop.evaluation is None:
        raise SelfloopError(f"evaluation: {loop.name} evaluates nothing on dev; take the key out, "
                            "or give its Loop an Evaluation")
    if dev and loop.evaluation is not None:
        changed["evaluation"] = replace(loop.evaluation, **{
            name: part(f"evaluation.{name}", value) for name, value in dev.items()})
    return replace(loop, **changed) if changed else loop


def _waves(loop: Loop, wave: int) -> int:
    if loop.samples is None:
        raise SelfloopError(f"organize.wave={wave}: {loop.name} draws all of its data in every "
                            "step, so there are no further problems: set options.samples, where "
                            "the method has it")
    return max(MOST_WAVES, loop.max_waves)


def _organized(loop: Loop, said: dict[str, Any]) -> Learn:
    learn = loop.learn.get(_ROLE)
    outer = learn.organizer if learn is not None else None
    chain = outer.organizer if isinstance(outer, SelectiveReplay) else outer
    if learn is None or not isinstance(chain, Chain):
        raise SelfloopError(f"organize: {loop.name} has no chain of steps for its {_ROLE}; take "
                            "the key out, or write the method as a function (docs/recipes.md)")
    maker = said.get("maker")
    if isinstance(maker, SelectiveReplay):  # it stands around the chain, not at its end
        outer, said["maker"] = maker, maker.organizer
    elif maker is not None and not hasattr(maker, "makes") \
            and name_of(maker).startswith("selfloop."):
        raise SelfloopError(f"organize.maker: {name_of(maker)} gives groups and no signals: write "
                            "it under organize.steps")
    try:
        made = replace(chain, steps=(*chain.steps, *said.pop("steps", ())), **said)
    except SelfloopError as error:
        raise SelfloopError(f"organize.steps: {error}") from error
    return replace(learn, organizer=replace(outer, organizer=made)
                   if isinstance(outer, SelectiveReplay) else made)


# -- building -------------------------------------------------------------------------------------

def built(value: Any, config: RunConfig | None = None, stage: str = "") -> Any:
    """A value of run.yaml with every `{use: ...}` in it built, lists as tuples. Of two parts of
    one name that of `stage`, a package, is meant."""
    if isinstance(value, list | tuple):
        return tuple(built(one, config, stage) for one in value)
    if not isinstance(value, Mapping) or "use" not in value:
        return value
    name = value["use"]
    if not isinstance(name, str):
        raise SelfloopError(f"use: {name!r} is no name: write the name of a part")
    if name == "train" and config is not None:
        return _training_pictures(config, **{str(k): v for k, v in value.items() if k != "use"})
    target = part_named(name, stage, value.keys() - {"use"})
    options = {str(key): built(one, config, stage) for key, one in value.items() if key != "use"}
    if not options and not inspect.isclass(target):
        return target
    if not callable(target):
        raise SelfloopError(f"{name} is {type(target).__name__}, which takes no options: name "
                            "them where it is made")
    return _called(name, target, options, config)


def _called(name: str, target: Any, options: dict[str, Any], config: RunConfig | None
            ) -> Any:
    takes = {n: p for n, p in inspect.signature(target).parameters.items()
             if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    for option in options:
        if option not in takes:
            raise SelfloopError(f"{name} has no option {option!r}{closest(option, takes)}")
    missing = [n for n, p in takes.items() if p.default is p.empty and n not in options]
    if missing:
        raise SelfloopError(f"{name} needs the option {missing[0]!r}")
    types = _types(target)
    return target(**{option: _fitting(f"{name}.{option}", value, types.get(option), config)
                     for option, value in options.items()})


def _types(target: Any) -> dict[str, Any]:
    """Option -> its type, where the annotations can be resolved."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, AttributeError, TypeError):  # imported for type checkers alone
        return {}


def _fitting(what: str, value: Any, kind: Any, config: RunConfig | None) -> Any:
    """A plain value as the option's type: YAML reads 1e-5 as text, and a word may name a part."""
    if isinstance(value, str) and Encoder in (kind, *typing.get_args(kind)):
        return encoder_named(value)
    if value == "train" and config is not None and Pool in (kind, *typing.get_args(kind)):
        return _training_pictures(config)
    if kind is None:
        return value
    if kind is Any:
        return _with_parts(value)
    try:
        adapter = TypeAdapter(kind, config=None if _has_config(kind) else ConfigDict(
            arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        named = _with_parts(value)
        if named == value:
            raise _odd(what, value, error) from None
    try:
        return adapter.validate_python(named)
    except ValidationError as error:
        raise _odd(what, value, error) from None


def _odd(what: str, value: Any, error: ValidationError) -> SelfloopError:
    """What pydantic found first, in one line: the option, its place in it, the value."""
    first = error.errors()[0]
    at = ".".join([what, *(str(step) for step in first["loc"] if isinstance(step, int))])
    name = f" {first['loc'][-1]!r}" if first["type"] in _NAMELESS and first["loc"] else ""
    given = first.get("input", value)
    asked = f"{at} = {(name_of(given) if callable(given) else str(given))[:80]!r}"
    return SelfloopError(f"{asked}: {first['msg']}{name}" + (
        "; write it as a list: [...]" if first["type"] == "tuple_type" else ""))


def _with_parts(value: Any) -> Any:
    """The value with words that name parts replaced by them: `check: exact`."""
    if isinstance(value, tuple):
        return tuple(_with_parts(one) for one in value)
    named = isinstance(value, str) and (ships(value) or ":" in value)
    return built({"use": value}) if named else value


def _has_config(kind: Any) -> bool:
    """Whether a type brings pydantic settings of its own, which may not be given twice."""
    return inspect.isclass(kind) and (hasattr(kind, "model_config")
                                      or hasattr(kind, "__dataclass_fields__"))


def _training_pictures(config: RunConfig, encoder: str = "", **other: Any) -> Pool:
    """All pictures that the run trains on, as stand-ins for one another: of a video its frames
    that are shown, and none of a row that is left out because dev or test knows it. With `encoder`
    (a CLIP- or SigLIP-shaped folder, or module:name) likeness is by meaning."""
    from selfloop.config import load_data

    if other:
        raise SelfloopError(f"train, all training pictures, has no option {next(iter(other))!r}"
                            f"{closest(next(iter(other)), ['encoder'])}")
    return pool_of([m for s in load_data(config, asking=True).train for m in s.media], Library(),
                   encoder_named(encoder) if encoder else None)


_NAMELESS = ("missing", "missing_argument", "unexpected_keyword_argument")
"""Kinds of errors whose message leaves out which option it is."""


# -- names ----------------------------------------------------------------------------------------

def part_named(name: str, stage: str = "", options: Set[str] = frozenset()) -> Any:
    """The class, function or object of a shipped name or module:name. Of two of one name that of
    the stage is meant, and of those the one that takes the options.

    Raises SelfloopError for an unknown name, with the closest, and for one that two modules have.
    """
    if ":" in name:
        return component_named(name)
    modules = _shipped().get(name)
    if modules is None:
        near = difflib.get_close_matches(name, _shipped(), 1, 0.5)
        raise SelfloopError(f"use: {name!r} is no part that ships"
                            + (f"; did you mean {near[0]!r}?" if near else "")
                            + " (docs/samplers.md, organizers.md and verifiers.md list them; "
                            "your own is module:name)")
    mine = [module for module in modules if stage and module.startswith(stage)]
    modules = tuple(mine) or modules
    if len(modules) > 1 and options:
        able = [m for m in modules if options <= inspect.signature(
            getattr(importlib.import_module(m), name)).parameters.keys()]
        modules = tuple(able) or modules
    if len(modules) > 1:
        raise SelfloopError(f"use: {name!r} may be " + " or ".join(
            f"{module}:{name}" for module in modules) + ": write which")
    return getattr(importlib.import_module(modules[0]), name)


def ships(name: str) -> bool:
    """Whether a part of this name ships."""
    return name in _shipped()


@cache
def _shipped() -> dict[str, tuple[str, ...]]:
    """Public name -> the modules that define it; the optional ones that cannot be imported are
    left out."""
    found: dict[str, tuple[str, ...]] = {}
    for package in PACKAGES:
        outer = importlib.import_module(package)
        names = [package] if not hasattr(outer, "__path__") else [
            f"{package}.{m.name}" for m in pkgutil.iter_modules(outer.__path__) if not m.ispkg]
        for module in names:
            for name, value in vars(importlib.import_module(module)).items():
                if not name.startswith("_") and callable(value) \
                        and getattr(value, "__module__", "") == module:
                    found[name] = (*found.get(name, ()), module)
    return found
