"""Other tokens' log-probs on Hugging Face models: both training paths, and what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_models import asked, llava, open_picture
from selfloop.engines.hf import HFEngine
from selfloop.learning import _known, learn
from selfloop.optimize.losses.distill import TopK
from selfloop.optimize.losses.preference import DPO, simpo, wpo
from selfloop.optimize.losses.ranked import OwnNegative
from selfloop.optimize.losses.reward import BradleyTerry
from selfloop.optimize.losses.rl import GRPO, rloo
from selfloop.optimize.losses.unpaired import KTO
from selfloop.optimize.rows import Row, Wide
from selfloop.optimize.selfcheck import apart
from selfloop.optimize.wide import alike, narrow, widened
from selfloop.roles import Optim, Request, Sampling
from selfloop.types import Advantage, Branch, Distill, Pair

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    engine = HFEngine(llava(tmp_path_factory.mktemp("model")), dtype="float64", device="cpu")
    engine.bind(open_picture)
    engine.scorer.worth = 0
    return engine


def rows_for(engine: HFEngine, temperature: float = 1.0) -> list[Row]:
    contexts = [asked(i) for i in range(2)]
    turns = engine.generate([
        Request(context=c, key=f"k{i}", n=3, sampling=Sampling(
            max_new_tokens=6, temperature=temperature)) for i, c in enumerate(contexts)], 0)
    found = [engine.rows(Branch(context=c, turns=(t.model_copy(update={
        "token_ids": t.token_ids[:6 - k], "logprobs": None, "loss_mask": None}),)))[0]
        for c, ts in zip(contexts, turns, strict=True) for k, t in enumerate(ts)]
    return [found[i] for i in (3, 0, 4, 1, 5, 2)]


def wide(engine: HFEngine, rows: list[Row]) -> list[Row]:
    free = [t for t in range(len(engine.banned_V)) if not bool(engine.banned_V[t])]
    return [widened([row], [(free[j], free[-1 - j]) for j in range(row.count)], top=3,
                    collision=True)[0] for row in rows]


def distributions(engine: HFEngine, row: Row) -> torch.Tensor:
    """[n, V] log-probs by one plain call of the model."""
    inputs = engine.prompts.inputs([(row.token_ids, row.media)])
    logits = engine.model(**inputs).logits[0].double() / row.temperature
    before = [i - 1 for i, on in enumerate(row.trained) if on]
    return logits[before].masked_fill(engine.banned_V, -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("path", ["shared", "plain"])
def test_columns_are_what_the_model_says(engine: HFEngine, path: str, temperature: float) -> None:
    rows = wide(engine, rows_for(engine, temperature))
    score: Any = engine.scorer if path == "shared" else engine.scorer.plain
    found, entropies = score(rows, entropy=True)
    assert engine.training_path == "shared prefix"
    for row, columns, entropy in zip(rows, found, entropies, strict=True):
        logp = distributions(engine, row).detach()
        ids = torch.tensor(row.trained_ids)
        assert torch.allclose(columns[:, 0], logp.gather(1, ids[:, None])[:, 0], atol=1e-10)
        assert torch.allclose(columns[:, 1:3], logp.gather(
            1, torch.tensor(row.wide.others)), atol=1e-10)
        best = logp.topk(3, -1)
        assert torch.allclose(columns[:, 3:6], best.values, atol=1e-10)
        assert torch.equal(columns[:, 6:9].long(), best.indices)
        assert torch.allclose(columns[:, 9], (2 * logp).logsumexp(-1), atol=1e-10)
        assert torch.allclose(entropy, -(logp.exp() * logp.nan_to_num(neginf=0)).sum(-1),
                              atol=1e-10)


def test_gradients_of_others_agree_on_both_paths_and_in_chunks(engine: HFEngine) -> None:
    rows = wide(engine, rows_for(engine))
    learns = list(engine.trainable().values())

    def slopes(score: Any) -> list[torch.Tensor]:
        total = sum((c[:, :3] * torch.arange(1, 4)).sum() for c in score(rows, entropy=False)[0])
        return list(torch.autograd.grad(total, learns, allow_unused=True))

    expected = slopes(engine.scorer.plain)
    chunk, engine.scorer.head.chunk = engine.scorer.head.chunk, 4 * len(engine.banned_V)
    try:
        again = slopes(engine.scorer)
    finally:
        engine.scorer.head.chunk = chunk
    for found in (slopes(engine.scorer), again):
        assert [g is None for g in found] == [g is None for g in expected]
        ours, theirs = ([g for g in gs if g is not None] for gs in (found, expected))
        # a floor of about 1e-7 is set by float32 casts inside the model
        assert apart(ours, theirs) < 1e-6


def test_rows_that_ask_differently_are_made_alike() -> None:
    row = Row((1, 2, 3), (False, True, True), (), 1)
    one, two, bare = (replace(row, wide=w) for w in (
        Wide(((7,), (8,)), 2), Wide(((4, 5), (6, 7)), 0, True), None))
    made = alike([one, two, bare])
    assert [r.wide.others for r in made] == [
        ((7, 2), (8, 3)), ((4, 5), (6, 7)), ((2, 2), (3, 3))]
    assert {(r.wide.top, r.wide.collision) for r in made} == {(2, True)}
    assert alike([bare, bare]) == [bare, bare] and narrow(one) == bare


def test_others_go_over_all_rows_of_a_branch() -> None:
    a, b = Row((1, 2), (False, True), (), 1), Row((1, 2, 3), (False, True, True), (), 1)
    assert [r.wide.others for r in widened([a, b], [(7,), (8,), (9,)])] == [((7,),), ((8,), (9,))]


@pytest.mark.parametrize(("loss", "kind"), [
    (TopK(4), "distill"), (wpo(), "pair"), (OwnNegative(), "pair"),
    (BradleyTerry(words=("3", "7")), "judged")], ids=lambda x: type(x).__name__)
def test_losses_that_ask_for_more_learn_on_a_vision_language_model(
        engine: HFEngine, loss: Any, kind: str) -> None:
    """Two updates through `learn`, with pictures; the second is better than the first."""
    turns = engine.generate([Request(context=asked(i), key=f"k{i}", n=2,
                                     sampling=Sampling(max_new_tokens=5)) for i in range(2)], 0)
    made: list[Any] = []
    for i, (a, b) in enumerate(turns):
        here, there = (Branch(context=asked(i), turns=(t,)) for t in (a, b))
        other = Branch(context=asked(i + 5), turns=(a.detached(),))
        if kind == "judged":  # the reward of a prompt: what answers it does not matter
            there = other
        made.append(Distill(branches={"student": here, "teacher": other}, sample=f"s{i}")
                    if kind == "distill" else
                    Pair(branches={"chosen": here, "rejected": there, "corrupted": other},
                         sample=f"s{i}"))
    seen: list[float] = []
    engine.restart()
    learn(engine, made, loss, Optim(lr=1e-5, updates=3, batch=2), "key",
          lambda done, of, metrics: seen.append(next(
              metrics[n] for n in ("distill", "wpo", "own", "rank") if n in metrics)))
    assert seen[-1] < seen[0], seen
    engine.restart()


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-6), ("float32", 1e-4)])
def test_packing_and_padding_change_no_loss(
        tmp_path: Path, dtype: str, near: float) -> None:
    """Answers end to end behind one prompt, or whole sequences padded: one loss, one gradient."""
    engine = HFEngine(llava(tmp_path), dtype=dtype, device="cpu")
    engine.bind(open_picture)
    engine.scorer.worth = 0
    turns = engine.generate([Request(context=asked(i), key=f"k{i}", n=3,
                                     sampling=Sampling(max_new_tokens=6)) for i in range(2)], 0)
    made: dict[str, list[Any]] = {"pair": [], "advantage": [], "distill": []}
    for i, ts in enumerate(turns):
        a, b, c = (Branch(context=asked(i), turns=(t.model_copy(update={
            "token_ids": t.token_ids[:6 - k], "logprobs": None}),)) for k, t in enumerate(ts))
        made["pair"].append(Pair(branches={"chosen": a, "rejected": b, "mismatched": c}))
        made["advantage"] += [Advantage(branches={"answer": x}, advantage=v, group=str(i))
                              for x, v in ((a, 1.0), (b, -0.5), (c, -0.5))]
        made["distill"].append(Distill(branches={"student": a, "teacher": Branch(
            context=asked(i + 3), turns=(a.turns[0].detached(),))}))
    learns = list(engine.trainable().values())
    with torch.no_grad():  # away from the reference: at it, which answer gained is mere rounding
        for i, p in enumerate(learns):
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    for kind, loss in (("pair", DPO()), ("pair", KTO(1.0)), ("pair", wpo()), ("pair", simpo()),
                       ("advantage", GRPO(kl=0.1, entropy=0.01)), ("advantage", rloo(0.1)),
                       ("distill", TopK(4))):
        found = []
        for why_not, budget in (("", 10_000), ("asked to", 10_000), ("asked to", 40)):
            engine.scorer.why_not, engine.tokens_per_batch = why_not, budget
            engine.reset_optimizer()
            known = _known(engine, made[kind], loss, Optim(reference="seed"))[0]
            terms = engine.forward_backward(made[kind], loss, known)
            found.append((terms, [torch.zeros(1) if p.grad is None else p.grad.clone()
                                  for p in learns]))
        engine.scorer.why_not = ""
        for terms, gradient in found[1:]:
            for term, x in terms.items():
                assert x == pytest.approx(found[0][0][term], rel=near, abs=near)
            assert apart(gradient, found[0][1]) < 10 * near, (type(loss).__name__, dtype)
