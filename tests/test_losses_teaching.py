"""Distillation and reward models by hand; against TRL in test_losses_against_trl.py."""

from __future__ import annotations

import math

import pytest
import torch

from loss_rows import X, batch, mask, same, scored, value
from selfloop.optimize.batch import Scored
from selfloop.optimize.losses.distill import ReverseKL, TopK
from selfloop.optimize.losses.divergences import JSD, BackwardKL, ForwardKL, among, with_rest
from selfloop.optimize.losses.reward import BradleyTerry, StepBCE
from selfloop.roles import SelfloopError
from selfloop.types import Advantage, Distill, Pair


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_reverse_kl_is_in_expectation_the_gradient_of_the_kl(rng):
    """All draws of two independent positions enumerated, each weighted by its probability."""
    logits = torch.randn(2, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, generator=rng, dtype=torch.float64).log_softmax(-1)
    student = logits.log_softmax(-1)
    exact = (student.exp() * (student - teacher)).sum()
    expected = torch.autograd.grad(exact, logits)[0]
    draws = [(i, j) for i in range(3) for j in range(3)]
    logp = torch.stack([torch.stack([logits.log_softmax(-1)[0, i], logits.log_softmax(-1)[1, j]])
                        for i, j in draws])
    taught = torch.stack([torch.stack([teacher[0, i], teacher[1, j]]) for i, j in draws])
    weight = torch.stack([student[0, i].exp() * student[1, j].exp() for i, j in draws]).detach()
    found = batch({"student": Scored(logp, torch.ones(9, 2), teacher_BT=taught)}, 9, weight=weight)
    ours = ReverseKL(clip=100.0)(found)["distill"][1]
    assert torch.allclose(torch.autograd.grad(ours, logits)[0], expected, atol=1e-12)


def test_reverse_kl_bounds_what_one_token_can_do():
    found = batch({"student": scored([[-1.0]], teacher_BT=[[-90.0]])}, 1)
    assert float(ReverseKL(clip=5.0)(found)["distill"][1]) == pytest.approx(5.0 * -1.0)


P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def kl(p, q):
    return float((p * (p / q).log()).sum())


def test_divergences_by_hand():
    assert float(ForwardKL()(P.log(), Q.log())) == pytest.approx(kl(Q, P))
    assert float(BackwardKL()(P.log(), Q.log())) == pytest.approx(kl(P, Q))
    m = 0.3 * Q + 0.7 * P
    assert float(JSD(0.3)(P.log(), Q.log())) == pytest.approx(0.3 * kl(Q, m) + 0.7 * kl(P, m))
    assert 0 < float(JSD()(P.log(), Q.log())) < math.log(2)
    for same_one in (ForwardKL(), BackwardKL(), JSD(0.2)):
        assert float(same_one(P.log(), P.log())) == pytest.approx(0, abs=1e-15)


def test_the_rest_is_one_more_class():
    assert with_rest(P[:2].log()).exp().tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert among(P[:2].log()).exp().tolist() == pytest.approx([0.625, 0.375])
    assert bool(torch.isfinite(with_rest(torch.tensor([0.0, -50.0]))).all())


def test_top_k_takes_the_teachers_tokens_and_leaves_padding_out(rng):
    """k = V - 1 with the rest is the whole divergence; padding is not even looked at."""
    student = torch.randn(3, 4, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, 6, generator=rng, dtype=torch.float64)
    here = mask(rng, 3, 4)
    top = teacher.log_softmax(-1).topk(5, -1)
    others = student.log_softmax(-1).gather(-1, top.indices).masked_fill(
        here[..., None] == 0, -math.inf)
    row = Scored(torch.zeros(3, 4).double(), here, others_BTK=others,
                 others_source_BTK=top.values.masked_fill(here[..., None] == 0, 0.0))
    signals = [Distill(branches={"student": X, "teacher": X})] * 3
    found = batch({"student": row}, 3, signals=signals)
    for divergence in (BackwardKL(), ForwardKL(), JSD(0.4)):
        full = (divergence(student.log_softmax(-1), teacher.log_softmax(-1)) * here).sum()
        same(value(TopK(5, divergence), found), full / here.sum(), [student])
    assert TopK(5, teacher="ema", ema=0.9).others[0].version == "ema"


def test_teachers_are_named_with_what_they_need():
    for kind in (ReverseKL, TopK):
        for wrong in (dict(teacher="ema"), dict(ema=0.9), dict(teacher="ema", ema=1.0)):
            with pytest.raises(SelfloopError, match="a decay in"):
                kind(**wrong)
        with pytest.raises(SelfloopError, match="expected one of current, seed, ema"):
            kind(teacher="somebody")


# -- reward models --------------------------------------------------------------------------------

def test_bradley_terry_by_hand():
    """r = log pi(yes) - log pi(no) at the first trained token only."""
    def one(yes, no):
        return scored([[0.0, 0.0]], others_BTK=[[[yes, no], [-9.0, 5.0]]])

    found = batch({"chosen": one(-0.5, -2.0), "rejected": one(-1.0, -0.4)}, margin=[0.2],
                  signals=[Pair(branches={"chosen": X, "rejected": X})])
    z = 1.5 - -0.6 - 0.2
    rank = math.log1p(math.exp(-z))
    assert float(value(BradleyTerry(), found)) == pytest.approx(rank)
    assert float(value(BradleyTerry(centre=0.1), found)) == pytest.approx(rank + 0.1 * 0.9 ** 2)
    bare = batch({n: scored([[0.0]]) for n in ("chosen", "rejected")},
                 signals=[Pair(branches={"chosen": X, "rejected": X})])
    with pytest.raises(ValueError, match="reads values but does not declare"):
        value(BradleyTerry(), bare)


def test_step_bce_by_hand():
    """Two steps of one answer, one of another; soft labels; padding counts nothing."""
    rows = scored([[0.0, 0.0], [0.0, 0.0]], mask=[[1, 1], [1, 0]],
                  others_BTK=[[[-0.1, -2.1], [-1.0, -0.5]], [[-3.0, 0.0], [0.0, 0.0]]])
    signals = [Advantage(branches={"answer": X}, advantage=a) for a in ((1.0, 0.0), (0.25,))]
    found = batch({"answer": rows}, advantage=[[1.0, 0.0], [0.25, 0.0]], signals=signals)

    def ce(v, label):
        p = 1 / (1 + math.exp(-v))
        return -label * math.log(p) - (1 - label) * math.log(1 - p)

    expected = (ce(2.0, 1.0) + ce(-0.5, 0.0) + ce(-3.0, 0.25)) / 3
    assert float(value(StepBCE(), found)) == pytest.approx(expected)
    assert StepBCE().accepts(signals[0])
    assert not StepBCE().accepts(Advantage(branches={"answer": X}, advantage=(0.5, -1.0)))
