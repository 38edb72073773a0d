"""The learner on the toy engine in float64: batching changes nothing, state comes back exactly."""

from __future__ import annotations

import random

import pytest
import torch

from selfloop.doors import user
from selfloop.engines.toy import EOS, ToyEngine
from selfloop.learning import learn, rate, updates
from selfloop.optimize.losses.distill import ReverseKL
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.preference import DPO, MDPO
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT
from selfloop.optimize.rows import rows_of
from selfloop.roles import Optim, Request, Sampling, SelfloopError
from selfloop.types import (
    Advantage,
    Branch,
    Context,
    Demonstration,
    Distill,
    Pair,
    Rollout,
    Turn,
)

OPTIM = Optim(lr=0.1)


def engine() -> ToyEngine:
    return ToyEngine(("yes", "no", "left", "right"), contexts=16, seed=3)


def asked(i: int) -> Context:
    return Context(prompt=user(f"question {i} " + "and more " * (i % 4)))


def drawn(toy, i: int, n=1, version=0, **sampling) -> list[Rollout]:
    request = Request(context=asked(i), key=f"k{i}", n=n,
                      sampling=Sampling(**{"max_new_tokens": 5, **sampling}))
    return [Rollout(id=f"{i}.{d}", sample=f"s{i}", context=asked(i), turns=(turn,), output=())
            for d, turn in enumerate(toy.generate([request], version)[0])]


def signals(toy, kind: str) -> list:
    found = []
    for i in range(7):
        a, b = drawn(toy, i, n=2)
        here, there = Branch.drawn(a), Branch.drawn(b)
        found.append({
            "demonstration": Demonstration(branches={"target": here}, sample=a.sample,
                                           weight=1 + i),
            "pair": Pair(branches={"chosen": here, "rejected": there,
                                   "corrupted": Branch.under(asked(i + 20), a)}, sample=a.sample),
            "advantage": Advantage(branches={"answer": here}, advantage=i - 3.0, sample=a.sample),
            "distill": Distill(branches={"student": here, "teacher": Branch.under(asked(i + 9), a)},
                               sample=a.sample),
        }[kind])
    return found


LOSSES = [("demonstration", SFT()), ("pair", DPO()), ("pair", MDPO()),
          ("pair", Mix(((0.8, DPO()), (0.2, SFT("chosen"))))),
          ("advantage", GRPO(kl=0.1, entropy=0.01)), ("advantage", GRPO(normalize="sequence")),
          ("distill", ReverseKL())]


def gradient(kind, loss, *, budget=100_000, order=None):
    toy = engine()
    made = signals(toy, kind)
    toy.learner.tokens_per_batch = budget
    with torch.no_grad():  # away from the weights that drew, so that no ratio is 1
        toy.table.mul_(1.3)
    from selfloop.learning import _known
    made = made if order is None else [made[i] for i in order]
    terms = toy.forward_backward(made, loss, _known(toy, made, loss, OPTIM)[0])
    return toy.table.grad.clone(), terms


@pytest.mark.parametrize(("kind", "loss"), LOSSES, ids=lambda x: x if isinstance(x, str) else
                         type(x).__name__)
def test_neither_micro_batches_nor_the_order_of_rows_change_a_gradient(kind, loss):
    whole, terms = gradient(kind, loss)
    assert float(whole.abs().sum()) > 0
    order = random.Random(0).sample(range(7), 7)
    for budget, rows in ((1, None), (60, None), (100_000, order), (45, order)):
        split, again = gradient(kind, loss, budget=budget, order=rows)
        assert torch.allclose(split, whole, rtol=1e-11, atol=1e-14)
        for name in terms:
            assert again[name] == pytest.approx(terms[name], rel=1e-9, abs=1e-12)


def test_signals_of_several_kinds_in_one_batch():
    mix = Mix(((1.0, SFT()), (1.0, GRPO())))
    toy = engine()
    made = [*signals(toy, "demonstration")[:3], *signals(toy, "advantage")[3:]]
    found = []
    for budget in (100_000, 1):
        toy.learner.tokens_per_batch = budget
        toy.reset_optimizer()
        terms = toy.forward_backward(made, mix, {})
        assert {"0.nll", "1.policy"} <= set(terms)
        found.append(toy.table.grad.clone())
    assert torch.allclose(*found, rtol=1e-11, atol=1e-14)


def test_old_logprobs_may_be_the_samplers_for_some_and_computed_for_others():
    """Answers drawn under a view and trained on the clean picture stand beside plain ones."""
    toy = engine()
    made = signals(toy, "advantage")
    made[2] = made[2].model_copy(update={
        "branches": {"answer": Branch.under(asked(2), drawn(toy, 2)[0])}})
    found = learn(toy, made, GRPO(), OPTIM, "key")
    assert found["updates"] == 1 and found["sampler_gap"] < 1e-12


def test_the_sampler_and_the_learner_agree_on_logprobs():
    toy = engine()
    for options in ({}, {"temperature": 0.7}, {"prefix": "yes left"}, {"temperature": 2.0}):
        for rollout in drawn(toy, 1, n=5, **options):
            turn = rollout.turns[0]
            scored = toy.logprobs([Branch.drawn(rollout)])[0]
            own = [lp for lp, m in zip(turn.logprobs, turn.mask, strict=True) if m]
            assert scored == pytest.approx(own, abs=1e-12)
            assert len(scored) == len(turn.token_ids) - len(options.get("prefix", "").split())


def test_greedy_answers_carry_no_logprobs():
    assert drawn(engine(), 1, temperature=0.0)[0].turns[0].logprobs is None


# -- rows ---------------------------------------------------------------------------------------

def turn(prompt, tokens, **more):
    return Turn(prompt_token_ids=tuple(prompt), token_ids=tuple(tokens), **more)


def rows(*turns):
    return rows_of(Branch(context=asked(0), turns=turns), None, None)


def test_turns_that_extend_each_other_are_one_row_in_which_only_drawn_tokens_are_trained():
    found = rows(turn([1, 5], [7, 2], logprobs=(-1.0, -2.0)),
                 turn([1, 5, 7, 2, 6, 6], [8, 2], logprobs=(-3.0, -4.0), loss_mask=(0, 1)))
    assert len(found) == 1
    row = found[0]
    assert row.token_ids == (1, 5, 7, 2, 6, 6, 8, 2)
    assert [t for t, on in zip(row.token_ids, row.trained, strict=True) if on] == [7, 2, 2]
    assert (row.prompt, row.count, row.drawn) == (2, 3, (-1.0, -2.0, -4.0))


def test_turns_that_do_not_are_several_rows():
    """Templates that strip earlier thinking, another temperature, other pictures."""
    first = turn([1, 5], [7, 2])
    assert len(rows(first, turn([1, 5, 2, 6], [8]))) == 2
    assert len(rows(first, turn([1, 5, 7, 2, 6], [8], temperature=0.5))) == 2
    two = rows(first, turn([1, 5, 2, 6], [8, 9]))
    assert [(r.prompt, r.count) for r in two] == [(2, 2), (4, 2)]


def test_one_unknown_logprob_makes_the_whole_row_unknown():
    row = rows(turn([1], [7], logprobs=(-1.0,)), turn([1, 7, 3], [8]))[0]
    assert row.drawn is None and row.count == 2


# -- refusals -----------------------------------------------------------------------------------

class Poisoned(SFT):
    """NaN on every sample from s3 on."""

    def __call__(self, batch):
        (weight, value), = super().__call__(batch).values()
        bad = any(s.sample >= "s3" for s in batch.signals)
        return {"nll": (weight, value * float("nan") if bad else value)}


def test_a_nan_loss_is_refused_with_its_samples_and_nothing_is_stepped():
    toy = engine()
    toy.learner.tokens_per_batch = 1
    before = toy.table.detach().clone()
    with pytest.raises(SelfloopError, match=r"sample s[3-6] \(target\): term nll.*nothing was"):
        learn(toy, signals(toy, "demonstration"), Poisoned(), OPTIM, "key")
    assert torch.equal(toy.table, before) and toy.learner._optimizer is None
    assert toy.table.grad is None, "half a batch must not be stepped on later"


def test_a_gradient_that_is_not_finite_is_refused():
    toy = engine()
    toy.forward_backward(signals(toy, "demonstration"), SFT(), {})
    toy.table.grad[0, 0, 5] = float("nan")
    before = toy.table.detach().clone()
    with pytest.raises(SelfloopError, match="gradient norm became nan: nothing was stepped"):
        toy.optim_step(OPTIM, 0.1)
    assert torch.equal(toy.table, before) and toy.table.grad is None


def test_a_signal_that_the_loss_cannot_read_and_odd_token_advantages_are_named():
    toy = engine()
    with pytest.raises(SelfloopError, match=r"DPO cannot read a demonstration.*target.*sample s0"):
        toy.forward_backward(signals(toy, "demonstration"), DPO(), {})
    bad = signals(toy, "advantage")[0].model_copy(update={"advantage": (1.0,) * 99})
    with pytest.raises(SelfloopError, match="sample s0: 99 token advantages for"):
        toy.forward_backward([bad], GRPO(), {})


def test_clipped_steps_are_those_of_clipped_gradients():
    """Over several, since AdamW's first one is the same at every length of the gradient."""
    toy = engine()
    mine = toy.table.detach().clone().requires_grad_()
    by_hand = torch.optim.AdamW([mine], lr=0.1, betas=Optim().betas, weight_decay=0.0)
    made = signals(toy, "demonstration")
    for batch, most in ((made, 0.01), (made[:2], 1e-4), (made[3:], 100.0)):
        toy.forward_backward(batch, SFT(), {})
        mine.grad = toy.table.grad.clone()
        norm = float(torch.nn.utils.clip_grad_norm_([mine], most))
        by_hand.step()
        assert toy.optim_step(Optim(clip=most), 0.1)["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert (norm > most) == (most < 1), "the last one is not clipped"
        assert torch.allclose(toy.table, mine, rtol=1e-5, atol=1e-7)


def test_token_advantages_weigh_their_own_tokens():
    toy = engine()
    signal = signals(toy, "advantage")[1]
    n = len(signal.branches["answer"].turns[0].token_ids)
    zero = signal.model_copy(update={"advantage": (0.0,) * (n - 1) + (1.0,)})
    toy.forward_backward([zero], GRPO(), {})
    cells = (toy.table.grad.abs().sum(-1) > 0).nonzero()
    assert len(cells) == 1 and int(cells[0, 1]) == n - 1


# -- versions and state -------------------------------------------------------------------------

def step(toy, number):
    learn(toy, signals(toy, "demonstration"), SFT(), Optim(lr=0.1, updates=2, batch=4),
          f"step{number}")
    toy.publish(number, 2)


def test_versions_stay_for_as_long_as_they_were_promised():
    toy = engine()
    toy.publish(0, 2)
    tables = {0: toy.table.detach().clone()}
    for number in (1, 2, 3):
        step(toy, number)
        tables[number] = toy.table.detach().clone()
    for version in (1, 2, 3):
        with toy.at_version(version):
            assert torch.equal(toy.table, tables[version])
    assert torch.equal(toy.table, tables[3]), "and the current weights come back"
    with toy.at_version("seed"):
        assert torch.equal(toy.table, tables[0])
    for gone in (0, 4):
        with pytest.raises(SelfloopError, match=f"version {gone}, but the engine holds 3"), \
                toy.at_version(gone):
            pass
        with pytest.raises(SelfloopError, match=f"version {gone}"):
            drawn(toy, 0, version=gone)


def test_weights_come_back_even_when_something_fails_in_between():
    toy = engine()
    toy.publish(0, 2)
    step(toy, 1)
    before = toy.table.detach().clone()
    with pytest.raises(KeyError), toy.at_version(0):
        raise KeyError
    assert torch.equal(toy.table, before)


def test_state_comes_back_bit_for_bit_and_learning_goes_on_alike(tmp_path):
    toy = engine()
    toy.publish(0, 2)
    step(toy, 1)
    toy.save_state(tmp_path / "a")
    step(toy, 2)
    other = engine()
    with torch.no_grad():
        other.table.zero_()
    other.load_state(tmp_path / "a")
    assert other.version == 1
    other.save_state(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    step(other, 2)
    assert torch.equal(toy.table, other.table)
    with toy.at_version(0), other.at_version(0):
        assert torch.equal(toy.table, other.table)


def test_restart_is_the_seed_with_nothing_remembered():
    toy, fresh = engine(), engine()
    toy.publish(0, 1)
    step(toy, 1)
    toy.restart()
    assert torch.equal(toy.table, fresh.table) and toy.version == 0
    for one in (toy, fresh):
        one.publish(0, 1)
        step(one, 1)
    assert torch.equal(toy.table, fresh.table)


# -- which signals make which update ------------------------------------------------------------

def test_updates_visit_everything_and_keep_groups_whole():
    toy = engine()
    made = [s.model_copy(update={"sample": f"s{i % 3}"})
            for i, s in enumerate(signals(toy, "advantage"))]
    once = [i for batch in updates(made, Optim(batch=2), "k") for i in batch]
    assert sorted(once) == list(range(7))
    for batch in updates(made, Optim(batch=3, whole_groups=True), "k"):
        groups = {made[i].sample for i in batch}
        assert sorted(batch) == [i for i, s in enumerate(made) if s.sample in groups]
    assert len(list(updates(made, Optim(batch=4, updates=9), "k"))) == 9
    assert list(updates(made, OPTIM, "k")) == list(updates(made, OPTIM, "k"))
    assert list(updates(made, OPTIM, "k")) != list(updates(made, OPTIM, "other"))


def test_rates():
    flat, linear = Optim(lr=1.0, warmup=2), Optim(lr=1.0, schedule="linear")
    assert [rate(flat, i, 5) for i in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert [rate(linear, i, 4) for i in range(4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = [rate(Optim(lr=1.0, schedule="cosine"), i, 4) for i in range(4)]
    assert cosine[0] == 1.0 and cosine[2] == pytest.approx(0.5) and cosine == sorted(cosine)[::-1]


def test_no_signals_learn_nothing():
    toy = engine()
    before = toy.table.detach().clone()
    assert learn(toy, [], SFT(), OPTIM, "k") == {"updates": 0.0}
    assert torch.equal(toy.table, before)


def test_learning_raises_the_probability_of_what_is_shown():
    toy = engine()
    shown = Branch(context=asked(0), text="left right")
    before = sum(toy.logprobs([shown])[0])
    learn(toy, [Demonstration(branches={"target": shown}, sample="s")], SFT(),
          Optim(lr=0.3, updates=10), "k")
    assert sum(toy.logprobs([shown])[0]) > before + 1
    assert toy.encode("left")[-1] == EOS
