"""Refinement: a truth table for every step and pair filter, and proof that look-ups find all."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfloop import keys
from selfloop.doors import Doors
from selfloop.engines.toy import ToyEngine
from selfloop.likeness import near_duplicates, perceptual_hash
from selfloop.organize.chain import Chain
from selfloop.organize.judging import judge
from selfloop.organize.refine.annotate import WithBlindAnswers, WithHashes
from selfloop.organize.refine.balance import AtMost, Balanced
from selfloop.organize.refine.best_right import BestRight
from selfloop.organize.refine.blind import NeedsPicture
from selfloop.organize.refine.builders import Described, Refine, Select
from selfloop.organize.refine.curriculum import Stage, Stages
from selfloop.organize.refine.decontaminate import (
    Decontaminated,
    EvaluationPrints,
    leaks,
    prints_of,
)
from selfloop.organize.refine.degenerate import Degenerate
from selfloop.organize.refine.duplicates import (
    SameAnswer,
    SameField,
    SameMeaning,
    SamePicture,
    SameText,
)
from selfloop.organize.refine.near import near_bits, near_texts, near_vectors, shingles
from selfloop.organize.refine.pair_filters import (
    Distinct,
    Fluent,
    LengthBalance,
    SimilarityWindow,
    SwapOrDrop,
)
from selfloop.organize.refine.pairs import (
    BestVersusWorst,
    Candidate,
    Constructed,
    Levels,
    Margin,
    Pairs,
)
from selfloop.organize.refine.pools import Pool
from selfloop.organize.refine.replay import SelectiveReplay, strength
from selfloop.organize.signals import Demonstrate, GroupAdvantage
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library, read
from selfloop.roles import SelfloopError
from selfloop.types import Advantage, Group, Message, Part, Rollout, Sample, Turn, Verdict


def sample(name: str = "a", media=(), **meta) -> Sample:
    parts = (*(Part(type="image") for _ in media), Part(text=f"what is {name} ?"))
    return Sample(prompt=(Message(role="user", content=parts),), media=tuple(media), meta=meta,
                  answer="gold")


def group(scores, texts=None, name="a", lengths=None, media=(), changed=(), notes=None, parts=None,
          **meta) -> Group:
    """A group with one rollout a score; `changed`: places drawn under a blurred picture."""
    asked = sample(name, media, **meta)
    texts = texts or [f"answer {i}" for i in range(len(scores))]
    rollouts = []
    for i, words in enumerate(texts):
        context = asked.context
        if i in changed:
            context = context.seen_as(tuple(m.with_op("blank") for m in media))
        n = lengths[i] if lengths else 1
        rollouts.append(Rollout(
            id=f"{name}{i}", sample=asked.id, context=context, output=(Part(text=words),),
            turns=(Turn(token_ids=(1,) * n, logprobs=(-1.0,) * n, prompt_token_ids=(9,)),)))
    verdicts = [Verdict(score=s, rationale=w, parts=(parts or {}).get(i, {}))
                for i, (s, w) in enumerate(zip(scores, texts, strict=True))]
    return Group(sample=asked, rollouts=tuple(rollouts), verdicts=tuple(verdicts),
                 annotations=notes or {})


def picture(folder, name: str, seed: int, noise: float = 0.0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC), float)
    pixels = np.clip(pixels + rng.normal(0, noise, pixels.shape), 0, 255).astype(np.uint8)
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    return read(path)[0]


def texts_of(groups) -> list[list[str]]:
    return [[r.text for r in g.rollouts] for g in groups]


# -- F2: degenerate text ----------------------------------------------------------------------

@pytest.mark.parametrize(("words", "reason"), [
    ("a red cat on a mat", None), ("7", None), ("-7.", None), ("\\boxed{7}", None),
    ("α = 3 °", None),
    ("", "empty"), (" \n", "empty"),
    ("no " * 6, "a phrase repeats"), ("no " * 5, None),
    ("the red cat " * 6, "a phrase repeats"), ("the red cat " * 5, None),
    ("ha" + "a" * 10, "a character repeats"), ("h" + "a" * 10, None),
    ("a" + "\n" * 6 + "b", "newlines repeat"), ("a\n \n\n\n\nb", None),
    ("a\nb\nc\nd\ne\nf\ng\nh", None),
    (" ".join(f"it {w}{i}" for i in range(31) for w in ("x",)), "a word occurs too often"),
    (" ".join(f"it x{i}" for i in range(30)), None),
    ("#@ !$ %^ &* () {} [] <> ab", "mostly symbols"),
    ("кот on the mat", "a foreign script"), ("한 cat", "a foreign script"),
    ("a cat \U0001f600", None),
])
def test_degenerate_text(words, reason):
    assert Degenerate().reason(words) == reason


def test_degenerate_scripts_can_be_chosen_and_rollouts_leave_with_their_verdicts():
    assert Degenerate(scripts=("CYRILLIC", "LATIN")).reason("кот cat") is None
    assert Degenerate(scripts=None).reason("한") is None
    (kept,) = Degenerate()([group([1, 0, 1], ["fine", "no " * 9, "good"])])
    assert texts_of([kept]) == [["fine", "good"]] and [v.score for v in kept.verdicts] == [1, 1]


# -- F3, F4, F5: proposers ----------------------------------------------------------------------

def scores_of(candidates) -> list[tuple[float, float]]:
    return sorted((c.chosen_score, c.rejected_score) for c in candidates)


def test_margin_pairs():
    four = group([-3, -1, -1, 0])
    assert scores_of(Margin(1, 0)(four, "k")) == [(-1, -3), (-1, -3), (0, -3), (0, -1), (0, -1)]
    assert scores_of(Margin(2, 0)(four, "k")) == [(-1, -3), (-1, -3), (0, -3)]
    assert len(Margin(1, 2)(four, "k")) == 2 and Margin(1, 2)(four, "k") == Margin(1, 2)(four, "k")
    drawn = {tuple(scores_of(Margin(1, 2)(four, f"k{i}"))) for i in range(30)}
    assert len(drawn) > 2, "the pairs are drawn by key"
    assert Margin(0, 0)(group([1, 1]), "k") == [], "equal scores are no pair"
    assert Margin(1, 0)(group([None, 1, 0]), "k")[0].gap == 1


def test_best_versus_worst():
    assert scores_of(BestVersusWorst()(group([.2, .9, .5]), "k")) == [(.9, .2)]
    assert BestVersusWorst()(group([1, 1]), "k") == [] == BestVersusWorst()(group([1]), "k")
    assert BestVersusWorst(.8)(group([.2, .9]), "k") == []
    assert {BestVersusWorst()(group([1, 1, 0]), f"{i}")[0].chosen.id for i in range(20)} == \
        {"a0", "a1"}


def test_levels():
    four = group([1, 2, 2, 3, 0])
    assert scores_of(Levels()(four, "k")) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    assert scores_of(Levels(adjacent=True)(four, "k")) == [(1, 0), (2, 1), (3, 2)]
    assert Levels()(group([1, 1]), "k") == []


def test_pairs_carry_lineage_and_leave_out_cut_answers():
    (made,) = Pairs(BestVersusWorst())([group([1, 0], ["yes it is", "red"])], "k")
    assert made.rollouts == ("a0", "a1") and made.margin == 1 and made.role == "solver"
    assert set(made.branches) == {"chosen", "rejected"}
    cut = group([1, 0])
    turn = cut.rollouts[1].turns[0].model_copy(update={"finish_reason": "length"})
    cut = cut.model_copy(update={"rollouts": (
        cut.rollouts[0], cut.rollouts[1].model_copy(update={"turns": (turn,)}))})
    assert Pairs(BestVersusWorst())([cut], "k") == []


# -- F1, F6, F7, F15: pair filters --------------------------------------------------------------

def pair(chosen="good", rejected="bad", scores=(1.0, 0.0), lengths=(1, 1)) -> Candidate:
    made = group(list(scores), [chosen, rejected], lengths=lengths)
    return Candidate(made, *made.rollouts, *scores)


@pytest.mark.parametrize(("chosen", "rejected", "stays"), [
    ("a cat", "a dog", True), ("a cat", "a  Cat ", False), ("Yes", "a dog", False),
    ("a cat", "No.", False), ("a red cat", "cat", False), ("cat", "a red cat", True),
    ("yes it is", "a dog", True), ("a cat", "", False),
])
def test_distinct(chosen, rejected, stays):
    assert bool(Distinct()([pair(chosen, rejected)])) == stays


def test_distinct_as_seva_has_it():
    only_equal = Distinct(contained=False, bare=())
    assert only_equal([pair("Yes", "No")]) and only_equal([pair("a red cat", "cat")])
    assert not only_equal([pair("cat", "cat")])


def test_fluent_pairs():
    assert Fluent()([pair()]) and not Fluent()([pair(rejected="no " * 9)])
    assert not Fluent()([pair(chosen="")])


def test_length_balance_on_a_toy_set():
    # (chosen, rejected): shares by which the chosen is shorter: -1, 0, .5, .9
    long, equal, half, tiny = (pair(lengths=at) for at in ((20, 10), (10, 10), (5, 10), (1, 10)))
    # tau < .5 keeps two: |15 - 10| / 10 = .5; tau in [.5, .9) three: 1.67 / 10; all: 1 / 10
    assert LengthBalance()([long, equal, half, tiny]) == [long, equal, half, tiny]
    # without the longest: only `equal` is in balance
    assert LengthBalance()([equal, half, tiny]) == [equal]
    # `long` alone is off by 1; with `half` 12.5 against 10: .25
    assert LengthBalance()([long, half]) == [long, half]
    assert LengthBalance()([tiny, pair("same", "same")]) == [tiny]
    assert LengthBalance()([]) == []


def test_length_balance_is_the_least_imbalance_over_the_grid():
    rng = keys.generator("toy")
    pairs = [pair(lengths=(int(a), int(b))) for a, b in rng.integers(1, 40, (60, 2))]

    def off(kept):
        chosen = np.mean([c.chosen.tokens for c in kept])
        rejected = np.mean([c.rejected.tokens for c in kept])
        return abs(chosen - rejected) / rejected

    grid = [[c for c in pairs if (c.rejected.tokens - c.chosen.tokens) / c.rejected.tokens
             <= t / 50 + 1e-9] for t in range(50)]
    assert off(LengthBalance()(pairs)) == pytest.approx(min(off(k) for k in grid if k))


@pytest.mark.parametrize(("scores", "found"), [
    ((1, .25), "kept"), ((.25, 1), "swapped"), ((.5, .4), "dropped"), ((.4, .5), "dropped"),
    ((.5, .5), "dropped"), ((.75, .5), "kept"), ((.5, .75), "dropped"),
])
def test_swap_or_drop(scores, found):
    kept = SwapOrDrop(0.25)([pair(scores=scores)])
    outcome = "dropped" if not kept else "kept" if kept[0].chosen.text == "good" else "swapped"
    assert outcome == found
    if kept:
        assert kept[0].gap > 0


def test_swap_or_drop_mends_a_construction(tmp_path):
    medium = picture(tmp_path, "p", 0)
    made = group([.1, .9, .8, .2], media=[medium], changed=(1, 3))
    maker = Pairs(Constructed(), filters=(SwapOrDrop(0.1),))
    assert [p.rollouts for p in maker([made], "k")] == [("a1", "a0"), ("a2", "a3")]
    unknown = group([None, .9], media=[medium], changed=(1,))
    assert Pairs(Constructed(), (SwapOrDrop(),))([unknown], "k") == [], "unknown is not zero"
    assert len(Pairs(Constructed())([unknown], "k")) == 1


def test_similarity_window():
    near, mid, far = (pair("a red cat on it", other)
                      for other in ("a red cat on it", "a red dog on it", "nothing else there"))
    assert SimilarityWindow(.2, .95)([near, mid, far]) == [mid]
    assert SimilarityWindow(0, 1)([near, mid, far]) == [near, mid, far]


# -- F10: replay ----------------------------------------------------------------------------------

def replayed(scores, state, key, **options):
    groups = [group(s, name=f"g{i}") for i, s in enumerate(scores)]
    organizer = SelectiveReplay(Chain(maker=GroupAdvantage()), **options)
    return organizer(groups, state, key)


def test_replay_never_makes_a_zero_advantage():
    state = {}
    for step in range(30):
        scores = [[1, .5, 0, .5], [1, 1, 1, 1]] if step % 3 else [[0, 0], [1, 1]]
        signals, state, _ = replayed(scores, state, f"k{step}")
        assert all(strength(s) > 0 for s in signals)
        assert all(strength(Advantage.from_json(s)) > 0 for s in state["replay"])
        assert len(state["replay"]) <= 4


def test_replay_fills_a_step_without_variance_from_the_queue():
    fresh, state, _ = replayed([[1, 0, 0, 0], [0, 0, 0, 0]], {}, "k")
    assert len(fresh) == 4, "half of 8 judged"
    later, state, _ = replayed([[1, 1, 1, 1], [0, 0, 0, 0]], state, "l")
    assert len(later) == 4 and {r for s in later for r in s.rollouts} <= {
        f"g0{i}" for i in range(4)}
    assert replayed([[1, 1], [0, 0]], {}, "k")[0] == []


def test_replay_draws_by_advantage():
    # |A| of one right in four is three times that of each wrong one: half of all draws
    drawn = Counter(s.rollouts[0] for i in range(400)
                    for s in replayed([[1, 0, 0, 0], [0] * 4], {}, f"k{i}")[0])
    assert drawn["g00"] / drawn.total() == pytest.approx(0.5, abs=0.05)
    squared = Counter(s.rollouts[0] for i in range(400)
                      for s in replayed([[1, 0, 0, 0], [0] * 4], {}, f"k{i}", alpha=2.0)[0])
    assert squared["g00"] / squared.total() == pytest.approx(0.75, abs=0.05)


def test_replay_is_replayable_and_refuses_other_signals():
    assert replayed([[1, 0]], {}, "k") == replayed([[1, 0]], {}, "k")
    with pytest.raises(SelfloopError, match="Demonstration"):
        SelectiveReplay(Chain(maker=Demonstrate()))([group([1, 0])], {}, "k")


# -- F11, F12, F14, F18 ----------------------------------------------------------------------------

def test_best_right():
    likes = {0: {"prm": .1}, 1: {"prm": .9}, 2: {"prm": .5}, 3: {"prm": 1.0}}
    one = group([1, 1, 1, 0, 1], parts=likes)
    (kept,) = BestRight("prm", 2)([one], "k")
    assert [r.id for r in kept.rollouts] == ["a1", "a2"], "wrong and unknown ones are no rank"
    with pytest.raises(SelfloopError, match="they have none"):
        BestRight("orm")([group([1])], "k")
    assert BestRight("prm")([group([0])], "k")[0].rollouts == ()


def test_pool_unites_and_keeps_ids_without_labels():
    first, second = group([1, 0]), group([0, 1], name="b")
    bare = [g.model_copy(update={"sample": g.sample.unlabelled()}) for g in (first, second)]
    pool = Pool(limit=2)
    _, state = pool(bare, {})
    again = first.model_copy(update={
        "sample": first.sample.unlabelled(),
        "rollouts": tuple(r.model_copy(update={"id": "n" + r.id}) for r in first.rollouts)})
    pooled, state = pool([again], state)
    assert [g.sample.id for g in pooled] == [second.sample.id, first.sample.id]
    assert [r.id for r in pooled[1].rollouts] == ["a0", "a1", "na0", "na1"]
    assert [v.score for v in pooled[1].verdicts] == [1, 0, 1, 0]
    assert "gold" not in str(state)
    latest, _ = Pool("latest")([again], state)
    assert [r.id for r in latest[1].rollouts] == ["na0", "na1"]
    unjudged, _ = pool([again.model_copy(update={"verdicts": ()})], {"pool": [
        [first.sample.id, bare[0].to_json()]]})
    assert [v.score for v in unjudged[0].verdicts] == [1, 0, None, None]
    bounded, state = Pool(limit=1, rollouts=3)([again], state)
    assert len(bounded) == 1 == len(state["pool"]) and len(bounded[0].rollouts) == 3


def test_stages():
    easy, hard = group([1], level="easy"), group([1], name="b", level="hard")
    stages = Stages((Stage("first", 2, "level", ("easy",), (("max_new_tokens", 8),)),
                     Stage("then", 1, "level", ("hard",)), Stage("all", 1)))
    state, seen = {}, []
    for _ in range(5):
        kept, update = stages([easy, hard], state)
        seen.append(([g.sample.meta["level"] for g in kept], update["guidance"]["stage"]))
        state = {"stage_step": update["stage_step"]}
    assert seen == [(["easy"], "first"), (["easy"], "then"), (["hard"], "all"),
                    (["easy", "hard"], "all"), (["easy", "hard"], "all")]
    assert stages([easy], {})[1]["guidance"]["max_new_tokens"] == 8
    with pytest.raises(SelfloopError, match="at least one"):
        Stages(())


def test_needs_picture(tmp_path):
    medium = [picture(tmp_path, "p", 0)]
    told = [group([1], media=medium, notes={"no_image": n}) for n in
            ([1, 1, 0], [1, 0, 0], [True, None, True], [None, None], [0.5, 0.4])]
    assert NeedsPicture(2)(told) == [told[1], told[3], told[4]]
    assert NeedsPicture(1)(told) == [told[3]]
    assert len(NeedsPicture(1)([group([1])])) == 1, "no picture to need"
    with pytest.raises(SelfloopError, match="no_image"):
        NeedsPicture()([group([1], media=medium)])
    assert NeedsPicture(strict=False)([group([1], media=medium)])


# -- F13, F16: builders ----------------------------------------------------------------------------

def test_refine_and_select():
    mixed = group([1, 0, 0, 1], ["right {x}", "wrong", "worse", "good"])
    (row,) = Refine()([mixed], "k")
    asked = row.branches["target"].context.text
    assert ("wrong" in asked or "worse" in asked) and asked.startswith("what is a ?")
    assert row.branches["target"].turns[0].prompt_token_ids == ()
    assert len(Refine(per_sample=9)([mixed], "k")) == 2
    (row,) = Select(3)([mixed], "k")
    shown = row.branches["target"].context.text
    assert "(3)" in shown and "(4)" not in shown and len(row.rollouts) == 3
    target = next(r for r in mixed.rollouts if r.id == row.rollouts[0])
    assert target.text in shown and target.text in ("right {x}", "good")
    places = {next(i for i in (1, 2, 3) if f"({i}) {t}" in s) for k in range(30)
              for r in Select(3)([mixed], f"{k}")
              for s in [r.branches["target"].context.text]
              for t in [next(m.text for m in mixed.rollouts if m.id == r.rollouts[0])]}
    assert places == {1, 2, 3}, "the right one stands anywhere"
    for dull in (group([1, 1, 1]), group([0, 0, 0])):
        assert Refine()([dull], "k") == [] == Select()([dull], "k")
    assert Select(3)([group([1, 0])], "k") == []
    assert Refine()([group([1, None])], "k") == [], "unknown is not wrong"


def test_described(tmp_path):
    medium = picture(tmp_path, "p", 0)
    told = group([1], media=[medium], notes={"description": " A red cat. "})
    (row,) = Described(Demonstrate())([told], "k")
    context = row.branches["target"].context
    assert context.text == "Description of the picture: A red cat.\nwhat is a ?"
    assert [p.type for p in context.prompt[0].content] == ["image", "text", "text"]
    silent = group([1], media=[medium], notes={"description": "  "})
    assert len(Described(Demonstrate())([silent], "k")) == 1
    assert Described(Demonstrate(), strict=True)([silent], "k") == []
    assert Described(Demonstrate()).makes == Demonstrate.makes


# -- duplicates ------------------------------------------------------------------------------------

def same_clusters(a, b) -> bool:
    return all((a[i] == a[j]) == (b[i] == b[j]) for i, j in combinations(range(len(a)), 2))


@pytest.mark.parametrize("distance", [0, 3, 6, 10])
def test_near_bits_equals_comparing_all(distance):
    rng = np.random.default_rng(distance)
    seeds = [int(h) for h in rng.integers(0, 2**63, 40)]
    hashes = seeds + [h ^ int(np.bitwise_or.reduce(1 << rng.integers(0, 63, n)))
                      for h in seeds for n in (1, 5, 9)]
    assert near_bits(hashes, distance) == near_duplicates(hashes, distance)
    assert near_bits([]) == []


@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.8, 1.0])
def test_near_texts_equals_comparing_all(jaccard):
    rng = np.random.default_rng(3)
    base = [list(rng.choice(list("abcdefgh"), 12)) for _ in range(25)]
    texts = [" ".join(b) for b in base]
    for b in base:
        for k in (1, 3):
            changed = list(b)
            changed[-k:] = rng.choice(list("xyz"), k)
            texts.append(" ".join(changed))
    texts += ["", " ", "A  b", "a b"]
    sets = [shingles(t, 2) for t in texts]
    label = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        union = sets[i] | sets[j]
        if (not union) or len(sets[i] & sets[j]) >= jaccard * len(union):
            low, high = sorted((label[i], label[j]))
            label = [low if one == high else one for one in label]
    assert same_clusters(near_texts(texts, jaccard, 2), label)


def test_near_vectors_finds_nearly_all_and_joins_nothing_far():
    rng = np.random.default_rng(1)
    base = rng.normal(size=(150, 32))
    near = base + 0.03 * rng.normal(size=base.shape)
    labels = near_vectors(np.concatenate([base, near]).tolist(), 0.95)
    assert sum(labels[i] == labels[i + 150] for i in range(150)) >= 149
    assert len(set(labels)) >= 150, "unrelated vectors stay apart"
    assert near_vectors([]) == []


def test_duplicates_are_alike_in_picture_and_question(tmp_path):
    one, copy, other = (picture(tmp_path, n, s, e) for n, s, e in
                        (("one", 1, 0), ("copy", 1, 4), ("other", 2, 0)))
    def hashed(medium, name):
        look = f"{perceptual_hash(Library().open(medium)):016x}"
        return group([1], name=name, media=[medium], notes={"perceptual_hashes": [look]})
    groups = [hashed(one, "the first word of it"), hashed(copy, "the first word of it"),
              hashed(one, "something else"), hashed(other, "the first word of it"), group([1])]
    alike = (SamePicture(), SameText())
    kept = AtMost(1, alike)(groups, "k")
    assert len(kept) == 4 and sum(g in kept for g in groups[:2]) == 1
    assert len(AtMost(1, (SamePicture(),), unknown=False)(groups, "k")) == 2
    assert len({g.sample.id for k in range(20) for g in AtMost(1, alike)(groups[:2], f"{k}")}) == 2
    bare = [g.model_copy(update={"annotations": {}}) for g in groups]
    assert SamePicture()(bare)[:2] != [0, 0], "without hashes only bytes tell"
    assert SamePicture()(bare)[0] == SamePicture()(bare)[2]
    wrong = group([1], media=[one], notes={"perceptual_hashes": ["zz"]})
    with pytest.raises(SelfloopError, match="16 hex digits"):
        SamePicture()([wrong])


def test_same_meaning_and_fields():
    vectors = [[1.0, 0.0], [0.999, 0.01], [0.0, 1.0], None]
    groups = [group([1], notes={"embedding": v} if v else {}, kind=k)
              for v, k in zip(vectors, "xxyy", strict=True)]
    assert SameMeaning()(groups) == [0, 0, 1, None]
    assert SameField("kind")(groups) == ["x", "x", "y", "y"]
    assert SameField("none")(groups) == [None] * 4
    with pytest.raises(SelfloopError, match="several lengths"):
        SameMeaning()([groups[0], group([1], notes={"embedding": [1.0]})])


def test_caps_and_balance():
    yes = [group([1, 1, 0], ["yes", "yes", "no"], name=f"y{i}") for i in range(6)]
    no = [group([1], ["no"], name=f"n{i}") for i in range(2)]
    lost = group([0], ["no"])
    assert SameAnswer()([yes[0], no[0], lost]) == ["yes", "no", None]
    kept = Balanced(SameAnswer())([*yes, *no, lost], "k")
    assert len(kept) == 4 and all(n in kept for n in no) and lost not in kept
    assert len(Balanced(SameAnswer(), ratio=2)([*yes, *no], "k")) == 6
    assert len(Balanced(SameAnswer(), least=3)([*yes, *no], "k")) == 8
    assert Balanced(SameAnswer())([], "k") == []
    assert len(AtMost(3, (SameAnswer(),))([*yes, *no], "k")) == 5


# -- F19: decontamination ----------------------------------------------------------------------

def hashed(medium, name="a") -> Group:
    look = perceptual_hash(Library().open(medium))
    return group([1], name=name, media=[medium], notes={"perceptual_hashes": [look]})


def test_decontamination_blocks_or_drops(tmp_path):
    held, copy, other = (picture(tmp_path, n, s, e) for n, s, e in
                         (("held", 1, 0), ("copy", 1, 4), ("other", 2, 0)))
    held_out = [sample("asked", [held]), sample("whether " + " ".join(map(str, range(20))))]
    prints = prints_of(held_out, Library().open, name="dev")
    assert EvaluationPrints.from_json(prints.to_json()) == prints
    clean = [hashed(other, "asked"), group([1], name="something short")]
    assert Decontaminated(prints)(clean, {}) == (clean, {"contaminated": 0})
    worded = group([1], name="whether " + " ".join(map(str, range(15))))
    dirty = [hashed(held, "new"), hashed(copy, "new"), worded]
    with pytest.raises(SelfloopError, match=r"3 of 5 .* evaluation set dev: .*same picture.*looks "
                                            r"like.*same words"):
        Decontaminated(prints)([*clean, *dirty], {})
    drop = Decontaminated(prints, "drop")
    assert drop([*clean, *dirty], {"contaminated": 2}) == (clean, {"contaminated": 5})
    assert repr(prints) in repr(drop) and len(repr(drop)) < 200


def test_decontamination_does_not_take_unknown_for_clean(tmp_path):
    held, other = picture(tmp_path, "held", 1), picture(tmp_path, "other", 2)
    prints = prints_of([sample("asked", [held])], Library().open)
    unhashed = group([1], media=[other])
    with pytest.raises(SelfloopError, match="WithHashes"):
        Decontaminated(prints)([unhashed], {})
    assert Decontaminated(prints, exact_only=True)([unhashed], {})[0] == [unhashed]
    found = leaks([sample("x", [other]), sample("x", [held])], prints, Library().open)
    assert found == [(1, "the same picture")]
    (tmp_path / "prints.json").write_text("[]")
    with pytest.raises(SelfloopError, match="prints_of"):
        Decontaminated.against(tmp_path / "prints.json")


@dataclass(frozen=True)
class Fails:
    def __call__(self, rollout, answer):
        if rollout.text == "bad":
            raise ValueError("no")
        return rollout.text == answer


def test_hashes_are_annotated_beside_the_verdicts(tmp_path):
    medium = picture(tmp_path, "p", 1)
    drawn = group([None, None], ["gold", "bad"], media=[medium])
    judged = judge(WithHashes(exact), [drawn], Doors({}, 0, "t")).groups[0]
    assert [v.score for v in judged.verdicts] == [1, 0]
    look = perceptual_hash(Library().open(medium))
    assert judged.annotations["perceptual_hashes"] == [f"{look:016x}"]
    assert judged.sample.answer == "gold"
    verdicts = judge(WithHashes(Fails()), [drawn], Doors({}, 0, "t")).groups[0].verdicts
    assert [v.score for v in verdicts] == [1, None] and verdicts[1].error


def test_blind_answers_are_drawn_and_judged(tmp_path):
    drawn = group([None], ["gold"], media=[picture(tmp_path, "p", 1)])
    door = Doors({"solver": ToyEngine(("gold",), seed=0)}, 0, "t")
    blind = WithBlindAnswers(Fails(), n=6, max_new_tokens=1)
    found, plain = judge(blind, [drawn, group([None], ["gold"], name="b")], door).groups
    assert [v.score for v in found.verdicts] == [1]
    scores = found.annotations["no_image"]
    assert len(scores) == 6 and set(scores) <= {0.0, 1.0} and 1.0 in scores
    assert NeedsPicture(1)([found]) == [] and "no_image" not in plain.annotations
    again = judge(WithBlindAnswers(blind), [drawn], door).groups[0]
    assert [v.score for v in again.verdicts] == [1] and len(again.annotations["no_image"]) == 4


@pytest.mark.slow
def test_many_groups_pass_in_little_memory():
    script = Path(__file__).parent.parent / "scripts" / "organize-scale"
    out = subprocess.run([sys.executable, str(script), "--groups", "6000", "--step", "1000",
                          "--limit-gib", "0.5"], capture_output=True, text=True)
    assert out.returncode == 0 and "6,000 groups" in out.stdout, out.stderr


def test_steps_make_a_chain():
    chain = Chain(steps=(Degenerate(), Pool(limit=50), Stages((Stage("all", 1),)),
                         AtMost(1, (SameText(),))),
                  maker=Pairs(Margin(1, 2), filters=(Distinct(), LengthBalance())))
    groups = [group([1, 0], [f"red {i}", f"blue {i}"], name=f"number {i} of all {i}")
              for i in range(5)]
    signals, state, guidance = chain(groups, {}, "k")
    assert len(signals) == 5 and len(state["pool"]) == 5 and guidance == {"stage": "all"}
    assert chain(groups, {}, "k") == (signals, state, guidance)
