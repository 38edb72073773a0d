"""Mixed precision: bfloat16 products over float32 weights and moments; pure bfloat16 beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_models import FAMILIES, asked, llava, open_picture
from selfloop.engines.hf import HFEngine
from selfloop.learning import learn
from selfloop.optimize.losses.sft import SFT
from selfloop.roles import Optim, Request, Sampling, SelfloopError
from selfloop.types import Branch, Demonstration

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return llava(tmp_path_factory.mktemp("llava"))


def engine_of(folder: Path, **options) -> HFEngine:
    engine = HFEngine(folder, device="cpu", **options)
    engine.bind(open_picture)
    return engine


def shown() -> list[Demonstration]:
    return [Demonstration(branches={"target": Branch(context=asked(i // 2), text=f"1{i}")},
                          sample=f"s{i}") for i in range(4)]


def scored(engine: HFEngine) -> torch.Tensor:
    return torch.tensor([x for row in engine.logprobs(
        [s.branches["target"] for s in shown()]) for x in row])


def gap(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_mixed_logprobs_are_float32s_within_the_noise_of_bfloat16(family, tmp_path):
    place = FAMILIES[family](tmp_path / family)
    exact, mixed = engine_of(place), engine_of(place, compute="bfloat16")
    pure = engine_of(place, dtype="bfloat16")
    assert 0 < gap(scored(mixed), scored(exact)) < 0.05
    assert gap(scored(mixed), scored(exact)) <= gap(scored(pure), scored(exact)) + 0.01
    rows = [row for s in shown() for row in mixed.rows(s.branches["target"])]
    found, _ = mixed.logps(rows)
    assert {x.dtype for x in found} == {torch.float32} and found[0].requires_grad
    assert mixed.training_path == "shared prefix", "and both of its paths agree"


def test_gradients_and_moments_are_float32_and_learning_follows_float32(folder):
    exact, mixed = engine_of(folder), engine_of(folder, compute="bfloat16")
    for engine in (exact, mixed):
        engine.forward_backward(shown(), SFT(), {})
    ours, theirs = (torch.cat([p.grad.flatten() for p in e.trainable().values()
                               if p.grad is not None]) for e in (mixed, exact))
    assert ours.dtype == torch.float32
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05
    for engine in (exact, mixed):
        engine.reset_optimizer()
        before = float(scored(engine).sum())
        for key in "abc":
            learn(engine, shown(), SFT(), Optim(lr=1e-3), key)
        assert float(scored(engine).sum()) > before + 1
    assert {x.dtype for state in mixed._optimizer.state.values() for x in state.values()} \
        == {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert gap(scored(mixed), scored(exact)) < 0.2


def test_small_steps_are_kept_where_pure_bfloat16_rounds_them_away(folder):
    """What float32 master weights are for: a step of a thousandth of a weight's last bit."""
    mixed, pure = engine_of(folder, compute="bfloat16"), engine_of(folder, dtype="bfloat16")
    moved = {}
    for name, engine in (("mixed", mixed), ("pure", pure)):
        before = {n: p.detach().clone() for n, p in engine.trainable().items()}
        learn(engine, shown(), SFT(), Optim(lr=1e-6), "k")
        large = [(n, p) for n, p in engine.trainable().items() if "norm" in n and p.grad is None
                 and float(before[n].abs().min()) > 0.5]
        moved[name] = sum(int((p != before[n]).sum()) for n, p in large)
    assert moved["mixed"] > 0 == moved["pure"]


def test_sampler_and_learner_agree_under_autocast_and_fork_the_prompt(folder):
    mixed = engine_of(folder, compute="bfloat16")
    mixed.publish(0, 0)
    turns = mixed.generate([Request(context=asked(3, pictures=2), key="k", n=3,
                                    sampling=Sampling(max_new_tokens=8))], 0)[0]
    again = mixed.logprobs([Branch(context=asked(3, pictures=2), turns=(t,)) for t in turns])
    for turn, now in zip(turns, again, strict=True):
        assert now == pytest.approx(list(turn.logprobs), abs=0.05)
    assert mixed.sampler.why_not == ""


def test_features_that_are_kept_know_in_what_they_were_computed(folder, tmp_path):
    from selfloop.engines.hf import FeatureStore

    plain, mixed = (scored(engine_of(folder, freeze=("vision", "projector"), compute=compute,
                                     features=FeatureStore(folder=tmp_path / "kept")))
                    for compute in (None, "bfloat16"))
    alone = scored(engine_of(folder, freeze=("vision", "projector"), compute="bfloat16"))
    assert torch.equal(mixed, alone) and not torch.equal(mixed, plain)


def test_pure_bfloat16_still_learns(folder):
    pure = engine_of(folder, dtype="bfloat16")
    before = float(scored(pure).sum())
    for key in "abc":
        found = learn(pure, shown(), SFT(), Optim(lr=1e-2), key)
    assert float(scored(pure).sum()) > before + 1 and found["grad_norm_language"] > 0


def test_state_and_fingerprint_know_of_it(folder, tmp_path):
    one, two = engine_of(folder, compute="bfloat16"), engine_of(folder, compute="bfloat16")
    assert one.fingerprint() == two.fingerprint() != engine_of(folder).fingerprint()
    learn(one, shown(), SFT(), Optim(lr=1e-3), "k")
    one.save_state(tmp_path)
    two.load_state(tmp_path)
    for engine in (one, two):
        learn(engine, shown(), SFT(), Optim(lr=1e-3), "k")
    assert torch.equal(scored(one), scored(two))


@pytest.mark.parametrize(("options", "message"), [
    ({"compute": "float16"}, "compute='float16': expected bfloat16"),
    ({"compute": "bfloat16", "dtype": "bfloat16"}, "is for float32 weights, but dtype is bfloat16"),
])
def test_what_does_not_mix_is_refused(folder, options, message):
    with pytest.raises(SelfloopError, match=message):
        engine_of(folder, **options)
