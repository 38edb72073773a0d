"""Memory that runs out: the same work in smaller pieces, with the same result, and never less."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from hf_models import asked, llava, open_picture
from selfloop.engines.hf import HFEngine
from selfloop.optimize.losses.sft import SFT
from selfloop.optimize.memory import fitting, out_of_memory
from selfloop.roles import Request, Sampling, SelfloopError
from selfloop.types import Branch, Demonstration

torch.set_num_threads(1)


@pytest.fixture()
def engine(tmp_path: Path) -> HFEngine:
    engine = HFEngine(llava(tmp_path / "model"), device="cpu")
    engine.bind(open_picture)
    engine.publish(0, 0)
    return engine


def signals(engine: HFEngine) -> list[Demonstration]:
    requests = [Request(context=asked(i), key=f"k{i}", n=3, sampling=Sampling(max_new_tokens=9))
                for i in range(4)]
    drawn = engine.generate(requests, 0)
    return [Demonstration(branches={"target": Branch(context=r.context, turns=(turn,))},
                          sample=f"s{i}")
            for i, (r, turns) in enumerate(zip(requests, drawn, strict=True)) for turn in turns]


def learnt(engine: HFEngine, made: list[Demonstration]) -> tuple[dict, dict]:
    terms = engine.forward_backward(made, SFT(), {})
    return terms, {n: p.grad.clone() for n, p in engine.trainable().items()
                   if p.grad is not None}


def test_which_errors_are_meant() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert out_of_memory(real.value)


def test_other_errors_pass() -> None:
    def work() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        fitting(work, lambda why: None)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_micro_batches_are_halved_and_nothing_is_lost(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    made = signals(engine)
    expected, gradients = learnt(engine, made)
    engine.reset_optimizer()
    for parameter in engine.trainable().values():  # gradients of an earlier call must survive
        parameter.grad = torch.ones_like(parameter)
    room = sum(len(row.token_ids) for s in made for row in engine.rows(s.branches["target"])) // 4
    held: list[int] = []

    class Full(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise torch.OutOfMemoryError("CUDA out of memory, tried to allocate 2 GiB")

    usual = engine.logps

    def logps(rows, *, entropy=False):
        held.append(sum(engine.weigh(row).answer for row in rows))
        if sum(len(row.token_ids) for row in rows) > room:
            if where == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory, tried to allocate 2 GiB")
            found, entropies = usual(rows, entropy=entropy)
            return [Full.apply(x) for x in found], entropies
        return usual(rows, entropy=entropy)

    monkeypatch.setattr(engine, "logps", logps)
    with pytest.warns(UserWarning, match=r"micro-batches are cut from 32768 to .* tokens"):
        terms, again = learnt(engine, made)
    assert terms["nll"] == pytest.approx(expected["nll"], rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(again[name], gradient + 1, atol=1e-5), name
    tokens = sum(row.count for s in made for row in engine.rows(s.branches["target"]))
    assert terms["tokens_trained"] == tokens and len(held) > 4


def test_a_resumed_run_takes_the_budgets_and_paths_that_were_settled(
    engine: HFEngine, tmp_path: Path
) -> None:
    asked = (engine.tokens_per_batch, engine.sampler.budget)
    try:
        engine.tokens_per_batch, engine.sampler.budget = 100, 50
        engine.scorer.why_not = "found wanting"
        engine.save_state(tmp_path)
        engine.tokens_per_batch, engine.sampler.budget = asked
        engine.scorer.why_not = ""
        engine.load_state(tmp_path)
        assert (engine.tokens_per_batch, engine.sampler.budget) == (100, 50)
        assert engine.training_path == "plain: found wanting"
        engine.asked_per_batch += 1  # another budget was asked for: the old one is no answer
        engine.tokens_per_batch = 70
        engine.load_state(tmp_path)
        assert engine.tokens_per_batch == 70
    finally:
        engine.asked_per_batch = asked[0]
        engine.tokens_per_batch, engine.sampler.budget = asked
        engine.scorer.why_not = ""


def test_one_signal_too_many_is_said_in_one_line(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = signals(engine)

    def logps(rows, *, entropy=False):
        raise torch.OutOfMemoryError("CUDA out of memory, tried to allocate 2 GiB")

    monkeypatch.setattr(engine, "logps", logps)
    with pytest.raises(SelfloopError, match=r"on a single signal .*2 GiB.*: use smaller pictures"):
        engine.forward_backward(made, SFT(), {})
    assert all(p.grad is None for p in engine.trainable().values())


def test_draws_are_made_in_smaller_batches(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(context=asked(3), key="k", n=12, sampling=Sampling(max_new_tokens=9))
    expected = engine.generate([request], 0)
    usual, most = type(engine.sampler)._run, []

    def run(self, jobs, batch):
        most.append(len(batch))
        if len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory, tried to allocate 2 GiB")
        return usual(self, jobs, batch)

    monkeypatch.setattr(type(engine.sampler), "_run", run)
    with pytest.warns(UserWarning, match="while drawing: batches are cut"):
        found = engine.generate([request], 0)
    assert [t.token_ids for t in found[0]] == [t.token_ids for t in expected[0]]
    assert most[0] == 12 and most[-1] <= 4
    monkeypatch.setattr(type(engine.sampler), "_run", lambda *_: (_ for _ in ()).throw(
        torch.OutOfMemoryError("no")))
    with pytest.warns(UserWarning), pytest.raises(SelfloopError, match="on a single draw"):
        engine.generate([request], 0)


REAL = """
    import resource, sys, warnings
    import torch
    sys.path.insert(0, {tests!r})
    torch.set_num_threads(1)
    from test_memory import signals, learnt
    from hf_models import open_picture
    from selfloop.engines.hf import HFEngine
    engine = HFEngine({folder!r}, device="cpu"); engine.bind(open_picture); engine.publish(0, 0)
    made = signals(engine) * 100
    expected, gradients = learnt(engine, made[:8])
    engine.reset_optimizer()
    engine.tokens_per_batch = 10**9
    engine.scorer.budget = engine.scorer.plain.budget = 10**9
    now = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (now + {room}, now + {room}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        terms, _ = learnt(engine, made)
    print(any("out of memory" in str(w.message) for w in said), terms["tokens_trained"])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="Linux only")
def test_memory_that_really_runs_out(tmp_path: Path, engine: HFEngine) -> None:
    folder = llava(tmp_path / "again")
    script = textwrap.dedent(REAL.format(tests=str(Path(__file__).parent), folder=str(folder),
                                         room=24 * 2**20))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    split, tokens = done.stdout.split()[-2:]
    assert split == "True"
    expected = sum(row.count for s in signals(engine) for row in engine.rows(
        s.branches["target"])) * 100
    assert float(tokens) == expected
