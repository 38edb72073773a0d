"""Decoding steps from a recording: the same answers, bit for bit, or none recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch

from families import FAMILIES
from families.drawing import draw, jobs, sampler
from families.making import Family
from families.measuring import exactly
from hf_models import asked, llava, open_picture
from selfloop.engines.hf import HFEngine, LoRA
from selfloop.engines.hf_cache import DecodingKeys
from selfloop.engines.hf_decode import Sampler
from selfloop.engines.hf_recorded import Recorder
from selfloop.engines.hf_step_trace import Recording
from selfloop.roles import Request, Sampling

torch.set_num_threads(1)


def both(family: Family, after: int = 0) -> tuple[Sampler, Sampler]:
    """Samplers through the model's code alone, and with steps recorded."""
    plain, mine = sampler(family), sampler(family)
    plain.recorder.on, mine.recorder.after = False, after
    return plain, mine


def hold(family: Family, mine: Sampler, asked_for: Sequence[Any]) -> None:
    """Tokens and log-probs are those of the model's code."""
    plain = sampler(family)
    plain.recorder.on = False
    assert draw(mine, asked_for) == draw(plain, asked_for)
    assert plain.recorder.recorded == 0


@pytest.mark.parametrize(("name", "dtype"), [
    ("llava", torch.float32), ("qwen2_5_vl", torch.float64), ("qwen3_vl", torch.float32),
    ("gemma3", torch.float32)], ids=str)
def test_equal_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    """Several prompts and numbers of rows; positions in three dimensions; in-place writes; windows
    of 8 places, which all of these answers pass."""
    family = FAMILIES[name](dtype)
    _, mine = both(family)
    with exactly(dtype):
        for n, tokens in ((3, 12), (1, 12), (5, 16)):
            before = mine.recorder.recorded
            hold(family, mine, jobs(family, n, tokens))
            assert mine.recorder.recorded > before
        hold(family, mine, jobs(family, 2, 12, temperature=0.0)[:1])
    assert not mine.recorder.why_not and not mine.why_not
    assert len(mine.recorder.made) == 1


@pytest.mark.parametrize("after", [1, 7, 30])
def test_the_moment_of_recording_does_not_matter(after: int) -> None:
    family = FAMILIES["qwen2_5_vl"](torch.float32)
    _, mine = both(family, after)
    for _ in range(2):
        hold(family, mine, jobs(family, 4, 18))
    assert mine.recorder.eager == after and mine.recorder.recorded > 0


def test_nothing_is_recorded_for_a_few_steps() -> None:
    family = FAMILIES["llava"](torch.float32)
    mine = sampler(family)
    draw(mine, jobs(family))
    assert mine.recorder.eager > 0 and not mine.recorder.made and mine.recorder.says


def test_weights_are_looked_at_anew_in_every_step() -> None:
    family = FAMILIES["llava"](torch.float32)
    _, mine = both(family)
    first = draw(mine, jobs(family))
    weights = {name: p for name, p in family.model.named_parameters() if "language" in name}
    kept = {name: p.detach().clone() for name, p in weights.items()}
    recording = dict(mine.recorder.made)
    try:
        with torch.no_grad():
            for p in weights.values():
                p.mul_(1.3)
        hold(family, mine, jobs(family))
        assert draw(mine, jobs(family)) != first
        for name, p in weights.items():  # put in another storage
            p.data = kept[name].clone() * 0.8
        hold(family, mine, jobs(family))
    finally:
        for name, p in weights.items():
            p.data = kept[name]
    assert draw(mine, jobs(family)) == first and mine.recorder.made == recording
    assert not mine.recorder.why_not


def test_another_weight_in_its_place_is_recorded_anew() -> None:
    family = FAMILIES["llava"](torch.float32)
    _, mine = both(family)
    draw(mine, jobs(family))
    (old,), head = mine.recorder.made.values(), family.model.lm_head
    kept = head.weight
    try:
        head.weight = torch.nn.Parameter(-kept.detach())
        hold(family, mine, jobs(family))
        (new,) = mine.recorder.made.values()
        assert new is not old
    finally:
        head.weight = kept


# -- what is not recorded -------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "why"), [
    ("qwen3_5", "keep a state"), ("llama4", "a mask that depends on a Tensor"),
    ("qwen3_vl_moe", "dynamic_output_shape"), ("gemma4", "changes its masks")])
def test_refused_with_the_reason(name: str, why: str) -> None:
    family = FAMILIES[name](torch.float32)
    _, mine = both(family)
    hold(family, mine, jobs(family))
    assert why in mine.recorder.why_not and mine.recorder.recorded == 0


@contextmanager
def hooked(model: Any) -> Iterator[None]:
    seen: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    try:
        yield
    finally:
        handle.remove()
    assert seen


@contextmanager
def in_train_mode(model: Any) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


@contextmanager
def narrow(model: Any) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@pytest.mark.parametrize("way", [hooked, in_train_mode, narrow])
def test_what_is_unusual_is_not_recorded_now(way: Any) -> None:
    family = FAMILIES["llava"](torch.float32)
    _, mine = both(family)
    with way(family.model):
        draw(mine, jobs(family))
    assert mine.recorder.recorded == 0 and mine.recorder.says and not mine.recorder.why_not
    hold(family, mine, jobs(family))
    assert mine.recorder.recorded > 0 and not mine.recorder.says


def test_a_number_made_of_the_prompts_length_is_not_recorded(
        monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["llava"](torch.float32)
    inner = family.model.forward

    def forward(*args: Any, past_key_values: Any = None, **named: Any) -> Any:
        out = inner(*args, past_key_values=past_key_values, **named)
        out.logits = out.logits * (1 + past_key_values.get_seq_length())
        return out

    monkeypatch.setattr(family.model, "forward", forward)
    _, mine = both(family)
    mine.checked = True  # there is no plain path of such a model
    draw(mine, jobs(family))
    assert "prompt's length" in mine.recorder.why_not and mine.recorder.recorded == 0


# -- what turns out wrong -------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["other", "raises", "keys"])
@pytest.mark.parametrize("when", [0, 5])
def test_a_step_that_differs_is_given_up(monkeypatch: pytest.MonkeyPatch, kind: str, when: int
                                         ) -> None:
    """Its keys and values, too, leave no trace."""
    family = FAMILIES["llava"](torch.float32)
    plain, mine = both(family)
    inner, attend, calls = Recording.__call__, DecodingKeys.attend, [0]

    def changed(self: Recording, *given: Any) -> Any:
        if calls[0] < when:
            calls[0] += 1
            return inner(self, *given)
        if kind == "raises":
            raise RuntimeError("no such thing")
        if kind == "keys":
            with monkeypatch.context() as patch:
                patch.setattr(DecodingKeys, "attend",
                              lambda self, q, k, v, *more: attend(self, q, k + 1, v, *more))
                return inner(self, *given)
        return inner(self, *given) + 1e-6

    monkeypatch.setattr(Recording, "__call__", changed)
    one = jobs(family, 3, 1 + max(1, when))[:1]
    if when:  # right for as long as the first draw lasts; wrong at the next number of rows
        assert draw(mine, one) == draw(plain, one) and not mine.recorder.why_not
        assert calls[0] == when
    assert draw(mine, jobs(family, 2)) == draw(plain, jobs(family, 2))
    assert ("no such thing" if kind == "raises" else "differs") in mine.recorder.why_not
    before = mine.recorder.recorded
    assert draw(mine, jobs(family)) == draw(plain, jobs(family))
    assert mine.recorder.recorded == before


# -- engines --------------------------------------------------------------------------------------

def engine_of(folder: Path, **more: Any) -> HFEngine:
    engine = HFEngine(folder, device="cpu", **more)
    engine.bind(open_picture)
    engine.sampler.recorder.after = 0
    return engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava(tmp_path_factory.mktemp("model"))


def requests(**how: Any) -> list[Request]:
    return [Request(context=asked(i, "how many?" * i), key=f"k{i}", n=4,
                    sampling=Sampling(**{"max_new_tokens": 16, **how})) for i in (1, 2, 3)]


def drawn(engine: HFEngine, version: int | None = None, on: bool = True, **how: Any) -> Any:
    engine.sampler.recorder.on = on
    return engine.generate(requests(**how), engine.version if version is None else version)


def moved(engine: HFEngine, by: float) -> None:
    with torch.no_grad():
        for p in engine.trainable().values():
            p.add_(torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view_as(p), alpha=by)


def test_rows_that_leave_and_strings_that_stop(folder: Path) -> None:
    engine = engine_of(folder)
    for how in ({"max_new_tokens": 40}, {"stop": ("a", "e", "1")}, {"temperature": 1.6}):
        turns = drawn(engine, **how)
        assert turns == drawn(engine, on=False, **how)
        lengths = {len(turn.token_ids) for row in turns for turn in row}
        assert how != {"stop": ("a", "e", "1")} or len(lengths) > 2
    assert engine.sampler.recorder.recorded > 20 and not engine.sampler.recorder.why_not


def test_published_versions_are_seen(folder: Path) -> None:
    engine = engine_of(folder)
    engine.publish(0, 2)
    first = drawn(engine, 0)
    moved(engine, 0.05)
    engine.publish(1, 2)
    second = drawn(engine, 1)
    assert second != first and second == drawn(engine, 1, on=False)
    assert drawn(engine, 0) == first and drawn(engine, 1) == second
    assert engine.sampler.recorder.recorded > 0 and not engine.sampler.recorder.why_not


def test_adapters_each_with_its_recording(folder: Path) -> None:
    engine = engine_of(folder, lora=LoRA(rank=2))
    other = engine.beside("other", LoRA(rank=3))
    other.sampler.recorder.after = 0
    for by, one in ((0.05, engine), (-0.1, other)):
        moved(one, by)
    turns = [drawn(one) for one in (engine, other, engine, other)]
    assert turns[0] == turns[2] != turns[1] == turns[3]
    for one, found in zip((engine, other), turns, strict=False):
        assert drawn(one, on=False) == found
        assert one.sampler.recorder.recorded > 0 and not one.sampler.recorder.why_not


def test_hidden_pictures_are_not_recorded(folder: Path) -> None:
    engine = engine_of(folder)
    assert drawn(engine, hidden=0.5) == drawn(engine, on=False, hidden=0.5)
    assert engine.sampler.recorder.recorded == 0


def test_off_is_off() -> None:
    family = FAMILIES["llava"](torch.float32)
    mine = sampler(family)
    mine.recorder = Recorder(family.model, on=False, after=0)
    draw(mine, jobs(family))
    assert not mine.recorder.made and mine.recorder.eager == mine.recorder.recorded == 0


def test_a_forward_put_on_later_is_not_taken_for_one_that_is_gone(folder: Path) -> None:
    """Python gives an id again once its object is gone."""
    engine = engine_of(folder)
    mlp = engine.model.get_decoder().layers[0].mlp
    usual, factors = type(mlp).forward, [0.5 * (-1) ** k * (k + 1) for k in range(12)]
    for factor in factors:
        mlp.forward = MethodType(lambda self, x, by=factor: usual(self, x) * by, mlp)
        assert drawn(engine) == drawn(engine, on=False)
        del mlp.__dict__["forward"]
    assert engine.sampler.recorder.recorded > 0


def test_hooks_on_every_module_are_called(folder: Path) -> None:
    engine = engine_of(folder)
    drawn(engine)
    seen: list[Any] = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, out: seen.append(type(module)))
    try:
        before = engine.sampler.recorder.recorded
        drawn(engine)
    finally:
        hook.remove()
    assert seen and engine.sampler.recorder.recorded == before
    drawn(engine)
    assert engine.sampler.recorder.recorded > before
