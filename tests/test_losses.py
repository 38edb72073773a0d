"""Every loss against its paper's formula by hand, and against TRL where TRL has it."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace

import pytest
import torch

from selfloop.optimize.batch import Batch, Scored
from selfloop.optimize.losses.distill import ReverseKL
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.preference import DPO, MDPO
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT
from selfloop.roles import SelfloopError
from selfloop.types import Advantage, Branch, Context, Demonstration, Distill, Pair

LN2 = math.log(2)
X = Branch(context=Context(prompt=()), text="x")


def scored(logp, mask=None, **more) -> Scored:
    logp = torch.as_tensor(logp, dtype=torch.float64)
    return Scored(logp, torch.ones_like(logp) if mask is None else torch.as_tensor(
        mask, dtype=torch.float64), **{
            k: None if v is None else torch.as_tensor(v, dtype=torch.float64)
            for k, v in more.items()})


def batch(branches, n, *, advantage=None, weight=None, margin=None, signals=None) -> Batch:
    def one(value, default):
        return torch.as_tensor(default if value is None else value, dtype=torch.float64)

    return Batch(signals or (None,) * n, branches, one(weight, [1.0] * n),
                 None if advantage is None else one(advantage, None), one(margin, [0.0] * n))


def total(loss, found, units):
    """The number that the learner minimises."""
    return sum(w * x / units[name] for name, (w, x) in loss(found).items())


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def lengths_mask(rng, rows, width):
    lengths = torch.randint(1, width + 1, (rows,), generator=rng)
    return (torch.arange(width)[None] < lengths[:, None]).double()


# -- preference ---------------------------------------------------------------------------------

def pairs(rng, n=4, width=5, names=("chosen", "rejected"), same=False):
    branches = {}
    for name in names:
        mask = lengths_mask(rng, n, width)
        logp = -torch.rand(n, width, generator=rng, dtype=torch.float64) * mask
        ref = logp if same else -torch.rand(n, width, generator=rng, dtype=torch.float64) * mask
        branches[name] = scored(logp, mask, ref_BT=ref)
    return branches


def test_dpo_of_a_policy_at_its_reference_is_ln_2(rng):
    found = batch(pairs(rng, same=True), 4)
    loss = DPO(beta=0.3)
    assert float(total(loss, found, {"dpo": 4.0})) == pytest.approx(LN2, abs=1e-12)


def test_mdpo_of_a_policy_at_its_reference_is_three_ln_2(rng):
    found = batch(pairs(rng, names=("chosen", "rejected", "corrupted"), same=True), 4)
    terms = MDPO()(found)
    assert {n: float(x) / 4 for n, (_, x) in terms.items()} == pytest.approx(
        {"dpo": LN2, "image": LN2, "anchor": LN2})


def test_dpo_by_hand_with_margin_and_weight():
    found = batch({"chosen": scored([[-1.0, -2.0]], ref_BT=[[-2.0, -2.0]]),
                   "rejected": scored([[-3.0, 7.0]], mask=[[1.0, 0.0]], ref_BT=[[-1.0, 9.0]])},
                  1, margin=[0.25], weight=[2.0])
    z = 0.5 * ((-3 + 4) - (-3 + 1)) - 0.25
    assert float(DPO(beta=0.5)(found)["dpo"][1]) == pytest.approx(-2 * math.log(
        1 / (1 + math.exp(-z))))


def test_mdpo_by_hand():
    def one(logp, ref):
        return scored([[logp]], ref_BT=[[ref]])

    found = batch({"chosen": one(-1.0, -3.0), "rejected": one(-2.0, -1.0),
                   "corrupted": one(-4.0, -3.5)}, 1)

    def nls(z):
        return math.log(1 + math.exp(-z))

    terms = MDPO(beta=0.2, delta=0.1)(found)
    assert float(terms["dpo"][1]) == pytest.approx(nls(0.2 * (2 - -1)))
    assert float(terms["image"][1]) == pytest.approx(nls(0.2 * (2 - -0.5)))
    assert float(terms["anchor"][1]) == pytest.approx(nls(0.2 * 2 - 0.1))


def test_reading_a_reference_that_was_not_computed_is_refused():
    found = batch({"chosen": scored([[-1.0]]), "rejected": scored([[-1.0]])}, 1)
    with pytest.raises(ValueError, match="reference"):
        DPO()(found)


# -- policy gradients ---------------------------------------------------------------------------

def test_grpo_at_ratio_one_is_minus_the_mean_advantage_and_its_gradient_is_reinforce(rng):
    mask = lengths_mask(rng, 6, 4)
    logp = (-torch.rand(6, 4, generator=rng, dtype=torch.float64)).requires_grad_()
    advantage = torch.randn(6, generator=rng, dtype=torch.float64)[:, None] * mask
    found = batch({"answer": Scored(logp, mask, old_BT=logp.detach())}, 6, advantage=advantage)
    value = total(GRPO(), found, {"policy": mask.sum()})
    assert float(value.detach()) == pytest.approx(-float((advantage * mask).sum() / mask.sum()))
    value.backward()
    assert torch.allclose(logp.grad, -advantage * mask / mask.sum())


@pytest.mark.parametrize(("ratio", "advantage", "gain", "alive"), [
    (1.5, 1.0, 1.28, False), (1.1, 1.0, 1.1, True), (0.5, 1.0, 0.5, True),
    (1.5, -1.0, -1.5, True), (0.9, -1.0, -0.9, True), (0.5, -1.0, -0.8, False),
])
def test_grpo_clips_what_has_gone_far_enough_and_nothing_else(ratio, advantage, gain, alive):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    found = batch({"answer": Scored(logp, torch.ones(1, 1), old_BT=torch.zeros(1, 1))}, 1,
                  advantage=[[advantage]])
    value = GRPO(clip_low=0.2, clip_high=0.28)(found)["policy"][1]
    assert float(value.detach()) == pytest.approx(-gain)
    value.backward()
    assert bool(logp.grad.abs().sum() > 0) == alive


def test_grpo_normalises_by_tokens_or_by_answers():
    found = batch({"answer": scored([[-1.0, -1.0, -1.0], [-1.0, 0.0, 0.0]],
                                    mask=[[1, 1, 1], [1, 0, 0]],
                                    old_BT=[[-1.0, -1.0, -1.0], [-1.0, 0.0, 0.0]])}, 2,
                  advantage=[[1.0] * 3, [-1.0] * 3])
    signals = [Advantage(branches={"answer": X}, advantage=a) for a in (1.0, -1.0)]
    tokens = {"answer": [3, 1]}
    by_token, by_answer = GRPO(), GRPO(normalize="sequence")
    assert float(total(by_token, found, by_token.units(signals, tokens))) == pytest.approx(-0.5)
    assert float(total(by_answer, found, by_answer.units(signals, tokens))) == pytest.approx(0.0)


def test_k3_is_never_negative_and_zero_at_equality(rng):
    logp = -3 * torch.rand(50, 3, generator=rng, dtype=torch.float64)
    ref = -3 * torch.rand(50, 3, generator=rng, dtype=torch.float64)
    for i in range(50):
        found = batch({"answer": scored(logp[i:i + 1], old_BT=logp[i:i + 1],
                                        ref_BT=ref[i:i + 1])}, 1, advantage=[[0.0] * 3])
        assert float(GRPO(kl=0.1)(found)["kl"][1]) > 0
    same = batch({"answer": scored(logp, old_BT=logp, ref_BT=logp)}, 50,
                 advantage=torch.zeros(50, 3))
    assert float(GRPO(kl=0.1)(same)["kl"][1]) == 0


def test_k3_estimates_the_kl_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    found = batch({"answer": scored(p.log()[:, None], old_BT=p.log()[:, None],
                                    ref_BT=q.log()[:, None])}, 3, weight=p,
                  advantage=torch.zeros(3, 1))
    weight, kl = GRPO(kl=0.7)(found)["kl"]
    assert weight == 0.7
    assert float(kl) == pytest.approx(float((p * (p / q).log()).sum()))


def test_entropy_is_a_bonus():
    found = batch({"answer": scored([[-1.0]], old_BT=[[-1.0]], entropy_BT=[[2.0]])}, 1,
                  advantage=[[0.0]])
    weight, value = GRPO(entropy=0.01)(found)["entropy"]
    assert weight * float(value) == pytest.approx(-0.02)
    assert GRPO(entropy=0.01).needs == {"old", "entropy"} and GRPO(kl=1.0).needs == {
        "old", "reference"}


# -- imitation and distillation -----------------------------------------------------------------

def test_sft_is_torchs_cross_entropy(rng):
    logits = torch.randn(3, 4, 9, generator=rng, dtype=torch.float64)
    tokens = torch.randint(9, (3, 4), generator=rng)
    mask = lengths_mask(rng, 3, 4)
    logp = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    signals = [Demonstration(branches={"target": X})] * 3
    units = SFT().units(signals, {"target": mask.sum(1).tolist()})
    value = total(SFT(), batch({"target": Scored(logp, mask)}, 3), units)
    ignored = tokens.masked_fill(mask == 0, -100)
    assert float(value) == pytest.approx(float(torch.nn.functional.cross_entropy(
        logits.reshape(-1, 9), ignored.reshape(-1))))


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
    value = ReverseKL(clip=100.0)(found)["distill"][1]
    assert torch.allclose(torch.autograd.grad(value, logits)[0], expected, atol=1e-12)


def test_reverse_kl_bounds_what_one_token_can_do():
    found = batch({"student": scored([[-1.0]], teacher_BT=[[-90.0]])}, 1)
    assert float(ReverseKL(clip=5.0)(found)["distill"][1]) == pytest.approx(5.0 * -1.0)


# -- mixtures -----------------------------------------------------------------------------------

def test_a_mixture_gives_each_part_its_own_units_and_only_its_signals(rng):
    mix = Mix(((0.8, DPO()), (0.2, SFT("chosen")), (0.5, SFT("target"))))
    signals = [Pair(branches={"chosen": X, "rejected": X}, weight=2.0),
               Demonstration(branches={"target": X}),
               Pair(branches={"chosen": X, "rejected": X})]
    tokens = {"chosen": [3, 0, 4], "rejected": [1, 0, 1], "target": [0, 7, 0]}
    assert mix.units(signals, tokens) == {"0.dpo": 3.0, "1.nll": 10.0, "2.nll": 7.0}
    assert mix.needs == {"reference"}
    assert mix.accepts(signals[0]) and mix.accepts(signals[1])
    assert not mix.accepts(Advantage(branches={"answer": X}, advantage=1.0))
    found = batch(pairs(rng, 1), 1, signals=(signals[0],))
    terms = mix(found)
    assert set(terms) == {"0.dpo", "1.nll"}
    assert terms["0.dpo"][0] == 0.8 and terms["1.nll"][0] == 0.2
    assert float(terms["1.nll"][1]) == pytest.approx(-float(found.branches["chosen"].sum_B))
    with pytest.raises(SelfloopError, match="at least one"):
        Mix(())


def test_what_each_loss_reads():
    pair = Pair(branches={"chosen": X, "rejected": X})
    three = Pair(branches={"chosen": X, "rejected": X, "corrupted": X})
    shown = Demonstration(branches={"target": X})
    taught = Distill(branches={"student": X, "teacher": X})
    table = {DPO(): (pair, three), MDPO(): (three,), SFT(): (shown,), SFT("chosen"): (pair, three),
             ReverseKL(): (taught,)}
    for loss, reads in table.items():
        for signal in (pair, three, shown, taught):
            assert loss.accepts(signal) == (signal in reads), (loss, signal)


# -- TRL ----------------------------------------------------------------------------------------

def trl_source(trainer: str, method: str) -> str:
    trl = pytest.importorskip("trl")
    return inspect.getsource(getattr(getattr(trl, trainer), method))


def test_grpo_equals_trls_own_code(rng):
    """TRL's _compute_loss run on a stub that hands it our random tensors."""
    trl = pytest.importorskip("trl")
    rows, width = 6, 5
    mask = lengths_mask(rng, rows, width).float()
    logp, old, ref = (-torch.rand(rows, width, generator=rng) * 2 for _ in range(3))
    advantage = torch.randn(rows, generator=rng)
    for ours, kind in ((GRPO(kl=0.04, clip_high=0.28), "bnpo"),
                       (GRPO(kl=0.04, clip_high=0.28, normalize="sequence"), "grpo")):
        theirs = trl_grpo(trl, kind, logp, old, ref, advantage, mask)
        found = batch({"answer": scored(logp, mask, old_BT=old, ref_BT=ref)}, rows,
                      advantage=advantage[:, None].expand(rows, width))
        signals = [Advantage(branches={"answer": X}, advantage=0.0)] * rows
        units = ours.units(signals, {"answer": mask.sum(1).tolist()})
        assert float(total(ours, found, units)) == pytest.approx(theirs, rel=1e-5)


def trl_grpo(trl, kind, logp, old, ref, advantage, mask) -> float:
    """What GRPOTrainer._compute_loss returns for these tensors."""
    from collections import defaultdict
    rows, width = logp.shape

    class Stub:
        def __getattr__(self, name):  # every switch that we do not name is off
            return None

    stub = Stub()
    for name, value in {
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, dr_grpo=False),
        "model": SimpleNamespace(training=True), "beta": 0.04, "epsilon_low": 0.2,
        "epsilon_high": 0.28, "loss_type": kind, "importance_sampling_level": "token",
        "top_entropy_quantile": 1.0, "num_iterations": 1, "max_completion_length": width,
        "current_gradient_accumulation_steps": 1, "use_vllm": False, "tools": None,
        "off_policy_mask_threshold": None, "_metrics": defaultdict(lambda: defaultdict(list)),
        "accelerator": SimpleNamespace(gather=lambda x: x, num_processes=1,
                                       reduce=lambda x, reduction: x),
        "_get_per_token_logps_and_entropies": lambda *a, **k: (logp, torch.zeros_like(logp), None),
    }.items():
        setattr(stub, name, value)
    inputs = {"prompt_ids": torch.zeros(rows, 1).long(), "prompt_mask": torch.ones(rows, 1).long(),
              "completion_ids": torch.zeros(rows, width).long(), "completion_mask": mask,
              "advantages": advantage, "old_per_token_logps": old, "ref_per_token_logps": ref,
              "num_items_in_batch": mask.sum()}
    try:
        return float(trl.GRPOTrainer._compute_loss(stub, stub.model, inputs))
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        pytest.skip(f"this TRL's _compute_loss wants more than the stub has: {error!r}")


def test_dpo_equals_trls_formula(rng):
    source = trl_source("DPOTrainer", "_compute_loss")
    for line in ("chosen_logratios", "logsigmoid", "self.beta * delta_score"):
        assert line in source, f"TRL's DPO has changed: {line!r} is gone; compare again"
    found = batch(pairs(rng), 4)
    c, r = found.branches["chosen"], found.branches["rejected"]
    chosen_logratios = (c.logp_BT * c.mask_BT).sum(1) - (c.ref_BT * c.mask_BT).sum(1)
    rejected_logratios = (r.logp_BT * r.mask_BT).sum(1) - (r.ref_BT * r.mask_BT).sum(1)
    theirs = -torch.nn.functional.logsigmoid(0.1 * (chosen_logratios - rejected_logratios))
    assert float(total(DPO(beta=0.1), found, {"dpo": 4.0})) == pytest.approx(float(theirs.mean()))
