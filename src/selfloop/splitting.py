"""Train, dev and test sets between which no look-alike pictures are shared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from selfloop.keys import bits
from selfloop.roles import SelfloopError

SPLITS = ("train", "dev", "test")


def joined(rows: Sequence[Sequence[Hashable]]) -> list[int]:
    """The group of each row: rows that share any of their units are in one, in chains too."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[Hashable, int] = {}
    for i, units in enumerate(rows):
        for unit in units:
            a, b = root(i), root(owner.setdefault(unit, i))
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(rows))]


def split_groups(
    groups: Sequence[int], labels: Sequence[str | None], *,
    shares: tuple[float, float, float] = (0.70, 0.15, 0.15), seed: int = 0,
) -> list[str]:
    """The split of each row: whole groups, labelled ones shared out label by label.

    Groups without any label go to train: nothing can be measured on them. The same seed and rows
    give the same split. Raises SelfloopError when fewer than three groups have labels.
    """
    rows: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        rows[group].append(i)
    strata: dict[str, list[int]] = defaultdict(list)
    size = {}
    for group, members in rows.items():
        known = Counter(label for i in members if (label := labels[i]) is not None)
        if known:
            strata[min(known, key=lambda label: (-known[label], label))].append(group)
            size[group] = known.total()
    if len(size) < 3:
        raise SelfloopError(
            f"{len(size)} groups of look-alike pictures have labels; train, dev and test need at "
            "least one each: label more, or more different, pictures"
        )
    chosen = _shared_out(strata, size, shares, seed)
    _none_empty(chosen, size)
    return [chosen.get(group, "train") for group in groups]


def _shared_out(
    strata: dict[str, list[int]], size: dict[int, int], shares: Sequence[float], seed: int
) -> dict[int, str]:
    """Each group to the split that lacks most of this label, and of all labels so far."""
    chosen: dict[int, str] = {}
    lacking_in_all = dict.fromkeys(SPLITS, 0.0)
    for label in sorted(strata, key=lambda name: (-len(strata[name]), name)):
        members = sorted(strata[label], key=lambda g: (-size[g], bits(f"{seed}/split/{g}")))
        total = sum(size[g] for g in members)
        lacking = {s: share * total for s, share in zip(SPLITS, shares, strict=True)}
        for group in members:
            for split, share in zip(SPLITS, shares, strict=True):
                lacking_in_all[split] += share * size[group]
            # Bounded, so that the balance over all labels only breaks near-ties within one.
            best = max(SPLITS, key=lambda s: lacking[s] + max(-0.5, min(0.5, lacking_in_all[s])))
            chosen[group] = best
            lacking[best] -= size[group]
            lacking_in_all[best] -= size[group]
    return chosen


def _none_empty(chosen: dict[int, str], size: dict[int, int]) -> None:
    """Few groups may leave a split with none: give it the smallest of the best-filled split."""
    for split in SPLITS:
        if split not in chosen.values():
            fullest = Counter(chosen.values()).most_common(1)[0][0]
            spare = [group for group, at in chosen.items() if at == fullest]
            chosen[min(spare, key=lambda g: (size[g], g))] = split
