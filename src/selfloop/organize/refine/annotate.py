"""Perceptual hashes for groups: what the steps that compare pictures read."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfloop.likeness import perceptual_hash
from selfloop.organize.judging import failure
from selfloop.pictures import Library
from selfloop.roles import as_verdict, call_by_name, name_of, parameters
from selfloop.types import Group, Media, Rollout, Verdict


@dataclass(frozen=True)
class WithHashes:
    """A verifier that also leaves `annotations["perceptual_hashes"]`, 16 hex digits a picture.

    Wraps a synchronous verifier of rollouts or of groups. `images` is where pictures without a
    path lie (a run's images folder). Video and sound are not hashed.
    """

    verifier: Any
    images: str = ""

    def __call__(self, group: Group, **offered: Any) -> Group:
        """The group judged and annotated. Gold values reach only a verifier that names them."""
        name = name_of(self.verifier)
        if "group" in parameters(self.verifier):
            found = call_by_name(self.verifier, group=group, **offered)
        else:
            found = [self._judged(group, r, offered) for r in group.rollouts]
        if inspect.isawaitable(found) or any(map(inspect.isawaitable, _listed(found))):
            raise TypeError(f"WithHashes wraps synchronous verifiers; {name} is asynchronous")
        if not isinstance(found, Group):
            verdicts: tuple[Verdict, ...] = tuple(as_verdict(v, name) for v in found)
            found = group.model_copy(update={"verdicts": verdicts})
        looks = [_look(m, self.images) for m in group.sample.media if m.kind == "image"]
        return found.model_copy(update={
            "annotations": {**found.annotations, "perceptual_hashes": [f"{h:016x}" for h in looks]}
        })

    def _judged(self, group: Group, rollout: Rollout, offered: dict[str, Any]) -> Any:
        """One rollout's verdict: a failure is that rollout's alone."""
        try:
            return call_by_name(self.verifier, rollout=rollout, **offered)
        except Exception as error:
            return failure(name_of(self.verifier), rollout.id, group.sample.id, error)


def _listed(found: Any) -> Sequence[Any]:
    return found if isinstance(found, list | tuple) else ()


@lru_cache(maxsize=100_000)
def _hash_of(medium: str, images: str) -> int:
    library = Library(Path(images)) if images else Library()
    return perceptual_hash(library.open(Media.from_json(medium)))


def _look(medium: Media, images: str) -> int:
    return _hash_of(medium.model_copy(update={"ops": ()}).to_json(), images)
