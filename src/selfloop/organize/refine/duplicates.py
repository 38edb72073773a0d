"""What makes groups alike: pictures, questions, embeddings, a field, an answer.

Each is called with the groups and returns one label a group; None says that it cannot tell.
balance.py caps and balances by such labels: duplicates leave when at most one of a label stays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from selfloop.likeness import Look, thumbnail_from
from selfloop.organize.refine.near import Clusters, near_looks, near_texts, near_vectors
from selfloop.organize.refine.wording import normal, visible
from selfloop.roles import SelfloopError
from selfloop.types import Group

Label = Hashable
Alike = Callable[[Sequence[Group]], list[Label]]


def hashes_of(group: Group) -> list[int]:
    """`annotations["perceptual_hashes"]`: one a picture, a 64-bit number or 16 hex digits.

    [] when there are none. Raises SelfloopError for anything else.
    """
    found = group.annotations.get("perceptual_hashes", [])
    try:
        assert isinstance(found, list)
        values = [int(h, 16) if isinstance(h, str) else int(h) for h in found]  # type: ignore[arg-type]
        assert all(0 <= v < 1 << 64 for v in values)
    except (AssertionError, TypeError, ValueError):
        raise SelfloopError(
            f"sample {group.sample.id}: annotations['perceptual_hashes'] is {str(found)[:60]!r}; "
            "expected a list of 64-bit numbers or of 16 hex digits, one a picture") from None
    return values


def looks_of(group: Group) -> list[Look]:
    """`hashes_of`, each with its thumbnail of `annotations["picture_thumbnails"]`, if the group has
    as many: runs of before have none. Raises SelfloopError for what is no thumbnail."""
    bits, found = hashes_of(group), group.annotations.get("picture_thumbnails")
    if not isinstance(found, list) or len(found) != len(bits):
        return [Look(b) for b in bits]
    try:
        return [Look(b, thumbnail_from(str(t))) for b, t in zip(bits, found, strict=True)]
    except ValueError as error:
        raise SelfloopError(f"sample {group.sample.id}: annotations['picture_thumbnails']: "
                            f"{error}; write them with annotate.WithHashes") from None


@dataclass(frozen=True)
class SamePicture:
    """Groups that share a picture: by its bytes, or by perceptual hash up to `distance` bits and,
    where the groups have them, by thumbnails. Mirrored and cropped pictures are others."""

    distance: int = 6

    def __call__(self, groups: Sequence[Group]) -> list[Label]:
        """None for groups without pictures."""
        marks: list[Look | str] = []
        owners: list[int] = []
        for i, group in enumerate(groups):
            own: list[Look | str] = [*looks_of(group),
                                     *(m.sha256 for m in group.sample.media)]
            marks += own
            owners += [i] * len(own)
        near = iter(near_looks([m for m in marks if isinstance(m, Look)], self.distance))
        names = [("look", next(near)) if isinstance(m, Look) else ("bytes", m) for m in marks]
        clusters, first = Clusters(len(groups)), dict[Hashable, int]()
        for name, owner in zip(names, owners, strict=True):
            clusters.join(first.setdefault(name, owner), owner)
        labels = clusters.labels()
        return [label if g.sample.media else None
                for g, label in zip(groups, labels, strict=True)]


@dataclass(frozen=True)
class SameText:
    """Groups whose questions are alike: Jaccard of word n-grams of at least `jaccard`."""

    jaccard: float = 0.8
    n: int = 3

    def __call__(self, groups: Sequence[Group]) -> list[Label]:
        """One label a group."""
        return [*near_texts([g.sample.context.text for g in groups], self.jaccard, self.n)]


@dataclass(frozen=True)
class SameMeaning:
    """Groups whose `annotations["embedding"]` has a cosine of at least `cosine`."""

    cosine: float = 0.95

    def __call__(self, groups: Sequence[Group]) -> list[Label]:
        """None for groups without an embedding. Raises SelfloopError for unequal lengths."""
        found = [(i, e) for i, g in enumerate(groups)
                 if isinstance(e := g.annotations.get("embedding"), list)]
        if len({len(e) for _, e in found}) > 1:
            raise SelfloopError("annotations['embedding']: vectors of several lengths "
                                f"{sorted({len(e) for _, e in found})}; embed all with one model")
        labels: list[Label] = [None] * len(groups)
        near = near_vectors([e for _, e in found], self.cosine)  # type: ignore[misc]
        for (i, _), label in zip(found, near, strict=True):
            labels[i] = label
        return labels


@dataclass(frozen=True)
class SameField:
    """Groups with equal `meta[name]`."""

    name: str

    def __call__(self, groups: Sequence[Group]) -> list[Label]:
        """None for groups without the field."""
        values = [g.sample.meta.get(self.name) for g in groups]
        return [None if v is None else str(v) for v in values]


@dataclass(frozen=True)
class SameAnswer:
    """Groups whose answers judged right mostly say the same: a class without reading labels.

    What an answer says is the `rationale` of its verdict, where rules leave what they parsed, by
    its normal form (wording.py): "Yes" and "yes." are one class. A sentence that
    opens with yes or no ("Yes, there is a red car") is of that class: so the rule `yes_no` has it.
    """

    def __call__(self, groups: Sequence[Group]) -> list[Label]:
        """None for groups without a right answer."""
        return [self._said(g) for g in groups]

    def _said(self, group: Group) -> str | None:
        said = Counter(_class_of(v.rationale) for v in group.verdicts
                       if v.right and visible(v.rationale))
        return said.most_common(1)[0][0] if said else None


_YES_NO = re.compile(
    r"(yes|no)(?=$|\s*[,;:!]|\.(?!\s*\d)|\s+(?:it|there|they|he|she|this|that|the|i|we)\b)", re.I)


def _class_of(said: str) -> str:
    bare = _YES_NO.match(said.lstrip(" *\"'(\n"))
    both = {"yes", "no"} <= set(words := normal(said).split())
    return bare[1].lower() if bare and not both else " ".join(words)
