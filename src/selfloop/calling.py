"""Calling components by what they name: no base classes, no registry, no surprises.

A component is any callable. It is given those of the offered values that its parameters name, and
naming a gold value is how it declares that it reads labels.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from selfloop.types import Sample, Verdict

LABELS = ("answer", "answers", "rationale", "rationales")
"""Parameter names through which a component declares that it reads gold values."""


class SelfloopError(Exception):
    """An error whose message is meant for the user: one line, what, where, and the mend."""


def parameters(component: Any) -> dict[str, inspect.Parameter]:
    """The parameters that a component names (its `__call__`, if it is an object)."""
    return dict(inspect.signature(component).parameters)


def reads(component: Any) -> frozenset[str]:
    """Which gold values a component declares that it reads, through anything it wraps."""
    names = frozenset(parameters(component)) & frozenset(LABELS)
    for inner in wrapped(component):
        names |= reads(inner)
    return names


def asks_a_model(component: Any) -> bool:
    """Whether a component asks a model: it names `generate`, or anything that it wraps does."""
    return "generate" in parameters(component) or any(map(asks_a_model, wrapped(component)))


def among_groups(component: Any) -> list[Any]:
    """Those of the components that it wraps, at any depth, that judge whole groups."""
    return [found for inner in wrapped(component) for found in
            ([inner] if "group" in parameters(inner) else among_groups(inner))]


def compares(component: Any) -> bool:
    """Whether a component says, by `compares = True`, that it judges answers by each other; or
    anything that it wraps does."""
    return bool(getattr(component, "compares", False)) or any(map(compares, wrapped(component)))


def gold(component: Any, sample: Sample) -> dict[str, Any]:
    """Those gold values of a sample that the component declares it reads, and no others."""
    declared = reads(component)
    values = {"answer": sample.answer, "rationale": sample.rationale}
    return {name: value for name, value in values.items() if name in declared}


def wrapped(component: Any) -> list[Any]:
    """Components held in the fields of a dataclass component."""
    if not is_dataclass(component) or isinstance(component, type):
        return []
    found: list[Any] = []
    for item in fields(component):
        value = getattr(component, item.name)
        values = value if isinstance(value, tuple) else (value,)
        flat = [x for v in values for x in (v if isinstance(v, tuple) else (v,))]
        found += [v for v in flat if callable(v) and not isinstance(v, type)]
    return found


def check_call(what: str, component: Any, offered: Sequence[str]) -> None:
    """Refuse, when the loop is built, a component that asks for something never offered."""
    for name, parameter in parameters(component).items():
        optional = parameter.default is not inspect.Parameter.empty or parameter.kind in (
            inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
        )
        if name not in offered and not optional:
            raise SelfloopError(
                f"{what} {name_of(component)} asks for {name!r}, which a {what} is never given; "
                f"it may name: {', '.join(offered)}"
            )


def names_any(component: Any, *names: str) -> bool:
    """Whether a component takes one of these, by name or with all that it is offered."""
    return any(name in names or p.kind is p.VAR_KEYWORD
               for name, p in parameters(component).items())


def call_by_name(component: Any, **offered: Any) -> Any:
    """Call a component with those of the offered arguments that it names."""
    named = parameters(component)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in named.values()):
        return component(**offered)
    return component(**{name: value for name, value in offered.items() if name in named})


def name_of(component: Any) -> str:
    """module:name of a function or of an object's class."""
    target = component if inspect.isroutine(component) else type(component)
    return f"{target.__module__}:{target.__qualname__}"


def source_hash(component: Any) -> str:
    """module:name#hash-of-source (outside selfloop of the whole module); lambdas and closures are
    refused: they have no stable name."""
    target = component if inspect.isroutine(component) else type(component)
    if "<lambda>" in target.__qualname__:
        raise SelfloopError(
            f"a lambda from {target.__module__} cannot be part of a loop: it has no name to "
            "fingerprint; write it as a module-level function"
        )
    if target is functools.partial or getattr(target, "__closure__", None):
        raise SelfloopError(
            f"{name_of(component)} cannot be part of a loop: what a partial or a closure holds "
            "has no fingerprint; write it as a frozen dataclass with __call__"
        )
    own: Any = getattr(target, "__func__", target)
    source = _source_hash(own)
    return f"{name_of(component)}#{source}"


@functools.lru_cache(maxsize=4096)
def _source_hash(target: Any) -> str:
    """Of a class's or function's source: to find a class the whole file is parsed every time.

    Of one outside selfloop, of its module's whole file: what it calls there decides as it does.
    Not of a script that is run: that also holds the options, which have names of their own.
    """
    module = sys.modules.get(target.__module__)
    whole = module is not None and module.__name__.partition(".")[0] not in ("selfloop", "__main__")
    try:
        source = inspect.getsource(module if whole and module is not None else target)
    except (OSError, TypeError):
        source = target.__qualname__
    return hashlib.blake2b(source.encode(), digest_size=5).hexdigest()


def component_named(path: str) -> Any:
    """The object at "module:name", for YAML and the command line."""
    try:
        return pkgutil.resolve_name(path)
    except (ValueError, ImportError, AttributeError) as error:
        raise SelfloopError(f"no component {path!r}: {error}; write it as module:name") from error


def closest(name: str, valid: Iterable[str]) -> str:
    """'; did you mean X? valid: ...': the end of a message about an unknown name."""
    known = sorted(valid)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" valid: {', '.join(known)}"


def as_verdict(value: Any, verifier: str) -> Verdict:
    """bool | float | Verdict | None, as a Verdict. NaN is refused: it is neither; so is text, which
    would make a score of what a model wrote."""
    if isinstance(value, Verdict):
        return value if value.verifier else value.model_copy(update={"verifier": verifier})
    if value is None:
        return Verdict(verifier=verifier)
    if isinstance(value, str | bytes | bytearray):
        raise SelfloopError(f"{verifier} returned the {type(value).__name__} {value[:40]!r}, which "
                            "is no score: return a number, True or False, a Verdict or None")
    return Verdict(score=float(value), verifier=verifier)
