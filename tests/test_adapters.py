"""Adapters of every kind, several on one base, a base in 4 bits, and which parts learn."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers as tf

import clidata
from hf_models import FAMILIES, asked, llava, open_picture
from selfloop.casting import AdapterConfig, cast
from selfloop.config import build_engine, build_loop, load_config, load_data
from selfloop.engines.hf import HFEngine, LoRA
from selfloop.engines.hf_adapters import four_bits, language_linears
from selfloop.export import export
from selfloop.learning import learn
from selfloop.optimize.losses.sft import SFT
from selfloop.optimize.parts import PARTS, frozen_parts, parts_of
from selfloop.roles import Optim, Request, Sampling, SelfloopError
from selfloop.running import run
from selfloop.types import Branch, Demonstration

torch.set_num_threads(1)
STEP = Optim(lr=1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return llava(tmp_path_factory.mktemp("llava"))


def engine_of(folder: Path, **options) -> HFEngine:
    engine = HFEngine(folder, device="cpu", **options)
    engine.bind(open_picture)
    return engine


def shown(n: int = 2, answer: str = "") -> list[Demonstration]:
    return [Demonstration(branches={"target": Branch(context=asked(i), text=answer or str(i))},
                          sample=f"s{i}") for i in range(n)]


def scored(engine: HFEngine, version: int | str = "current") -> list[float]:
    return engine.logprobs([Branch(context=asked(7), text="12")], version)[0]


def weights(engine: HFEngine) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in engine.trainable().items()}


# -- kinds of adapters --------------------------------------------------------------------------


def test_dora_starts_as_its_base_learns_sizes_and_merges(folder, tmp_path):
    engine = engine_of(folder, lora=LoRA(rank=2, dora=True))
    assert scored(engine) == pytest.approx(scored(engine_of(folder)), abs=1e-5)
    before = weights(engine)
    for key in "ab":  # B starts at 0: sizes learn at once, A from the second update on
        learn(engine, shown(), SFT(), STEP, key)
    for name, tensor in weights(engine).items():
        assert not torch.equal(tensor, before[name]), name
    assert any("lora_magnitude_vector" in name for name in before)
    engine.save(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["use_dora"]
    from peft import PeftModel

    base = tf.AutoModelForImageTextToText.from_pretrained(folder)
    found = {n: p for n, p in PeftModel.from_pretrained(base, tmp_path / "adapter")
             .base_model.model.named_parameters() if "lora_" in n}
    assert found.keys() == before.keys()
    assert all(torch.equal(found[n], tensor) for n, tensor in weights(engine).items())
    engine.save_merged(tmp_path / "merged")
    merged = engine_of(tmp_path / "merged")
    assert scored(merged) == pytest.approx(scored(engine), abs=1e-4)
    assert abs(scored(engine)[0] - scored(engine_of(folder))[0]) > 1e-3


def test_rslora_divides_by_the_root_of_the_rank(folder):
    plain, rooted = (engine_of(folder, lora=LoRA(rank=4, **more))
                     for more in ({"alpha": 16}, {"alpha": 8, "rslora": True}))
    for engine in (plain, rooted):  # 16 / 4 = 8 / sqrt(4)
        for i, (name, p) in enumerate(engine.trainable().items()):
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(i))
    assert scored(plain) == scored(rooted)
    assert abs(scored(plain)[0] - scored(engine_of(folder))[0]) > 1e-3


# -- a base in 4 bits ---------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None,
                    reason="bitsandbytes is here, so nothing is refused")
def test_four_bits_without_bitsandbytes_are_refused_in_one_line(folder):
    with pytest.raises(SelfloopError, match=r"^lora\.bits=4 needs bitsandbytes: pip install "
                                            r"'selfloop\[qlora\]', or leave bits out$"):
        engine_of(folder, lora=LoRA(bits=4))


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(SelfloopError, match=r"lora\.bits=8: expected 4"):
        LoRA(bits=8)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_goes_into_four_bits_is_the_language_model_and_nothing_else(family, tmp_path):
    """transformers' own settings, for the very layers that it would then convert."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    config = tf.AutoConfig.from_pretrained(FAMILIES[family](tmp_path / family))
    with torch.device("meta"):
        net = tf.AutoModelForMultimodalLM.from_config(config)
    asked_for = four_bits(net, torch.bfloat16)
    said = asked_for.to_dict()
    assert (said["load_in_4bit"], said["bnb_4bit_quant_type"]) == (True, "nf4")
    assert (said["bnb_4bit_use_double_quant"], said["bnb_4bit_compute_dtype"]) == (True, "bfloat16")
    linears = [n for n, m in net.named_modules() if isinstance(m, torch.nn.Linear)]
    converted = {n for n in linears if should_convert_module(n, said["llm_int8_skip_modules"])}
    assert converted == {n for names in language_linears(net).values() for n in names}
    assert {parts_of(net, [n])[n] for n in converted} == {"language"}
    assert 0 < len(converted) < len(linears)


def test_qlora_learns_and_comes_back(tmp_path):
    pytest.importorskip("bitsandbytes")
    from selfloop.testbeds.tiny_vlm import build

    folder = build(tmp_path / "model", width=192, layers=1)  # its CPU code wants multiples of 32
    engine, full = (engine_of(folder, lora=LoRA(rank=2, bits=bits)) for bits in (4, None))
    kinds = {type(m).__name__ for n, m in engine.model.named_modules()
             if n.endswith("q_proj.base_layer") or ("vision" in n and n.endswith("q_proj"))}
    assert kinds == {"Linear4bit", "Linear"}
    gap = max(abs(a - b) for a, b in zip(scored(engine), scored(full), strict=True))
    assert 0 < gap < 1
    assert engine.flops(1, 0) == full.flops(1, 0), "packed weights are counted one by one"
    before = scored(engine)
    for key in "abc":
        assert learn(engine, shown(answer="12"), SFT(), STEP, key)["grad_norm"] > 0
    assert sum(scored(engine)) > sum(before) + 0.1
    engine.save_state(tmp_path / "state")
    again = engine_of(folder, lora=LoRA(rank=2, bits=4))
    again.load_state(tmp_path / "state")
    assert scored(again) == scored(engine)
    with pytest.raises(SelfloopError, match="selfloop export RUN --merge"):
        engine.save_merged(tmp_path / "merged")


# -- several adapters on one base ---------------------------------------------------------------


def files(engine: HFEngine, folder: Path) -> dict[str, bytes]:
    engine.save_state(folder)
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_roles_on_one_base_learn_as_if_each_had_a_base_of_its_own(folder, tmp_path):
    """Calls of both in turn, gradients pending in one while the other runs: bit for bit."""
    solver = engine_of(folder, lora=LoRA(rank=2))
    proposer = solver.beside("proposer", LoRA(rank=3, dora=True))
    alone = {"solver": engine_of(folder, lora=LoRA(rank=2)),
             "proposer": engine_of(folder, lora=LoRA(rank=3, dora=True))}
    base = {n: p.clone() for n, p in solver.model.named_parameters() if "lora_" not in n}
    for engine in (solver, proposer, *alone.values()):
        engine.publish(0, 1)
    for number in range(2):
        solver.forward_backward(shown(answer="1"), SFT(), {})
        assert all(p.grad is None for p in proposer.trainable().values())
        proposer.forward_backward(shown(answer="2"), SFT(), {})
        assert all(p.grad is not None for p in solver.trainable().values())
        solver.optim_step(STEP, 1e-2)
        assert all(p.grad is not None for p in proposer.trainable().values())
        request = Request(context=asked(3), key=f"{number}", n=2,
                          sampling=Sampling(max_new_tokens=4))
        drawn = solver.generate([request], 0)
        proposer.optim_step(STEP, 1e-2)
        for role, answer in (("solver", "1"), ("proposer", "2")):
            alone[role].forward_backward(shown(answer=answer), SFT(), {})
            alone[role].optim_step(STEP, 1e-2)
        assert drawn == alone["solver"].generate([request], 0)
    for role, engine in (("solver", solver), ("proposer", proposer)):
        engine.publish(1, 1)
        alone[role].publish(1, 1)
        assert scored(engine) == scored(alone[role])
        assert files(engine, tmp_path / role) == files(alone[role], tmp_path / f"{role}-alone")
    assert scored(solver) != scored(proposer)
    assert all(torch.equal(p, base[n]) for n, p in solver.model.named_parameters() if n in base)

    again = engine_of(folder, lora=LoRA(rank=2))
    other = again.beside("proposer", LoRA(rank=3, dora=True))
    other.load_state(tmp_path / "proposer")
    again.load_state(tmp_path / "solver")
    for one, two in ((solver, again), (proposer, other)):
        assert scored(one) == scored(two)
        learn(one, shown(answer="3"), SFT(), STEP, "k")
        learn(two, shown(answer="3"), SFT(), STEP, "k")
        assert scored(one) == scored(two)


def test_a_roles_adapter_is_saved_as_if_it_were_the_only_one(folder, tmp_path):
    solver = engine_of(folder, lora=LoRA(rank=2))
    proposer = solver.beside("proposer", LoRA(rank=3))
    learn(solver, shown(answer="1"), SFT(), STEP, "k")
    learn(proposer, shown(answer="2"), SFT(), STEP, "k")
    for name, engine in (("solver", solver), ("proposer", proposer)):
        engine.save(tmp_path / name)
        engine.save_merged(tmp_path / f"{name}-merged")
        assert not [p for p in (tmp_path / name).iterdir() if p.is_dir()]
        said = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert said["r"] == (2 if name == "solver" else 3)
        assert scored(engine_of(tmp_path / f"{name}-merged")) == pytest.approx(
            scored(engine), abs=1e-4)
        from peft import PeftModel

        base = tf.AutoModelForImageTextToText.from_pretrained(folder)
        found = PeftModel.from_pretrained(base, tmp_path / name).base_model.model
        found = {n: p for n, p in found.named_parameters() if "lora_" in n}
        assert all(torch.equal(found[n], p) for n, p in engine.trainable().items())
    assert scored(solver) != scored(proposer)


def test_what_cannot_be_beside_is_refused(folder):
    with pytest.raises(SelfloopError, match=r"learns its own weights.*give it lora"):
        engine_of(folder).beside("judge")
    solver = engine_of(folder, lora=LoRA(rank=2))
    judge = solver.beside("judge")
    assert solver.beside("judge") is judge and judge.lora == solver.lora
    for name, lora, message in (
            ("judge", LoRA(rank=9), "there is an adapter 'judge'"),
            ("default", LoRA(rank=9), "there is an adapter 'default'"),
            ("a.b", None, "cannot be called 'a.b'"), ("lora_A", None, "cannot be called"),
            ("critic", LoRA(targets=("q_prj",)), "'q_prj' is no linear layer"),
            ("critic", LoRA(bits=4), "base that it shares is not in so many")):
        with pytest.raises(SelfloopError, match=message):
            solver.beside(name, lora)


# -- from run.yaml ------------------------------------------------------------------------------

METHOD = '''
from dataclasses import dataclass
from selfloop.loop import Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.filters import Role
from selfloop.organize.signals import GroupAdvantage
from selfloop.roles import Optim, Sampling

@dataclass(frozen=True)
class Both:
    async def __call__(self, generate, sample):
        few = Sampling(max_new_tokens=3)
        asked = await generate(sample, n=4, role="proposer", sampling=few)
        return [*asked, *await generate(sample, n=4, role="solver", sampling=few)]

def long(rollout):
    """The more bytes, the better."""
    return min(1.0, len(rollout.text.encode()) / 12)

def both(iterations=1, seed=0):
    """Solver and proposer, each reinforced for what it says."""
    learn = {role: Learn(organizer=Chain(steps=(Role(role),), maker=GroupAdvantage()),
                         loss=GRPO(), optim=Optim(lr=1e-2)) for role in ("solver", "proposer")}
    return Loop(name="both", sampler=Both(), verifier=long, learn=learn, gate=None,
                iterations=iterations, samples=3, seed=seed)
'''


@pytest.fixture
def config_at(tmp_path):
    (tmp_path / "two_roles.py").write_text(METHOD)
    model = clidata.quick_model(tmp_path)

    def put(*overrides: str):
        path = clidata.with_splits(tmp_path, model=str(model), method="two_roles:both")
        path.write_text(path.read_text().partition("options:")[0]
                        + "lora: 2\nengines: {proposer: adapter}\n")
        return load_config(path, overrides)

    return put


def test_two_roles_of_a_run_yaml_learn_an_adapter_each(config_at, tmp_path):
    averaged = "optim={ema: 0.5, publish: ema}"
    config = config_at(averaged)
    engines = cast(config, build_engine(config))
    assert engines["solver"].model is engines["proposer"].model
    (tmp_path / "kept.yaml").write_text(config.as_yaml())
    assert load_config(tmp_path / "kept.yaml").engines == config.engines \
        == {"proposer": AdapterConfig()}
    run(build_loop(config), load_data(config).train, engines, config.folder)
    saved = config.folder / "checkpoints" / "000001"
    tensors = {role: (saved / role / "trainable.safetensors").read_bytes()
               for role in ("solver", "proposer")}
    assert tensors["solver"] != tensors["proposer"]
    assert (saved / "proposer" / "adapter_config.json").is_file()
    export(config.folder, tmp_path / "out", model=config.model, version=1, role="proposer",
           merge=True)
    whole = engine_of(tmp_path / "out")
    engines["proposer"].bind(open_picture)
    assert scored(whole) == pytest.approx(scored(engines["proposer"], 1), abs=1e-4)
    assert scored(engines["proposer"], 1) != scored(engines["proposer"])
    # resumed for one more iteration, by engines that know nothing
    longer = config_at("iterations=2", averaged)
    fresh = cast(longer, build_engine(longer))
    assert len(run(build_loop(longer), load_data(longer).train, fresh, longer.folder)) == 2


def test_settings_of_adapters_and_optimizer_are_read_and_their_mistakes_named(config_at):
    config = config_at("lora={rank: 4, dora: true, rslora: true}", "compute=bfloat16",
                       "engines.proposer={adapter: {rank: 3}}",
                       "optim={ema: 0.99, publish: ema, diverged: never, clip: 0.5}")
    engine = build_engine(config)
    assert engine.lora == LoRA(rank=4, dora=True, rslora=True) and engine.compute == "bfloat16"
    assert cast(config, engine)["proposer"].lora == LoRA(rank=3)
    for how in build_loop(config).learn.values():
        assert (how.optim.ema, how.optim.publish, how.optim.diverged, how.optim.clip) \
            == (0.99, "ema", None, 0.5)
        assert how.optim.lr == 1e-2, "what is not said stays the method's"
    for override, message in (
            ("lora={dore: true}", "unknown key 'lora.dore'; did you mean 'dora'"),
            ("lora={bits: 8}", "lora.bits = 8"), ("optim={emma: 0.9}", "unknown key 'optim.emma'"),
            ("optim={ema: 2}", "optim.ema = 2"),
            ("engines.proposer={adapter: {rang: 3}}",
             "unknown key 'proposer.adapter.rang'; did you mean 'rank'"),
            ("engines.proposer={adapter: true, model: x}", "unknown key 'proposer.model'")):
        with pytest.raises(SelfloopError, match=message) as error:
            config_at(override)
        assert "\n" not in str(error.value)
    with pytest.raises(SelfloopError, match=r"optim: Optim\.publish='ema'"):
        build_loop(config_at("optim={publish: ema}"))
    with pytest.raises(SelfloopError, match=r"engines\.proposer: .*give it lora"):
        cast(wrong := config_at("lora=false"), build_engine(wrong))


# -- which parts learn --------------------------------------------------------------------------


def test_parts_in_plain_words():
    assert frozen_parts() == frozen_parts(learn=PARTS) == ()
    assert frozen_parts(["projector", "vision"]) == frozen_parts(learn=["language"]) \
        == ("vision", "projector")
    assert frozen_parts(learn=("projector",)) == ("vision", "language")
    for named, message in (
            ({"freeze": ["eyes"]}, "freeze='eyes': expected some of vision, projector, language"),
            ({"learn": ["head"]}, "learn='head': expected some of"),
            ({"freeze": "vision"}, r"freeze='vision': give a list, as in freeze: \[vision\]"),
            ({"freeze": ["vision"], "learn": ["language"]}, "give one of them"),
            ({"freeze": PARTS}, "nothing is left to learn")):
        with pytest.raises(SelfloopError, match=message):
            frozen_parts(**named)


def test_only_what_learns_moves(folder):
    engine = engine_of(folder, learn=("projector",))
    assert set(engine.parts.values()) == {"projector"}
    before = {n: p.clone() for n, p in engine.model.named_parameters()}
    learn(engine, shown(), SFT(), STEP, "k")
    moved = [n for n, p in engine.model.named_parameters() if not torch.equal(p, before[n])]
    assert moved and set(moved) <= set(engine.trainable())


@pytest.mark.parametrize("named", [{"freeze": ("language",)}, {"learn": ("projector",)}])
def test_adapters_need_the_part_that_they_adapt(folder, named):
    with pytest.raises(SelfloopError, match="lora adapts the language model, and language is"):
        engine_of(folder, lora=LoRA(rank=2), **named)
    engine = engine_of(folder, lora=LoRA(rank=2), freeze=("vision", "projector"))
    assert set(engine.parts.values()) == {"language"}
