"""Policy-gradient losses by hand: surrogates, levels, divergences, rewards that pay for them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from loss_rows import X, answers, batch, leaves, mask, random, same, scored, total, value
from selfloop.optimize.batch import Scored
from selfloop.optimize.losses.kl_reward import RewardKL
from selfloop.optimize.losses.perception import Perception
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
from selfloop.optimize.losses.surrogates import Adaptive, Clipped, k1, k2, k3
from selfloop.roles import SelfloopError
from selfloop.types import Advantage


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_grpo_at_ratio_one_is_minus_the_mean_advantage_and_its_gradient_is_reinforce(rng):
    here = mask(rng, 6, 4)
    logp = (-torch.rand(6, 4, generator=rng, dtype=torch.float64)).requires_grad_()
    advantage = torch.randn(6, generator=rng, dtype=torch.float64)[:, None] * here
    found = batch({"answer": Scored(logp, here, old_BT=logp.detach())}, 6, advantage=advantage)
    ours = total(GRPO(), found, {"policy": here.sum()})
    assert float(ours.detach()) == pytest.approx(-float((advantage * here).sum() / here.sum()))
    ours.backward()
    assert torch.allclose(logp.grad, -advantage * here / here.sum())


@pytest.mark.parametrize(("ratio", "advantage", "gain", "alive"), [
    (1.5, 1.0, 1.28, False), (1.1, 1.0, 1.1, True), (0.5, 1.0, 0.5, True),
    (1.5, -1.0, -1.5, True), (0.9, -1.0, -0.9, True), (0.5, -1.0, -0.8, False),
])
def test_grpo_clips_what_has_gone_far_enough_and_nothing_else(ratio, advantage, gain, alive):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    found = batch({"answer": Scored(logp, torch.ones(1, 1), old_BT=torch.zeros(1, 1))}, 1,
                  advantage=[[advantage]])
    ours = GRPO(clip_low=0.2, clip_high=0.28)(found)["policy"][1]
    assert float(ours.detach()) == pytest.approx(-gain)
    ours.backward()
    assert bool(logp.grad.abs().sum() > 0) == alive


@pytest.mark.parametrize(("ratio", "advantage", "gain"), [
    (9.0, -1.0, -3.0), (2.0, -1.0, -2.0), (9.0, 1.0, 1.2), (0.5, -2.0, -1.6)])
def test_the_dual_clip_bounds_what_a_bad_answer_can_cost(ratio, advantage, gain):
    log_ratio, a = (torch.tensor([[x]], dtype=torch.float64) for x in (math.log(ratio), advantage))
    assert float(Clipped(0.2, 0.2, dual=3.0)(log_ratio, log_ratio, a)) == pytest.approx(gain)


@pytest.mark.parametrize("most", [1.3, 5.0])
def test_cispo_caps_the_weight_and_keeps_every_gradient(rng, most):
    """arXiv 2506.13585, eq. 4: the gradient is min(r, most) A grad log pi, for every token."""
    found = answers(rng)
    a = found.branches["answer"]
    slope = -((a.logp_BT - a.old_BT).exp().clamp(max=most) * found.advantage_BT
              / a.mask_BT.sum()).detach() * a.mask_BT
    value(cispo(most), found).backward()
    assert torch.allclose(a.logp_BT.grad, slope)


def test_sapo_has_reinforces_gradient_at_ratio_one_and_fades(rng):
    found = answers(rng)
    a = found.branches["answer"]
    fresh = replace(found, branches={"answer": replace(a, old_BT=a.logp_BT.detach())})
    same(value(sapo(2.0, 3.0), fresh) - value(sapo(2.0, 3.0), fresh).detach(),
         value(GRPO(normalize="sequence"), fresh) - value(
             GRPO(normalize="sequence"), fresh).detach(), leaves(found))
    logp = torch.tensor([[0.0, math.log(4.0)]], dtype=torch.float64, requires_grad=True)
    far = batch({"answer": Scored(logp, torch.ones(1, 2), old_BT=torch.zeros(1, 2))}, 1,
                advantage=[[1.0, 1.0]])
    sapo(2.0, 3.0)(far)["policy"][1].backward()
    assert abs(float(logp.grad[0, 1])) < 0.05 * abs(float(logp.grad[0, 0]))


def test_one_ratio_an_answer(rng):
    """GSPO, arXiv 2507.18071, eq. 7: s = (pi(y) / pi_old(y))^(1/|y|)."""
    found = answers(rng)
    a = found.branches["answer"]
    s = ((a.logp_BT - a.old_BT) * a.mask_BT).sum(1).div(a.mask_BT.sum(1)).exp()
    advantage = torch.tensor([x.advantage for x in found.signals], dtype=torch.float64)
    by_hand = -torch.minimum(s * advantage, s.clamp(0.9, 1.1) * advantage).mean()
    same(value(gspo(0.1, 0.1), found), by_hand, leaves(found))
    whole = ((a.logp_BT - a.old_BT) * a.mask_BT).sum(1).exp()
    by_hand = -torch.minimum(whole * advantage, whole.clamp(0.8, 1.2) * advantage).mean()
    same(value(rloo(), found), by_hand, leaves(found))


@pytest.mark.parametrize(("loss", "expected"), [
    (GRPO(), -0.5), (GRPO(normalize="sequence"), 0.0), (GRPO(normalize="sum"), -1.0),
    (dr_grpo(8), -(3 - 1) / 8 / 2)])
def test_normalisers(loss, expected):
    logps = [[-1.0, -1.0, -1.0], [-1.0, 0.0, 0.0]]
    found = batch({"answer": scored(logps, mask=[[1, 1, 1], [1, 0, 0]], old_BT=logps)}, 2,
                  advantage=[[1.0] * 3, [-1.0] * 3], signals=[
                      Advantage(branches={"answer": X}, advantage=a) for a in (1.0, -1.0)])
    assert float(value(loss, found)) == pytest.approx(expected)


def test_reinforce_is_the_score_function(rng):
    found = answers(rng)
    a = found.branches["answer"]
    by_hand = -(a.logp_BT * a.mask_BT * found.advantage_BT).sum() / 6
    kl = ((a.ref_BT - a.logp_BT) ** 2 / 2 * a.mask_BT).sum() / 6
    same(value(reinforce(), found), by_hand, leaves(found))
    same(value(reinforce(0.3), found), by_hand + 0.3 * kl, leaves(found))


def test_wrong_words_and_missing_numbers_are_refused(rng):
    for wrong, says in ((dict(normalize="tokens"), "expected one of token, sequence"),
                        (dict(level="word"), "expected one of token, mean, sum"),
                        (dict(estimator="k4"), "expected one of k1, k2, k3"),
                        (dict(normalize="length"), "goes with normalize='length'"),
                        (dict(length=9), "goes with normalize='length'")):
        with pytest.raises(SelfloopError, match=says):
            GRPO(**wrong)
    with pytest.raises(SelfloopError, match="sampler's log-probs of some answers are not known"):
        value(GRPO(truncate=2.0), answers(rng))
    with pytest.raises(SelfloopError, match="whiten goes with baseline='none'"):
        RewardKL(whiten=True, baseline="group")


# -- divergences ----------------------------------------------------------------------------------

P = torch.tensor([0.5, 0.3, 0.2]).double()
Q = torch.tensor([0.2, 0.2, 0.6]).double()


def test_estimators_of_the_divergence():
    """Means over tokens drawn from p: k1 and k3 are exact; k2's gradient as a loss is the KL's."""
    exact, d = float((P * (P / Q).log()).sum()), (Q / P).log()
    assert float((P * k1(d)).sum()) == pytest.approx(exact)
    assert float((P * k3(d)).sum()) == pytest.approx(exact)
    assert bool((k3(d) >= 0).all()) and float(k3(torch.zeros(1))) == 0
    logits = P.log().requires_grad_()
    logp = logits.log_softmax(-1)
    kl = (logp.exp() * (logp - Q.log())).sum()
    slope = torch.autograd.grad(kl, logits, retain_graph=True)[0]
    for estimator, right in ((k2, slope), (k1, torch.zeros(3).double())):
        found = torch.autograd.grad((P * estimator(Q.log() - logp)).sum(), logits,
                                    retain_graph=True)[0]
        assert torch.allclose(found, right, atol=1e-12), estimator


def test_k3_estimates_the_kl_divergence():
    found = batch({"answer": scored(P.log()[:, None], old_BT=P.log()[:, None],
                                    ref_BT=Q.log()[:, None])}, 3, weight=P,
                  advantage=torch.zeros(3, 1))
    weight, kl = GRPO(kl=0.7)(found)["kl"]
    assert weight == 0.7
    assert float(kl) == pytest.approx(float((P * (P / Q).log()).sum()))


def test_entropy_is_a_bonus():
    found = batch({"answer": scored([[-1.0]], old_BT=[[-1.0]], entropy_BT=[[2.0]])}, 1,
                  advantage=[[0.0]])
    weight, found = GRPO(entropy=0.01)(found)["entropy"]
    assert weight * float(found) == pytest.approx(-0.02)
    assert GRPO(entropy=0.01).needs == {"old", "entropy"} and GRPO(kl=1.0).needs == {
        "old", "reference"}


def test_the_coefficient_follows_the_divergence():
    """EvoLMM: c exp(rate (KL - target) / target), bounded; kept by the learner as state."""
    kl = Adaptive(start=0.1, target=0.02, rate=0.1, low=0.05, high=0.2)
    loss = GRPO(kl=kl)
    assert loss.adapt({}, {"kl": 0.04}, {})["kl"] == pytest.approx(0.1 * math.exp(0.1))
    assert loss.adapt({"kl": 0.12}, {"kl": 0.02}, {})["kl"] == pytest.approx(0.12)
    assert loss.adapt({"kl": 0.12}, {}, {})["kl"] == 0.12
    assert loss.adapt({}, {"kl": 9e9}, {})["kl"] == 0.2 and kl.after(0.06, -1.0) == 0.05
    found = answers(torch.Generator().manual_seed(1))
    assert loss(found)["kl"][0] == 0.1
    assert loss(replace(found, state={"kl": 0.17}))["kl"][0] == 0.17


# -- the divergence in the reward ------------------------------------------------------------------

def test_rloo_pays_the_divergence_out_of_the_reward(rng):
    """Rewards less the answers' divergences, then leave-one-out: the same advantages."""
    groups = ["a", "a", "a", "b", "b", "b"]
    reward = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, 2.0]).double()

    def leave_one_out(r):
        return torch.cat([g - (g.sum() - g) / 2 for g in r.split(3)])

    found = answers(rng, 6, advantage=leave_one_out(reward), groups=groups)
    a = found.branches["answer"]
    paid = leave_one_out(reward - 0.3 * ((a.old_BT - a.ref_BT) * a.mask_BT).sum(1))
    with_it = answers_like(found, paid)
    same(value(rloo(0.3), found), value(rloo(), with_it), leaves(found))
    assert rloo(0.3).needs == {"old", "reference", "statistics"} and not rloo().measures_policy


def answers_like(found, advantage):
    signals = tuple(s.model_copy(update={"advantage": float(x)})
                    for s, x in zip(found.signals, advantage, strict=True))
    return replace(found, signals=signals, update=signals,
                   advantage_BT=advantage[:, None] * found.branches["answer"].mask_BT)


def test_reinforce_plus_plus_by_hand(rng):
    """arXiv 2501.03262: A_t = r - beta sum_{s >= t} KL_s, whitened over all tokens."""
    found = answers(rng, 4)
    a = found.branches["answer"]
    kl = (a.old_BT - a.ref_BT) * a.mask_BT
    paid = torch.stack([torch.stack([found.advantage_BT[i, 0] - 0.1 * kl[i, t:].sum()
                                     for t in range(5)]) for i in range(4)])
    every = paid[a.mask_BT > 0]
    white = (paid - every.mean()) / every.std(correction=0) * a.mask_BT
    ratio = (a.logp_BT - a.old_BT).exp()
    by_hand = -(torch.minimum(ratio * white, ratio.clamp(0.8, 1.2) * white)
                * a.mask_BT).sum() / a.mask_BT.sum()
    same(value(reinforce_pp(0.1), found), by_hand, leaves(found))
    plain = GRPO(reward_kl=RewardKL(0.1))
    same(value(plain, found), value(GRPO(), replace(found, advantage_BT=paid * a.mask_BT)),
         leaves(found))


def test_a_reward_coefficient_adapts_to_the_mean_divergence_a_token(rng):
    found = answers(rng, 4)
    a = found.branches["answer"]
    mean = float(((a.old_BT - a.ref_BT) * a.mask_BT).sum() / a.mask_BT.sum())
    kl = Adaptive(start=0.1, target=0.5, rate=0.2)
    loss = GRPO(reward_kl=RewardKL(kl))
    assert loss.adapt({}, {}, loss.measure(found))["reward_kl"] == pytest.approx(
        0.1 * math.exp(0.2 * (mean - 0.5) / 0.5))


# -- looking ---------------------------------------------------------------------------------------

def test_perception_by_hand(rng):
    """PAPO, arXiv 2507.06448: k3 of the masked pass against the seen one, entropies pushed down."""
    seen, unseen = random(rng, 4, entropy_BT=True), random(rng, 4, entropy_BT=True)
    unseen = replace(unseen, mask_BT=seen.mask_BT)
    signals = [Advantage(branches={"answer": X, "masked": X}, advantage=1.0)] * 4
    found = batch({"answer": seen, "masked": unseen}, 4, signals=signals)
    d, n = unseen.logp_BT - seen.logp_BT, seen.mask_BT.sum()
    k = ((d.exp() - d - 1) * seen.mask_BT).sum() / n
    entropies = ((seen.entropy_BT + unseen.entropy_BT) * seen.mask_BT).sum() / n
    same(value(Perception(0.02, 0.05), found), -0.02 * k + 0.05 * entropies, leaves(found))
    capped = ((d.exp() - d - 1).clamp(max=0.1) * seen.mask_BT).sum() / n
    same(value(Perception(0.02, 0.0, cap=0.1), found), -0.02 * capped, leaves(found))
    blind = replace(found, branches={"answer": seen, "masked": replace(
        unseen, logp_BT=seen.logp_BT)})
    assert float(value(Perception(1.0, 0.0), blind).detach()) == 0, "identical pictures"
    assert not Perception().accepts(Advantage(branches={"answer": X}, advantage=1.0))
