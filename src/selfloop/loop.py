"""A method, described: a value that can be printed, checked, fingerprinted and run.

Nothing here runs anything; see running.py. A recipe is a short function that returns a Loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, TypeGuard

from selfloop.collect import drawing
from selfloop.doors import is_async
from selfloop.evaluate.forgetting import Suite
from selfloop.evaluate.gate import Gate
from selfloop.organize import judging
from selfloop.organize.verify.parts import check_parts
from selfloop.roles import (
    Loss,
    Optim,
    Organizer,
    Sampler,
    Sampling,
    SelfloopError,
    Verifier,
    check_call,
    name_of,
    names_any,
    parameters,
    reads,
    source_hash,
)
from selfloop.sampling import check_decoding
from selfloop.types import Sample, digest

ORGANIZER_OFFERED = ("groups", "state", "key", "answers", "rationales")
NOT_IN_FINGERPRINT = frozenset({"iterations", "save_every", "max_errors", "max_unjudged"})
SPELLED_OUT = 256
"""A longer option, such as the pictures of a pool, is described by its length and a hash."""


@dataclass(frozen=True, kw_only=True)
class Learn:
    """How one role learns: what makes its signals, which loss reads them, how it steps."""

    organizer: Organizer
    loss: Loss
    optim: Optim = Optim()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured on the dev split at the end of every iteration."""

    metric: Verifier
    """Judges greedy answers; the only place where dev labels are read."""
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=64)
    sampler: Sampler | None = None
    """How a dev question is answered, where one turn is not enough: an EnvSampler with n=1. There
    are then no answers without pictures and no further draws."""
    no_image: bool = True
    """Also answer with the pictures taken out, to see what the text alone gives away."""
    draws: int = 0
    """Also draw so many answers at temperature 1, for pass@k and the vote."""
    suites: tuple[Suite, ...] = ()
    """What must not be forgotten: asked of the seed and of every candidate (forgetting.py)."""
    rewarded: bool = True
    """Also judge the dev answers by the loop's own verifier, to see reward and metric part."""

    def __post_init__(self) -> None:
        for metric in (self.metric, *(suite.metric for suite in self.suites)):
            judging.alone(metric)
        names = [suite.name for suite in self.suites]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SelfloopError(f"two suites are called {twice!r}: give each a name of its own")


@dataclass(frozen=True, kw_only=True, repr=False)
class Loop:
    """One self-improvement method: collect, verify, organize, optimize, evaluate, gate."""

    name: str
    sampler: Sampler | None = None
    verifier: Verifier | None = None
    learn: Mapping[str, Learn]
    """Role -> how it learns. A proposer can be trained beside its solver."""
    evaluation: Evaluation | None = None
    gate: Gate | None = field(default_factory=Gate)
    iterations: int = 3
    steps: int = 1
    """Collect-organize-optimize steps between two gates."""
    samples: int | None = None
    """Problems a step; None = all of the data."""
    shard: int = 256
    """Problems that are drawn together and stored together."""
    max_waves: int = 1
    max_staleness: int = 0
    """Step r is drawn by exactly version r - k."""
    save_every: int = 1
    """Steps between checkpoints; iterations always end with one."""
    max_errors: float = 0.05
    """Share of a step's verdicts that may be verifier failures before the run stops."""
    max_unjudged: float | None = None
    """Share of a step's verdicts that may be abstentions before the run stops. None is 0.99 for a
    verifier that reads gold values, which can tell unless they are missing or unreadable, and no
    limit for one that reads none: votes and annotators abstain by design."""
    seed: int = 0

    def __post_init__(self) -> None:
        for what in ("iterations", "steps", "shard", "max_waves", "save_every"):
            if getattr(self, what) < 1:
                raise SelfloopError(f"Loop.{what}={getattr(self, what)}: must be at least 1")
        if self.max_staleness < 0 or (self.samples is not None and self.samples < 1):
            raise SelfloopError("Loop.max_staleness must be >= 0 and Loop.samples >= 1 or None")
        if not self.learn:
            raise SelfloopError(f"loop {self.name!r} learns nothing: give learn={{'solver': ...}}")
        if self.sampler is not None:
            _check_sampler(self.sampler)
        if self.verifier is not None:
            check_call("verifier", self.verifier, judging.OFFERED)
            self._check_verifier(self.verifier)
        if self.verifier is not None and self.sampler is None:
            raise SelfloopError(f"verifier {name_of(self.verifier)} has nothing to judge, because "
                                "sampler is None: give a sampler, or drop the verifier")
        for role, how in self.learn.items():
            check_call("organizer", how.organizer, ORGANIZER_OFFERED)
            self._check_learn(role, how)
        if self.evaluation is not None and self.evaluation.sampler is not None:
            self._check_how_dev_is_answered(self.evaluation.sampler, self.evaluation.draws)
        if self.gate is not None and self.evaluation is None:
            object.__setattr__(self, "gate", None)
        self.described()  # refuses what has no stable name

    @staticmethod
    def _check_how_dev_is_answered(sampler: Sampler, draws: int) -> None:
        _check_sampler(sampler)
        if draws:
            raise SelfloopError(
                f"Evaluation(draws={draws}) with the sampler {name_of(sampler)}: dev is answered "
                "by that sampler alone, so there are no further draws; leave out one of the two")
        if told := reads(sampler):
            raise SelfloopError(
                f"Evaluation.sampler {name_of(sampler)} reads {', '.join(sorted(told))}: whoever "
                "is measured must not be told the gold values; choose a sampler that reads none")

    @staticmethod
    def _check_verifier(verifier: Verifier) -> None:
        check_parts(verifier)
        if {"rollout", "group"} <= parameters(verifier).keys():
            raise SelfloopError(
                f"verifier {name_of(verifier)} names both `rollout` and `group`: it is called "
                "once a rollout or once a group, so name one of them")
        if not names_any(verifier, "rollout", "group"):
            raise SelfloopError(
                f"{name_of(verifier)} is no verifier: it takes neither `rollout` nor `group`, so "
                "it would judge without looking at an answer")
        if "generate" in parameters(verifier) and not is_async(verifier):
            raise SelfloopError(
                f"verifier {name_of(verifier)} names `generate`, which must be awaited: "
                "write it as `async def`")

    def _check_learn(self, role: str, how: Learn) -> None:
        makes = getattr(how.organizer, "makes", None)
        if makes is not None:
            example = makes() if callable(makes) else makes
            if example and not any(how.loss.accepts(signal) for signal in example):
                kinds = sorted({type(s).__name__ + str(sorted(s.branches)) for s in example})
                raise SelfloopError(
                    f"role {role!r}: organizer {name_of(how.organizer)} makes {', '.join(kinds)}, "
                    f"which loss {type(how.loss).__name__} cannot read: "
                    "choose a loss for these signals or a maker for this loss")
        if self.max_staleness and how.optim.start == "seed":
            raise SelfloopError(
                f"role {role!r}: Optim(start='seed') with Loop(max_staleness="
                f"{self.max_staleness}): stale draws of restarted weights have no meaning; "
                "set max_staleness=0 or start='previous'")
        if getattr(how.organizer, "wants", None) is None and self.max_waves > 1 \
                and len(self.learn) == 1:
            raise SelfloopError(
                f"Loop(max_waves={self.max_waves}) with organizer {name_of(how.organizer)}, "
                "which has no `wants(groups)`: it would never ask for another wave")

    def __repr__(self) -> str:
        """The configuration: every option, components by name, nothing that changes by run."""
        return _with_options(self, "")

    @property
    def labels_read(self) -> dict[str, frozenset[str]]:
        """Which component reads which gold values while training (dev labels not counted)."""
        parts = {"sampler": self.sampler, "verifier": self.verifier,
                 **{f"organizer of {role}": how.organizer for role, how in self.learn.items()}}
        return {what: reads(part) for what, part in parts.items()
                if part is not None and reads(part)}

    @property
    def asks(self) -> frozenset[str]:
        """What the loop needs of an engine beyond generate: learning, and its samplers' wishes."""
        dev = self.evaluation.sampler if self.evaluation else None
        return frozenset({"learn"}).union(*(getattr(s, "asks", ()) for s in (self.sampler, dev)))

    def fingerprint(self) -> str:
        """Hash of everything that decides what is computed; more iterations keep it."""
        return digest(self.described())

    def described(self) -> dict[str, object]:
        """The loop as JSON: components by module:name with their options and source hashes."""
        return self._described_once

    @cached_property
    def _described_once(self) -> dict[str, object]:  # once: files may be edited while a loop runs
        return {f.name: _described(getattr(self, f.name)) for f in fields(self)
                if f.name not in NOT_IN_FINGERPRINT}


def _check_sampler(sampler: Sampler) -> None:
    check_call("sampler", sampler, drawing.OFFERED)
    check_decoding(sampler)
    if not names_any(sampler, "generate", "sample"):
        raise SelfloopError(f"{name_of(sampler)} is no sampler: it takes neither `generate` nor "
                            "`sample`; an environment is drawn by EnvSampler(env=...)")


def _described(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _described(getattr(value, f.name)) for f in fields(value)
               if f.init and f.metadata.get("described", True)}
        return {"is": source_hash(value), **own}
    if isinstance(value, Mapping):
        return {str(k): _described(v) for k, v in value.items()}
    if _questions(value):
        return _listed(value)
    if isinstance(value, tuple | list):
        each = [_described(v) for v in value]
        return each if len(each) <= SPELLED_OUT else f"{len(each)} values #{digest(each)}"
    if isinstance(value, frozenset | set):
        return sorted(str(v) for v in value)
    if callable(value):
        return source_hash(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return repr(value)


def _questions(value: object) -> TypeGuard[tuple[Sample, ...]]:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, Sample) for v in value)


def _listed(samples: tuple[Sample, ...]) -> str:
    """Questions that are an option of a loop, by their number and a hash of what they ask."""
    return f"{len(samples)} samples #{digest([s.id for s in samples])}"


def _with_options(value: Any, indent: str) -> str:
    """A dataclass as its name and options, one a line."""
    deeper = indent + "    "
    inner = [f"{deeper}{f.name}={printed(getattr(value, f.name), deeper)}"
             for f in fields(value) if f.init]
    name = type(value).__name__
    return f"{name}(\n" + ",\n".join(inner) + f"\n{indent})" if inner else f"{name}()"


def printed(value: object, indent: str = "") -> str:
    """A value as a readable, stable expression; functions as module:name. A part that writes a
    repr of its own (a pool of thousands of pictures) is printed by it."""
    deeper = indent + "    "
    if is_dataclass(value) and not isinstance(value, type):
        own = "__repr__" in vars(type(value)) and not type(value).__dataclass_params__.repr  # type: ignore[attr-defined]
        return repr(value) if own else _with_options(value, indent)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {printed(v, deeper)}" for k, v in value.items()) + "}"
    if _questions(value):
        return _listed(value)
    if isinstance(value, tuple | list):
        return "(" + ", ".join(printed(v, deeper) for v in value) + ")"
    if callable(value):
        return name_of(value)
    return repr(value)


# -- two described loops ------------------------------------------------------------------------

def only_verifier_mended(found: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether nothing differs but the verifier (and the metric, which is often the same)."""
    def bare(loop: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in loop.items() if k not in ("verifier", "evaluation")}

    return found["fingerprint"] != now["fingerprint"] \
        and all(found[k] == now[k] for k in ("data", "dev", "engines")) \
        and bare(found["loop"]) == bare(now["loop"])


def differences(then: Any, now: Any, at: str = "") -> list[str]:
    """The options in which two described loops differ, by their dotted names."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = sorted(then.keys() | now.keys())
        return [d for k in keys for d in differences(then.get(k), now.get(k),
                                                      f"{at}.{k}" if at else k)]
    return [] if then == now else [f"{at} was {then}, is {now}"[:160]]
