"""Caps per cluster and equal classes, over the labels of duplicates.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop import keys
from selfloop.organize.refine.duplicates import Alike, Label
from selfloop.organize.refine.filters import not_below
from selfloop.roles import SelfloopError
from selfloop.types import Group


@dataclass(frozen=True)
class AtMost:
    """Keep at most `n` groups that are alike in all of `alike`, drawn by key.

    `AtMost(1, (SamePicture(), SameText()))` takes out duplicates: groups whose pictures and whose
    questions are alike. Another question about the same picture is no duplicate. A group that
    one of `alike` cannot tell is kept, unless `unknown=False`. Order is kept.
    """

    n: int
    alike: tuple[Alike, ...]
    unknown: bool = True

    def __post_init__(self) -> None:
        not_below(self, n=(self.n, 1))
        if not self.alike:
            raise SelfloopError("AtMost(alike=()): say what makes groups alike, as in "
                                "AtMost(1, (SameText(),)); by nothing all are alike")

    def __call__(self, groups: Sequence[Group], key: str) -> list[Group]:
        """The groups that stay."""
        columns = [alike(groups) for alike in self.alike]
        labels = list(zip(*columns, strict=True)) if columns else [()] * len(groups)
        taken: Counter[Label] = Counter()
        kept: set[int] = set()
        for i in keys.shuffled(len(groups), key):
            if None in labels[i]:
                kept |= {i} if self.unknown else set()
            elif taken[labels[i]] < self.n:
                taken[labels[i]] += 1
                kept.add(i)
        return [groups[i] for i in sorted(kept)]


@dataclass(frozen=True)
class Balanced:
    """Keep of every class at most `ratio` times as many groups as the smallest class has.

    A vote that always says "yes" and is right 9 times in 10 teaches "yes": classes are what
    `alike` tells apart (SameAnswer, SameField). Which groups stay is drawn by key. Classes of
    fewer than `least` groups do not count as the smallest, unless all are so small: then the
    smallest of them counts, and no step is lost for having few groups. Groups of unknown class
    leave.
    """

    alike: Alike
    ratio: float = 1.0
    least: int = 1

    def __post_init__(self) -> None:
        not_below(self, ratio=(self.ratio, 1), least=(self.least, 1))

    def __call__(self, groups: Sequence[Group], key: str) -> list[Group]:
        """The groups that stay, in order."""
        classes: dict[Label, list[int]] = defaultdict(list)
        for i, label in enumerate(self.alike(groups)):
            if label is not None:
                classes[label].append(i)
        every = [len(c) for c in classes.values()]
        sizes = [n for n in every if n >= self.least] or every
        cap = max(1, int(self.ratio * min(sizes))) if sizes else 0
        kept = [members[j] for label, members in classes.items()
                for j in keys.shuffled(len(members), f"{key}/{label}")[:cap]]
        return [groups[i] for i in sorted(kept)]
