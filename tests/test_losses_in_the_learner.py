"""Losses through the learner, in float64: how rows are cut or ordered changes nothing; what a loss
measures, remembers and asks for reaches it."""

from __future__ import annotations

import math
import random

import pytest
import torch

from selfloop.doors import user
from selfloop.engines.toy import ToyEngine
from selfloop.learning import _known, learn, read_by
from selfloop.optimize.losses.distill import ReverseKL, TopK
from selfloop.optimize.losses.divergences import JSD
from selfloop.optimize.losses.kl_reward import RewardKL
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.perception import Perception
from selfloop.optimize.losses.preference import (
    DPO,
    MDPO,
    cpo,
    ddpo,
    ipo,
    orpo,
    robust,
    rpo,
    simpo,
    vision_guided,
    wpo,
)
from selfloop.optimize.losses.ranked import AOT, Levels, OwnNegative, SelfCorrection
from selfloop.optimize.losses.reward import BradleyTerry, StepBCE
from selfloop.optimize.losses.rl import (
    GRPO,
    cispo,
    dr_grpo,
    gspo,
    reinforce,
    reinforce_pp,
    rloo,
    sapo,
)
from selfloop.optimize.losses.sft import SFT, WeightedTokens
from selfloop.optimize.losses.surrogates import Adaptive
from selfloop.optimize.losses.unpaired import BCO, KTO, mpo
from selfloop.roles import Optim, Request, Sampling, SelfloopError
from selfloop.types import Advantage, Branch, Context, Demonstration, Distill, Pair, Rollout

OPTIM = Optim(lr=0.1)
WORDS = ("yes", "no", "left", "right")
N = 7


def asked(i: int) -> Context:
    return Context(prompt=user(f"question {i} " + "and more " * (i % 4)))


def rollouts(toy, i: int, n: int) -> list[Rollout]:
    request = Request(context=asked(i), key=f"k{i}", n=n, sampling=Sampling(max_new_tokens=5))
    return [Rollout(id=f"{i}.{d}", sample=f"s{i}", context=asked(i), turns=(turn,), output=())
            for d, turn in enumerate(toy.generate([request], 0)[0])]


def signal(toy, kind: str, i: int):
    a, b, c = rollouts(toy, i, 3)
    here, there, third = (Branch.drawn(r) for r in (a, b, c))

    def elsewhere(offset, rollout=a):
        return Branch.under(asked(i + offset), rollout)

    more = {"sample": a.sample, "weight": 1.0 + i % 3}
    if kind == "demonstration":
        return Demonstration(branches={"target": here}, **more)
    if kind == "advantage":
        return Advantage(branches={"answer": here, "masked": elsewhere(20),
                                   "mismatched": elsewhere(30, c)},
                         advantage=i - 2.5, group=f"g{i // 3}", **more)
    if kind == "labels":
        return Advantage(branches={"answer": here}, sample=a.sample, advantage=tuple(
            (j + i) % 3 / 2 for j in range(len(a.turns[0].token_ids))))
    if kind == "distill":
        return Distill(branches={"student": here, "teacher": elsewhere(9)}, **more)
    names = {f"{y}_after_{first}": elsewhere(40 + j, r) for j, (y, r, first) in enumerate(
        (y, r, f) for y, r in (("chosen", a), ("rejected", b)) for f in ("chosen", "rejected"))}
    return Pair(branches={
        "chosen": here, "rejected": there, "middle": third, "corrupted": elsewhere(20),
        "chosen_blind": elsewhere(50), "rejected_blind": elsewhere(50, b),
        "mismatched": elsewhere(30, c), **names}, margin=0.1 * i, **more)


LOSSES = {
    "sft": ("demonstration", SFT()), "sft-sequence": ("demonstration", SFT("target", "sequence")),
    "tokens": ("labels", WeightedTokens()), "dpo": ("pair", DPO()), "ipo": ("pair", ipo()),
    "robust": ("pair", robust()), "simpo": ("pair", simpo()), "cpo": ("pair", cpo()),
    "orpo": ("pair", orpo()), "rpo": ("pair", rpo()), "wpo": ("pair", wpo()),
    "ddpo": ("pair", ddpo()), "vdpo": ("pair", vision_guided()), "mdpo": ("pair", MDPO()),
    "kto": ("advantage", KTO(3.0)), "kto-pairs": ("pair", KTO(3.0)),
    "bco": ("advantage", BCO(1.0)), "mpo": ("pair", mpo()), "aot": ("pair", AOT()),
    "levels": ("pair", Levels(pairs="list")), "correction": ("pair", SelfCorrection()),
    "own": ("pair", Mix(((0.5, OwnNegative()), (0.5, DPO())))),
    "grpo": ("advantage", GRPO(kl=0.1, entropy=0.01)),
    "sequence": ("advantage", GRPO(normalize="sequence")), "drgrpo": ("advantage", dr_grpo(8)),
    "gspo": ("advantage", gspo()), "cispo": ("advantage", cispo(1.1)),
    "sapo": ("advantage", sapo()), "rloo": ("advantage", rloo(0.1)),
    "reinforce": ("advantage", reinforce(0.1, "k2")), "tis": ("advantage", GRPO(truncate=1.05)),
    "reinforce++": ("advantage", reinforce_pp(0.1)),
    "adaptive": ("advantage", GRPO(kl=Adaptive(), reward_kl=RewardKL(Adaptive()))),
    "papo": ("advantage", Mix(((1.0, GRPO()), (1.0, Perception())))),
    "reverse": ("distill", ReverseKL()), "topk": ("distill", TopK(3)),
    "topk-jsd": ("distill", TopK(2, JSD(0.3), rest=False, teacher="ema", ema=0.9)),
    "reward": ("pair", BradleyTerry(centre=0.1)), "process": ("labels", StepBCE()),
}


def engine(kind=ToyEngine):
    return kind(WORDS, contexts=64, seed=3)


def gradient(kind, loss, *, budget=100_000, order=None):
    toy = engine()
    made = [signal(toy, kind, i) for i in (order or range(N))]
    toy.learner.tokens_per_batch = budget
    with torch.no_grad():  # away from the weights that drew, so that no ratio is 1
        toy.table.mul_(1.3)
    known = _known(toy, made, loss, OPTIM)[0]
    with torch.no_grad():  # and from the reference
        toy.table.mul_(1.1)
    terms = toy.forward_backward(made, loss, known)
    return toy.table.grad.clone(), terms, toy.learner.states


@pytest.mark.parametrize("name", LOSSES)
def test_neither_micro_batches_nor_the_order_of_rows_change_a_gradient(name):
    kind, loss = LOSSES[name]
    whole, terms, states = gradient(kind, loss)
    assert float(whole.abs().sum()) > 0
    order = random.Random(0).sample(range(N), N)
    for budget, rows in ((1, None), (100_000, order), (60, order)):
        split, again, after = gradient(kind, loss, budget=budget, order=rows)
        assert torch.allclose(split, whole, rtol=1e-9, atol=1e-12)
        for term in terms:
            assert again[term] == pytest.approx(terms[term], rel=1e-9, abs=1e-12)
        for described, state in states.items():
            assert after[described] == pytest.approx(state, rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_of_several_epochs_lowers_the_loss(name):
    """A loss whose gradient points the wrong way would be found here, whatever its formula."""
    kind, loss = LOSSES[name]
    toy = engine()
    made = [signal(toy, kind, i) for i in range(N)]
    known = _known(toy, made, loss, OPTIM)[0]

    def now() -> float:
        toy.learner.states = {}
        terms = toy.forward_backward(made, loss, known)
        toy.table.grad = None
        names = loss.units(made, {n: [1] * N for s in made for n in s.branches})
        return sum(terms[n] for n in names)

    before = now()
    learn(toy, made, loss, Optim(lr=0.02, epochs=2, batch=N), "key")
    if name not in ("cispo", "reinforce", "reverse"):  # their value is a surrogate's
        assert now() < before


def test_old_log_probs_stay_over_several_epochs():
    """The second pass has ratios other than 1, against the first pass's start, not its end."""
    toy = engine()
    made = [signal(toy, "advantage", i) for i in range(N)]
    plain = [s.model_copy(update={"branches": {"answer": Branch.under(
        asked(i), rollouts(engine(), i, 1)[0])}}) for i, s in enumerate(made)]
    seen = []

    class Watching(GRPO):
        def __call__(self, batch):
            scored = batch.branches["answer"]
            seen.append((scored.old_BT.clone(), (scored.logp_BT - scored.old_BT).detach()))
            return super().__call__(batch)

    learn(toy, plain, Watching(), Optim(lr=0.1, updates=2, batch=N), "key")
    assert sorted(map(float, seen[0][0].sum(1))) == pytest.approx(
        sorted(map(float, seen[1][0].sum(1))))
    assert float(seen[0][1].abs().max()) < 1e-12 < 1e-3 < float(seen[1][1].abs().max())


def test_truncated_importance_sampling_sees_the_sampler_and_the_learner_apart():
    toy = engine()
    made = [signal(toy, "advantage", i) for i in range(3)]
    with torch.no_grad():
        toy.table.mul_(1.2)  # the learner's numbers differ from the sampler's
    seen = []

    class Watching(GRPO):
        def __call__(self, batch):
            scored = batch.branches["answer"]
            seen.append(float((scored.old_BT - scored.drawn_BT).abs().max()))
            assert torch.allclose(scored.old_BT, scored.logp_BT.detach())
            return super().__call__(batch)

    found = learn(toy, made, Watching(truncate=2.0), OPTIM, "key")
    assert min(seen) > 1e-3 and found["sampler_gap"] == pytest.approx(max(seen))


# -- what losses remember -------------------------------------------------------------------------

def test_an_adaptive_coefficient_moves_is_saved_and_is_forgotten_at_a_restart(tmp_path):
    toy, loss = engine(), GRPO(kl=Adaptive(start=0.5, target=1e-3, rate=0.1))
    made = [signal(toy, "advantage", i) for i in range(N)]
    learn(toy, made, loss, Optim(lr=0.3, updates=3, batch=N, reference="seed"), "key")
    (described, state), = toy.learner.states.items()
    assert described.startswith("GRPO(") and state["kl"] > 0.5, "a large KL raises its price"
    toy.save_state(tmp_path)
    other = engine()
    other.load_state(tmp_path)
    assert other.learner.states == toy.learner.states
    known = _known(toy, made, loss, OPTIM)[0]
    assert toy.forward_backward(made, loss, known)["kl"] \
        == other.forward_backward(made, loss, known)["kl"]
    toy.restart()
    assert toy.learner.states == {}


def test_a_step_that_fails_leaves_no_trace_in_the_state():
    class Broken(BCO):
        def __call__(self, batch):
            return {"bco": (1.0, super().__call__(batch)["bco"][1] * float("nan"))}

    toy = engine()
    with pytest.raises(SelfloopError, match="became nan"):
        learn(toy, [signal(toy, "pair", i) for i in range(3)], Broken(), OPTIM, "key")
    assert toy.learner.states == {}


def test_the_averaged_teacher_follows_slowly_and_comes_back_bit_for_bit(tmp_path):
    toy, loss = engine(), ReverseKL(teacher="ema", ema=0.75)
    made = [signal(toy, "distill", i) for i in range(N)]
    path = [toy.table.detach().clone()]
    by_hand = path[0].clone()
    with toy.at_version("ema"):
        assert torch.equal(toy.table, path[0]), "before anything was asked: the weights as they are"
    for step in range(3):
        learn(toy, made, loss, OPTIM, f"k{step}")
        by_hand = 0.75 * by_hand + 0.25 * toy.table.detach()
        with toy.at_version("ema"):
            assert torch.allclose(toy.table, by_hand, atol=1e-14)
    toy.save_state(tmp_path / "a")
    other = engine()
    other.load_state(tmp_path / "a")
    other.save_state(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
    for one in (toy, other):
        learn(one, made, loss, OPTIM, "next")
    assert torch.equal(toy.table, other.table)
    with toy.at_version("ema"), other.at_version("ema"):
        assert torch.equal(toy.table, other.table)
    known = _known(toy, made, loss, OPTIM)[0]["teacher"]
    with toy.at_version("ema"):
        expected = toy.logprobs([made[0].branches["teacher"]])[0]
    assert known[(0, "student")] == pytest.approx(expected)
    toy.restart()
    with toy.at_version("ema"):
        assert torch.equal(toy.table, path[0])


def test_nothing_is_averaged_unless_a_loss_asks(tmp_path):
    toy = engine()
    learn(toy, [signal(toy, "pair", 0)], DPO(), OPTIM, "key")
    toy.save_state(tmp_path)
    assert not (tmp_path / "average.safetensors").exists()


# -- what losses ask for --------------------------------------------------------------------------

def test_only_branches_that_a_loss_reads_are_run():
    toy = engine()
    made = signal(toy, "pair", 1)
    assert read_by(SFT("chosen"), made) == ["chosen"]
    assert set(read_by(MDPO(), made)) == {"chosen", "rejected", "corrupted"}
    assert read_by(TopK(2), signal(toy, "distill", 0)) == ["student"]
    few = toy.forward_backward([made], SFT("chosen"), {})["tokens_read"]
    assert few == sum(len(r.token_ids) for r in toy.rows(made.branches["chosen"]))


def test_top_k_is_the_teachers_own_view_among_what_can_be_drawn():
    toy = engine()
    made = signal(toy, "distill", 4)
    known = _known(toy, [made], TopK(3), OPTIM)[0]
    ids, taught = (known[n][(0, "student")] for n in ("others", "others_source"))
    row = toy.rows(made.branches["teacher"])[0]
    for place, (context, position, _) in enumerate(toy._cells(row)):
        logits = toy.table[context, position].detach().clone()
        logits[[0, 1, 3]] = -torch.inf
        best = logits.log_softmax(-1).topk(3)
        assert list(ids[place]) == best.indices.tolist()
        assert list(taught[place]) == pytest.approx(best.values.tolist())
    with pytest.raises(SelfloopError, match="top=8: fewer tokens can be drawn"):
        _known(toy, [made], TopK(8), OPTIM)


def test_matching_all_of_a_teacher_makes_the_student_its_equal():
    """The plain end to end: the student's distribution becomes the teacher's."""
    toy = engine()
    made = [signal(toy, "distill", 2)]
    loss = TopK(4, teacher="seed")
    far = toy.forward_backward(made, loss, _known(toy, made, loss, OPTIM)[0])["distill"]
    toy.reset_optimizer()
    learn(toy, made, loss, Optim(lr=0.05, updates=60), "key")
    near = toy.forward_backward(made, loss, _known(toy, made, loss, OPTIM)[0])["distill"]
    assert 0 <= near < 0.1 * far


def test_a_reward_model_learns_to_rank_on_words():
    toy = engine()

    def judge(i: int) -> Branch:
        return Branch(context=asked(i), text="yes")

    made = [Pair(branches={"chosen": judge(i), "rejected": judge(i + 3)}, sample=f"s{i}")
            for i in range(3)]
    learn(toy, made, BradleyTerry(), Optim(lr=0.1, updates=20), "key")
    ids = [[[toy.encode("yes")[0], toy.encode("no")[0]]] * 2] * 6
    odds = [found[0][0] - found[0][1] for found in
            toy.logprobs([judge(i) for i in range(6)], others=ids)]
    assert min(odds[:3]) > max(odds[3:])


def test_an_engine_without_other_tokens_says_so():
    class Narrow(ToyEngine):
        def logps(self, rows, *, entropy=False):
            from dataclasses import replace
            return super().logps([replace(r, wide=None) for r in rows], entropy=entropy)

    toy = engine(Narrow)
    for kind, loss in (("pair", wpo()), ("distill", TopK(2))):
        with pytest.raises(SelfloopError, match="Narrow gives the log-probs of trained"):
            learn(toy, [signal(toy, kind, 0)], loss, OPTIM, "key")


def test_rloo_is_unbiased_by_what_stands_in_the_same_update():
    """Group means are taken within groups, though micro-batches cut through them."""
    toy = engine()
    made = [signal(toy, "advantage", i) for i in range(6)]
    loss = rloo(0.5)
    toy.learner.tokens_per_batch = 1
    known = _known(toy, made, loss, OPTIM)[0]
    both = toy.forward_backward(made, loss, known)
    gradient = toy.table.grad.clone()
    toy.reset_optimizer()
    for part in (made[:3], made[3:]):
        toy.forward_backward(part, loss, _known(toy, part, loss, OPTIM)[0])
    weights = [sum(s.weight for s in part) for part in (made[:3], made[3:], made)]
    assert weights[0] == weights[1] == weights[2] / 2
    assert torch.allclose(toy.table.grad / 2, gradient, atol=1e-12) and both["policy"] != 0


def test_the_first_pass_runs_what_it_measures_and_the_second_what_it_learns():
    toy, seen = engine(), []

    class Watching(KTO):
        def measure(self, batch):
            seen.append(("first", set(batch.branches)))
            return super().measure(batch)

        def __call__(self, batch):
            seen.append(("second", set(batch.branches)))
            return super().__call__(batch)

    made = [signal(toy, "advantage", i) for i in range(3)]
    mix = Mix(((1.0, Watching()), (0.5, SFT())))
    found = learn(toy, [*made, signal(toy, "demonstration", 0)], mix, OPTIM, "key")
    assert seen == [("first", {"mismatched"}), ("second", {"answer"})]
    rows = {n: sum(r.count for s in made for r in toy.rows(s.branches[n]))
            for n in ("answer", "mismatched")}
    target = toy.rows(signal(engine(), "demonstration", 0).branches["target"])
    assert found["tokens_trained"] == rows["answer"] + sum(r.count for r in target)


def test_a_first_pass_that_needs_no_policy_gets_none():
    toy, seen = engine(), []

    class Watching(GRPO):
        def measure(self, batch):
            scored = batch.branches["answer"]
            seen.append(bool(scored.logp_BT[scored.mask_BT > 0].isnan().all()))
            return super().measure(batch)

    learn(toy, [signal(toy, "advantage", i) for i in range(3)],
          Watching(reward_kl=RewardKL(0.1, whiten=True)), OPTIM, "key")
    assert seen == [True]


def test_monitors_of_pairs_and_of_answers():
    """By hand, over several micro-batches; an offline policy that has moved away from its seed."""
    toy = engine()
    made = [signal(toy, "pair", i) for i in range(4)]
    known = _known(toy, made, DPO(), Optim(reference="seed"))[0]
    with torch.no_grad():
        toy.table.mul_(1.5)
    toy.learner.tokens_per_batch = 1
    found = toy.forward_backward(made, DPO(), known)

    def gain(s, name):
        with toy.at_version("seed"):
            before = sum(toy.logprobs([s.branches[name]])[0])
        return sum(toy.logprobs([s.branches[name]])[0]) - before

    gaps = [gain(s, "chosen") - gain(s, "rejected") for s in made]
    assert found["margin"] == pytest.approx(sum(gaps) / 4)
    assert found["accuracy"] == sum(g > 0 for g in gaps) / 4
    assert found["chosen_gain"] == pytest.approx(sum(gain(s, "chosen") for s in made) / 4)
    answers = [signal(engine(), "advantage", i) for i in range(5)]
    loss = GRPO(0.01, 0.01, entropy=0.1, kl=0.1)
    seen = toy.forward_backward(answers, loss, _known(toy, answers, loss, Optim(
        reference="seed"))[0])
    ratios = [(now - old, s.advantage) for s in answers for now, old in zip(
        toy.logprobs([s.branches["answer"]])[0], s.branches["answer"].turns[0].logprobs,
        strict=True)]
    out = [r > math.log(1.01) if a > 0 else r < math.log(0.99) for r, a in ratios]
    assert 0 not in {a for _, a in ratios}
    assert 0 < sum(out) < len(out) and seen["clipped"] == pytest.approx(sum(out) / len(out))
    weights = [s.weight for s in answers]
    assert len(set(weights)) > 1 and seen["kl_reference"] > 0 and seen["entropy_mean"] > 0
    assert "margin" not in seen and "kl_reference" not in found
