"""The parts of a combined verifier: called in order, awaited where they are judges, and named."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from selfloop.calling import (
    SelfloopError,
    among_groups,
    as_verdict,
    call_by_name,
    check_call,
    name_of,
    names_any,
    parameters,
)
from selfloop.roles import Verifier
from selfloop.types import Rollout, Verdict

OFFERED = ("rollout", "sample", "generate", "answer", "rationale", "key", "decode")
"""What a part may name: what a verifier of single answers is offered."""


def combined(verifiers: Sequence[Verifier], rollout: Rollout, offered: dict[str, Any],
             judged: Callable[[list[Verdict]], Verdict]) -> Verdict | Awaitable[Verdict]:
    """What `judged` makes of all verdicts: at once, or to be awaited if one of the parts is async.

    A part that failed makes the whole a failure: an error is neither a zero nor an abstention.
    """
    values: list[Verdict] = []
    for at, verifier in enumerate(verifiers):
        value = call_by_name(verifier, rollout=rollout, **offered)
        if inspect.isawaitable(value):
            return _awaited(value, verifiers, at, values, rollout, offered, judged)
        values.append(as_verdict(value, name_of(verifier)))
    return failed(values) or judged(values)


async def _awaited(value: Any, verifiers: Sequence[Verifier], at: int, values: list[Verdict],
                   rollout: Rollout, offered: dict[str, Any],
                   judged: Callable[[list[Verdict]], Verdict]) -> Verdict:
    values = [*values, as_verdict(await value, name_of(verifiers[at]))]
    values += await all_of(verifiers[at + 1:], rollout, offered)
    return failed(values) or judged(values)


async def all_of(verifiers: Sequence[Verifier], rollout: Rollout, offered: dict[str, Any]
                 ) -> list[Verdict]:
    """The verdicts of all, one after the other."""
    found = []
    for verifier in verifiers:
        value = call_by_name(verifier, rollout=rollout, **offered)
        found.append(as_verdict(await value if inspect.isawaitable(value) else value,
                                name_of(verifier)))
    return found


def failed(found: Sequence[Verdict]) -> Verdict | None:
    """The failure of the first part that failed, with the costs of all; None if none did."""
    error = next((v for v in found if v.error), None)
    return error and Verdict(error=True, parts=named(found), cost=sum(v.cost for v in found),
                             rationale=f"{error.verifier}: {error.rationale}")


def named(found: Sequence[Verdict]) -> dict[str, float]:
    """Scores by the verifiers' names; where several have one name they are numbered from 0."""
    names = [v.verifier.rsplit(":")[-1] for v in found]
    many = Counter(names)
    return {f"{i}:{name}" if many[name] > 1 else name: v.score
            for i, (name, v) in enumerate(zip(names, found, strict=True)) if v.score is not None}


def judges_answers(what: str, parts: Sequence[Any]) -> None:
    """Raises SelfloopError where there is nothing to combine, and for a part that is no verifier
    of single answers or of groups."""
    if not parts:
        raise SelfloopError(f"{what}: no verifier was given; expected at least one")
    for part in parts:
        if "group" in parameters(part):  # for InGroups; elsewhere refused with the loop
            continue
        check_call(f"part of {what}", part, OFFERED)
        if not names_any(part, "rollout"):
            raise SelfloopError(f"{what}: {name_of(part)} is no verifier: it does not take "
                                "`rollout`")


async def awaited(value: Any) -> Any:
    """A value, awaited where it has to be."""
    return await value if inspect.isawaitable(value) else value


@dataclass(frozen=True)
class Told:
    """A part's verdict that is known already, in the place of the part."""

    verdict: Verdict

    def __call__(self, rollout: Rollout) -> Verdict:
        """Whatever is asked."""
        return self.verdict


def put_in(verifier: Any, parts: Sequence[Any], verdicts: Sequence[Verdict]) -> Any:
    """The verifier with its parts, wherever they stand in it, replaced by what they said."""
    for part, verdict in zip(parts, verdicts, strict=True):
        if verifier is part:
            return Told(verdict)
    if isinstance(verifier, tuple):
        return tuple(put_in(one, parts, verdicts) for one in verifier)
    if not is_dataclass(verifier) or isinstance(verifier, type) or not among_groups(verifier):
        return verifier
    return replace(verifier, **{
        f.name: put_in(getattr(verifier, f.name), parts, verdicts)
        for f in fields(verifier) if f.init})


def check_parts(verifier: Any) -> None:
    """Raises SelfloopError for a combination that ships and judges single answers, one of whose
    parts judges groups: it would be called with an answer that it does not name."""
    ours = type(verifier).__module__.startswith("selfloop.organize.verify.")
    if ours and "group" not in parameters(verifier) and (among := among_groups(verifier)):
        name, part = (name_of(v).rpartition(":")[2] for v in (verifier, among[0]))
        raise SelfloopError(f"{name}: its part {part} judges whole groups and {name} single "
                            f"answers: wrap it as InGroups({name}(...)), in run.yaml "
                            f"{{use: InGroups, combination: {{use: {name}, ...}}}}")
