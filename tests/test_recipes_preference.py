"""STIC, SeVa, CSR and RLAIF-V: which signals come out, two steps on the toy, runs on scenes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

import toyland
from scenes_runs import SEED
from scripted import Scripted, asked, collect
from selfloop.collect.describing import PROMPT, Describe
from selfloop.collect.guided import DESCRIBE, Asked
from selfloop.collect.negatives import Negatives
from selfloop.collect.swapped_pictures import pool_of
from selfloop.collect.text_negatives import ELICITING
from selfloop.config import load_config
from selfloop.data import load
from selfloop.doors import Doors
from selfloop.engines.hf import HFEngine
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Loop
from selfloop.methods import build_loop
from selfloop.optimize.losses.preference import MDPO
from selfloop.organize.judging import judge
from selfloop.organize.refine.gold_pairs import GoldAgainst
from selfloop.organize.refine.pair_filters import LengthBalance
from selfloop.organize.refine.pairs import Constructed, Pairs
from selfloop.organize.verify.calibrated import Calibrated, steps_of
from selfloop.organize.verify.claims import ClaimCheck
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.similarity import DualEncoder, ImageText, encoder_named, sentences
from selfloop.pictures import Library
from selfloop.recipes.csr import csr
from selfloop.recipes.rlaif_v import rlaif_v
from selfloop.recipes.seva import seva
from selfloop.recipes.stic import stic
from selfloop.recipes.stic_described import stic_described
from selfloop.roles import SelfloopError, reads
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.testbeds import scenes, tiny_vlm
from selfloop.testbeds.scenes_looks import CHECK, Looks, claims
from selfloop.types import Group, Pair, Rollout, Verdict

TINY = Image.new("RGB", (8, 8), (250, 0, 0))


# -- negatives for these recipes ------------------------------------------------------------------

def test_guided_answers_and_one_cause_each() -> None:
    sampler = Negatives(causes=("eliciting", "lowres"), severity=1.0, n=40, pick_one=True,
                        guide=Asked("look well"))
    found, engine = collect(sampler, lambda r, i: f"{r.context.text[-4:]}{i}")
    assert all(r.context == asked().context for r in found), "all under the plain question"
    good = [r for r in found if "negative" not in r.sampling]
    assert len(good) == 40 and all(r.text.startswith("well") for r in good)
    causes = Counter(r.sampling["negative"] for r in found if "negative" in r.sampling)
    assert sum(causes.values()) == 40 and 10 < causes["lowres"] < 30
    told = [r.context.text.splitlines()[-1] for r in engine.asked if "\n" in r.context.text]
    assert any(any(t.startswith(e[:12]) for e in ELICITING) for t in told)
    twice = Negatives(causes=("eliciting", "eliciting", "lowres"), n=60, pick_one=True)
    again = Counter(r.sampling.get("negative") for r in collect(twice, lambda r, i: f"{i}")[0])
    assert again["eliciting"] > again["lowres"]
    assert collect(Negatives(causes=(), pick_one=True, n=2), lambda r, i: "a")[0][1].text == "a"


def test_constructed_pairs_of_marked_negatives_go_round() -> None:
    found, _ = collect(Negatives(causes=("blank", "lowres"), n=2), lambda r, i: f"{r.key}{i}")
    group = Group(sample=asked(), rollouts=tuple(found), verdicts=(Verdict(),) * 6)
    made = Pairs(Constructed())([group], "k")
    ids = [r.id for r in found]
    assert [p.rollouts for p in made] == [(ids[i], ids[j]) for i, j in
                                          ((0, 2), (1, 3), (0, 4), (1, 5))]
    assert [p.why.split(",")[0] for p in made][::2] == [
        "by construction: blank", "by construction: lowres"]
    bad_only = group.model_copy(update={"rollouts": tuple(found[2:]), "verdicts": ()})
    assert Pairs(Constructed())([bad_only], "k") == []


def test_what_was_made_of_a_good_answer_meets_that_answer() -> None:
    """The first names nothing to swap, so that the only swap is the second's; one is cut off."""
    says = ["It is fine.", "A red dog.", "A small cat " + "and so on " * 9]
    found, _ = collect(Negatives(causes=("blank", "entity", "truncated"), n=3, max_new_tokens=40),
                       lambda r, i: "" if r.sampling.prefix else says[i])
    group = Group(sample=asked(), rollouts=tuple(found), verdicts=(Verdict(),) * len(found))
    made = {c.rejected.text: c.chosen.text for c in Constructed()(group, "k")
            if "of" in c.rejected.sampling}
    assert made.pop("It is") == "It is fine." and made.pop("A red") == "A red dog."
    (swap, of), = made.items()
    assert of == "A red dog." and swap.startswith("A red ") and swap != of


def test_margins_are_left_out_for_plain_dpo() -> None:
    found, _ = collect(Negatives(causes=("blank",), n=1), lambda r, i: r.key)
    group = Group(sample=asked(), rollouts=tuple(found),
                  verdicts=(Verdict(score=2.0), Verdict(score=-1.0)))
    assert [Pairs(Constructed(), margins=m)([group], "k")[0].margin  # type: ignore[union-attr]
            for m in (True, False)] == [3.0, 0.0]


def test_the_gold_answer_against_those_led_astray_or_the_others() -> None:
    says = {"good": ["A  cat", "a dog"], "blank": ["a cow", "a cat"]}
    found, _ = collect(Negatives(causes=("blank",), n=2),
                       lambda r, i: says["blank" if r.context.media[0].ops else "good"][i])
    group = Group(sample=asked(), rollouts=tuple(found))
    gold = {group.sample.id: "a cat"}
    (astray,) = GoldAgainst()([group], "k", gold)
    (other,) = GoldAgainst(led_astray=False)([group], "k", gold)
    assert [(p.rollouts, p.branches["chosen"].text) for p in (astray, other)] == [
        ((found[2].id,), "a cat"), ((found[1].id,), "a cat")], "those that say the same are out"
    (three,) = GoldAgainst(corrupted="crop", severity=0.7)([group], "k", gold)
    worse = three.branches["corrupted"]
    (op,) = worse.context.media[0].ops
    assert (worse.text, op.name, op.severity) == ("a cat", "crop", 0.7)
    assert MDPO().accepts(three) and not MDPO().accepts(astray)
    assert MDPO().accepts(GoldAgainst(corrupted="crop").makes[0])
    assert GoldAgainst()([group], "k", {}) == []
    assert reads(GoldAgainst()) == {"answers"}, "it counts as labels"


# -- claims by rule -------------------------------------------------------------------------------

def checked(says: Callable[[Any, int], str], text: str) -> tuple[Verdict, list[Any]]:
    rollouts, _ = collect(Negatives(causes=(), n=1), lambda r, i: text)
    engine = Scripted(says)
    group = Group(sample=asked(), rollouts=tuple(rollouts))
    verifier = ClaimCheck(by_rule=claims, check=CHECK, quoted=False)
    (judged,) = judge(verifier, [group], Doors({"solver": engine}, 0, "s")).groups
    return judged.verdicts[0], engine.asked


@pytest.mark.parametrize(("text", "score", "questions"), [
    ("a red 3 upper left and a blue circle lower right", -1.0,
     ["is there a red 3 ?", "is there a blue circle ?"]),
    ("a blue circle and a blue circle", -1.0, ["is there a blue circle ?"]),
    ("a red 3", 0.0, ["is there a red 3 ?"]),
    ("nothing to see", None, []), ("a 3", None, []),
])
def test_claims_by_rule(text: str, score: float | None, questions: list[str]) -> None:
    verdict, asked_for = checked(lambda r, i: "no" if "circle" in r.context.text else "yes", text)
    assert verdict.score == score and [r.context.text for r in asked_for] == questions
    assert all(r.context.media for r in asked_for), "every check sees the picture"
    unread, _ = checked(lambda r, i: "well", text)
    assert unread.score is None, "unknown is not zero"


# -- a text and a picture -------------------------------------------------------------------------

@dataclass(frozen=True)
class Table:
    """An encoder that looks texts up."""

    values: tuple[tuple[str, float], ...]

    def __call__(self, picture: Any, texts: Any) -> list[float]:
        return [dict(self.values)[t] for t in texts]


def seen(tmp_path: Path) -> Any:
    (sample,) = toyland.samples(tmp_path, 1)
    return sample


def path(sample: Any, text: str, logprobs: list[float] | None, name: str = "r") -> Rollout:
    (drawn,), _ = collect(Negatives(causes=(), n=1), lambda r, i: text)
    noted = {} if logprobs is None else {"path": logprobs}
    return drawn.model_copy(update={"id": name, "sampling": noted})


@pytest.mark.parametrize(("text", "logprobs", "found"), [
    ("One. Two.", [-1, -2], [("", "One.", -1), ("One.", "Two.", -2)]),
    ("One. Two", [-1, -2], [("", "One.", -1), ("One.", "Two", -2)]),
    ("One.", [-1, -9], [("", "One.", -1)]),  # the last draw was the end alone
    ("One", [-1], [("", "One", -1)]), ("", [-1], []), ("One. Two.", [-1, -1, -1, -1], []),
    ("One. Two. Three.", [-1, -2], [("", "One.", -1), ("One.", "Two. Three.", -2)]),
    ("One.", None, []),
])
def test_steps_of_a_path(text: str, logprobs: list[float] | None, found: list[Any]) -> None:
    steps = steps_of(path(None, text, logprobs), (".",))
    assert [(s.before, s.text, s.logprob) for s in steps] == found


def test_calibrated_scores_are_the_formula(tmp_path: Path) -> None:
    sample = seen(tmp_path)
    fit = Table((("a.", 0.5), ("b.", 0.2), ("c.", -0.3), ("d.", 0.9)))
    paths = [path(sample, "a. b.", [-0.1, -0.2], "1"), path(sample, "a. c.", [-0.1, -2.0], "2"),
             path(sample, "d.", [-3.0], "3"), path(sample, "d.", None, "4")]
    group = Group(sample=sample, rollouts=tuple(paths))
    raw = Calibrated(fit, 0.75, stop=(".",))(group)
    text = (math.exp(-0.1) + math.exp(-0.2)) / 2
    assert raw[0].score == pytest.approx(0.25 * text + 0.75 * (0.5 + 0.2) / 2)
    assert raw[0].parts == pytest.approx({"text": text, "image": 0.35})
    assert raw[1].parts["image"] == pytest.approx(0.25), "a cosine below zero counts as zero"
    assert raw[2].score == pytest.approx(0.25 * math.exp(-3) + 0.75 * 0.9)
    assert raw[3].score is None
    ranked = Calibrated(fit, 0.75, ranks=True, stop=(".",))(group)
    # first sentences: a. is likelier (1, 1/2), d. fits better; second: b. beats c. in both
    assert [v.parts for v in ranked[:3]] == [
        {"text": 1.0, "image": 0.75}, {"text": 0.75, "image": 0.5}, {"text": 0.5, "image": 1.0}]
    assert [v.score for v in Calibrated(fit, 0.0, stop=(".",))(group)][2] == pytest.approx(
        math.exp(-3))
    blind = group.model_copy(update={"sample": sample.model_copy(update={"media": ()})})
    assert {v.score for v in Calibrated(fit)(blind)} == {None}
    with pytest.raises(SelfloopError, match=r"weight 1\.5"):
        Calibrated(fit, 1.5)


def test_equal_ranks_are_shared(tmp_path: Path) -> None:
    sample = seen(tmp_path)
    fit = Table((("a.", 0.5), ("b.", 0.5), ("c.", 0.1)))
    group = Group(sample=sample, rollouts=tuple(path(sample, t, [-1.0], t) for t in
                                                ("a.", "b.", "c.")))
    found = Calibrated(fit, ranks=True, stop=(".",))(group)
    assert [v.parts["image"] for v in found] == pytest.approx([5 / 6, 5 / 6, 1 / 3])
    assert [v.parts["text"] for v in found] == pytest.approx([2 / 3] * 3)


@pytest.mark.parametrize(("text", "found"), [
    ("", []), ("One", ["One"]), ("One. Two!  Three", ["One.", "Two!", "Three"]),
    ("One\nTwo...", ["One", "Two..."]), (" . ", []), ("It is 3.5 m", ["It is 3.5 m"])])
def test_sentences(text: str, found: list[str]) -> None:
    assert sentences(text) == found


def test_image_text_is_a_mean_over_sentences(tmp_path: Path) -> None:
    sample = seen(tmp_path)
    verifier = ImageText(Table((("A.", 0.5), ("B.", 0.1))))
    found = verifier(path(sample, "A. B.", None), sample)
    assert found.score == pytest.approx(0.3) and found.parts == {"lowest": 0.1}
    assert verifier(path(sample, " ", None), sample).score is None
    assert verifier(path(sample, "A.", None), sample.model_copy(update={"media": ()})
                    ).score is None


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights in a folder."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}
    tokenizer = tiny_vlm.make_tokenizer(scenes.WORDS)
    config = CLIPConfig(projection_dim=8, text_config={
        **small, "vocab_size": len(tokenizer), "max_position_embeddings": 12,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id},
        vision_config={**small, "image_size": 32, "patch_size": 16})
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_a_dual_encoder_gives_the_models_own_cosines(clip: Path) -> None:
    shown = scenes.picture(scenes.items("test", 1, 0)[0])
    texts = ["a red 3", "a blue circle upper left", "nothing"]
    found = DualEncoder(str(clip))(shown, texts)
    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    with torch.no_grad():
        inputs = processor(text=texts, images=shown, padding=True, return_tensors="pt")
        logits = model.eval()(**inputs).logits_per_image[0] / model.logit_scale.exp()
    assert found == pytest.approx(logits.tolist(), abs=1e-6) and len(set(found)) == 3
    assert len(DualEncoder(str(clip))(shown, ["a red 3 and " * 30])) == 1, "too long is cut"


def test_a_pool_is_built_with_a_dual_encoder(clip: Path, tmp_path: Path) -> None:
    samples = load(scenes.write(tmp_path, "train", 4, 1))
    media, encoder = [m for s in samples for m in s.media], encoder_named(str(clip))
    pool = pool_of(media, Library(), encoder)
    seen = [DualEncoder(str(clip)).embeddings(Library().open(m), "a")[0] for m in pool.media]
    assert [list(v) for v in pool.vectors] == [pytest.approx(v, abs=1e-6) for v in seen]
    cosines = {m.identity: sum(a * b for a, b in zip(seen[0], v, strict=True))
               for m, v in zip(pool.media, seen, strict=True)}
    order = [one[0] for one in pool.by_likeness((pool.media[0],))]
    assert len(order) > 1
    assert order == sorted(order, key=lambda m: -cosines[m.identity])


def test_encoders_that_are_none_are_named(tmp_path: Path) -> None:
    assert encoder_named("selfloop.testbeds.scenes_looks:Looks") == Looks()
    assert encoder_named("some/folder") == DualEncoder("some/folder")
    for name, why in (("selfloop.testbeds.scenes_looks:CHECK", "cannot be called"),
                      ("nowhere:at_all", "no component")):
        with pytest.raises(SelfloopError, match=why):
            encoder_named(name)
    with pytest.raises(SelfloopError, match="give a folder of a CLIP"):
        DualEncoder(str(tmp_path))(TINY, ["a"])
    with pytest.raises(SelfloopError, match="does not compare"):
        DualEncoder(str(SEED))(TINY, ["a"])


@pytest.mark.parametrize("split", ["test", "shifted"])
def test_looks_sees_colours_and_places_and_no_kinds(split: Any) -> None:
    right, total = 0, 0
    for item in scenes.items(split, 60, 0):
        shown = scenes.picture(item)
        for thing in item.things:
            texts = [f"a {c} {thing.kind} {scenes.PLACES[thing.place]}" for c in scenes.COLOURS]
            found = Looks()(shown, texts)
            right += found[scenes.COLOURS.index(thing.colour)] == max(found)
            total += 1
    assert right / total > (0.95 if split == "test" else 0.6)
    assert Looks()(shown, ["nothing", ""]) == [0.0, 0.0]
    both = Looks()(shown, [f"a {thing.colour} {kind}" for kind in ("3", "cross")])
    assert both[0] == both[1] > 0


# -- two steps on the toy -------------------------------------------------------------------------

class Stopping(ToyEngine):
    """The toy with stop strings: an answer ends with the first token that completes one."""

    supports = ToyEngine.supports | {"stop"}

    def generate(self, requests: Any, version: int) -> Any:
        drawn = super().generate(requests, version)
        return [[self._cut(turn, request.sampling) for turn in turns]
                for turns, request in zip(drawn, requests, strict=True)]

    def _cut(self, turn: Any, sampling: Any) -> Any:
        forced = len(sampling.prefix.split())
        for at in range(forced + 1, len(turn.token_ids) + 1):
            if self.decode(turn.token_ids[at - 1:at]) in sampling.stop:
                cut = {name: tuple(value[:at]) for name in ("token_ids", "logprobs", "loss_mask")
                       if (value := getattr(turn, name)) is not None}
                return turn.model_copy(update={**cut, "finish_reason": "stop"})
        return turn


@dataclass(frozen=True)
class LikesLeft:
    """An encoder for the toy: texts that say "left" fit."""

    def __call__(self, picture: Image.Image, texts: Any) -> list[float]:
        assert picture.size == (8, 8)
        return [float("left" in text.split()) for text in texts]


def toy_claims(text: str) -> list[str] | None:
    """Every word of an answer is a claim."""
    return text.split() or None


FAST = {"lr": 0.1, "updates": 4, "iterations": 2, "samples": 8}


def toy_run(folder: Path, loop: Loop, engine: ToyEngine | None = None) -> RunFolder:
    train, dev = (toyland.samples(folder / "data", 12, first=f) for f in (0, 12))
    done = run(loop, train, engine or ToyEngine(("yes", "no", "left", "right"), seed=1),
               folder / "run", dev=dev[:4], library=Library(folder / "run" / "images"))
    found = RunFolder(folder / "run")
    assert len(done) == loop.iterations >= 2 and not loop.labels_read
    for step in range(2):
        assert found.manifest(step)["counts"]["signals_solver"] > 0
        assert found.json("steps", f"{step:06d}", "learned.json")["solver"]["updates"] == 4
    assert all(i.labels_full == i.labels_answer_only == 0 for i in done)
    return found


def drawn_under(rollout: Rollout) -> dict[str, Any]:
    return rollout.sampling["drawn_under"]  # type: ignore[return-value]


def pairs_of(folder: RunFolder, step: int) -> list[tuple[Pair, Rollout, Rollout]]:
    """(pair, chosen rollout, rejected rollout) with everything that holds of every pair."""
    drawn = {r.id: r for g in folder.groups(step) for r in g.rollouts}
    found = []
    for pair in folder.signals(step, "solver"):
        chosen, rejected = (drawn[i] for i in pair.rollouts)
        assert isinstance(pair, Pair) and pair.margin == 0.0
        for branch, rollout in (("chosen", chosen), ("rejected", rejected)):
            assert not any(m.ops for m in pair.branches[branch].context.media)
            assert pair.branches[branch].turns[0].token_ids == rollout.turns[0].token_ids
        assert pair.branches["chosen"].context == pair.branches["rejected"].context
        assert chosen.text != rejected.text
        found.append((pair, chosen, rejected))
    return found


def test_seva_on_the_toy(tmp_path: Path) -> None:
    folder = toy_run(tmp_path, seva(exact, n=3, temperature=1.0, max_new_tokens=4, **FAST))
    for step in range(2):
        kept = pairs_of(folder, step)
        for _, chosen, rejected in kept:
            assert "negative" not in chosen.sampling and not chosen.context.media[0].ops
            (op,) = drawn_under(rejected)["media"][0]["ops"]
            assert (op["name"], op["severity"]) == ("diffusion", 0.5)
        groups = folder.groups(step)
        whole = [r for g in groups for r in g.rollouts if r.finish_reason == "stop"]
        equal = [g for g in groups if len({r.text for r in g.rollouts if r in whole}) == 1]
        assert all(p.sample not in {g.sample.id for g in equal} for p, _, _ in kept)
        assert len(kept) < sum("negative" in r.sampling for r in whole), "equal pairs are dropped"
        assert all(v.score is None for g in groups for v in g.verdicts), "nothing was judged"


def test_seva_draws_both_answers_greedily_by_default(tmp_path: Path) -> None:
    folder = toy_run(tmp_path, seva(exact, max_new_tokens=4, **FAST))
    rollouts = [r for g in folder.groups(0) for r in g.rollouts]
    assert {len(g.rollouts) for g in folder.groups(0)} == {2}
    assert {r.sampling["decoding"]["temperature"] if "decoding" in r.sampling
            else r.sampling["temperature"] for r in rollouts} == {0.0}
    assert {"negative" in r.sampling for r in rollouts} == {True, False}


def test_stic_on_the_toy(tmp_path: Path) -> None:
    loop = stic(exact, n=6, temperature=1.0, max_new_tokens=4, batch=16, **FAST)
    folder = toy_run(tmp_path, loop)
    causes: Counter[str] = Counter()
    for _, chosen, rejected in pairs_of(folder, 0):
        guided = drawn_under(chosen)["prompt"][-1]["content"][-1]["text"]
        assert guided == "is it red ?\n" + DESCRIBE and not chosen.context.media[0].ops
        cause = str(rejected.sampling["negative"])
        misled = drawn_under(rejected)
        text, ops = misled["prompt"][-1]["content"][-1]["text"], misled["media"][0].get("ops")
        if cause == "eliciting":
            assert not ops and text.startswith("is it red ?\n") and text != guided
        else:
            assert text == "is it red ?" and ops[0]["name"] == cause
        causes[cause] += 1
    assert set(causes) == {"eliciting", "lowres", "jitter"}
    assert causes["eliciting"] > max(causes["lowres"], causes["jitter"])
    learned = folder.json("steps", "000000", "learned.json")["solver"]
    assert {"0.dpo", "1.nll"} <= learned.keys(), learned
    assert stic(exact, anchor=0.0).learn["solver"].loss.needs == {"reference"}


def test_stics_anchor_is_that_of_its_code(tmp_path: Path) -> None:
    """Less 1/1024 of the chosen text's summed log-prob, a mean over pairs."""
    engine, folder = ToyEngine(("yes", "no"), seed=1), tmp_path / "run"
    loop = stic(exact, max_new_tokens=4, n=3, updates=1, batch=64, lr=1e-9)
    run(replace(loop, gate=None, evaluation=None), toyland.samples(tmp_path / "data", 6), engine,
        folder, library=Library(folder / "images"))
    chosen = [p.branches["chosen"] for p in RunFolder(folder).signals(0, "solver")]
    sums = [sum(x) for x in engine.logprobs(chosen, "seed")]
    learned = RunFolder(folder).json("steps", "000000", "learned.json")["solver"]
    assert learned["1.nll"] == pytest.approx(-sum(sums) / len(sums) / 1024, rel=1e-9)


def test_csr_on_the_toy(tmp_path: Path) -> None:
    loop = replace(csr(exact, width=4, depth=3, stop=("no",), sentence_tokens=3, weight=0.9,
                       **FAST))
    verifier = replace(loop.verifier, encoder=LikesLeft())  # type: ignore[type-var]
    engine = Stopping(("yes", "no", "left", "right"), seed=1)
    folder = toy_run(tmp_path, replace(loop, verifier=verifier), engine)
    better = []
    for step in range(2):
        groups = folder.groups(step)
        scores = {r.id: v for g in groups for r, v in zip(g.rollouts, g.verdicts, strict=True)}
        for v in (v for v in scores.values() if v.score is not None):
            assert v.score == pytest.approx(0.1 * v.parts["text"] + 0.9 * v.parts["image"])
        for _, chosen, rejected in pairs_of(folder, step):
            assert chosen.sampling["path"] and rejected.sampling["path"]
            high, low = scores[chosen.id], scores[rejected.id]
            better.append(high.parts["image"] - low.parts["image"])
            assert high.score > low.score  # type: ignore[operator]
    assert len(better) > 4 and sum(better) > 0, "what fits the picture is preferred"


def test_rlaif_v_on_the_toy(tmp_path: Path) -> None:
    loop = rlaif_v(exact, n=6, max_new_tokens=4, by_rule=f"{__name__}:toy_claims", temperature=1.0,
                   check="is there {claim}", quoted=False, votes=3, **FAST)
    assert rlaif_v(exact).iterations == 4
    folder = toy_run(tmp_path, loop)
    for step in range(2):
        groups = folder.groups(step)
        judged = {r.id: v for g in groups for r, v in zip(g.rollouts, g.verdicts, strict=True)}
        told = [v for v in judged.values() if v.score is not None]
        assert all(v.score == -v.parts["rejected"] and v.parts["unreadable"] == 0 for v in told)
        assert any(v.score is None for v in judged.values()), "an unreadable check abstains"
        kept = pairs_of(folder, step)
        assert max(Counter(p.sample for p, _, _ in kept).values()) <= 2
        for _, chosen, rejected in kept:
            high, low = judged[chosen.id].score, judged[rejected.id].score
            assert high - low >= 1  # type: ignore[operator]
    assert loop.learn["solver"].organizer.maker.filters == (  # type: ignore[attr-defined]
        LengthBalance(),)


def test_stic_described_on_the_toy(tmp_path: Path) -> None:
    train, dev = (toyland.samples(tmp_path / "data", 8, first=f) for f in (0, 8))
    loop = stic_described(exact, max_new_tokens=4, temperature=1.0, **FAST)
    done = run(loop, train, ToyEngine(("yes", "no"), seed=1), tmp_path / "run", dev=dev[:4],
               library=Library(tmp_path / "run" / "images"))
    folder = RunFolder(tmp_path / "run")
    assert [i.labels_answer_only for i in done] == [8, 8], "gold answers are labels"
    for step in range(2):
        said = {g.sample.id: g.rollouts[0] for g in folder.groups(step)}
        assert all(r.context.text == PROMPT and r.context.media for r in said.values())
        made = folder.signals(step, "solver")
        assert len(made) == sum(bool(r.text) for r in said.values()) > 1
        for signal in made:
            target = signal.branches["target"]
            assert target.text in ("yes", "no") and target.context.text == (
                f"Description of the picture: {said[signal.sample].text}\nis it red ?")
    assert not collect(Describe(), lambda r, i: "x", asked(n_pictures=0))[0]


# -- from run.yaml --------------------------------------------------------------------------------

@pytest.mark.parametrize(("method", "options", "said"), [
    ("seva", ["options.causes=[blur, crop]", "options.severity=0.8"], ["blur", "0.8", "DPO"]),
    ("stic", ["options.guide=look twice", "options.anchor=0"], ["look twice", "pick_one=True"]),
    ("stic_described", ["options.labels=rationale"], ["Describe(", "strict=True", "Supervise()"]),
    ("csr", ["options.encoder=selfloop.testbeds.scenes_looks:Looks", "options.ranks=true",
             "options.broken={scripts: [LATIN, CYRILLIC], word_count: 60}"],
     ["Looks()", "ranks=True", "scripts=('LATIN', 'CYRILLIC')", "word_count=60"]),
    ("rlaif_v", ["options.by_rule=selfloop.testbeds.scenes_looks:claims", "options.votes=3"],
     ["scenes_looks:claims", "n=3"]),
])
def test_reachable_from_run_yaml(tmp_path: Path, method: str, options: list[str],
                                 said: list[str]) -> None:
    from clidata import with_splits

    path = with_splits(tmp_path)
    path.write_text(path.read_text().replace("n: 2, max_new_tokens: 12, ", ""))
    config = load_config(path, [f"method={method}", *options])
    printed = repr(build_loop(config))
    assert all(part in printed for part in said), printed
    with pytest.raises(SelfloopError, match=r"options\.nonsense"):
        build_loop(load_config(path, [f"method={method}", "options.nonsense=1"]))


# -- on the scenes seed ---------------------------------------------------------------------------

SHORT = {"lr": 1e-4, "updates": 6, "samples": 16, "batch": 16}


def scenes_loops() -> dict[str, Loop]:
    """Every recipe with what the seed knows: captions, existence questions, its own words."""
    drawn = {"max_new_tokens": scenes.TOKENS, **SHORT}
    return {
        "seva": seva(exact, **drawn),
        "stic": stic(exact, guide=scenes.HOW_MANY[0], temperature=1.0, **drawn),
        "csr": csr(exact, encoder="selfloop.testbeds.scenes_looks:Looks", stop=("and",), depth=4,
                   width=4, temperature=1.0, diversity=0.0, sentence_tokens=8, iterations=2,
                   **SHORT),
        "rlaif_v": rlaif_v(exact, n=4, by_rule="selfloop.testbeds.scenes_looks:claims",
                           check=CHECK, quoted=False, iterations=2, temperature=1.0, **drawn),
    }


@pytest.mark.parametrize("name", ["seva", "stic", "csr", "rlaif_v"])
def test_on_the_scenes_seed(tmp_path: Path, name: str) -> None:
    loop = scenes_loops()[name]
    train = load(scenes.write(tmp_path / "pool", "train", 24, 3, tasks=("caption",)))
    dev = load(scenes.write(tmp_path / "dev", "dev", 14, 3))
    done = run(loop, train, HFEngine(str(SEED), threads=1), tmp_path / "run", dev=dev)
    folder = RunFolder(tmp_path / "run")
    assert len(done) == loop.iterations and not loop.labels_read
    for step in range(loop.iterations):
        assert folder.manifest(step)["counts"]["signals_solver"] > 3
        kept = pairs_of(folder, step)
        assert all(chosen.text != rejected.text for _, chosen, rejected in kept)
        learned = folder.json("steps", f"{step:06d}", "learned.json")["solver"]
        assert learned["updates"] == 6
