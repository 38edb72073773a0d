"""Problems that need no picture (primitives F18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.organize.refine.filters import not_below
from selfloop.roles import SelfloopError
from selfloop.types import Group


@dataclass(frozen=True)
class NeedsPicture:
    """Drop groups that were answered right without the picture in at least k of n draws.

    Reads `annotations["no_image"]`, left by `annotate.WithBlindAnswers`, or by a
    verifier like it: a list with one entry a draw, right (true or >= 0.5), wrong, or
    null for not judged. A prompt that text alone answers rewards not looking (ours, after the
    blind controls of mDPO, arXiv 2406.11839). Nulls count as not right. Groups without pictures
    pass; so do those never asked, unless `strict`, which raises SelfloopError.
    """

    k: int = 2
    strict: bool = True

    def __post_init__(self) -> None:
        not_below(self, k=(self.k, 1))

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that stay."""
        return [g for g in groups if not g.sample.media or self._right(g) < self.k]

    def _right(self, group: Group) -> int:
        found = group.annotations.get("no_image")
        if found is None and not self.strict:
            return 0
        if not isinstance(found, list) or not all(
                s is None or isinstance(s, bool | int | float) for s in found):
            raise SelfloopError(
                f"NeedsPicture: sample {group.sample.id}: annotations['no_image'] is "
                f"{str(found)[:40]!r}; expected a list with one verdict a blind draw: add a "
                "verifier that draws them, or NeedsPicture(strict=False)")
        return sum(isinstance(s, bool | int | float) and s >= 0.5 for s in found)
