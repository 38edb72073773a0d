"""Floors and plans: every formula against figures worked by hand, then the command line."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from clidata import with_splits
from hf_models import FAMILIES, asked, open_picture
from selfloop import costs, floor, machines, step_memory
from selfloop.cli import main
from selfloop.collect.beams import SentenceTree
from selfloop.collect.independent import Independent
from selfloop.collect.negatives import Negatives
from selfloop.collect.propose import AskOrAnswer, Propose
from selfloop.collect.refine import CritiqueRevise, RefinedContext, SelectAmong
from selfloop.collect.search import TreeSearch
from selfloop.config import load_config
from selfloop.config_sections import OrganizeConfig
from selfloop.floor import Machine, Shape, Work
from selfloop.methods import build_loop
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.rules import exact
from selfloop.planning import plan, probed_machine, shape_of
from selfloop.recipes.star import star
from selfloop.report.facts import gather
from selfloop.report.floors import achieved, told
from selfloop.report.page import write_report
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder
from selfloop.types import Group, Media, Message, Part, Rollout, Sample, Turn, Verdict
from test_probing import MACHINE, made

SMALL = Shape(10, bytes=2, layers=2, query=4, kv=3, head=1)
"""N = 10, b = 2, L = 2, H = 4, n_kv d = 3; the head is one of the ten."""


# -- formulas --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("group", "prompt", "answer", "times"), [
    (8, 1200, 256, 3.59),   # 11,648 / 3,248
    (2, 1200, 256, 1.70),   # a preference pair: 2,912 / 1,712
    (8, 1200, 2048, 1.48),  # long answers: 25,984 / 17,584
    (8, 601, 48, 5.27),     # 5,192 / 985
    (1, 10, 10, 1.0),
    (8, 1e9, 1, 8.0),       # the limit is G
])
def test_what_a_shared_prefix_saves(group, prompt, answer, times):
    assert floor.saving(group, prompt, answer) == pytest.approx(times, abs=0.005)


def test_nothing_at_all_saves_nothing():
    assert floor.saving(8, 0, 0) == 1.0


@pytest.mark.parametrize(("share", "recompute", "passes"), [
    (1.0, False, 3), (1.0, True, 4), (0.0, False, 2), (0.0, True, 3)])
def test_what_a_training_pass_costs_in_forward_passes(share, recompute, passes):
    assert floor.equivalents(share, recompute) == passes


def test_reading_and_drawing_by_hand():
    # 2 N P + 2 L H P^2 = 2 x 10 x 3 + 2 x 2 x 4 x 9
    assert floor.prefill_flops(SMALL, 3) == 60 + 144
    # the head (1 of the 10) at one place only: 2 x (9 x 3 + 1) + 144
    assert floor.prefill_flops(SMALL, 3, scored=1) == 56 + 144
    # 2 N + 4 L H t = 20 + 4 x 2 x 4 x 5
    assert floor.decode_flops(SMALL, 5) == 180
    # 2 L n_kv d b a token = 2 x 2 x 3 x 2 = 24
    assert floor.kv_bytes(SMALL, 5) == 120
    # reading 5 tokens, or 3 and then 2, is the same work
    assert floor.prefill_flops(SMALL, 5) == \
        floor.prefill_flops(SMALL, 3) + floor.prefill_flops(SMALL, 2, start=3)


def test_windows_reach_back_so_far():
    windowed = Shape(10, layers=0, query=4, kv=3, bytes=2, window_layers=1, window=2)
    # pairs: 2^2 / 2 + 2 x 2 = 6, four H each
    assert floor.attention_flops(windowed, 0, 4) == 4 * 4 * 6
    assert floor.kv_bytes(windowed, 100) == 2 * 3 * 2 * 2
    assert floor.decode_flops(windowed, 100) == 20 + 4 * 4 * 2


def test_a_mixture_reads_the_experts_that_somebody_is_sent_to():
    # 10 dense weights and 4 experts of 10, one a token: N = 20, idle = 30
    mixture = Shape(20, bytes=1, idle=30, experts=4, used=1)
    assert floor.weight_bytes(mixture, 1) == pytest.approx(20)
    assert floor.weight_bytes(mixture, 2) == pytest.approx(10 + 40 * (1 - 0.75**2))
    assert floor.weight_bytes(mixture, 1000) == pytest.approx(50)
    assert floor.weight_bytes(SMALL, 1000) == 20


def test_the_vision_tower_by_hand():
    sees = replace(SMALL, vision=5, patches=4, span=4, vision_layers=2, vision_width=3)
    # 4 patches x (2 x 5 + 4 x 2 x 3 x 4)
    assert floor.vision_flops(sees) == 4 * (10 + 96)
    projects = replace(sees, projector=7, picture_tokens=2)
    assert floor.vision_flops(projects, 3) == 3 * (424 + 28)
    assert floor.seeing(Machine(1, 1), SMALL, 3) is None


def test_three_billion_parameters_in_bfloat16_on_an_h200():
    h200, model = machines.machine_named("H200"), Shape(3e9, bytes=2)
    # 6 GB / 4.8 TB/s
    one = floor.step_seconds(h200, model, batch=1, group=1, prompt=0, drawn=0)
    assert one == pytest.approx(1.25e-3)
    many = floor.step_seconds(h200, model, batch=64, group=8, prompt=0, drawn=0)
    assert 64 / many == pytest.approx(51_200)
    # beyond 206 answers the arithmetic takes longer than reading the weights
    assert h200.flops / h200.bandwidth == pytest.approx(206, abs=0.5)
    lots = floor.step_seconds(h200, model, batch=1000, group=8, prompt=0, drawn=0)
    assert lots == pytest.approx(1000 * 6e9 / 989e12)


def test_a_step_reads_the_prompt_once_a_group():
    slow = Machine(1e30, 1.0)
    # 20 bytes of weights, 2 groups' prompts of 5 tokens, 8 answers' own 3 tokens
    assert floor.step_seconds(slow, SMALL, 8, 4, 5, 3) == 20 + 2 * 120 + 8 * 72


def test_rollouts_by_hand():
    # 2 prompts of 3 tokens, 2 answers of 3: two decode steps of four answers at t = 3 + 1.5
    found = floor.rollouts(Machine(1.0, 1e30), SMALL, prompts=2, group=2, prompt=3, answer=3,
                           batch=100)
    expected = 2 * 200 + 2 * 4 * (20 + 4 * 2 * 4 * 4.5)
    assert found == Work(expected, expected)
    split = floor.rollouts(Machine(1e30, 1.0), SMALL, prompts=2, group=2, prompt=3, answer=3,
                           batch=2)
    # two batches of two: weights for the prefill and for two steps, and the keys
    assert split.seconds == 2 * 20 + 2 * 2 * (20 + 1 * 72 + 2 * 36)
    assert floor.rollouts(Machine(1, 1), SMALL, prompts=0, group=2, prompt=3, answer=3, batch=1) \
        == Work()


def test_training_by_hand():
    fast = Machine(1.0, 1e30)
    sizes = {"prompts": 2, "group": 2, "prompt": 3, "answer": 3}
    # the prompt with its last place scored, and two of each answer's tokens after it
    once = 2 * (200 + 2 * (40 + 4 * 2 * 4 * (25 - 9) / 2))
    assert floor.forward(fast, SMALL, **sizes).flops == once
    assert floor.training(fast, SMALL, updates=1, **sizes).flops == 3 * once
    adapters = replace(SMALL, trained_share=0.0, recompute=True)
    assert floor.training(fast, adapters, updates=1, **sizes).flops == 3 * once
    # by bytes: three times the weights, and AdamW's seven numbers of two bytes, five updates
    slow = floor.training(Machine(1e30, 1.0), replace(SMALL, trained=10), updates=5, **sizes)
    assert slow.seconds == 5 * (3 * 20 + 7 * 10 * 2)


def test_what_is_not_known_is_said():
    said = " ".join(Shape(10).unknown())
    for part in ("attention", "keys and values", "vision tower"):
        assert part in said
    whole = replace(SMALL, vision=5, patches=4, span=4, vision_layers=2, vision_width=3)
    assert not whole.unknown()
    assert "3 layers" in replace(whole, other_layers=3).unknown()[0]
    assert Shape.of(whole.numbers()) == whole
    assert Shape.of({**whole.numbers(), "later": 1.0, "recompute": 1.0}).recompute is True


# -- machines and shapes ---------------------------------------------------------------------------

def test_machines_by_name_and_precision():
    assert machines.machine_named("a100").flops == 312e12
    assert machines.machine_named("rtx 4090", "float32").flops == 82.6e12
    assert machines.machine_named("h100-pcie", "float16").bandwidth == 2.0e12
    assert "float32" in machines.machine_named("H200", "float32").source
    with pytest.raises(SelfloopError, match=r"--machine H900: expected one of H200.*leave it out"):
        machines.machine_named("H900")
    assert Machine(1, 1, price_per_hour=3.6).price(1000) == 1.0
    assert Machine(1, 1).price(1000) is None


@pytest.mark.parametrize(("name", "memory", "key"), [
    ("NVIDIA H200", 141e9, "H200"), ("NVIDIA H100 80GB HBM3", 80e9, "H100"),
    ("NVIDIA H100 PCIe", 80e9, "H100-PCIe"), ("NVIDIA H100 NVL", 94e9, None),
    ("NVIDIA A100-SXM4-80GB", 80e9, "A100"), ("NVIDIA A100-SXM4-40GB", 40e9, "A100-40GB"),
    ("NVIDIA A100 80GB PCIe", 80e9, None), ("NVIDIA L40S", 48e9, "L40S"), ("NVIDIA L4", 24e9, "L4"),
    ("NVIDIA GeForce RTX 4090", 24e9, "RTX-4090"),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 16e9, None), ("Tesla T4", 16e9, None)])
def test_devices_are_known_by_their_own_names(name, memory, key):
    assert machines.device_named(name, memory) == key


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def engine(request, tmp_path_factory):
    from selfloop.engines.hf import HFEngine

    found = HFEngine(FAMILIES[request.param](tmp_path_factory.mktemp(request.param)))
    found.bind(open_picture)
    return found


def _sample(number: int = 0) -> Sample:
    context = asked(number)
    return Sample(prompt=context.prompt, media=context.media)


def test_counted_flops_are_those_that_torch_counts(engine):
    """One forward pass over a prompt with a picture, by torch's own counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    about = machines.described(engine, [_sample()])
    shape = Shape.of(about["shape"])
    ids, media = engine.render(asked(0))
    inputs = engine.prompts.inputs([(ids, media)])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        engine.model(**inputs)
    # torch's counter knows no fused attention on a CPU. Beside what a picture needs, LLaVA's tower
    # runs a class token (one to four patches here) and Gemma's a pooling head.
    seen = replace(shape, vision_layers=0.0)
    expected = 2 * shape.parameters * len(ids) + floor.vision_flops(seen)
    beside = {"LlavaForConditionalGeneration": 0.06, "Gemma3ForConditionalGeneration": 0.04}
    ratio = counter.get_total_flops() / expected
    assert 1 - 1e-9 <= ratio <= 1 + 1e-9 + beside.get(type(engine.model).__name__, 0.0)
    assert not shape.unknown() and shape.trained_share == 1 and shape.vision_trained
    assert shape.resident == shape.trained == sum(p.numel() for p in engine.model.parameters())


def test_shapes_of_windows_adapters_and_recomputing(tmp_path):
    from selfloop.engines.hf import HFEngine, LoRA

    folder = FAMILIES["gemma3"](tmp_path)
    shape = machines.shape_of(HFEngine(folder, lora=LoRA(rank=2)).model)
    assert (shape.layers, shape.window_layers, shape.window) == (1, 1, 8)
    assert (shape.query, shape.kv) == (4 * 8, 2 * 8)
    assert 0 < shape.trained_share < 0.2 and not shape.vision_trained and not shape.recompute
    assert machines.shape_of(HFEngine(folder, checkpointing=True).model).recompute


def test_measuring_is_quick(engine):
    machines._measured.cache_clear()
    began = time.perf_counter()
    found = machines.calibrated(engine.model)
    assert time.perf_counter() - began < 2  # half a second where nothing else runs
    assert 1e8 < found.flops < 1e16 and 1e8 < found.bandwidth < 1e14
    assert "float32" in found.source and "thread" in found.source


def test_an_engine_without_a_model_has_no_account():
    from selfloop.engines.toy import ToyEngine

    assert machines.described(ToyEngine(("a",)), [_sample()]) == {}
    assert machines.numbers(object(), [_sample()]) == {}


# -- plans -----------------------------------------------------------------------------------------

SHAPE = {"parameters": 1e6, "bytes": 4.0, "layers": 2.0, "query": 64.0, "kv": 64.0, "head": 1e4,
         "width": 64.0, "inner": 128.0, "vocabulary": 200.0, "resident": 1.2e6, "trained": 1.2e6,
         "vision": 2e5, "vision_layers": 2.0, "vision_width": 64.0, "vision_trained": 1.0,
         "patches": 16.0, "span": 16.0, "picture_tokens": 4.0, "projector": 1e4}
FULL = {**MACHINE, "peak_flops": 1e11, "peak_bandwidth": 1e10, "pictures": 1.0,
        **{f"shape.{k}": v for k, v in SHAPE.items()}}


@pytest.fixture
def config(tmp_path):
    return load_config(with_splits(tmp_path))


def test_the_workload_of_each_method(config):
    probed = made(machine=FULL)  # 100 train and 50 dev samples, prompts of 20, answers of 8
    for method, group in (("star", 1), ("dpo", 2), ("supervised", 1)):
        loop = build_loop(config.model_copy(update={
            "method": method, "options": {"updates": 2, "batch": 4}}))
        n = costs.counts(loop, probed)
        assert (n.group, n.contexts, n.updates) == (group, 2 * 4, 2), method
        assert bool(n.scored) == (method == "dpo")
        assert n.asked == n.blind == 2 * 50
        assert n.problems == (0 if method == "supervised" else 100)
    loop = build_loop(config.model_copy(update={
        "method": "grpo", "options": {"n": 8, "steps": 3, "samples": 10}}))
    n = costs.counts(loop, probed)  # 12 of 20 groups are mixed
    assert (n.group, n.problems, n.updates) == (8, 30, 3)
    assert n.contexts == pytest.approx(30 * 12 / 20)
    assert n.saving == pytest.approx(8 * 28 / (20 + 64))


def test_a_plan_of_stages(config):
    found = plan(config.model_copy(update={"method": "grpo", "options": {}}),
                 made(machine=FULL), price_per_hour=3.6)
    names = [s.name for s in found.stages]
    assert names == ["collect", "collect, vision tower", "verify", "learn", "learn, vision tower",
                     "evaluate", "evaluate, vision tower", "total"]
    stage = {s.name: s for s in found.stages}
    for name in ("collect", "learn", "evaluate"):
        assert stage[name].floor < stage[name].seconds
    assert stage["verify"].flops is None and stage["verify"].floor is None
    total = stage["total"]
    assert total.flops == found.flops == pytest.approx(sum(s.flops or 0 for s in found.stages[:-1]))
    assert found.money == pytest.approx(found.seconds["total"] / 1000)
    assert found.saving > 2 and not found.uncounted
    # every FLOP takes its time at least
    assert total.floor >= total.flops / 1e11
    assert stage["learn"].memory == found.memory["total"]
    json.dumps(found.to_json())


def test_a_tower_that_does_not_learn_sees_each_picture_once(config):
    """60 problems of 100 different ones, 2 x 50 dev questions: 60 + 50 pictures in all."""
    grpo = config.model_copy(update={"method": "grpo", "options": {
        "n": 8, "steps": 6, "samples": 10}})
    learns = {s.name: s.flops for s in plan(grpo, made(machine=FULL)).stages}
    fixed = FULL | {"shape.vision_trained": 0.0}
    found = {s.name: s.flops for s in plan(grpo, made(machine=fixed)).stages}
    assert found["collect, vision tower"] == learns["collect, vision tower"]  # none came twice
    assert found["learn, vision tower"] == 0 < learns["learn, vision tower"]
    assert found["evaluate, vision tower"] < learns["evaluate, vision tower"]
    more = grpo.model_copy(update={"options": {**grpo.options, "steps": 60}})
    again = {s.name: s.flops for s in plan(more, made(machine=fixed)).stages}
    assert again["collect, vision tower"] == pytest.approx(
        100 / 60 * found["collect, vision tower"])
    only = grpo.model_copy(update={"method": "supervised", "options": {"labels": "answer"}})
    taught = {s.name: s.flops for s in plan(only, made(machine=fixed)).stages}
    assert taught["learn, vision tower"] > 0


def test_a_plan_says_what_several_learners_and_a_budget_leave_out(config):
    several = config.model_copy(update={"method": "visplay", "options": {}})
    said = " ".join(plan(several, made(machine=FULL)).uncounted)
    assert "learn beside" in said and "write for each other" in said
    short = config.model_copy(update={"method": "grpo", "options": {}, "budget": 1.0})
    found = plan(short, made(machine=FULL))
    share = 100 / found.seconds["total"]
    assert any(n.startswith(f"budget: 1.0 s end the run after some {share:.0f} %")
               for n in found.notes)
    enough = short.model_copy(update={"budget": 1e9})
    assert not any(n.startswith("budget") for n in plan(enough, made(machine=FULL)).notes)


def test_a_plan_is_of_what_learns_and_of_the_micro_batches(config):
    from selfloop.probed import identity

    assert identity(config) != identity(config.model_copy(update={"freeze": ("vision",)}))
    same = [config.model_copy(update=one) for one in (
        {"freeze": ("vision", "projector")}, {"learn": ("language",)})]
    assert identity(same[0]) == identity(same[1])
    assert identity(config) == identity(config.model_copy(update={"max_batch_tokens": 64}))
    grpo = config.model_copy(update={"method": "grpo", "options": {}})
    small = grpo.model_copy(update={"max_batch_tokens": 64})
    assert plan(small, made(machine=FULL)).memory["activations"] < plan(
        grpo, made(machine=FULL)).memory["activations"]


def test_a_plan_says_that_further_waves_are_not_counted(config):
    waves = {"method": "grpo", "options": {}, "organize": OrganizeConfig(wave=8)}
    found = plan(config.model_copy(update=waves), made(machine=FULL))
    assert found.uncounted == ("further waves (organize.wave draws up to 10 a step)",)


def test_another_machine_has_floors_and_no_expectations(config):
    found = plan(config, made(machine=FULL), machine="H200", price_per_hour=3.0)
    assert found.seconds == {} and all(s.seconds is None for s in found.stages)
    assert found.money == pytest.approx(3.0 * found.stages[-1].floor / 3600)
    assert found.machine.name == "H200" and found.machine.flops == 67e12  # in float32


def test_an_older_probe_says_what_is_left_out(config):
    found = plan(config, made())
    assert found.stages[-1].flops > 0 and found.stages[-1].floor is None and found.machine is None
    said = " ".join(found.uncounted)
    assert "attention" in said and "vision tower" in said and "--machine" in said
    bare = {k: MACHINE[k] for k in ("prompt_tokens", "answer_tokens", "seconds_per_drawn_token")}
    nothing = plan(config, made(machine=bare))
    assert nothing.flops == 0 and nothing.stages[-1].flops is None and not nothing.memory
    assert "sizes are not known" in nothing.uncounted[0]
    assert shape_of(made(machine=bare)) is None and probed_machine(made(machine=bare)) is None


def test_memory_grows_with_what_is_run_and_not_with_copies_of_the_prompt():
    """A tiny LLaVA of width 256 with 6 layers kept 91 MB for a group of 8 answers of 45.5 tokens
    to a prompt of 309 (peak of the process over what it held before, float32)."""
    shape = Shape(4.7e6, layers=6, query=256, kv=256, width=256, inner=680, vocabulary=211,
                  resident=9.8e6, trained=9.8e6)
    n = costs.Counts(prompt=309, answer=45.5, problems=1, draws=8, batch=8, contexts=1, group=8,
                     updates=1, scored=0, asked=0, blind=0, pictures=0)
    held = costs.memory(n, shape, 32768, 8)
    assert held["activations"] == pytest.approx(91e6, rel=0.1)
    assert held["optimizer"] == 2 * held["gradients"] == 2 * 9.8e6 * 4
    assert held["total"] == pytest.approx(sum(
        v for k, v in held.items() if k not in ("total", "cache")))
    tight = costs.memory(n, shape, 336, 8)
    assert tight["activations"] == pytest.approx(held["activations"] / 2, rel=0.01)
    again = costs.memory(n, replace(shape, recompute=True), 32768, 8)
    assert again["activations"] < held["activations"] / 3
    assert costs.memory(n, Shape(10), 32768, 8) == {}


# -- one step's answers in memory ------------------------------------------------------------------

def judged_groups(n: int, answers: int, tokens: int) -> list[Group]:
    groups = []
    for i in range(n):
        medium = Media(sha256=f"{i:064x}")
        sample = Sample(prompt=(Message(role="user", content=(Part(type="image"), Part(
            text=f"what is {i} ?"))),), media=(medium,))
        read = tuple(range(1000 + i, 1064 + i))
        rollouts = tuple(Rollout(
            id=f"{i}/{j}", sample=sample.id, context=sample.context, output=(Part(text="w" * 99),),
            sampling={"sampler": "Independent", "temperature": 1.0, "key": f"{i}/{j}"},
            turns=(Turn(prompt_token_ids=read, media=(medium,), logprobs=tuple(
                -0.001 * (k + i + j) for k in range(tokens)),
                token_ids=tuple(range(2000 + i + j, 2000 + i + j + tokens))),))
            for j in range(answers))
        groups.append(Group(sample=sample, rollouts=rollouts, verdicts=tuple(
            Verdict(score=float(j % 2), rationale="w") for j in range(answers))))
    return groups


@pytest.mark.parametrize(("answers", "tokens"), [(8, 25), (2, 25), (8, 200)])
def test_a_group_takes_about_as_much_memory_as_is_planned(tmp_path, answers, tokens):
    """Counted as the interpreter hands it out; storing also fills pyarrow's own pool."""
    import tracemalloc

    few = judged_groups(4, answers, tokens)  # what is imported and cached once does not count
    RunFolder(tmp_path).put_signals(0, "solver", GroupAdvantage()(groups=few, key="k"))
    tracemalloc.start()
    groups = judged_groups(200, answers, tokens)
    signals = GroupAdvantage()(groups=groups, key="k")
    held = tracemalloc.get_traced_memory()[0]
    RunFolder(tmp_path).put_signals(0, "solver", signals)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    planned = 200 * step_memory.group_bytes(answers, 64, tokens)
    assert held < peak < planned < 2.5 * held, (held / 200, peak / 200, planned / 200)


def test_a_step_that_would_fill_the_memory_is_told_with_what_fits(config, monkeypatch):
    probed = made(machine=FULL)  # 100 train problems
    config = config.model_copy(update={"method": "grpo", "options": {"n": 8, "samples": 100}})
    one = step_memory.group_bytes(8, 20, 8)
    monkeypatch.setattr("selfloop.planning.free_memory", lambda: 150 * one)
    (note,) = [n for n in plan(config, probed).notes if "at once" in n]
    assert "its 100 problems with 8 answers" in note and "options.samples=75 would fit" in note
    fits = config.model_copy(update={"options": {"n": 8, "samples": 75}})
    assert not [n for n in plan(fits, probed).notes if "at once" in n]
    assert not [n for n in plan(config, probed, machine="H200").notes if "at once" in n]
    for free in (200 * one, None):
        monkeypatch.setattr("selfloop.planning.free_memory", lambda free=free: free)
        assert not [n for n in plan(config, probed).notes if "at once" in n]


def test_free_memory_is_the_machines_or_what_the_control_group_leaves(tmp_path):
    assert step_memory.free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   1000 kB\n")
    assert step_memory.free_memory(tmp_path) == 1_024_000
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("500000\n")
    (group / "memory.max").write_text("max\n")
    assert step_memory.free_memory(tmp_path) == 1_024_000
    (group / "memory.max").write_text("800000\n")
    assert step_memory.free_memory(tmp_path) == 300_000


# -- the command line, and after a run -------------------------------------------------------------

def call(*args: str, code: int = 0):
    found = CliRunner().invoke(main, list(args))
    assert found.exit_code == code, f"{found.stdout}\n{found.stderr}\n{found.exception!r}"
    return found


def test_plan_run_and_what_was_achieved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(with_splits(tmp_path))
    call("probe", path, "--questions", "4", "--draws", "3")
    said = call("plan", path, "--price-per-hour", "2").stdout
    for part in ("vision tower", "floor", "expected", "TFLOP/s", "at 2 an hour", "smallest gain"):
        assert part in said
    planned = json.loads(call("plan", path, "--machine", "h200", "--json").stdout)
    assert planned["machine"]["name"] == "H200" and planned["stages"][-1]["floor"] > 0
    refused = call("plan", path, "--machine", "H900", code=2).stderr
    assert refused.startswith("error: --machine H900: expected one of ")

    call("run", path, "--name", "mine")
    floors = json.loads(call("show", "mine", "--json").stdout)["floors"]
    stages = {s["stage"]: s for s in floors["stages"]}
    assert list(stages) == ["collect", "verify", "learn", "evaluate"]
    for name in ("collect", "learn", "evaluate"):
        assert stages[name]["floor"] > 0 and stages[name]["over"] > 0.5, name
    assert stages["verify"]["over"] is None and floors["machine"]["name"] == "this machine"
    assert not floors["uncounted"]
    assert "achieved / floor" in call("show", "mine").stdout
    page = write_report(tmp_path / "runs" / "mine").read_text()
    assert "Achieved over the floor" in page


def test_what_was_achieved_counts_what_was_done_again_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("run", str(with_splits(tmp_path)), "--name", "mine")
    found = gather(tmp_path / "runs" / "mine")
    once = achieved(found)
    twice = achieved(replace(found, events=[*found.events, *found.events]))
    assert twice == once and len(once) == 4
    # with a frozen tower 12 train and 8 dev pictures are seen once, by both versions and all stages
    fixed = [{**e, "shape": {**e["shape"], "vision_trained": False}}
             if e["event"] == "machine" else e for e in found.events]
    about = next(e for e in fixed if e["event"] == "machine")
    assert about["different_pictures"] == 12
    shape = Shape.of(about["shape"])
    older = [{k: v for k, v in e.items() if k != "different_pictures"} for e in fixed]
    spent = {a.stage: a.flops for a in achieved(replace(found, events=fixed))}
    before = {a.stage: a.flops for a in achieved(replace(found, events=older))}
    assert spent["collect"] == pytest.approx(before["collect"])  # twelve problems
    assert spent["learn"] < before["learn"] and spent["evaluate"] == before["evaluate"]
    once_each = {a.stage: a.flops for a in once}
    asked = sum(len({a.sample for a in answers if a.arm == arm}) for answers in found.dev.values()
                for arm in {a.arm for a in answers} - {"no_image"})
    assert once_each["evaluate"] - spent["evaluate"] == pytest.approx(
        floor.vision_flops(shape, asked - 8))
    # run once a group: what is trained is at most what is read
    roles = found.learned[0]["solver"]
    assert roles["tokens_trained"] < roles["tokens_run"] <= roles["tokens_read"]


def test_runs_that_recorded_no_machine_say_nothing(tmp_path):
    import toyland

    toyland.perform("seldom", tmp_path / "run", tmp_path / "data")
    found = gather(tmp_path / "run")
    known = told(found)
    assert known["machine"] is None and all(s["floor"] is None for s in known["stages"])
    assert achieved(replace(found, events=[])) == []
    assert "Achieved over the floor" not in write_report(tmp_path / "run").read_text()


@pytest.mark.parametrize(("sampler", "draws"), [
    (Negatives(causes=("blur", "eliciting"), n=2), 6), (Negatives(n=2, pick_one=True), 4),
    (Negatives(causes=("blur",), n=1, blind=True), 4),
    (CritiqueRevise(n=2, rounds=2), 10), (SelectAmong(n=3, votes=2), 5), (RefinedContext(n=4), 7),
    (Propose(n=2, answers=3, checks=1), 10),
    (AskOrAnswer(Propose(n=2, answers=0, checks=0), Independent(n=5)), 12),
    (TreeSearch(exact, budget=20, children=3), 80), (SentenceTree(width=5, depth=5), 85),
])
def test_every_draw_of_a_sampler_is_planned_for(sampler, draws):
    assert costs.draws_of(replace(star(exact), sampler=sampler)) == draws
