"""The methods by name: which recipe, which options it takes, and the Loop that a config means."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from selfloop.answer_types import RULES
from selfloop.calling import closest
from selfloop.composing import built, composed, ships
from selfloop.config_sections import spelled
from selfloop.evaluate.forgetting import Suite, default_suites, load_suite
from selfloop.evaluate.gate import Gate
from selfloop.organize.verify.outside import Outside
from selfloop.roles import Optim, SelfloopError, component_named, reads

if TYPE_CHECKING:
    from selfloop.config import RunConfig
    from selfloop.loop import Loop
    from selfloop.roles import Verifier

METHODS: dict[str, str] = {
    "star": "imitate the own answers that the verifier accepts",
    "dpo": "prefer the best to the worst of the own answers",
    "grpo": "reinforce answers that are better than their group's mean",
    "agreement": "imitate what the own answers agree on; reads no labels",
    "stic": "prefer guided descriptions to misled ones; reads no labels",
    "stic_described": "imitate gold answers that follow the own description of the picture",
    "seva": "prefer answers to the picture to answers to a noisy one; reads no labels",
    "csr": "prefer own sentences that are likely and fit the picture; reads no labels",
    "rlaif_v": "prefer answers whose claims a model accepts one by one; reads no labels",
    "fisao": "reinforce each word by how well it fits the picture; reads no labels",
    "r3v": "imitate right answers, mend wrong ones, choose among both; from the seed each time",
    "mm_upt": "reinforce the group's most frequent answer; reads no labels",
    "visplay": "reinforce a questioner and a solver that raise each other; reads no labels",
    "vision_zero": "reinforce a spy game's clues and votes in turn; reads no labels",
    "m3id": "prefer answers decoded towards the picture to blind ones; reads no labels",
    "eve": "reinforce a writer of picture programs and who solves them; reads no labels",
    "mm_zero": "reinforce a proposer, a coder that draws and a solver; no pictures, no labels",
    "mdpo": "prefer right answers to wrong ones, and the picture to a crop of it",
    "papo": "reinforce answers that also depend on the picture",
    "noisyrollout": "reinforce groups of which half saw a noisy picture; the noise fades",
    "m_star": "imitate right answers whose steps a judge likes; adapts the temperature",
    "vl_rethinker": "reinforce with replay, and imitate second thoughts that end right",
    "sdpo": "match oneself shown a right answer of the same group, token by token",
    "sdft": "match oneself shown the gold solution, on one's own answers",
    "reward_model": "learn to tell right answers from wrong ones of one problem",
    "process_reward": "learn to tell right steps of an answer from wrong ones",
    "supervised": "imitate gold answers or worked solutions; draws nothing",
}
"""Recipe name -> what it does in a few words."""
VERIFIERS = ("exact", "number", "choice", "yes_no", "text")
AUTO = ("star", "dpo", "grpo", "agreement", "supervised")
"""What `method: auto` picks from; the rules are in choosing.py."""
_GIVEN = frozenset({"verifier", "metric", "iterations", "seed"})
"""Recipe parameters that have a key of their own in run.yaml."""


def recipe_named(method: str) -> Callable[..., Loop]:
    """The recipe function of a method name or a module:function."""
    if method in METHODS:
        found: Callable[..., Loop] = getattr(import_module(f"selfloop.recipes.{method}"), method)
        return found
    if ":" not in method:
        raise SelfloopError(f"method {method!r} is unknown"
                            f"{closest(method, ['auto', *METHODS])}, or module:function")
    named: Callable[..., Loop] = component_named(method)
    return named


def options_of(method: str) -> dict[str, inspect.Parameter]:
    """The options that a method takes in `options:`."""
    found = {name: p for name, p in inspect.signature(recipe_named(method)).parameters.items()
             if name not in _GIVEN and p.kind is not inspect.Parameter.VAR_KEYWORD}
    if method == "agreement":
        found["verifier"] = inspect.Parameter("verifier", inspect.Parameter.KEYWORD_ONLY)
    return found


def verifier_named(name: str, home: Path | None = None) -> Verifier:
    """exact, number, choice, yes_no, text, the name of any other that ships, one with options
    ("{use: Quantity, relative: 0.05}"), module:name (a class is built with its defaults), or
    outside:module:name for a verifier in a process of its own, with the limits of Outside or
    those that follow the name.

    Modules are also looked for in `home` and in the folder one stands in.
    """
    if name in VERIFIERS:
        rule: Verifier = component_named(f"{RULES}:{name}")
        return rule
    look_in(home)
    if name.startswith("{"):
        made: Verifier = built(_read(name), stage="selfloop.organize.verify")
        return made
    if ":" not in name:
        if not ships(name):
            raise SelfloopError(f"verifier {name!r} is unknown{closest(name, VERIFIERS)}, "
                                "any other that ships (docs/verifiers.md), or module:name")
        shipped: Verifier = built({"use": name}, stage="selfloop.organize.verify")
        return shipped
    if name.startswith("outside:"):
        return Outside.named(name.removeprefix("outside:"))
    found: Any = component_named(name)
    if inspect.isclass(found):
        try:
            found = found()
        except TypeError as error:
            raise SelfloopError(f"verifier {name!r} cannot be built without options ({error}): "
                                "make an object of it in a module and name that") from None
    if not callable(found):
        raise SelfloopError(f"verifier {name!r} is {type(found).__name__}, which cannot be called")
    verifier: Verifier = found
    return verifier


def _read(spelled: str) -> Any:
    try:
        return yaml.safe_load(spelled)
    except yaml.YAMLError:
        raise SelfloopError(f"verifier {spelled!r} cannot be read: write it as "
                            "{use: NAME, option: value}") from None


def look_in(home: Path | None) -> None:
    """Let modules beside run.yaml, or in the current folder, be imported by name."""
    for folder in (home, Path.cwd()):
        if folder is not None and str(folder) not in sys.path:
            sys.path.append(str(folder))


def build_loop(config: RunConfig) -> Loop:
    """The Loop that a config means. Raises SelfloopError naming an option that does not exist."""
    if config.method == "auto":
        raise SelfloopError("method: auto is chosen by `selfloop plan` and `selfloop run`; "
                            f"or name one of {', '.join(METHODS)}")
    look_in(config.home)
    recipe = recipe_named(config.method)
    takes = inspect.signature(recipe).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    valid = options_of(config.method)
    for name in config.options:
        if name not in valid and not anything:
            own = f"; it has a key of its own: {name}: ..." if name in _GIVEN & takes.keys() \
                else closest(name, valid)
            raise SelfloopError(f"options.{name}: {config.method} has no such option{own}")
    options = {name: _typed(name, value, valid) for name, value in config.options.items()}
    metric = verifier_named(config.verifier, config.home)
    given: dict[str, Any] = {"verifier": metric, "metric": metric, "seed": config.seed,
                             "iterations": config.iterations}
    if config.method == "agreement":
        given["verifier"], options = _without_labels(options, config.home)
    named = {name: value for name, value in given.items() if name in takes or anything}
    try:
        made = recipe(**named, **options)
    except (TypeError, ValueError, SelfloopError) as error:
        raise SelfloopError(f"options of {config.method}: {error}") from error
    return _decided(composed(made, config), config)


def open_to(config: RunConfig) -> RunConfig:
    """A run.yaml of method auto with a method that auto may pick and that takes its options: what
    can be built, and be wrong, before a probe picks. Any other run.yaml as it is.

    Raises SelfloopError where none of the methods takes the options.
    """
    if config.method != "auto":
        return config
    takers = {method: config.options.keys() & options_of(method) for method in AUTO}
    for name in config.options:
        if not any(name in taken for taken in takers.values()):
            valid = {name for method in AUTO for name in options_of(method)}
            raise SelfloopError(f"options.{name}: none of the methods that auto picks from "
                                f"({', '.join(AUTO)}) has such an option{closest(name, valid)}")
    most = max(AUTO, key=lambda method: len(takers[method]))
    if lacking := [name for name in config.options if name not in takers[most]]:
        who = ", ".join(method for method in AUTO if lacking[0] in takers[method])
        raise SelfloopError(f"options.{lacking[0]}: of the methods that auto picks from only {who} "
                            "has it, and no method has all of these options: name the method, or "
                            "leave some out")
    fitting = [config.model_copy(update={"method": method}) for method in AUTO
               if len(takers[method]) == len(config.options)]
    for one in fitting:
        with contextlib.suppress(SelfloopError):
            build_loop(one)
            return one
    build_loop(fitting[0])  # all of them are wrong somewhere: the first is told
    return fitting[0]


def _decided(loop: Loop, config: RunConfig) -> Loop:
    """The loop with what run.yaml says of its gate, its budgets and what must not be forgotten."""
    budgets = {n: getattr(config, n) for n in ("max_errors", "max_unjudged")}
    loop = replace(loop, **{n: most for n, most in budgets.items() if most is not None})
    if said := config.optim.model_dump(exclude_none=True):
        loop = replace(loop, learn={role: replace(how, optim=_told(how.optim, said))
                                    for role, how in loop.learn.items()})
    if loop.evaluation is not None and (suites := _suites(config)):
        loop = replace(loop, evaluation=replace(loop.evaluation, suites=suites))
    if not isinstance(loop.gate, Gate):  # none, or one of the recipe's own
        return loop
    own = config.gate.model_dump()
    acting = replace(loop.gate.acting, **{n: own.pop(n) for n in ("strikes", "patience")})
    return replace(loop, gate=replace(loop.gate, acting=acting, **own))


def _told(optim: Optim, said: Mapping[str, Any]) -> Optim:
    """A role's optimizer with what run.yaml says of it."""
    more: dict[str, Any] = {n: None if x == "never" else x for n, x in said.items()}
    try:
        return replace(optim, **more)
    except SelfloopError as error:
        raise SelfloopError(f"optim: {error}") from None


def _suites(config: RunConfig) -> tuple[Suite, ...]:
    if isinstance(config.suites, tuple):
        return tuple(load_suite(s.path, verifier_named(s.verifier, config.home), s.epsilon)
                     for s in config.suites)
    wanted = config.suites == "default" or (
        config.suites == "auto" and config.model != "embedded")
    return default_suites() if wanted else ()


def _typed(name: str, value: Any, valid: dict[str, inspect.Parameter]) -> Any:
    """The value as the option's type: YAML reads 1e-5 as text, and a word is no number. Where a
    part is expected, its name or {use: NAME, option: value} is the part."""
    kind = valid[name].annotation if name in valid else inspect.Parameter.empty
    if kind is inspect.Parameter.empty or isinstance(kind, str):
        return value
    try:
        found = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        named = {"use": value} if isinstance(value, str) else value
        wanted = error.errors()[0]["type"] == "callable_type" or not isinstance(value, str)
        if wanted and isinstance(named, dict) and "use" in named:
            try:
                part = built(named)
            except SelfloopError as wrong:
                raise SelfloopError(f"options.{name}: {wrong}") from None
            with contextlib.suppress(ValidationError):
                return TypeAdapter(kind).validate_python(part)
        what = error.errors()[0]["msg"]
        raise SelfloopError(f"options.{name} = {value!r}: {what}; "
                            f"expected {getattr(kind, '__name__', kind)}") from None
    if isinstance(found, float) and not math.isfinite(found):  # written as text: inf, 1e999
        raise SelfloopError(f"options.{name} = {value!r}: expected a finite number")
    return found


def _without_labels(options: dict[str, Any], home: Path) -> tuple[Verifier, dict[str, Any]]:
    """The label-free verifier of `agreement`, and the other options."""
    from selfloop.organize.verify.vote import MajorityVote

    rest = {name: value for name, value in options.items() if name != "verifier"}
    if "verifier" not in options:
        # A plain vote is only sound among answers to one question.
        return MajorityVote(), {"questions": 1, **rest}
    verifier = verifier_named(str(spelled(options["verifier"])), home)
    if reads(verifier):
        raise SelfloopError(f"options.verifier: {options['verifier']} reads gold answers; "
                            "agreement needs a verifier that reads none")
    return verifier, rest
