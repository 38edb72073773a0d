"""The shared prefix is exact: log-probs and gradients equal the plain path's in float64."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf

from hf_models import FAMILIES, asked, open_picture, picture
from selfloop.engines.hf import HFEngine
from selfloop.engines.hf_decode import Job, Sampler
from selfloop.optimize import fork as forks
from selfloop.optimize.checkpointing import enable
from selfloop.optimize.head import CHUNK, logits_of, token_logps
from selfloop.optimize.prefix import Shared
from selfloop.optimize.rows import Row
from selfloop.optimize.score import Plain
from selfloop.optimize.together import WORTH
from selfloop.roles import Request, Sampling
from selfloop.types import Branch

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    folder = FAMILIES[request.param](tmp_path_factory.mktemp("model"))
    engine = HFEngine(folder, dtype="float64", device="cpu")
    engine.bind(open_picture)
    no_float32_casts(engine.model)
    engine.scorer.worth = 0  # a few short prompts, too
    return engine


def no_float32_casts(model: torch.nn.Module) -> None:
    """RMSNorm computes in float32 whatever the dtype; that floor is the model's, not the path's."""

    def exact(norm: Any) -> Any:
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        shift = 1.0 if "Gemma" in type(norm).__name__ else 0.0
        return lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (
            norm.weight + shift)

    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = exact(module)


def rows_for(engine: HFEngine, contexts: int, n: int, temperature: float = 1.0) -> list[Row]:
    asked_ = [asked(i, "how many?", pictures=1 + i % 2) for i in range(contexts)]
    turns = engine.generate([
        Request(context=c, key=f"k{i}", n=n,
                sampling=Sampling(max_new_tokens=12, temperature=temperature))
        for i, c in enumerate(asked_)], 0)
    # Unequal answers, in an order that mixes the contexts; some of one token only.
    rows = [engine.rows(Branch(context=c, turns=(t.model_copy(update={
        "token_ids": t.token_ids[:1 + (k * 5) % 12], "logprobs": None}),)))[0]
        for c, mine in zip(asked_, turns, strict=True) for k, t in enumerate(mine)]
    return rows[::2] + rows[1::2]


def run(path: Any, model: torch.nn.Module, rows: Sequence[Row]
        ) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]:
    model.zero_grad()
    logps, entropies = path(rows, entropy=True)
    weight = torch.arange(1.0, 1 + sum(len(x) for x in logps), dtype=torch.float64).sin()
    ((torch.cat(logps) + 0.3 * torch.cat(entropies)) * weight).sum().backward()
    return logps, entropies, {n: p.grad.clone() for n, p in model.named_parameters()
                              if p.grad is not None}


def test_equals_the_plain_path(engine: HFEngine) -> None:
    rows = rows_for(engine, contexts=4, n=5, temperature=0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = run(engine.scorer, engine.model, rows)
    assert engine.training_path == "shared prefix" and engine.scorer.checked
    plain = run(engine.scorer.plain, engine.model, rows)
    assert [len(x) for x in shared[0]] == [row.count for row in rows]
    for a, b in zip([*shared[0], *shared[1]], [*plain[0], *plain[1]], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-8)
    assert shared[2].keys() == plain[2].keys()
    for name, gradient in plain[2].items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((shared[2][name] - gradient).abs().max()) / scale < 1e-8, name


def test_gradients_reach_the_vision_tower(engine: HFEngine) -> None:
    gradients = run(engine.scorer, engine.model, rows_for(engine, 2, 3))[2]
    assert any(float(g.abs().max()) > 0 for n, g in gradients.items() if "vision" in n)


def test_the_prompt_and_its_picture_are_run_once(engine: HFEngine) -> None:
    rows = rows_for(engine, 2, 6)
    engine.scorer(rows)  # the first call also checks
    seen: list[tuple[int, ...]] = []
    hook = engine.model.get_input_embeddings().register_forward_hook(
        lambda m, i, out: seen.append(tuple(out.shape[:2])))
    engine.scorer(rows)
    hook.remove()
    prompts = {row.token_ids[:row.prompt]: row.prompt for row in rows}
    answers = sum(len(row.token_ids) - row.prompt - 1 for row in rows)
    assert sum(b * t for b, t in seen) == sum(prompts.values()) + answers  # and no padding
    assert engine.scorer.cost(rows) == sum(prompts.values()) + answers + len(rows)


def test_batches_within_a_small_budget_change_nothing(engine: HFEngine) -> None:
    rows = rows_for(engine, 3, 5)
    with torch.no_grad():
        whole = engine.scorer(rows)[0]
        small = Shared(engine.model, engine.prompts, engine.banned_V, 150, worth=0)(rows)[0]
        plain = Plain(engine.model, engine.prompts, engine.banned_V, 150)(rows)[0]
    for a, b, c in zip(whole, small, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-8) and torch.allclose(a, c, atol=1e-8)


def test_pictures_after_the_prompt_go_the_plain_way(engine: HFEngine) -> None:
    first = asked(1)
    turn = engine.generate([Request(context=first, key="a",
                                    sampling=Sampling(max_new_tokens=4))], 0)[0][0]
    talk = first.said("assistant", "x").said("user", picture(8), "and here?")
    later = engine.generate([Request(context=talk, key="b", n=2, history=(turn,),
                                     sampling=Sampling(max_new_tokens=4))], 0)[0]
    rows = [engine.rows(Branch(context=first, turns=(turn, t)))[0] for t in later]
    assert all(len(row.media) == 2 for row in rows)
    with torch.no_grad():
        found = engine.logps(rows)[0]
    for row, logps in zip(rows, found, strict=True):
        assert logps.tolist() == pytest.approx(list(row.drawn or ()), abs=1e-7)


def test_falls_back_loudly_when_wrong(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_for(engine, 2, 3)
    scorer = Shared(engine.model, engine.prompts, engine.banned_V, 10000, worth=0)
    monkeypatch.setattr("selfloop.optimize.fork.Fork.start_T", property(
        lambda fork: torch.zeros(fork.tokens, dtype=torch.long)))
    with pytest.warns(UserWarning, match="shared prefix off .* differ from the plain path by"):
        found = scorer(rows)[0]
    plain = engine.scorer.plain(rows)[0]
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_rows_that_show_nothing_do_not_pass_for_a_check(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest answers train their first token only, or nothing: the prompt predicts that."""
    rows = rows_for(engine, 1, 4)
    longest = sorted(rows, key=lambda row: -len(row.token_ids))

    def keeping(row: Row, n: int) -> Row:
        wanted = (True,) * n + (False,) * (len(row.token_ids) - row.prompt - n)
        return replace(row, trained=(False,) * row.prompt + wanted, drawn=None)

    monkeypatch.setattr("selfloop.optimize.fork.Fork.start_T", property(
        lambda fork: torch.zeros(fork.tokens, dtype=torch.long)))
    for shown in (0, 1):
        scorer = Shared(engine.model, engine.prompts, engine.banned_V, 10000, worth=0)
        scorer([keeping(row, shown) for row in rows])
        assert not scorer.why_not and not scorer.checked, "nothing was compared yet"
        with pytest.warns(UserWarning, match="differ from the plain path by"):
            scorer([*(keeping(row, 1) for row in longest[:2]), *longest[2:]])


def test_falls_back_loudly_on_wrong_gradients(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_for(engine, 2, 3)
    scorer = Shared(engine.model, engine.prompts, engine.banned_V, 10000, worth=0)
    usual = forks.PrefixKeys.update

    def cut(self: Any, keys: Any, values: Any, *more: Any, **named: Any) -> Any:
        usual(self, keys.detach(), values)
        return keys, values

    monkeypatch.setattr(forks.PrefixKeys, "update", cut)
    with pytest.warns(UserWarning, match="gradients differ from the plain path by .* of their"):
        scorer(rows)
    assert scorer.why_not


def test_falls_back_when_the_cache_fails(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_for(engine, 1, 3)
    scorer = Shared(engine.model, engine.prompts, engine.banned_V, 10000, worth=0)

    def broken(*_: object, **__: object) -> None:
        raise NotImplementedError("no such cache")

    monkeypatch.setattr(forks, "BranchCache", broken)
    with pytest.warns(UserWarning, match="no such cache"):
        scorer(rows)


def test_longer_rows_are_checked_again(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Shared(engine.model, engine.prompts, engine.banned_V, 10000, worth=0)
    rows = rows_for(engine, 1, 3)
    looked: list[int] = []
    usual = scorer.check
    monkeypatch.setattr(scorer, "check", lambda mine: (looked.append(1), usual(mine)))
    scorer(rows)
    scorer(rows)
    assert len(looked) == 1
    longer = [Row((*r.token_ids, *r.token_ids[-1:] * 100), (
        *r.trained, *(True,) * 100), r.media, r.prompt) for r in rows]
    scorer(longer)
    assert len(looked) == 2


def test_what_long_answers_would_not_win_back_is_not_shared(engine: HFEngine) -> None:
    scorer = Shared(engine.model, engine.prompts, engine.banned_V, 10000, worth=0)
    first = rows_for(engine, 1, 1)[0]
    p = first.prompt

    def rows(*answers: int) -> list[Row]:
        return [Row((*first.token_ids[:p], *(first.token_ids[-1],) * n), (*(False,) * p,
                    *(True,) * n), first.media, p) for n in answers]

    # Two answers save a prompt: one token in 12 at answers of 5 prompts each.
    for answers, shared in (((4 * p,) * 2, True), ((6 * p,) * 2, False),
                            ((6 * p, 4 * p), True)):  # padding is saved as well
        tokens = sum(len(row.token_ids) for row in rows(*answers))
        assert scorer.cost(rows(*answers)) == tokens - p * shared
    assert not scorer._batches(rows(6 * p, 6 * p))


def test_checkpointing_is_exact(engine: HFEngine) -> None:
    rows = rows_for(engine, 3, 4)
    usual = run(engine.scorer, engine.model, rows)
    forwards = {m: m.forward for m in engine.model.modules()}
    enable(engine.model)
    calls: list[int] = []
    layer = engine.model.get_decoder().layers[0]
    hook = layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    try:
        again = run(engine.scorer, engine.model, rows)
        forward_and_back = len(calls)
        plain = run(engine.scorer.plain, engine.model, rows)
    finally:
        hook.remove()
        for module, forward in forwards.items():
            if "forward" in vars(module):
                module.forward = forward
    # Prompts of two lengths and all answers, each run again in the backward pass.
    assert forward_and_back == 6
    for other in (again, plain):
        for a, b in zip([*usual[0], *usual[1]], [*other[0], *other[1]], strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-10)
        for name, gradient in usual[2].items():
            assert torch.allclose(other[2][name], gradient, rtol=1e-9, atol=1e-10), name


def test_logits_in_chunks_change_nothing(engine: HFEngine) -> None:
    rows = rows_for(engine, 2, 4)
    usual = run(engine.scorer, engine.model, rows)
    engine.scorer.head.chunk = 3 * len(engine.banned_V)
    try:
        again = run(engine.scorer, engine.model, rows)
    finally:
        engine.scorer.head.chunk = CHUNK
    for a, b in zip([*usual[0], *usual[1]], [*again[0], *again[1]], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    for name, gradient in usual[2].items():
        assert torch.allclose(again[2][name], gradient, rtol=1e-9, atol=1e-12), name


def test_no_logits_on_prompts_and_pictures(engine: HFEngine) -> None:
    rows = rows_for(engine, 2, 4)
    engine.scorer(rows)
    seen: list[int] = []
    head = engine.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda m, i, out: seen.append(out.shape[:-1].numel()))
    engine.scorer(rows)
    engine.scorer.plain(rows)
    hook.remove()
    assert sum(seen) == 2 * sum(row.count for row in rows)


def tied_sums(run: Any, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], int]:
    """(both gradients of a head that is its own embedding, run twice; new tensors made of sums)."""
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(50, 8, dtype=dtype)
    head = torch.nn.Linear(8, 50, bias=False, dtype=dtype)
    head.weight = embedding.weight
    mix = torch.nn.Linear(8, 8, dtype=dtype)
    with torch.profiler.profile(record_shapes=True) as seen:
        x = torch.tanh(mix(embedding(torch.arange(40) % 7)))
        sum(run(head, part).logsumexp(-1).sum() for part in (x[:30], x[30:])).backward()
    added = [e for e in seen.events() if e.name == "aten::add" and e.input_shapes[:1] == [[50, 8]]]
    found = [embedding.weight.grad, mix.weight.grad]
    assert all(gradient is not None for gradient in found)
    return found, len(added)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_tied_heads_gradient_is_torchs_without_its_copies(dtype: torch.dtype) -> None:
    ours, copies = tied_sums(logits_of, dtype)
    usual, more = tied_sums(lambda head, x: head(x), dtype)
    assert copies == 0 < more  # torch makes a third [V, D] of every sum
    assert all(torch.equal(a, b) for a, b in zip(ours, usual, strict=True))


def test_a_head_that_is_not_plain_runs_as_it_is() -> None:
    x = torch.randn(3, 8)
    biased, hooked = torch.nn.Linear(8, 50), torch.nn.Linear(8, 50, bias=False)
    assert torch.equal(logits_of(biased, x), biased(x))
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    assert torch.equal(logits_of(hooked, x), hooked(x))
    patched = torch.nn.Linear(8, 50, bias=False)
    own = patched.forward
    patched.forward = lambda x: 2 * own(x)  # type: ignore[method-assign]
    assert torch.equal(logits_of(patched, x), patched(x))
    watched, seen = torch.nn.Linear(8, 50, bias=False), []
    watched.register_full_backward_hook(lambda module, given, out: seen.append(out[0].shape))
    logits_of(watched, x.clone().requires_grad_()).sum().backward()
    assert seen == [(3, 50)]
    plain = torch.nn.Linear(8, 50, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert logits_of(plain, x).dtype == torch.bfloat16
    plain.weight.requires_grad_(False)  # as with adapters: no gradient is computed for it
    logits_of(plain, x.requires_grad_()).sum().backward()
    assert plain.weight.grad is None and x.grad is not None


def test_what_a_hook_on_the_head_holds_is_not_overwritten(engine: HFEngine) -> None:
    """A head's output is spent in place, unless a hook may have kept it or made it a tensor that
    its own gradient is computed from."""
    rows = rows_for(engine, 1, 3, temperature=0.7)
    head = engine.model.get_output_embeddings()
    kept: list[torch.Tensor] = []

    def bend(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        kept.append(torch.tanh(out))
        return kept[-1]

    hook = head.register_forward_hook(bend)
    try:
        found = run(engine.scorer, engine.model, rows)
    finally:
        hook.remove()
    assert all(torch.isfinite(g).all() for g in found[2].values())
    drawn = [x for x in kept if x.numel()]  # none on prompts
    assert drawn and all(float(x.detach().abs().max()) <= 1 for x in drawn)


def test_log_probs_of_a_known_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 5.0], [0.0, 1.0, 5.0]], requires_grad=True)
    banned = torch.tensor([False, False, True])
    logp, entropy = token_logps(logits, torch.tensor([0, 1]), torch.tensor([1.0, 0.5]), banned,
                                True)
    p = [torch.tensor([0.0, 1.0]).softmax(-1), torch.tensor([0.0, 2.0]).softmax(-1)]
    assert logp.tolist() == pytest.approx([p[0][0].log().item(), p[1][1].log().item()])
    assert entropy is not None
    assert entropy.tolist() == pytest.approx([-(q * q.log()).sum().item() for q in p])
    (logp.sum() + entropy.sum()).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert logits.grad[:, 2].tolist() == [0.0, 0.0]


# -- M-RoPE: a model whose processor needs torchvision, so its inputs are made by hand ----------


class GridReader:
    """Qwen2-VL's inputs: one picture of a 2h x 2w grid of patches becomes h * w tokens."""

    placeholders = frozenset({9})

    def inputs(self, sequences: Sequence[Any]) -> dict[str, torch.Tensor]:
        longest = max(len(ids) for ids, _ in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for b, (row, _) in enumerate(sequences):
            ids[b, :len(row)] = torch.tensor(row)
            mask[b, :len(row)] = 1
        grids = [GRIDS[m.identity] for _, media in sequences for m in media]
        pixels = [torch.randn(t * h * w, 3 * 2 * 4 * 4, dtype=torch.float64,
                              generator=torch.Generator().manual_seed(h)) for t, h, w in grids]
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.cat(pixels),
                "image_grid_thw": torch.tensor(grids),
                "mm_token_type_ids": (ids == 9).long() * mask}

    def signature(self, media: Any) -> int:
        return 0


GRIDS = {picture(1).identity: (1, 4, 6), picture(2).identity: (1, 6, 4)}


@pytest.fixture()
def qwen() -> Iterator[Any]:
    config = tf.Qwen2VLConfig(
        text_config={"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64,
                     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                     "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2],
                                         "rope_theta": 10000.0}},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2,
                       "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=9, vision_start_token_id=7, vision_end_token_id=8, video_token_id=10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.Qwen2VLForConditionalGeneration(config).double().eval()
    no_float32_casts(model)
    yield model


def test_mrope_positions_are_explicit(qwen: Any) -> None:
    rows = []
    for number in (1, 2):
        prompt = (1, 7, *(9,) * 6, 8, 11 + number, 12)
        for length in (1, 4, 7):
            answer = tuple(13 + (number + length * i) % 20 for i in range(length))
            rows.append(Row((*prompt, *answer), (False,) * len(prompt) + (True,) * length,
                            (picture(number),), len(prompt)))
    scorer = Shared(qwen, GridReader(), torch.zeros(40, dtype=torch.bool), 10000, worth=0)
    shared = run(scorer, qwen, rows)
    assert not scorer.why_not
    plain = run(scorer.plain, qwen, rows)
    for a, b in zip(shared[0], plain[0], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-8)
    for name, gradient in plain[2].items():
        assert torch.allclose(shared[2][name], gradient, rtol=1e-8, atol=1e-8), name


def test_mrope_sampling_equals_scoring(qwen: Any) -> None:
    banned = torch.zeros(40, dtype=torch.bool)
    banned[[7, 8, 9, 10]] = True
    sampler = Sampler(qwen, GridReader(), banned, frozenset({0}), str, 10000)
    jobs = [Job((1, 7, *(9,) * 6, 8, 20 + i, 12), (picture(1 + i % 2),), (), f"k{i}", 4,
                Sampling(max_new_tokens=30), 99) for i in range(4)]
    plain = Plain(qwen, GridReader(), banned, 10000)
    ends = set()
    for job, drawn in zip(jobs, sampler.draw(jobs), strict=True):
        for d in drawn:
            row = Row((*job.prompt, *d.token_ids),
                      (False,) * len(job.prompt) + (True,) * len(d.token_ids), job.media,
                      len(job.prompt))
            with torch.no_grad():
                assert plain([row])[0][0].tolist() == pytest.approx(list(d.logprobs or ()))
            ends.add(d.finish_reason)
    assert ends == {"stop", "length"}  # rows left the batch on the way


# -- hybrids: three of four layers keep a state instead of keys ---------------------------------


@pytest.fixture()
def hybrid() -> Iterator[Any]:
    config = tf.Qwen3_5Config(
        text_config={"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64,
                     "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
                     "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
                     "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                     "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2],
                                         "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
                       "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
                       "out_hidden_size": 32, "num_position_embeddings": 64},
        image_token_id=9, vision_start_token_id=7, vision_end_token_id=8, video_token_id=10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.Qwen3_5ForConditionalGeneration(config).eval()
    assert set(config.text_config.layer_types) == {"linear_attention", "full_attention"}
    yield model


def grid_rows(lengths: Sequence[int]) -> list[Row]:
    rows = []
    for number in (1, 2):
        # Shorter and longer than the state's convolution; unequal answers.
        prompt = (1, 7, *(9,) * 6, 8, *(11,) * number, 12)
        for length in lengths:
            answer = tuple(13 + (number + length * i) % 20 for i in range(length))
            rows.append(Row((*prompt, *answer), (False,) * len(prompt) + (True,) * length,
                            (picture(number),), len(prompt)))
    return rows


@pytest.mark.parametrize("lengths", [(1, 2, 2), (5, 1, 70)])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_states_are_forked_exactly(hybrid: Any, lengths: tuple[int, ...], checkpointed: bool
                                   ) -> None:
    rows = grid_rows(lengths)
    scorer = Shared(hybrid, FloatGrid(), torch.zeros(40, dtype=torch.bool), 10000, worth=0)
    plain = run(scorer.plain, hybrid, rows)
    if checkpointed:
        enable(hybrid)
    shared = run(scorer, hybrid, rows)
    assert not scorer.why_not and scorer.checked
    for a, b in zip(shared[0], plain[0], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)
    top = max(float(g.abs().max()) for g in plain[2].values())
    for name, gradient in plain[2].items():
        assert float((shared[2][name] - gradient).abs().max()) < 1e-4 * top, name


def test_states_are_forked_in_sampling(hybrid: Any) -> None:
    banned = torch.zeros(40, dtype=torch.bool)
    banned[[7, 8, 9, 10]] = True
    sampler = Sampler(hybrid, FloatGrid(), banned, frozenset({0}), str, 10000)
    jobs = [Job((1, 7, *(9,) * 6, 8, *(20 + i,) * (1 + i % 2), 12), (picture(1 + i % 2),), (),
                f"k{i}", 4, Sampling(max_new_tokens=30), 99) for i in range(4)]
    plain = Plain(hybrid, FloatGrid(), banned, 10000)
    ends = set()
    for job, drawn in zip(jobs, sampler.draw(jobs), strict=True):
        for d in drawn:
            row = Row((*job.prompt, *d.token_ids),
                      (False,) * len(job.prompt) + (True,) * len(d.token_ids), job.media,
                      len(job.prompt))
            with torch.no_grad():
                assert plain([row])[0][0].tolist() == pytest.approx(list(d.logprobs or ()),
                                                                    abs=1e-5)
            ends.add(d.finish_reason)
    assert ends == {"stop", "length"} and not sampler.why_not and sampler.checked


class FloatGrid(GridReader):
    def inputs(self, sequences: Sequence[Any]) -> dict[str, torch.Tensor]:
        found = super().inputs(sequences)
        return {**found, "pixel_values": found["pixel_values"].float()}


def test_checkpointing_as_the_very_first_use(engine: HFEngine, monkeypatch: pytest.MonkeyPatch
                                             ) -> None:
    """What is only done once (trying a kernel) must leave nothing in the recorded layers."""
    from selfloop.optimize import kernels

    rows = rows_for(engine, 1, 3)
    monkeypatch.setattr(kernels, "_trusted", {})
    forwards = {m: vars(m).get("forward") for m in engine.model.modules()}
    enable(engine.model)
    try:
        scorer = Shared(engine.model, engine.prompts, engine.banned_V, 10000, worth=0)
        run(scorer, engine.model, rows)
        assert not scorer.why_not and kernels._trusted
    finally:
        for module, forward in forwards.items():
            if forward is None and "forward" in vars(module):
                del module.forward


def test_little_to_share_goes_the_plain_way(engine: HFEngine) -> None:
    """Answers may take a second pass through the layers: it must pay."""
    rows = rows_for(engine, 1, 2)
    prompt = rows[0].prompt
    for worth, one_pass, shared in ((prompt, "no", False), (prompt - 1, "no", True),
                                    (prompt, "", prompt > WORTH)):
        scorer = Shared(engine.model, engine.prompts, engine.banned_V, 10000, worth=worth)
        scorer.together.why_not = one_pass
        with torch.no_grad():
            scorer(rows)
        assert scorer.checked == shared and not scorer.why_not
