"""Which of many items are near each other, without comparing all pairs.

Bits and sets are exact, vectors find nearly all; each says what it costs. Whatever is near stands
in one cluster, and so on in chains: A near B near C puts A and C together.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from selfloop import keys
from selfloop.likeness import BYTES, Look, as_bytes, bits_set, confirmed
from selfloop.organize.refine.wording import units

Array = np.ndarray[Any, np.dtype[Any]]
SLACK = 1e-9
"""So that 0.55 of 20 is 11 and not a little more."""


class Clusters:
    """Union-find over 0 .. n-1."""

    def __init__(self, n: int) -> None:
        self._above = list(range(n))

    def of(self, i: int) -> int:
        """The least member found so far of the cluster of i."""
        while self._above[i] != i:
            self._above[i] = self._above[self._above[i]]
            i = self._above[i]
        return i

    def join(self, i: int, j: int) -> None:
        """Put the clusters of i and j together."""
        a, b = self.of(i), self.of(j)
        self._above[max(a, b)] = min(a, b)

    def labels(self) -> list[int]:
        """Cluster of each item, numbered 0, 1, ... in order of first appearance."""
        first: dict[int, int] = {}
        return [first.setdefault(self.of(i), len(first)) for i in range(len(self._above))]


class BitIndex:
    """64-bit hashes, asked for those within `distance` bits of another.

    Exact by the pigeonhole principle (Norouzi et al. 2012, arXiv 1307.2982, section 2): words that
    differ in d bits agree in at least one of d + 1 bands. A look-up costs N / 2^(64 / (d + 1))
    comparisons a band for evenly spread hashes: nothing to speak of for d <= 3, N / 500 for d = 6.
    """

    def __init__(self, hashes: Sequence[int], distance: int) -> None:
        self.values = np.array(hashes, dtype=np.uint64)
        self.distance = distance
        edges = [64 * i // (distance + 1) for i in range(distance + 2)]
        self._bands = [(low, high - low) for low, high in pairwise(edges)]
        self._buckets: list[dict[int, Array]] = [self._filled(*band) for band in self._bands]

    def _filled(self, low: int, width: int) -> dict[int, Array]:
        if not len(self.values):
            return {}
        band = (self.values >> np.uint64(low)) & np.uint64((1 << width) - 1)
        order = np.argsort(band, kind="stable")
        known, starts = np.unique(band[order], return_index=True)
        return dict(zip(known.tolist(), np.split(order, starts[1:]), strict=True))

    def near(self, value: int) -> list[int]:
        """Places of all hashes within the distance, in order."""
        found: set[int] = set()
        for (low, width), bucket in zip(self._bands, self._buckets, strict=True):
            places = bucket.get((value >> low) & ((1 << width) - 1))
            if places is not None:
                off = bits_set(self.values[places] ^ np.uint64(value))
                found.update(places[off <= self.distance].tolist())
        return sorted(found)


def near_bits(hashes: Sequence[int], distance: int = 6) -> list[int]:
    """The cluster of each 64-bit hash (exact; see BitIndex)."""
    if not hashes:
        return []
    values, back = np.unique(np.array(hashes, dtype=np.uint64), return_inverse=True)
    index, clusters = BitIndex(values.tolist(), distance), Clusters(len(values))
    for i, value in enumerate(values.tolist()):
        for j in index.near(value):
            clusters.join(i, j)
    return _renumbered(clusters.of(int(i)) for i in back)


def near_looks(looks: Sequence[Look], distance: int = 6) -> list[int]:
    """The cluster of each look: hashes within the distance, confirmed by the thumbnails where both
    have one (see likeness.confirmed). A look is compared with all of a near hash, so many pictures
    of one template cost the square of their number.
    """
    if not looks:
        return []
    once = list(dict.fromkeys(looks))
    of: dict[int, list[int]] = {}
    for i, look in enumerate(once):
        of.setdefault(look.bits, []).append(i)
    thumbnails = as_bytes([look.thumbnail or bytes(BYTES) for look in once])
    bare = np.array([not look.thumbnail for look in once])
    index, clusters = BitIndex(list(of), distance), Clusters(len(once))
    values = list(of)
    for value, places in of.items():
        near = np.array([j for k in index.near(value) for j in of[values[k]]])
        for i in places:
            later = near[near > i]
            same = later if bare[i] else later[
                bare[later] | confirmed(thumbnails[i], thumbnails[later])]
            for j in same.tolist():
                clusters.join(i, j)
    place = {look: i for i, look in enumerate(once)}
    return _renumbered(clusters.of(place[look]) for look in looks)


def shingles(text: str, n: int) -> frozenset[str]:
    """The word n-grams of a text in its normal form (see wording.py; of scripts without spaces,
    n-grams of characters); of a shorter text, the whole."""
    return grams_of(units(text), n)


def grams_of(words: Sequence[str], n: int) -> frozenset[str]:
    """All n words in a row, joined by spaces; of fewer words, all of them; of none, nothing."""
    return frozenset(" ".join(words[i:i + n]) for i in range(max(1, len(words) - n + 1))) \
        if words else frozenset()


LONGEST_PREFIX = 6
"""N-grams of a set of which every two are a key: 15 keys a text at most."""


def near_texts(texts: Sequence[str], jaccard: float = 0.8, n: int = 3) -> list[int]:
    """The cluster of each text: those whose n-gram sets A, B have |A & B| / |A | B| >= jaccard.

    Exact. Equal texts are one item. Near sets share at least c = ceil(jaccard |A|) n-grams, so of
    the |A| - c + k rarest of each they share k (prefix filtering: Chaudhuri, Ganti and Kaushik
    2006, ICDE; Bayardo, Ma and Srikant 2007, WWW; k > 1: Wang, Li and Feng 2012, SIGMOD). The
    smaller B shares ceil(2 jaccard / (1 + jaccard) |B|), so that fewer of its n-grams do, and what
    all questions of one template say is none of them (Xiao et al. 2008, WWW, section 3). Short
    sets are looked up by two n-grams (k = 2), others by one: about linear, unless many long texts
    consist of the same few n-grams. Texts without words are near nothing but each other.
    """
    plain = [" ".join(units(t)) for t in texts]
    grams = {t: grams_of(t.split(), n) for t in dict.fromkeys(plain)}
    common = Counter(s for own in grams.values() for s in own)
    rank = {s: i for i, s in enumerate(sorted(common, key=lambda s: (common[s], s)))}
    sets = [frozenset(rank[s] for s in own) for own in grams.values()]
    clusters, order = Clusters(len(sets)), [(len(own), i) for i, own in enumerate(sets)]
    for sharing in (_sharing_two(sets, jaccard), _sharing_one(sets, jaccard)):
        for places, smaller in sharing:
            for i in places:
                for j in smaller:
                    if order[j] < order[i] and clusters.of(i) != clusters.of(j) \
                            and _near_sets(sets[i], sets[j], jaccard):
                        clusters.join(i, j)
    place = {text: i for i, text in enumerate(grams)}
    return _renumbered(clusters.of(place[text]) for text in plain)


def _near_sets(a: frozenset[int], b: frozenset[int], jaccard: float) -> bool:
    small, large = sorted((len(a), len(b)))
    if small < jaccard * large - SLACK:
        return False
    both = len(a & b)
    return both >= jaccard * (small + large - both) - SLACK


def _least(size: int, jaccard: float) -> int:
    """N-grams that a set of this size shares with any that is near."""
    return math.ceil(jaccard * size - SLACK)


def _is_short(size: int, jaccard: float) -> bool:
    return size - _least(size, jaccard) + 2 <= LONGEST_PREFIX


def _rare(own: frozenset[int], jaccard: float, k: int) -> tuple[list[int], int]:
    """The n-grams of which a set shares k with any near one, rarest first; and how many of them
    will do if it is the smaller one."""
    shared = math.ceil(2 * jaccard / (1 + jaccard) * len(own) - SLACK)
    return sorted(own)[:len(own) - _least(len(own), jaccard) + k], len(own) - shared + k


Sharing = Iterator[tuple[list[int], list[int]]]
"""Sets that have rare n-grams in common, and those of them that are found if they are smaller."""


def _sharing_two(sets: Sequence[frozenset[int]], jaccard: float) -> Sharing:
    """Groups of short sets that have two rare n-grams in common."""
    owners, marks = array("q"), array("q")
    for i, own in enumerate(sets):
        if _is_short(len(own), jaccard):
            rare, first = _rare(own, jaccard, 2)
            for (_, a), (at, b) in combinations(enumerate(rare), 2):
                owners.append(2 * i + (at < first))
                marks.append(a << 32 | b)
    return _grouped(marks, owners)


def _sharing_one(sets: Sequence[frozenset[int]], jaccard: float) -> Sharing:
    """Groups that have one rare n-gram in common, of the sets that may be near a longer one than
    `_sharing_two` sees, or near by a single n-gram."""
    owners, marks = array("q"), array("q")
    longest = max((len(s) for s in sets), default=0)
    too_long = next((k for k in range(1, longest + 1) if not _is_short(k, jaccard)), longest + 1)
    for i, own in enumerate(sets):
        if len(own) >= jaccard * too_long - SLACK or _least(len(own), jaccard) < 2:
            rare, first = _rare(own, jaccard, 1)
            for at, a in enumerate(rare):
                owners.append(2 * i + (at < first))
                marks.append(a)
    return _grouped(marks, owners)


def _grouped(marks: array[int], owners: array[int]) -> Sharing:
    """The owners of each mark that has several, in order, and those whose number is odd."""
    if not len(marks):
        return
    mark, owner = np.frombuffer(marks, np.int64), np.frombuffer(owners, np.int64)
    order = np.argsort(mark, kind="stable")
    starts = np.unique(mark[order], return_index=True)[1]
    sizes = np.diff(np.append(starts, len(order)))
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        found = owner[order[start:start + size]]
        if len(smaller := found[found % 2 == 1]):
            yield (found // 2).tolist(), (smaller // 2).tolist()


FEW = 128
"""Vectors that are compared with one another in a single product."""


def near_vectors(vectors: Sequence[Sequence[float]], cosine: float = 0.95, *, tables: int = 16,
                 bits: int = 12, key: str = "near") -> list[int]:
    """The cluster of each vector (N, D): those with a cosine of at least `cosine`.

    Candidates share the signs of `bits` random projections in one of `tables` draws (Charikar
    2002, STOC) and are then compared exactly: nothing far is joined; two vectors at angle t are
    missed with chance (1 - (1 - t / pi)^bits)^tables, 0.6 % at cosine 0.95. N / 2^bits
    comparisons a vector and table for evenly spread vectors, and few where many are near.
    """
    if not len(vectors):
        return []
    x = np.asarray(vectors, dtype=np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    clusters, rng = Clusters(len(x)), keys.generator(key)
    for _ in range(tables):
        signs = x @ rng.standard_normal((x.shape[1], bits)).astype(np.float32) > 0
        mark = signs @ (1 << np.arange(bits))
        order = np.argsort(mark, kind="stable")
        starts = np.unique(mark[order], return_index=True)[1][1:]
        for places in np.split(order, starts):
            _join_near(x, places, cosine, clusters)
    return clusters.labels()


def _join_near(x: Array, places: Array, cosine: float, clusters: Clusters) -> None:
    """Join what is near among these places. Of many, what stands in one cluster already is not
    compared again; of few, all are compared at once."""
    if len(places) <= FEW:
        close = np.triu(x[places] @ x[places].T >= cosine, 1)
        for a, b in zip(*np.nonzero(close), strict=True):
            clusters.join(int(places[a]), int(places[b]))
        return
    own = np.array([clusters.of(i) for i in places.tolist()])
    for at, i in enumerate(places.tolist()):
        others = at + np.flatnonzero(own[at:] != own[at])
        if not len(others):
            return
        near = np.unique(own[others[x[places[others]] @ x[i] >= cosine]])
        for j in near.tolist():
            clusters.join(i, j)
        if len(near):
            own[np.isin(own, near)] = own[at]


def _renumbered(labels: Iterable[int]) -> list[int]:
    first: dict[int, int] = {}
    return [first.setdefault(label, len(first)) for label in labels]
