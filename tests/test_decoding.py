"""Guided decoding: mixed contexts, hidden pictures, diverse draws; and the samplers on top."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toyland
from families import FAMILIES as MANY
from families.drawing import draw, sampler
from families.measuring import exactly
from hf_models import FAMILIES, asked, open_picture, picture
from scenes_runs import SEED
from scripted import asked as question
from scripted import collect
from selfloop import keys
from selfloop.collect.beams import SentenceTree
from selfloop.collect.masked import MaskedAttention
from selfloop.collect.mixed import MixedDecoding
from selfloop.data import load
from selfloop.engines.hf import HFEngine
from selfloop.engines.hf_guided import Other, mixed
from selfloop.engines.hf_hiding import Blind, cannot_hide, hiding
from selfloop.engines.hf_jobs import Job
from selfloop.engines.picking import pick, pick_apart
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Learn, Loop
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.rows import Row
from selfloop.organize.chain import Chain
from selfloop.organize.refine.pair_filters import Distinct
from selfloop.organize.refine.pairs import Constructed, Pairs
from selfloop.pictures import Library
from selfloop.roles import Contrast, Optim, Request, Sampling, SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.testbeds import scenes
from selfloop.types import Context

torch.set_num_threads(1)
SHORT = {"max_new_tokens": 5}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    found = HFEngine(FAMILIES[request.param](tmp_path_factory.mktemp("model")), dtype="float64",
                     device="cpu")
    found.bind(open_picture)
    return found


def drawn(engine: Any, context: Context, n: int = 2, key: str = "k", **how: Any) -> list[Any]:
    return engine.generate([Request(context=context, key=key, n=n,
                                    sampling=Sampling(**{**SHORT, **how}))], engine.version)[0]


def tokens(turns: list[Any]) -> list[tuple[int, ...]]:
    return [turn.token_ids for turn in turns]


def by_hand(engine: HFEngine, step_logits: Any, temperature: float, key: str) -> tuple[int, ...]:
    """An answer token by token: whole sequences through the model each time, no cache."""
    found: list[int] = []
    uniform = keys.uniforms(f"{key}/0", 5)
    for step in range(5):
        logits_V = step_logits(found, step).double().masked_fill(engine.banned_V, -torch.inf)
        if temperature == 0:
            token = int(logits_V.argmax())
        else:
            p = torch.softmax(logits_V / temperature, -1)
            token = int(torch.searchsorted(p.cumsum(-1) / p.sum(), float(uniform[step]),
                                           right=True))
        found.append(token)
        if token in engine.sampler.ends:
            break
    return tuple(found)


def logits_of(engine: HFEngine, context: Context, answer: list[int], **more: Any) -> Any:
    ids, media = engine.render(context)
    inputs = engine.prompts.inputs([((*ids, *answer), media)]) | more
    with torch.no_grad():
        return engine.model(**inputs, use_cache=False).logits[0, -1]


# -- two contexts (S5) ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_mixed_equals_two_plain_forward_passes(engine: HFEngine, temperature: float) -> None:
    context = asked(1)
    for other, contrast in (
        (context.without_media(), {"weight": 0.7}), (asked(4), {"weight": -1.0, "floor": 0.1}),
        (context.without_media(), {"rate": 0.3}), (context.without_media(), {"weight": 1.0}),
    ):
        def step_logits(answer: list[int], step: int, other=other, contrast=contrast) -> Any:
            h = contrast.get("weight", 0.0) + 1 - np.exp(contrast.get("rate", 0.0) * step)
            first, second = (logits_of(engine, c, answer) for c in (context, other))
            whole = (1 - h) * first + h * second
            p = torch.softmax(first.masked_fill(engine.banned_V, -torch.inf), -1)
            return whole.masked_fill(p < contrast.get("floor", 0.0) * p.max(), -torch.inf)

        ours = drawn(engine, context, n=1, temperature=temperature,
                     contrast=Contrast(context=other, **contrast))[0]
        assert ours.logprobs is None
        assert ours.token_ids == by_hand(engine, step_logits, temperature, "k")
    assert not engine.sampler.guided.why_not and engine.sampler.guided.checked


def test_weight_one_is_the_other_context_and_zero_is_plain(engine: HFEngine) -> None:
    context, other = asked(1), asked(2).without_media()
    assert tokens(drawn(engine, context, contrast=Contrast(context=other, weight=1.0))) \
        == tokens(drawn(engine, other))
    plain = drawn(engine, context, n=3)
    assert drawn(engine, context, n=3, contrast=Contrast(context=other)) == plain
    assert drawn(engine, context, n=3, hidden=0.0) == plain
    assert plain[0].logprobs is not None


def test_both_prompts_are_read_once_for_all_draws(engine: HFEngine) -> None:
    drawn(engine, asked(1), contrast=Contrast(context=asked(2), weight=0.5))  # checked by now
    read: list[int] = []
    hook = engine.model.register_forward_pre_hook(
        lambda module, args, named: read.append(named["input_ids"].numel()), with_kwargs=True)
    try:
        drawn(engine, asked(1), n=6, contrast=Contrast(context=asked(2), weight=0.5))
    finally:
        hook.remove()
    prompts = [len(engine.render(asked(i))[0]) for i in (1, 2)]
    assert read[:2] == prompts and max(read[2:]) <= 6


def test_guided_draws_do_not_depend_on_the_batch(engine: HFEngine) -> None:
    requests = []
    for i in range(1, 4):
        context = asked(i, "how many?" * (1 + i % 2), pictures=1 + i % 2)
        for name, how in (
            ("mixed", {"contrast": Contrast(context=context.without_media(), weight=0.2 * i)}),
            ("masked", {"hidden": 0.25 * i}), ("diverse", {"diversity": 2.0}),
        ):
            requests.append(Request(context=context, key=f"{name}{i}", n=3,
                                    sampling=Sampling(**SHORT, **how)))
    together = engine.generate(requests, 0)
    assert together == engine.generate(requests, 0)
    for request, turns in zip(requests, together, strict=True):
        assert tokens(engine.generate([request], 0)[0]) == tokens(turns)
    assert not engine.sampler.guided.why_not and not engine.sampler.why_not


# -- pictures hidden from text (S6) ---------------------------------------------------------------


def full_mask(engine: HFEngine, length: int, hidden: set[int], pictures: set[int]) -> Any:
    """Causal, without text -> hidden; written out place by place."""
    allowed = torch.zeros(1, 1, length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(q + 1):
            allowed[0, 0, q, k] = q in pictures or k not in hidden
    return torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(
        ~allowed, torch.finfo(torch.float64).min)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masked_equals_an_explicit_mask(engine: HFEngine, temperature: float) -> None:
    if engine.model.config.model_type == "gemma3":
        pytest.skip("windows and two-way pictures: two masks, tested by what is independent")
    context = asked(1, pictures=2)
    ids, _ = engine.render(context)
    pictures = {i for i, t in enumerate(ids) if t in engine.prompts.placeholders}
    for share in (0.4, 1.0):
        hidden = set(Sampling(hidden=share).hides(sorted(pictures), "k"))
        assert len(hidden) == -(-share * len(pictures) // 1)

        def step_logits(answer: list[int], step: int, hidden: set[int] = hidden) -> Any:
            length = len(ids) + len(answer)
            return logits_of(engine, context, answer,
                             attention_mask=full_mask(engine, length, hidden, pictures))

        ours = drawn(engine, context, n=1, temperature=temperature, hidden=share)[0]
        assert ours.logprobs is None
        assert ours.token_ids == by_hand(engine, step_logits, temperature, "k")


def test_wholly_hidden_pictures_tell_nothing(engine: HFEngine) -> None:
    seen = [tokens(drawn(engine, asked(i), n=4)) for i in range(3)]
    blind = [tokens(drawn(engine, asked(i), n=4, hidden=1.0)) for i in range(3)]
    assert seen[0] != seen[1] or seen[1] != seen[2], "these models look at pictures"
    assert blind[0] == blind[1] == blind[2]
    assert not engine.sampler.guided.why_not


def test_hiding_without_a_fork_is_the_same(engine: HFEngine) -> None:
    forked = tokens(drawn(engine, asked(1), n=3, hidden=0.5))
    engine.sampler.guided.why_not = "as if it could not be forked"
    try:
        assert tokens(drawn(engine, asked(1), n=3, hidden=0.5)) == forked
        lean = Contrast(context=asked(1).without_media(), weight=0.6)
        slow = tokens(drawn(engine, asked(1), n=3, contrast=lean))
    finally:
        engine.sampler.guided.why_not = ""
    assert tokens(drawn(engine, asked(1), n=3, contrast=lean)) == slow


def test_nothing_stays_hidden_and_what_cannot_be_is_refused(engine: HFEngine) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    before = drawn(engine, asked(1))
    drawn(engine, asked(1), hidden=1.0)
    assert drawn(engine, asked(1)) == before and not MASKS._local_mapping
    blind = engine._job(Request(context=asked(1), key="k", sampling=Sampling(hidden=1.0))).blind
    with pytest.raises(NotImplementedError, match="masks"), hiding(engine.model, [blind], 99):
        pass
    assert not MASKS._local_mapping
    engine.cannot_hide = "a reason"
    try:
        with pytest.raises(SelfloopError, match="a reason"):
            drawn(engine, asked(1), hidden=0.5)
    finally:
        engine.cannot_hide = ""


def test_the_learner_can_score_what_was_guided(engine: HFEngine) -> None:
    turn = drawn(engine, asked(1), n=1, hidden=1.0)[0]
    row = Row((*turn.prompt_token_ids, *turn.token_ids),
              (False,) * len(turn.prompt_token_ids) + (True,) * len(turn.token_ids), turn.media,
              len(turn.prompt_token_ids))
    assert len(engine.logps([row])[0][0]) == len(turn.token_ids)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    {"hidden": 1.5}, {"hidden": -0.1}, {"diversity": -1.0}, {"diversity": float("nan")}])
def test_options_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(SelfloopError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_contrast_truth_table() -> None:
    context = asked(1)
    assert Contrast(context=context).idle and Contrast(context=context, weight=0.3).at(5) == 0.3
    grows = Contrast(context=context, rate=0.02)
    assert grows.at(0) == 0 and grows.at(50) == pytest.approx(1 - np.e)
    with pytest.raises(SelfloopError, match="floor"):
        Contrast(context=context, floor=1.0)
    assert Sampling().asks == frozenset() and Sampling().is_plain
    every = Sampling(contrast=grows, hidden=0.5, diversity=1.0)
    assert every.asks == {"contrast", "masked_attention", "diversity"} and not every.is_plain
    assert not Sampling(contrast=Contrast(context=context)).guides
    places = list(range(10, 20))
    half = Sampling(hidden=0.5).hides(places, "a")
    assert len(half) == 5 and set(half) < set(places)
    assert half != Sampling(hidden=0.5).hides(places, "b")
    assert Sampling(hidden=1.0).hides(places, "a") == tuple(places)
    assert len(Sampling(hidden=0.01).hides(places, "a")) == 1


def test_mixed_logits_by_hand() -> None:
    asked_NV = torch.tensor([[2.0, 1.0, 9.0, -1.0]])
    other_NV = torch.tensor([[0.0, 1.0, 9.0, 3.0]])
    never_V = torch.tensor([False, False, True, False])
    lean = Contrast(context=asked(1), weight=-1.0, floor=0.2)
    found = mixed(asked_NV, other_NV, [lean], 0, never_V)
    # exp(1 - 2) = 0.37 is plausible beside the likeliest allowed token, exp(-3) = 0.05 is not.
    assert found[0, :2].tolist() == [4.0, 1.0] and found[0, 3] == -torch.inf


def test_diverse_draws_by_hand() -> None:
    logits_NV = torch.tensor([[1.0, 0.5, 0.0]]).expand(4, 3)
    group = torch.tensor([[0, 0], [0, 1], [7, 0], [0, 2]])
    never, zero = torch.zeros(0, dtype=torch.long), torch.zeros(4, dtype=torch.float64)
    greedy = Sampling(temperature=0, diversity=0.6)
    going = torch.ones(4, dtype=torch.bool)
    token, logp = pick_apart(logits_NV, zero, greedy, never, group, going)
    # the second draw: 1.0 - 0.6 < 0.5; the third: 0.4, -0.1, 0.0; another job starts afresh
    assert token.tolist() == [0, 1, 0, 0]
    expected = torch.log_softmax(logits_NV[0], -1)
    assert logp.tolist() == pytest.approx(expected[token].tolist())
    going[0] = False  # the first draw has ended: the second is free to take its token
    assert pick_apart(logits_NV, zero, greedy, never, group, going)[0].tolist() == [0, 0, 0, 1]
    going[0] = True
    weak = Sampling(temperature=0.8, diversity=1e-12)
    uniform = torch.tensor([0.1, 0.5, 0.7, 0.99], dtype=torch.float64)
    assert pick_apart(logits_NV, uniform, weak, never, group, going)[0].tolist() \
        == pick(logits_NV, uniform, weak, never)[0].tolist()


def test_diverse_greedy_draws_differ_and_keep_their_log_probs(engine: HFEngine) -> None:
    equal = drawn(engine, asked(1), n=4, temperature=0.0)
    assert len(set(tokens(equal))) == 1 and equal[0].logprobs is None
    apart = drawn(engine, asked(1), n=4, temperature=0.0, diversity=50.0)
    assert apart[0].token_ids == equal[0].token_ids
    assert len({t[0] for t in tokens(apart)}) == 4
    scored = engine.logprobs([_branch(asked(1), turn) for turn in apart])
    for turn, now in zip(apart, scored, strict=True):
        assert list(turn.logprobs) == pytest.approx(now, abs=1e-9)


def _branch(context: Context, turn: Any) -> Any:
    from selfloop.types import Branch

    return Branch(context=context, turns=(turn,))


# -- the toy --------------------------------------------------------------------------------------


def test_the_toy_mixes_hides_and_diversifies() -> None:
    toy = ToyEngine(seed=3)
    toy.bind(lambda medium: None)
    context = asked(1)
    bare, plain = context.without_media(), drawn(toy, context, n=6)
    assert drawn(toy, context, n=6, contrast=Contrast(context=bare)) == plain
    full = drawn(toy, context, n=6, contrast=Contrast(context=bare, weight=1.0))
    assert tokens(full) == tokens(drawn(toy, bare, n=6)) and full[0].logprobs is None
    away = drawn(toy, context, n=6, contrast=Contrast(context=bare, weight=-2.0, floor=0.3))
    assert tokens(away) not in (tokens(plain), tokens(full))
    hidden = [tokens(drawn(toy, asked(i), n=6, hidden=1.0)) for i in (1, 2)]
    assert hidden[0] == hidden[1] and tokens(plain) != hidden[0]
    apart = drawn(toy, context, n=5, temperature=0.0, diversity=99.0)
    assert len({t[0] for t in tokens(apart)}) == 5 and apart[0].logprobs is not None


# -- samplers -------------------------------------------------------------------------------------


def test_mixed_decoding_pairs_good_and_bad() -> None:
    sample = question()
    found, engine = collect(MixedDecoding(n=3, mean=0.6, spread=0.1, away=1.0, floor=0.1),
                            lambda request, i: "a cat", sample)
    assert [r.sampling.get("negative") for r in found] == [None] * 3 + ["mixed"] * 3
    assert found[0].sampling["guided"] == "away"
    good, *bad = (r.sampling.contrast for r in engine.asked)
    assert (good.weight, good.floor) == (-1.0, 0.1) and good.context == \
        sample.context.without_media()
    assert [c.weight for c in bad] == [r.sampling["severity"] for r in found[3:]]
    assert len({c.weight for c in bad}) == 3 and all(0 <= c.weight <= 1 for c in bad)
    assert all(r.context == sample.context for r in found)
    noisy = MixedDecoding(against="diffusion", severity=0.5)
    _, engine = collect(noisy, lambda request, i: "a cat", sample)
    assert engine.asked[-1].sampling.contrast.context.media[0].ops
    none, engine = collect(MixedDecoding(n=2), lambda request, i: "x", question(n_pictures=0))
    assert len(none) == 2 and engine.asked[0].sampling.contrast is None


def test_masked_attention_goes_on_blindly() -> None:
    def says(request: Request, i: int) -> str:
        return "one two three four" if not request.sampling.hidden else " FOUR"

    found, engine = collect(MaskedAttention(n=2, least=0.5, most=0.5), says)
    assert [r.text for r in found[2:]] == ["one two FOUR"] * 2
    assert [r.sampling["of"] for r in found[2:]] == [r.id for r in found[:2]]
    for r in found[2:]:
        assert r.sampling["negative"] == "masked" and r.turns[0].logprobs is None
        assert all(r.turns[0].mask)
    assert all(r.sampling.hidden == 1.0 for r in engine.asked[1:])


def test_masked_attention_leaves_out_what_comes_out_the_same() -> None:
    def stubborn(request: Request, i: int) -> str:
        return "one two three"[len(request.sampling.prefix):]

    found, engine = collect(MaskedAttention(n=1, least=0.6, most=0.7, tries=2), stubborn)
    assert len(found) == 1
    assert [r.sampling.prefix for r in engine.asked[1:]] == ["one", ""] or \
        [r.sampling.prefix for r in engine.asked[1:]] == ["one two", "one"]


@pytest.mark.parametrize("wrong", [
    lambda: MixedDecoding(against="nothing"), lambda: MixedDecoding(mean=0),
    lambda: MixedDecoding(against="swapped"), lambda: MaskedAttention(share=0),
    lambda: MaskedAttention(least=0.5, most=0.2), lambda: MaskedAttention(tries=0),
    lambda: SentenceTree(temperature=0)])
def test_samplers_refuse_in_one_line(wrong: Any) -> None:
    with pytest.raises(SelfloopError) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_a_sentence_tree_by_diverse_beams_on_a_real_engine(tmp_path: Path) -> None:
    """CSR's setting: five groups of one beam, greedy, apart by 3 nats."""
    from selfloop.collect.drawing import draw as collected
    from selfloop.doors import Doors
    from selfloop.types import Sample

    found = HFEngine(FAMILIES["llava"](tmp_path), device="cpu")
    found.bind(open_picture)
    sample = Sample(prompt=asked(1).prompt, media=(picture(1),), answer="x")
    tree = SentenceTree(width=5, depth=2, sentence_tokens=6, temperature=0.0, diversity=3.0,
                        stop=tuple("eatin"))
    assert tree.asks == {"forced_prefix", "stop", "diversity"} <= found.supports
    (group,) = collected(tree, [sample], Doors({"solver": found}, 0, "s"), {})
    (again,) = collected(tree, [sample], Doors({"solver": found}, 0, "s"), {})
    assert group == again and len({r.text for r in group.rollouts}) == len(group.rollouts) > 2
    assert all(r.sampling["path"] for r in group.rollouts)


def test_a_tree_drops_what_the_tokenizer_does_not_give_back() -> None:
    """The seed's tokenizer knows few words: joined pieces of two are an unknown token."""
    from selfloop.collect.unsayable import Unsayable
    from selfloop.config import SEED
    from selfloop.roles import Request

    found = HFEngine(str(SEED), device="cpu")
    found.bind(open_picture)
    context = asked(1)
    how = Sampling(temperature=0.0, max_new_tokens=3)
    good, bad, plain = found.attempt([
        Request(context=context, key="k", sampling=replace(how, prefix=prefix))
        for prefix in ("4", "unheard of", "")], 0)
    assert isinstance(bad, Unsayable) and "unheard of" in str(bad) and "\n" not in str(bad)
    alone = found.generate([Request(context=context, key="k", sampling=how)], 0)
    assert [plain] == alone and good[0].mask[0] == 0
    with pytest.raises(Unsayable):
        found.generate([Request(context=context, key="k", sampling=replace(how, prefix="Ω"))], 0)


# -- whole loops ----------------------------------------------------------------------------------


def preferring(sampler: Any, lr: float = 0.1) -> Loop:
    return Loop(name="guided", sampler=sampler, iterations=1, steps=2, samples=4, learn={
        "solver": Learn(organizer=Chain(maker=Pairs(Constructed(), (
            Distinct(contained=False, bare=()),))), loss=DPO(0.5),
            optim=Optim(lr=lr, updates=2, batch=8))})


def pairs_learnt(sampler: Any, samples: Any, engine: Any, folder: Path, lr: float) -> list[Any]:
    """The pairs of a run's last step."""
    run(preferring(sampler, lr), samples, engine, folder / "run",
        library=Library(folder / "run" / "images"))
    found = RunFolder(folder / "run")
    assert found.json("steps", "000001", "learned.json")["solver"]["updates"] == 2
    return found.signals(1, "solver")


GUIDED = pytest.mark.parametrize("sampler", [
    MixedDecoding(n=4, mean=0.9, away=1.0, max_new_tokens=8),
    MaskedAttention(n=4, max_new_tokens=8, most=0.0)], ids=lambda s: type(s).__name__)


@GUIDED
def test_guided_negatives_are_learnt_from_on_the_toy(sampler: Any, tmp_path: Path) -> None:
    pairs = pairs_learnt(sampler, toyland.samples(tmp_path / "pictures", 4),
                         ToyEngine(("yes", "no", "left", "right"), seed=1), tmp_path, 0.1)
    assert pairs and all(p.branches["rejected"].turns[0].logprobs is None for p in pairs)


@GUIDED
def test_guided_negatives_are_learnt_from_on_the_embedded_model(
        sampler: Any, tmp_path: Path) -> None:
    scenes.write(tmp_path / "data", "train", 4, seed=5, tasks=("colour",))
    samples = load(tmp_path / "data" / "train.jsonl")
    engine = HFEngine(SEED, device="cpu")
    pairs = pairs_learnt(sampler, samples, engine, tmp_path, 1e-4)
    assert pairs and all(p.branches["rejected"].turns[0].logprobs is None for p in pairs)
    assert not engine.sampler.guided.why_not and not engine.sampler.why_not


def test_the_embedded_model_needs_its_picture(tmp_path: Path) -> None:
    """Colours are a matter of chance in these scenes, so who does not look is often wrong."""
    scenes.write(tmp_path / "data", "dev", 40, seed=6, tasks=("colour",))
    engine, samples = HFEngine(SEED, device="cpu"), load(tmp_path / "data" / "dev.jsonl")
    engine.bind(Library(tmp_path / "images").open)

    def right(**how: Any) -> float:
        asked_ = [Request(context=s.context, key=s.id, sampling=Sampling(
            temperature=0.0, max_new_tokens=8, **{k: v(s) if callable(v) else v
                                                  for k, v in how.items()})) for s in samples]
        said = [engine.decode(turn.token_ids) for (turn,) in engine.generate(asked_, 0)]
        return sum(text.strip() == str(s.answer) for text, s in zip(said, samples, strict=True)
                   ) / len(samples)

    def leaning(h: float) -> Any:
        return lambda s: Contrast(context=s.context.without_media(), weight=h)

    plain, blind = right(), right(hidden=1.0)
    assert plain > 0.6 > blind + 0.1
    assert right(contrast=leaning(1.0)) < plain - 0.2
    assert right(contrast=leaning(-0.5)) > blind + 0.2


@pytest.mark.parametrize(("sampler", "lacking"), [
    (MixedDecoding(), "contrast"), (MaskedAttention(), "masked_attention"),
    (SentenceTree(diversity=3.0), "diversity")])
def test_an_engine_that_cannot_is_refused_when_they_meet(
        sampler: Any, lacking: str, tmp_path: Path) -> None:
    engine = ToyEngine()
    engine.supports = engine.supports - {lacking} | {"stop"}
    with pytest.raises(SelfloopError, match=f"asks for {lacking}"):
        run(preferring(sampler), toyland.samples(tmp_path / "pictures", 4), engine,
            tmp_path / "run")


# -- many families --------------------------------------------------------------------------------

FEW = ("qwen2_5_vl", "qwen3_5", "gemma3")  # grids of positions, states, windows


def hold_guided(name: str) -> None:
    """The other context at weight 1 is that context; hidden pictures tell nothing."""
    family = MANY[name](torch.float64)
    mine, how = sampler(family), Sampling(max_new_tokens=6)
    first, second = same_size(family)
    lean = replace(how, contrast=Contrast(context=asked(1), weight=1.0))
    with exactly(torch.float64):
        (mixed_,) = draw(mine, [Job(*first, (), "k", 3, lean, 99, other=Other(*second))])
        (plain,) = draw(mine, [Job(*second, (), "k", 3, how, 99)])
        assert [d.token_ids for d in mixed_] == [d.token_ids for d in plain]
        if cannot_hide(family.model):
            return
        places = tuple(i for i, t in enumerate(first[0]) if t in family.reader.placeholders)
        blind = Blind(places, places)
        found = [[d.token_ids for d in row] for prompt in (first, second) for row in draw(
            mine, [Job(*prompt, (), "k", 3, replace(how, hidden=1.0), 99, blind=blind)])]
        assert found[0] == found[1]
        # Compared with the plain path; or its layers cannot be forked at all, guided or not.
        assert mine.why_not if mine.guided.why_not else mine.guided.checked


def same_size(family: Any) -> tuple[Any, Any]:
    """Two prompts that differ in nothing but the picture."""
    prompts = [family.prompt((number,), (20, 21, 22)) for number in range(1, 40)]
    alike = [p for p in prompts[1:] if p[0] == prompts[0][0]]
    assert alike, "some two pictures have one size"
    return prompts[0], alike[0]


@pytest.mark.parametrize("name", FEW)
def test_guided_draws_in_a_few_families(name: str) -> None:
    hold_guided(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MANY) - set(FEW)))
def test_guided_draws_in_every_family(name: str) -> None:
    hold_guided(name)
