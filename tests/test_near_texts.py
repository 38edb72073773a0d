"""Near texts found by look-ups are exactly those that comparing all pairs finds."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from selfloop.organize.refine.near import Clusters, near_texts, shingles


def by_all_pairs(texts: list[str], jaccard: float, n: int) -> list[int]:
    plain = [" ".join(t.lower().split()) for t in texts]
    sets = [shingles(t, n) for t in plain]
    clusters = Clusters(len(texts))
    for i, j in combinations(range(len(texts)), 2):
        a, b = sets[i], sets[j]
        if plain[i] == plain[j] or (a | b and len(a & b) / len(a | b) >= jaccard - 1e-12):
            clusters.join(i, j)
    return clusters.labels()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.55, 0.8, 0.95, 1.0])
def test_near_texts_is_exact(jaccard, n):
    rng = random.Random(f"{jaccard}/{n}")
    texts = ["", " ", "One", "one"]
    for _ in range(60):
        words = [rng.choice("abcdefgh") for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 30, 60]))]
        texts.append(" ".join(words))
        for _ in range(rng.randint(0, 3)):
            for _ in range(rng.randint(1, 2)):
                at = rng.randrange(len(words))
                words[at:at + rng.randint(0, 1)] = [rng.choice("abcdefgh")]
            texts.append(" ".join(words))
    rng.shuffle(texts)
    found = near_texts(texts, jaccard, n)
    assert found == by_all_pairs(texts, jaccard, n)
    assert len(set(found)) > 1, "not everything is one cluster"


def test_the_border_between_short_and_long_sets():
    """At 0.8 sets of up to 20 n-grams are short; 20 against 25 are exactly as near as asked."""
    words = [f"w{i}" for i in range(40)]
    for size in range(14, 34):
        larger = int(size / 0.8)
        texts = [" ".join(words[:size]), " ".join(words[:larger]), " ".join(words[:larger + 2])]
        assert near_texts(texts, 0.8, 1) == by_all_pairs(texts, 0.8, 1), size
