"""Preference losses by hand: each paper's formula written out, and truth tables."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from loss_rows import X, batch, leaves, pairs, random, same, scored, total, value
from selfloop.optimize.losses.links import Flat, Hinge, Linear, Robust, Sigmoid, Square
from selfloop.optimize.losses.measures import Changed, Guided, changed
from selfloop.optimize.losses.preference import (
    DPO,
    MDPO,
    Anchor,
    Prefer,
    amp_penalty,
    ddpo,
    image_dpo,
    rpo,
    simpo,
    vision_guided,
    wpo,
)
from selfloop.optimize.losses.ranked import AOT, Levels, OwnNegative, SelfCorrection
from selfloop.optimize.losses.unpaired import BCO, KTO, mpo
from selfloop.roles import SelfloopError
from selfloop.types import Advantage, Pair

LN2 = math.log(2)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def nls(z):
    """-log sigma(z)."""
    return math.log1p(math.exp(-z))


def at_reference(found):
    return batch({n: replace(s, ref_BT=s.logp_BT.detach()) for n, s in found.branches.items()},
                 signals=found.signals)


# -- links ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("link", "z", "expected"), [
    (Sigmoid(), 0.0, LN2), (Sigmoid(0.3), 0.0, LN2),
    (Sigmoid(0.1), 2.0, 0.9 * nls(2) + 0.1 * nls(-2)),
    (Robust(0.2), 1.0, (0.8 * nls(1) - 0.2 * nls(-1)) / 0.6), (Robust(0.0), 1.0, nls(1)),
    (Hinge(), 0.25, 0.75), (Hinge(), 3.0, 0.0), (Hinge(), -1.0, 2.0),
    (Square(0.5), 1.0, 0.0), (Square(0.1), 0.0, 25.0),
    (Flat(), 0.0, 0.5), (Linear(), 2.5, -2.5),
], ids=str)
def test_links(link, z, expected):
    assert float(link(torch.tensor(z, dtype=torch.float64))) == pytest.approx(expected)


def test_a_robust_loss_needs_more_right_pairs_than_wrong_ones():
    with pytest.raises(SelfloopError, match=r"flipped=0.5.*\[0, 0.5\)"):
        Robust(0.5)


def test_the_robust_link_is_unbiased_under_flips():
    """Its mean over flips is the plain loss (arXiv 2403.00409): what it exists for."""
    z, e = torch.tensor(0.7, dtype=torch.float64), 0.3
    noisy = (1 - e) * Robust(e)(z) + e * Robust(e)(-z)
    assert float(noisy) == pytest.approx(nls(0.7))


# -- two answers ----------------------------------------------------------------------------------

def test_dpo_of_a_policy_at_its_reference_is_ln_2(rng):
    assert float(value(DPO(beta=0.3), at_reference(pairs(rng))).detach()) == pytest.approx(LN2)


def test_mdpo_of_a_policy_at_its_reference_is_three_ln_2(rng):
    found = at_reference(pairs(rng, names=("chosen", "rejected", "corrupted")))
    terms = MDPO()(found)
    assert {n: float(x.detach()) / 6 for n, (_, x) in terms.items()} == pytest.approx(
        {"dpo": LN2, "image": LN2, "anchor": LN2})


def test_dpo_by_hand_with_margin_and_weight():
    found = batch({"chosen": scored([[-1.0, -2.0]], ref_BT=[[-2.0, -2.0]]),
                   "rejected": scored([[-3.0, 7.0]], mask=[[1.0, 0.0]], ref_BT=[[-1.0, 9.0]])},
                  1, margin=[0.25], weight=[2.0])
    z = 0.5 * ((-3 + 4) - (-3 + 1)) - 0.25
    assert float(DPO(beta=0.5)(found)["dpo"][1]) == pytest.approx(2 * nls(z))
    assert float(DPO(beta=0.5, margin=1.0)(found)["dpo"][1]) == pytest.approx(2 * nls(z - 1))


def test_mdpo_by_hand():
    def one(logp, ref):
        return scored([[logp]], ref_BT=[[ref]])

    found = batch({"chosen": one(-1.0, -3.0), "rejected": one(-2.0, -1.0),
                   "corrupted": one(-4.0, -3.5)}, 1)
    terms = MDPO(beta=0.2, delta=0.1)(found)
    assert float(terms["dpo"][1]) == pytest.approx(nls(0.2 * (2 - -1)))
    assert float(terms["image"][1]) == pytest.approx(nls(0.2 * (2 - -0.5)))
    assert float(terms["anchor"][1]) == pytest.approx(nls(0.2 * 2 - 0.1))
    assert image_dpo(0.2)(found)["image"][1] == terms["image"][1]


def test_reading_a_reference_that_was_not_computed_is_refused():
    found = batch({"chosen": scored([[-1.0]]), "rejected": scored([[-1.0]])}, 1)
    with pytest.raises(ValueError, match="reference"):
        DPO()(found)
    assert simpo().needs == frozenset() and DPO().needs == {"reference"}
    assert wpo().needs == {"reference", "collision"}


def test_wpo_weighs_pairs_by_how_likely_their_answers_are():
    """By hand: two tokens of two, collision log(sum p^2); weights without gradient."""
    logp = torch.tensor([[-0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    found = batch({"chosen": scored(logp, ref_BT=[[0.0, 0.0]], collision_BT=[[-0.2, -0.4]]),
                   "rejected": scored([[-2.0]], ref_BT=[[-1.0]], collision_BT=[[-0.3]])},
                  signals=[Pair(branches={"chosen": X, "rejected": X})])
    weight = math.exp(((-0.5 + 0.2) + (-1.0 + 0.4)) / 2) * math.exp(-2.0 + 0.3)
    z = 0.1 * (-1.5 - -1.0)
    ours = value(wpo(0.1), found)
    assert float(ours.detach()) == pytest.approx(weight * nls(z))
    ours.backward()
    slope = -weight * 0.1 / (1 + math.exp(z))
    assert logp.grad.tolist()[0] == pytest.approx([slope, slope])


def test_ddpo_weighs_what_differs():
    """RLHF-V, arXiv 2312.00849: (kept + gamma changed) / (n_kept + gamma n_changed)."""
    assert changed([5, 6, 7, 8, -1], [5, 9, 7, 8, 3]) == [1]
    assert changed([5, 9, 7, 8, 3], [5, 6, 7, 8, -1]) == [1, 4]
    assert changed([1, 2], [1, 2]) == []
    found = batch({
        "chosen": scored([[-1.0, -2.0, -4.0]], ref_BT=[[-1.0, -1.0, -1.0]], ids_BT=[[5, 6, 7]]),
        "rejected": scored([[-3.0, -1.0, 0.0]], mask=[[1.0, 1.0, 0.0]], ref_BT=[[0.0, 0.0, 0.0]],
                           ids_BT=[[5, 7, -1]])},
        signals=[Pair(branches={"chosen": X, "rejected": X})])
    kept = (0.0 + 5 * -1.0 + -3.0) / 7  # token 6 is what the chosen answer added
    gone = (-3.0 + -1.0) / 2
    assert float(value(ddpo(0.5, 5.0), found)) == pytest.approx(nls(0.5 * (kept - gone)))
    raw = nls(0.5 * ((0.0 - 5.0 - 3.0) - (-4.0)))
    assert float(value(ddpo(0.5, 5.0, normalize=False), found)) == pytest.approx(raw)
    assert float(value(Prefer(0.5, measure=Changed(1.0, normalize=False)), found)) \
        == pytest.approx(float(value(DPO(0.5), found)))


def test_vdpo_by_hand_and_at_gamma_one_is_dpo(rng):
    names = ("chosen", "rejected", "chosen_blind", "rejected_blind")
    found = pairs(rng, names=names)
    assert vision_guided().reads == set(names)
    same(value(vision_guided(0.3, 1.0), found), value(DPO(0.3), found), leaves(found)[:2])
    h = {n: s.ratio_B for n, s in found.branches.items()}
    better = 1.5 * h["chosen"] - 0.5 * h["chosen_blind"].detach()
    worse = 1.5 * h["rejected"] - 0.5 * h["rejected_blind"].detach()
    by_hand = -torch.nn.functional.logsigmoid(0.3 * (better - worse)).mean()
    ours = value(vision_guided(0.3, 1.5), found)
    assert torch.autograd.grad(ours, found.branches["chosen_blind"].logp_BT, allow_unused=True,
                               retain_graph=True) == (None,)
    same(ours, by_hand, leaves(found)[:2])
    with pytest.raises(SelfloopError, match=r"gamma=0.0\): must be above 0"):
        Guided(0.0)


def test_anchors_and_the_penalty_of_amp():
    found = batch({"chosen": scored([[-1.0, -2.0]], ref_BT=[[-2.0, -4.0]])},
                  signals=[Pair(branches={"chosen": X, "rejected": X})])
    assert float(value(Anchor(0.5, 0.2), found)) == pytest.approx(nls(0.5 * 3 - 0.2))
    assert float(value(amp_penalty(2.0), found)) == pytest.approx(2.0 * -3.0)


def test_rpo_and_stics_anchor_divide_as_their_papers_do():
    found = batch({"chosen": scored([[-1.0, -2.0], [-6.0, 0.0]], mask=[[1, 1], [1, 0]],
                                    ref_BT=[[-1.0, -2.0], [-6.0, 0.0]]),
                   "rejected": scored([[-1.0], [-1.0]], ref_BT=[[-1.0], [-1.0]])},
                  signals=[Pair(branches={"chosen": X, "rejected": X})] * 2)
    assert float(value(rpo(0.1, 1.0), found)) == pytest.approx(LN2 + (1.5 + 6.0) / 2)
    assert float(value(rpo(0.1, 1.0, "token"), found)) == pytest.approx(LN2 + 9.0 / 3)
    assert float(value(rpo(0.1, 1 / 1024, "sum"), found)) == pytest.approx(LN2 + 4.5 / 1024)


# -- more than two --------------------------------------------------------------------------------

def test_the_likelihood_of_an_order_is_plackett_luce(rng):
    """DPO, appendix A.3: the product of choosing the best of what is left."""
    found = pairs(rng, 3, names=("chosen", "middle", "rejected"))
    r = torch.stack([0.4 * found.branches[n].ratio_B for n in ("chosen", "middle", "rejected")])
    chance = r[0].exp() / r.exp().sum(0) * r[1].exp() / r[1:].exp().sum(0)
    same(value(Levels(beta=0.4, pairs="list"), found), -chance.log().mean(), leaves(found))
    two = pairs(rng, 3)
    for kind in ("list", "all", "next"):
        same(value(Levels(("chosen", "rejected"), 0.3, kind), two), value(DPO(0.3), two),
             leaves(two))


def test_levels_pair_by_pair(rng):
    found = pairs(rng, 4, names=("chosen", "middle", "rejected"))

    def dpo(a, b):
        return value(Prefer(0.3, better=a, worse=b), found)

    near = (dpo("chosen", "middle") + dpo("middle", "rejected")) / 2
    every = (2 * near + dpo("chosen", "rejected")) / 3
    same(value(Levels(beta=0.3, pairs="next"), found), near, leaves(found))
    same(value(Levels(beta=0.3, pairs="all"), found), every, leaves(found))
    for wrong in (("chosen",), ("chosen", "chosen")):
        with pytest.raises(SelfloopError, match="two or more different branches"):
            Levels(wrong)
    with pytest.raises(SelfloopError, match="expected one of list, all, next"):
        Levels(pairs="some")


def test_sherlocks_squared_loss_by_hand(rng):
    """arXiv 2505.22651: (1 - b D1 - b D2)^2; at the reference it is 1, and 0 at D1 + D2 = 1 / b."""
    names = sorted(SelfCorrection().reads)
    found = pairs(rng, 2, names=names)
    h = {n: s.ratio_B for n, s in found.branches.items()}
    after_right = h["chosen_after_chosen"] - h["rejected_after_chosen"]
    after_wrong = h["chosen_after_rejected"] - h["rejected_after_rejected"]
    same(value(SelfCorrection(0.2), found),
         ((1 - 0.2 * after_right - 0.2 * after_wrong) ** 2).mean(), leaves(found))
    assert float(value(SelfCorrection(), at_reference(found)).detach()) == pytest.approx(1.0)


def test_povids_own_token_negative_by_hand():
    """arXiv 2402.11411: places where the own token is the target cancel."""
    row = scored([[-1.0, -2.0]], ref_BT=[[-1.5, -2.5]], others_BTK=[[[-1.0], [-3.0]]],
                 others_ref_BTK=[[[-1.5], [-1.0]]])
    found = batch({"chosen": row}, signals=[Pair(branches={"chosen": X, "rejected": X,
                                                           "corrupted": X})])
    z = 0.5 * ((0.5 + 0.5) - (0.5 + -2.0))
    assert float(value(OwnNegative(0.5), found)) == pytest.approx(nls(z))
    assert OwnNegative().others[0].source == "corrupted" and OwnNegative().others[0].k == 1


def test_aot_holds_sorted_gaps_against_sorted_gaps(rng):
    found = pairs(rng, 5)
    c, r = (found.branches[n] for n in ("chosen", "rejected"))
    ours, theirs = c.sum_B - r.sum_B, c.ref_sum_B - r.ref_sum_B
    by_hand = -torch.nn.functional.logsigmoid(0.3 * (ours.sort().values - theirs.sort().values))
    same(value(AOT(0.3), found), by_hand.mean(), leaves(found))


# -- single answers -------------------------------------------------------------------------------

def judged(rng, good, shift=0.0):
    n = len(good)
    other = random(rng, n)
    other = replace(other, logp_BT=other.ref_BT + shift * other.mask_BT)
    signals = [Advantage(branches={"answer": X, "mismatched": X}, advantage=1.0 if g else -1.0)
               for g in good]
    here = random(rng, n)
    return batch({"answer": here, "mismatched": other}, n, signals=signals,
                 advantage=torch.zeros_like(here.mask_BT))


@pytest.mark.parametrize("shift", [0.4, -0.4])
def test_ktos_reference_point_is_never_negative(rng, shift):
    found = judged(rng, [True, False, True], shift)
    z = max(0.0, float(found.branches["mismatched"].ratio_B.mean()))
    assert (z > 0) == (shift > 0)
    h = found.branches["answer"].ratio_B
    each = [1.1 * (1 - torch.sigmoid(0.3 * (h[0] - z))),
            0.9 * (1 - torch.sigmoid(0.3 * (z - h[1]))),
            1.1 * (1 - torch.sigmoid(0.3 * (h[2] - z)))]
    same(value(KTO(0.3, 1.1, 0.9), found), sum(each) / 3, [found.branches["answer"].logp_BT])


def test_bco_shifts_by_the_mean_of_both_means_and_remembers_it(rng):
    """arXiv 2404.04656: delta = (E[r | good] + E[r | bad]) / 2."""
    found = judged(rng, [True, False, False])
    r = 0.3 * found.branches["answer"].ratio_B
    now = float((r[0] + (r[1] + r[2]) / 2).detach() / 2)

    def by_hand(delta):
        return -torch.nn.functional.logsigmoid(
            torch.stack([r[0] - delta, delta - r[1], delta - r[2]])).mean()

    loss, leaf = BCO(0.3, decay=0.75), [found.branches["answer"].logp_BT]
    same(value(loss, found), by_hand(now), leaf)
    same(value(loss, found, delta=2.0), by_hand(0.75 * 2.0 + 0.25 * now), leaf)
    whole = loss.measure(found)
    assert loss.adapt({}, {}, whole)["delta"] == pytest.approx(now)
    assert loss.adapt({"delta": 2.0}, {}, whole)["delta"] == pytest.approx(1.5 + 0.25 * now)
    one_kind = judged(rng, [True, True])
    assert math.isfinite(float(value(loss, one_kind).detach()))


def test_pairs_and_single_answers_say_the_same(rng):
    """A pair is a good and a bad answer."""
    found = pairs(rng, 3)
    both = [found.branches[n] for n in ("chosen", "rejected")]
    signals = [Advantage(branches={"answer": X}, advantage=a) for a in (1.0,) * 3 + (-1.0,) * 3]
    apart = batch({"answer": replace(both[0], **{
        f: torch.cat([getattr(s, f) for s in both]) for f in ("logp_BT", "mask_BT", "ref_BT")})},
        6, signals=signals, advantage=torch.zeros(6, 5))
    for loss in (KTO(0.3, centred=False), BCO(0.3)):
        same(value(loss, found), value(loss, apart), leaves(found))


def test_mpo_is_the_weighted_sum_of_its_parts(rng):
    found = pairs(rng, 4)
    parts = mpo(0.2).parts
    by_hand = sum(w * value(part, found) for w, part in parts)
    units = {"0.dpo": 4, "1.bco": 8, "2.nll": float(found.branches["chosen"].mask_BT.sum())}
    measured = replace(found, whole=mpo(0.2).measure(found))
    same(total(mpo(0.2), measured, units), by_hand, leaves(found))
    assert mpo(0.2).needs == {"reference", "statistics"} and mpo(0.2).measures_policy
