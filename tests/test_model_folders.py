"""What a model's folder gets wrong is told when it is loaded, or kept out of what is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_models import asked, llava, open_picture
from selfloop.doctor import diagnose
from selfloop.engines.hf import HFEngine, LoRA
from selfloop.roles import Contrast, Request, Sampling, SelfloopError
from selfloop.types import Branch

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava(tmp_path_factory.mktemp("model"))


@pytest.fixture()
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "model")


def engine_of(folder: Path, **more: Any) -> HFEngine:
    engine = HFEngine(folder, device="cpu", **more)
    engine.bind(open_picture)
    return engine


def change(path: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    found = json.loads(path.read_text())
    how(found)
    path.write_text(json.dumps(found))


def reweigh(folder: Path, how: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
            ) -> None:
    path = folder / "model.safetensors"
    save_file(how(load_file(path)), path, {"format": "pt"})


def draw(engine: HFEngine, *texts: str, n: int = 3, **sampling: Any) -> Any:
    how = Sampling(**{"max_new_tokens": 8, **sampling})
    return engine.generate([Request(context=asked(1, text), key=text, n=n, sampling=how)
                            for text in texts], engine.version)


# -- weights --------------------------------------------------------------------------------------


def test_weights_that_no_file_holds_are_not_made_up(folder: Path) -> None:
    reweigh(folder, lambda w: {name: x for name, x in w.items() if "vision" not in name})
    with pytest.raises(SelfloopError, match=r"\d+ of the model's weights are in none of its files"):
        engine_of(folder)
    assert any(f.level == "error" and "in none of its files" in f.what
               for f in diagnose(str(folder)))


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    reweigh(folder, lambda w: {n: x[:-1].clone() if "0.mlp.up_proj" in n and "language" in n else x
                               for n, x in w.items()})
    with pytest.raises(SelfloopError, match=r"the weights .*layers\.0\.mlp\.up_proj.* have shape"):
        engine_of(folder)


def test_weights_that_are_no_numbers(folder: Path) -> None:
    reweigh(folder, lambda w: {n: torch.full_like(x, torch.nan) if "up_proj" in n else x
                               for n, x in w.items()})
    assert any(f.level == "error" and "weights hold numbers that are not finite" in f.what
               for f in diagnose(str(folder)))
    engine = engine_of(folder)
    for temperature in (0.0, 1.0):
        with pytest.raises(SelfloopError, match="scores are not numbers"):
            draw(engine, "a", temperature=temperature)
    assert not engine.sampler.why_not  # the fork is not to blame


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_settings_that_are_no_json(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(SelfloopError, match=f"{name} is not JSON"):
        engine_of(folder)
    (folder / name).write_text("[]")
    with pytest.raises(SelfloopError, match=f"{name}: expected an object, not list"):
        engine_of(folder)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"targets": ()},
                                   {"targets": "q_proj"}, {"bits": 8}])
def test_adapters_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(SelfloopError, match=f"lora.{next(iter(wrong))}="):
        LoRA(**wrong)


# -- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[-1], [99_999], [None]])
def test_suppressed_tokens_that_there_are_not(folder: Path, given: list[Any]) -> None:
    change(folder / "generation_config.json", lambda c: c.update(suppress_tokens=given))
    engine = engine_of(folder)
    assert min(engine.never) >= 0 and max(engine.never) < len(engine.banned_V)
    assert draw(engine, "a")


def test_a_picture_s_token_cannot_end_an_answer(folder: Path, sound: Path) -> None:
    image = engine_of(sound).model.config.image_token_id
    change(folder / "generation_config.json", lambda c: c.update(eos_token_id=[2, image]))
    with pytest.raises(SelfloopError, match=r"<image>\) ends an answer by eos_token_id"):
        engine_of(folder)


def test_what_generate_follows_and_draws_do_not_is_named(folder: Path) -> None:
    told = "generation_config.json sets"
    assert not any(told in f.what for f in diagnose(str(folder)))
    change(folder / "generation_config.json", lambda c: c.update(
        repetition_penalty=1.05, min_new_tokens=3, bad_words_ids=[[7]], temperature=0.1))
    found = next(f for f in diagnose(str(folder)) if told in f.what)
    assert found.level == "warning" and "temperature" not in found.what
    for name in ("repetition_penalty=1.05", "min_new_tokens=3", "bad_words_ids=[[7]]"):
        assert name in found.what


def test_a_stop_string_with_special_tokens_inside(sound: Path) -> None:
    """They give no text, however many there are between two letters."""
    from selfloop.engines.hf_answers import Answers
    from selfloop.engines.hf_jobs import Job

    engine = engine_of(sound)
    a, b = (engine.processor.tokenizer.convert_tokens_to_ids(c) for c in "12")
    job = Job((1,), (), (), "k", 1, Sampling(max_new_tokens=40, stop=("12",)), 99)
    text = Answers(engine.decode, engine.sampler.ends, 1, job, torch.zeros(1, 1))
    silent = next(t for t in engine.never if engine.decode([t]) == "")
    for step, token in enumerate([a, *[silent] * 20, b]):
        still = text.write(step, torch.tensor([0]), torch.tensor([token]), torch.zeros(1), True)
    assert not bool(still)


# -- positions ------------------------------------------------------------------------------------


def test_longrope_is_kept_where_its_rotations_do_not_change(folder: Path) -> None:
    def longrope(config: dict[str, Any]) -> None:
        text = config["text_config"]
        half = (text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]) // 2
        text["rope_parameters"] = {
            "rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0,
            "short_factor": [1.0] * half, "long_factor": [4.0] * half,
            "original_max_position_embeddings": 32}

    change(folder / "config.json", longrope)
    engine = engine_of(folder)
    assert engine.limit == 32
    alone, beside = draw(engine, "how many?")[0], draw(engine, "how many?", "how many of a?")[0]
    assert [t.token_ids for t in alone] == [t.token_ids for t in beside]
    for x, y in zip(alone, beside, strict=True):
        assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)
    long = draw(engine, "how many?", max_new_tokens=64)[0]
    assert all(len(t.prompt_token_ids) + len(t.token_ids) <= 32 for t in long)
    with pytest.raises(SelfloopError, match="limit of 32 positions"):
        draw(engine, "1" * 40)
    found = next(f for f in diagnose(str(folder)) if "longrope: " in f.what)
    assert found.level == "warning" and "32 positions" in found.what


def test_a_contrast_that_is_too_long_is_refused(sound: Path) -> None:
    engine = engine_of(sound)
    long = asked(1, "1" * (engine.limit - len(engine.render(asked(1, ""))[0]) - 9))
    with pytest.raises(SelfloopError, match="does not fit"):
        draw(engine, "a", prefix="1" * 40, contrast=Contrast(context=long, weight=-0.5))
    assert not engine.sampler.guided.why_not and draw(engine, "a")


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_first_used_in_inference_mode(sound: Path, lora: LoRA | None) -> None:
    """The self-check needs gradients, and kept features are trained on later."""
    engine, other = engine_of(sound, lora=lora), engine_of(sound, lora=lora)
    with torch.inference_mode():
        (turns,) = draw(engine, "a", n=4)
        rows = [row for t in turns
                for row in engine.rows(Branch(context=asked(1, "a"), turns=(t,)))]
        scored = engine.logps(rows)[0]
    assert engine.training_path == "shared prefix" and not engine.sampler.why_not
    assert not any(x.requires_grad for x in scored)
    for one in (engine, other):
        torch.cat(list(one.logps(rows)[0])).sum().backward()
    found, expected = ({n: p.grad for n, p in one.trainable().items() if p.grad is not None}
                       for one in (engine, other))
    assert found and found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in found)


# -- several threads ------------------------------------------------------------------------------


def test_threads_wait_for_each_other(sound: Path) -> None:
    engine = engine_of(sound, lora=LoRA(rank=2))
    twin = engine.beside("other")
    with torch.no_grad():
        for name, p in twin.trainable().items():
            if "lora_B" in name:
                p.add_(0.3)
    texts = [f"{i} of {'a' * i}" for i in range(8)]

    def one(at: int) -> Any:
        mine = (engine, twin)[at % 2]
        (turns,) = draw(mine, texts[at], n=4)
        rows = [Branch(context=asked(1, texts[at]), turns=(t,)) for t in turns]
        return [t.token_ids for t in turns], [torch.tensor(x) for x in mine.logprobs(rows)]

    expected = [one(at) for at in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, [*range(8)] * 2))
    assert not engine.sampler.why_not and not twin.sampler.why_not
    for (tokens, logps), (wanted, others) in zip(found, expected * 2, strict=True):
        assert tokens == wanted
        for x, y in zip(logps, others, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


# -- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    {"stop": "zebra"}, {"stop": ("",)}, {"stop": (1,)}, {"max_new_tokens": 2.5}, {"top_k": 2.0},
    {"temperature": "1"}, {"temperature": 1e39}, {"diversity": 1e300}, {"max_new_tokens": True}])
def test_decoding_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    with pytest.raises(SelfloopError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_decoding_at_its_ends(sound: Path) -> None:
    engine = engine_of(sound)
    assert Sampling(stop=["a", "b"]) == Sampling(stop=("a", "b"))  # type: ignore[arg-type]
    for how in ({"temperature": 1e6}, {"diversity": 1e6},
                {"contrast": Contrast(context=asked(2), rate=1.0), "max_new_tokens": 95}):
        assert all(t.token_ids for t in draw(engine, "a", **how)[0])
    assert not engine.sampler.why_not and not engine.sampler.guided.why_not
    with pytest.raises(SelfloopError, match=r"Request\(n=-1\)"):
        Request(context=asked(1), key="k", n=-1)
