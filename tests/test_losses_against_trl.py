"""Every loss that TRL 1.16 has, against TRL's own code: value and gradient on random rows.

TRL's methods run on stubs that hand them our tensors. What a stub lacks fails the test: a TRL that
computes something else is to be looked at, not skipped.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from loss_rows import X, answers, batch, leaves, pairs, random, same, value
from selfloop.optimize.losses.distill import TopK
from selfloop.optimize.losses.divergences import JSD, BackwardKL, ForwardKL
from selfloop.optimize.losses.links import Sigmoid
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.preference import (
    DPO,
    Prefer,
    cpo,
    hinge,
    ipo,
    mean_dpo,
    orpo,
    robust,
    rpo,
    simpo,
    wpo,
)
from selfloop.optimize.losses.ranked import AOT
from selfloop.optimize.losses.reward import BradleyTerry
from selfloop.optimize.losses.rl import GRPO, cispo, dapo, dr_grpo, gspo, rloo, sapo
from selfloop.optimize.losses.unpaired import BCO, KTO, mpo
from selfloop.types import Advantage, Distill, Pair

trl = pytest.importorskip("trl")
HERE = SimpleNamespace(
    device=torch.device("cpu"), num_processes=1, sync_gradients=True, gather=lambda x: x,
    gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def metrics():
    return defaultdict(lambda: defaultdict(list))


# -- pairs ----------------------------------------------------------------------------------------

def trl_dpo(found, kinds, weights=None, beta=0.1, smoothing=0.0, weighting=False):
    """DPOTrainer._compute_loss."""
    c, r = found.branches["chosen"], found.branches["rejected"]
    n = len(c.logp_BT)
    mask = torch.cat([c.mask_BT, r.mask_BT])
    shown = torch.cat([torch.zeros(2 * n, 1).double(), mask], 1).long()
    logps = torch.cat([c.logp_BT * c.mask_BT, r.logp_BT * r.mask_BT])
    collision = torch.cat([c.collision_BT, r.collision_BT]) if weighting else None
    outputs = SimpleNamespace(
        log_probs=logps, entropy=torch.zeros_like(logps), mean_logits=torch.zeros_like(logps),
        is_top1=torch.zeros_like(logps).bool(), log_sum_sq_probs=collision)
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=HERE, aux_loss_enabled=False,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=beta,
        loss_types=kinds, loss_weights=weights or [1.0], label_smoothing=smoothing,
        use_weighting=weighting, _metrics=metrics(), _total_train_tokens=0, _tp_size=1)
    inputs = {"input_ids": torch.ones_like(shown), "attention_mask": torch.ones_like(shown),
              "completion_mask": shown, "ref_chosen_logps": (c.ref_BT * c.mask_BT).sum(1),
              "ref_rejected_logps": (r.ref_BT * r.mask_BT).sum(1)}
    return trl.DPOTrainer._compute_loss(stub, lambda **kwargs: outputs, inputs, False)


@pytest.mark.parametrize(("ours", "kinds", "options"), [
    (DPO(0.3), ["sigmoid"], {"beta": 0.3}),
    (hinge(0.7), ["hinge"], {"beta": 0.7}),
    (ipo(0.4), ["ipo"], {"beta": 0.4}),
    (robust(0.3, 0.2), ["robust"], {"beta": 0.3, "smoothing": 0.2}),
    (mean_dpo(1.5), ["sigmoid_norm"], {"beta": 1.5}),
    (BCO(0.3, shifted=False), ["bco_pair"], {"beta": 0.3}),
    (KTO(0.3, centred=False), ["apo_zero"], {"beta": 0.3}),
    (AOT(0.3, Sigmoid(0.1)), ["aot"], {"beta": 0.3, "smoothing": 0.1}),
    (wpo(0.3), ["sigmoid"], {"beta": 0.3, "weighting": True}),
    (rpo(0.3, 0.5, "token"), ["sigmoid", "sft"], {"beta": 0.3, "weights": [1.0, 0.5]}),
    (Mix(((0.8, DPO(0.3)), (0.2, BCO(0.3, shifted=False)))), ["sigmoid", "bco_pair"],
     {"beta": 0.3, "weights": [0.8, 0.2]}),
], ids=lambda x: "+".join(x) if isinstance(x, list) else None)
def test_preference_losses_equal_dpo_trainers(rng, ours, kinds, options):
    found = pairs(rng, 8, collision_BT=True)
    theirs = trl_dpo(found, kinds, **options)
    same(value_as_pairs(ours, found), theirs, leaves(found))


def value_as_pairs(ours, found):
    """TRL divides losses over single answers by the number of pairs: half as many."""
    parts = ours.parts if isinstance(ours, Mix) else [(1.0, ours)]
    return sum(w * value(part, found) * (2 if isinstance(part, KTO | BCO) else 1)
               for w, part in parts)


def test_mpo_equals_trls_mixture_where_delta_is_zero(rng):
    found = pairs(rng, 8)
    theirs = trl_dpo(found, ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])
    parts = mpo(0.1).parts
    assert [w for w, _ in parts] == [0.8, 0.2, 1.0]
    ours = Mix(((0.8, parts[0][1]), (0.2, BCO(0.1, shifted=False)), (1.0, parts[2][1])))
    same(value_as_pairs(ours, found), theirs, leaves(found))


def trl_cpo(found, kind, beta, gamma=0.0, mean=False):
    from trl.experimental.cpo import CPOTrainer
    c, r = (found.branches[n] for n in ("chosen", "rejected"))
    logps = [s.sum_B / (s.mask_BT.sum(-1) if mean else 1) for s in (c, r)]
    stub = SimpleNamespace(alpha=0.0, beta=beta, loss_type=kind, label_smoothing=0.0,
                           simpo_gamma=gamma, accelerator=HERE)
    return CPOTrainer.cpo_loss(stub, *logps)[0].mean()


def test_simpo_and_cpo_equal_cpo_trainers(rng):
    found = pairs(rng)
    same(value(simpo(2.0, 0.8), found), trl_cpo(found, "simpo", 2.0, 0.8, mean=True),
         leaves(found))
    chosen = found.branches["chosen"]
    nll = -(chosen.logp_BT * chosen.mask_BT).sum() / chosen.mask_BT.sum()
    same(value(cpo(0.3, 0.7), found), trl_cpo(found, "sigmoid", 0.3) + 0.7 * nll, leaves(found))
    bare = Prefer(0.3, ipo(0.3).link, simpo().measure)
    theirs = trl_cpo(found, "ipo", 0.3, mean=True)
    scaled = Prefer(1.0, bare.link, bare.measure)
    same(value(scaled, found), theirs, leaves(found))


def test_orpo_equals_orpo_trainers(rng):
    from trl.experimental.orpo import ORPOTrainer
    found = pairs(rng)
    c, r = (found.branches[n] for n in ("chosen", "rejected"))
    stub = SimpleNamespace(beta=0.2, accelerator=HERE)
    ratio = ORPOTrainer.odds_ratio_loss(stub, c.sum_B / c.count_B, r.sum_B / r.count_B)[0]
    nll = -(c.logp_BT * c.mask_BT).sum() / c.mask_BT.sum()
    same(value(orpo(0.2), found), nll - ratio.mean(), leaves(found))


def test_bradley_terry_equals_reward_trainers(rng):
    values = [torch.randn(6, generator=rng, dtype=torch.float64).requires_grad_() for _ in "ab"]
    margin = torch.rand(6, generator=rng, dtype=torch.float64)
    stub = SimpleNamespace(model=SimpleNamespace(training=True), accelerator=HERE,
                           args=SimpleNamespace(center_rewards_coefficient=0.01),
                           _metrics=metrics(), _total_train_tokens=0, _tp_size=1)
    outputs = SimpleNamespace(logits=torch.cat(values)[:, None])
    theirs = trl.RewardTrainer.compute_loss(
        stub, lambda **kwargs: outputs, {"margin": margin, "attention_mask": torch.ones(2, 2)})

    def branch(value_B):
        zero = torch.zeros(6, 1, dtype=torch.float64)
        return random(rng, 6, 1).__class__(
            zero, zero + 1, others_BTK=torch.stack([value_B[:, None], zero], -1))

    found = batch({"chosen": branch(values[0]), "rejected": branch(values[1])}, 6, margin=margin,
                  signals=[Pair(branches={"chosen": X, "rejected": X})] * 6)
    same(value(BradleyTerry(centre=0.01), found), theirs, values)


# -- single answers -------------------------------------------------------------------------------

def test_kto_equals_kto_trainers(rng):
    """Unpaired, with both weights and the estimated reference point, which is positive here."""
    n = 8
    here, other = random(rng, n), random(rng, n)
    raised = other.__class__(other.logp_BT.detach() + 0.5 * other.mask_BT, other.mask_BT,
                             ref_BT=other.ref_BT)
    good = torch.rand(n, generator=rng) > 0.5
    assert 0 < int(good.sum()) < n
    signals = [Advantage(branches={"answer": X, "mismatched": X}, advantage=1.0 if g else -1.0)
               for g in good]
    found = batch({"answer": here, "mismatched": raised}, n, signals=signals,
                  advantage=torch.zeros_like(here.mask_BT))
    logps = here.logp_BT * here.mask_BT
    shown = torch.cat([torch.zeros(n, 1).double(), here.mask_BT], 1).long()
    outputs = SimpleNamespace(log_probs=logps, entropy=torch.zeros_like(logps),
                              mean_logits=torch.zeros_like(logps))
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=HERE, aux_loss_enabled=False, beta=0.3,
        calculate_KL=True, precompute_ref_logps=True, loss_type="kto", desirable_weight=1.2,
        undesirable_weight=0.7, _metrics=metrics(), _total_train_tokens=0, _tp_size=1,
        _compute_kl_logps=lambda model, inputs: raised.sum_B)
    inputs = {"input_ids": torch.ones_like(shown), "attention_mask": torch.ones_like(shown),
              "completion_mask": shown, "label": good, "ref_logps": here.ref_sum_B,
              "ref_KL_logps": raised.ref_sum_B}
    theirs = trl.KTOTrainer._compute_loss(stub, lambda **kwargs: outputs, inputs, False)
    assert float((raised.ratio_B).mean()) > 0
    same(value(KTO(0.3, 1.2, 0.7), found), theirs, [here.logp_BT])


# -- policy gradients -----------------------------------------------------------------------------

def trl_grpo(found, kind, *, beta=0.0, low=0.2, high=0.2, level="token", length=None, entropy=0.0,
             ratio=None, delta=None):
    """GRPOTrainer._compute_loss."""
    a = found.branches["answer"]
    n, width = a.logp_BT.shape
    stub = SimpleNamespace(
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1,
                             sapo_temperature_pos=1.0, sapo_temperature_neg=1.05),
        model=SimpleNamespace(training=True), beta=beta, epsilon_low=low, epsilon_high=high,
        loss_type=kind, importance_sampling_level=level, top_entropy_quantile=1.0,
        aux_loss_enabled=False, off_policy_mask_threshold=None, use_vllm=ratio is not None,
        vllm_importance_sampling_correction=True, max_completion_length=length or width,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=bool(entropy),
        use_adaptive_entropy=False, entropy_coef=entropy, accelerator=HERE, _metrics=metrics(),
        _get_per_token_logps_and_entropies=lambda *args, **kw: (a.logp_BT, a.entropy_BT, None))
    if a.entropy_BT is None:
        stub._get_per_token_logps_and_entropies = lambda *args, **kw: (
            a.logp_BT, torch.zeros_like(a.logp_BT), None)
    inputs = {"prompt_ids": torch.zeros(n, 1).long(), "prompt_mask": torch.ones(n, 1).long(),
              "completion_ids": torch.zeros(n, width).long(), "completion_mask": a.mask_BT,
              "advantages": torch.tensor([s.advantage for s in found.signals]).double(),
              "old_per_token_logps": a.old_BT, "ref_per_token_logps": a.ref_BT,
              "importance_sampling_ratio": ratio, "num_items_in_batch": a.mask_BT.sum()}
    return trl.GRPOTrainer._compute_loss(stub, stub.model, inputs)


@pytest.mark.parametrize(("ours", "kind", "options"), [
    (GRPO(kl=0.04, clip_high=0.28, normalize="sequence"), "grpo", {"beta": 0.04, "high": 0.28}),
    (GRPO(kl=0.04), "bnpo", {"beta": 0.04}),
    (dapo(), "dapo", {"high": 0.28}),
    (dr_grpo(64, kl=0.1), "dr_grpo", {"beta": 0.1, "length": 64}),
    (cispo(1.5), "cispo", {"high": 1.5}),
    (sapo(), "sapo", {}),
    (gspo(0.02, 0.03), "grpo", {"low": 0.02, "high": 0.03, "level": "sequence"}),
    (GRPO(entropy=0.01), "bnpo", {"entropy": 0.01}),
], ids=["grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "gspo", "entropy"])
def test_policy_losses_equal_grpo_trainers(rng, ours, kind, options):
    found = answers(rng, 8, entropy_BT=True)
    same(value(ours, found), trl_grpo(found, kind, **options), leaves(found))


def test_truncated_importance_sampling_equals_grpo_trainers(rng):
    found = answers(rng, 8, drawn_BT=True)
    a = found.branches["answer"]
    ratio = (a.old_BT - a.drawn_BT).exp().clamp(max=1.3)
    assert bool((ratio == 1.3).any()) and bool((ratio < 1).any())
    same(value(GRPO(truncate=1.3, kl=0.1), found),
         trl_grpo(found, "bnpo", beta=0.1, ratio=ratio), leaves(found))


def test_rloo_equals_rloo_trainers(rng):
    found = answers(rng, 8)
    a = found.branches["answer"]
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True), epsilon_low=0.2, epsilon_high=0.2, accelerator=HERE,
        aux_loss_enabled=False, _metrics=metrics(),
        _get_per_token_logps_and_entropies=lambda *args, **kw: (
            a.logp_BT, torch.zeros_like(a.logp_BT), None))
    inputs = {"prompt_ids": torch.zeros(8, 1).long(), "prompt_mask": torch.ones(8, 1).long(),
              "completion_ids": torch.zeros(8, 5).long(), "completion_mask": a.mask_BT,
              "advantages": torch.tensor([s.advantage for s in found.signals]).double(),
              "old_logps": (a.old_BT * a.mask_BT).sum(-1)}
    theirs = trl.RLOOTrainer._compute_loss(stub, stub.model, inputs)
    same(value(rloo(), found), theirs, leaves(found))


# -- distillation ---------------------------------------------------------------------------------

def taught(rng, k, rows=4, width=3, vocabulary=9):
    """(student logits, teacher logits, mask, the batch with the teacher's k likeliest tokens)."""
    from loss_rows import mask
    student, teacher = (torch.randn(rows, width, vocabulary, generator=rng, dtype=torch.float64)
                        for _ in "ab")
    student.requires_grad_()
    here = mask(rng, rows, width)
    top = teacher.log_softmax(-1).topk(k, -1)
    base = random(rng, rows, width)
    row = base.__class__(torch.zeros(rows, width).double(), here,
                         others_BTK=student.log_softmax(-1).gather(-1, top.indices),
                         others_source_BTK=top.values)
    signals = [Distill(branches={"student": X, "teacher": X})] * rows
    return student, teacher, here, batch({"student": row}, rows, signals=signals), top.indices


@pytest.mark.parametrize(("divergence", "beta"), [(ForwardKL(), 0.0), (BackwardKL(), 1.0),
                                                  (JSD(0.3), 0.3)])
def test_whole_divergences_equal_gkd_trainers(rng, divergence, beta):
    from trl.experimental.gkd import GKDTrainer
    student, teacher, here, found, _ = taught(rng, 9)
    labels = torch.where(here > 0, 1, -100)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta)
    same(value(TopK(9, divergence, rest=False), found), theirs, [student])


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize(("divergence", "alpha"), [(ForwardKL(), 0.0), (BackwardKL(), 1.0),
                                                   (JSD(0.3), 0.3)])
def test_top_k_divergences_equal_self_distillation_trainers(rng, divergence, alpha, rest):
    from trl.experimental.sdft.loss_utils import add_tail_bucket, compute_divergence
    student, teacher, here, found, ids = taught(rng, 4)
    both = [x.log_softmax(-1).gather(-1, ids) for x in (student, teacher)]
    both = [add_tail_bucket(x) if rest else x - x.logsumexp(-1, keepdim=True) for x in both]
    theirs = (compute_divergence(*both, alpha) * here).sum() / here.sum()
    same(value(TopK(4, divergence, rest), found), theirs, [student])


def test_reverse_kl_on_drawn_tokens_equals_sdpo_trainers(rng):
    from trl.experimental.sdpo.loss_utils import compute_sampled_token_self_distillation_loss

    from selfloop.optimize.losses.distill import ReverseKL
    student, teacher, here, found, _ = taught(rng, 4)
    ids = torch.randint(9, here.shape, generator=rng)
    theirs = (compute_sampled_token_self_distillation_loss(
        student, teacher, ids, distillation_alpha=1.0) * here).sum() / here.sum()
    logp, teach = (x.log_softmax(-1).gather(-1, ids[..., None])[..., 0] for x in (student, teacher))
    row = found.branches["student"].__class__(logp, here, teacher_BT=teach)
    ours = batch({"student": row}, 4, signals=found.signals)
    same(value(ReverseKL(clip=100.0), ours), theirs, [student])
