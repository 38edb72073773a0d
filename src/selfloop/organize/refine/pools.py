"""Groups of earlier steps beside those of this one (primitives F12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfloop.organize.refine.filters import not_below
from selfloop.types import Group, Sample, Verdict


@dataclass(frozen=True)
class Pool:
    """Pass on the pooled groups of all steps so far, at most `limit` of them.

    `keep="union"`: a sample's rollouts of all steps in one group, the newest `rollouts` of them
    (R3V, arXiv 2411.00855, released code). `keep="latest"`: each sample's newest group only; a
    sample that was not drawn this step keeps its last one. When there are more than `limit`
    samples, those drawn longest ago leave. The pool is JSON in the state under "pool": size
    `limit` and `rollouts` to what may be rewritten every step.
    """

    keep: Literal["union", "latest"] = "union"
    limit: int = 2000
    rollouts: int = 32

    def __post_init__(self) -> None:
        not_below(self, limit=(self.limit, 1), rollouts=(self.rollouts, 1))

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any]
                 ) -> tuple[list[Group], dict[str, Any]]:
        """(pooled groups, oldest first; the state update)."""
        pool = {str(name): _restored(str(name), line) for name, line in state.get("pool", ())}
        for group in groups:
            old = pool.pop(group.sample.id, None)
            joined = _joined(old, group) if old is not None and self.keep == "union" else group
            pool[group.sample.id] = _newest(joined, self.rollouts)
        kept = list(pool.items())[-self.limit:]
        return [g for _, g in kept], {"pool": [[name, g.to_json()] for name, g in kept]}


def _restored(name: str, line: str) -> Group:
    """A stored group. Its sample goes by the id it had: without its label it would hash anew."""
    group = Group.from_json(line)
    sample: Sample = group.sample.model_copy()
    sample.__dict__["id"] = name
    return group.model_copy(update={"sample": sample})


def _joined(old: Group, new: Group) -> Group:
    known = {r.id for r in new.rollouts}
    before = [i for i, r in enumerate(old.rollouts) if r.id not in known]
    told, tells = _verdicts(old), _verdicts(new)
    return new.model_copy(update={
        "rollouts": (*(old.rollouts[i] for i in before), *new.rollouts),
        "verdicts": (*(told[i] for i in before), *tells),
        "annotations": {**old.annotations, **new.annotations},
    })


def _verdicts(group: Group) -> tuple[Verdict, ...]:
    return group.verdicts or (Verdict(),) * len(group.rollouts)


def _newest(group: Group, n: int) -> Group:
    return group.model_copy(update={"rollouts": group.rollouts[-n:],
                                    "verdicts": group.verdicts[-n:]})
