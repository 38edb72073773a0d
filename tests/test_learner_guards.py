"""Updates that must not be stepped on name their rows; runs that they stop go on as if nothing
had been; averages of the weights; gradient norms by part."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace

import pytest
import torch

import toyland
from hf_models import asked as pictured
from hf_models import llava, open_picture
from killing import contents
from selfloop.engines.toy import ToyEngine
from selfloop.learning import learn
from selfloop.loop import Learn
from selfloop.optimize.again import not_finite
from selfloop.optimize.divergence import WARM, Band
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.losses.ranked import AOT
from selfloop.optimize.losses.rl import GRPO, reinforce_pp
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.signals import Demonstrate
from selfloop.pictures import Library
from selfloop.roles import Optim, Request, Sampling, SelfloopError
from selfloop.running import run
from selfloop.types import Branch, Demonstration, Pair
from test_learner import asked, engine, signals

OPTIM = Optim(lr=0.1)


def shown(i: int, text: str = "left right yes") -> Demonstration:
    return Demonstration(branches={"target": Branch(context=asked(i), text=text)}, sample=f"s{i}")


# -- a loss that is not finite ----------------------------------------------------------------


def test_a_weight_that_is_nan_names_the_row_the_token_and_the_term():
    """One micro-batch of eight rows; the table is broken where the third row reads it."""
    toy = engine()
    rows = [shown(i) for i in range(8)]
    cell = toy._cells(toy.rows(rows[3].branches["target"])[0])[1]
    alike = [r.sample for r in rows
             if cell[:2] in {c[:2] for c in toy._cells(toy.rows(r.branches["target"])[0])}]
    with torch.no_grad():
        toy.table[cell[0], cell[1], cell[2]] = float("nan")
    with pytest.raises(SelfloopError) as stopped:
        toy.forward_backward(rows, SFT(), {})
    said = str(stopped.value)
    assert f"sample s3 (target): term nll, log-prob of target token 2 (id {cell[2]}) is nan" in said
    assert {f"s{i}" for i in range(8) if f"sample s{i} " in said} == set(alike)
    assert "nothing was stepped" in said and "\n" not in said and toy.table.grad is None


def test_a_reference_that_is_nan_names_the_branch_and_the_place():
    toy = engine()
    pairs = signals(toy, "pair")
    branches = [(i, n, p.branches[n]) for i, p in enumerate(pairs) for n in ("chosen", "rejected")]
    known = {(i, n): toy.logprobs([b])[0] for i, n, b in branches}
    known[(5, "rejected")] = [*known[(5, "rejected")][:-1], float("-inf")]
    place = len(known[(5, "rejected")])
    with pytest.raises(SelfloopError) as stopped:
        toy.forward_backward(pairs, DPO(), {"reference": known})
    said = str(stopped.value)
    assert f"reference log-prob of rejected token {place} " in said and "is -inf" in said
    assert "sample s5 (" in said and said.count("sample s") == 1


@dataclass(frozen=True)
class Broken(SFT):
    """NaN by its own doing on one sample, from log-probs that are fine."""

    def __call__(self, batch):
        (name, (weight, _)), = super().__call__(batch).items()
        rows = batch.branches["target"].sum_B
        bad = torch.tensor([math.nan if s.sample == "s4" else 1.0 for s in batch.signals])
        return {name: (weight, (rows * bad).sum())}


def test_a_loss_that_breaks_by_itself_is_told_from_its_inputs():
    toy = engine()
    with pytest.raises(SelfloopError, match=r"nan on sample s4 \(target\): term nll, from finite "
                                            r"log-probs: nothing was stepped"):
        toy.forward_backward([shown(i) for i in range(8)], Broken(), {})


@pytest.mark.parametrize("budget", [1, 100_000])
@pytest.mark.parametrize(("kind", "branch", "loss"), [
    ("pair", "chosen", AOT()), ("advantage", "answer", reinforce_pp(0.1))])
def test_one_row_that_breaks_a_statistic_of_all_is_the_one_that_is_named(kind, branch, loss,
                                                                         budget):
    """Sorted or whitened over the update, one NaN reaches the rows of other micro-batches."""
    toy = engine()
    toy.learner.tokens_per_batch = budget
    rows = signals(toy, kind)
    known = {(i, n): toy.logprobs([b])[0]
             for i, p in enumerate(rows) for n, b in p.branches.items()}
    known[(5, branch)] = [math.nan] * len(known[(5, branch)])
    with pytest.raises(SelfloopError) as stopped:
        toy.forward_backward(rows, loss, {"reference": known})
    said = str(stopped.value)
    assert f": reference log-prob of {branch} token 1 (id" in said
    assert "on sample s5 (" in said and said.count("sample s") == 1


@pytest.mark.parametrize(("more", "word"), [({"advantage": math.inf}, "its advantage is inf"),
                                            ({"weight": math.nan}, "its weight is nan")])
def test_numbers_of_a_signal_are_named(more, word):
    toy = engine()
    rows = signals(toy, "advantage")
    rows[2] = rows[2].model_copy(update=more)
    with pytest.raises(SelfloopError, match=rf"on sample s2 \(answer\): term policy, {word}: noth"):
        toy.forward_backward(rows, GRPO(), {})


# -- a gradient that is not finite --------------------------------------------------------------


@dataclass(frozen=True)
class Steep(SFT):
    """A finite loss; the gradient of some samples is 0 times infinity, or very large."""

    where: tuple[str, ...] = ()
    factor: float = math.inf

    def __call__(self, batch):
        (name, (weight, value)), = super().__call__(batch).items()
        rows = batch.branches["target"].sum_B
        for at, signal in enumerate(batch.signals):
            if signal.sample in self.where:
                nothing = rows[at] - rows[at].detach()
                value = value + (torch.sqrt(nothing) if self.factor == math.inf
                                 else self.factor * nothing)
        return {name: (weight, value)}


@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize("where", [("s2",), ("s0", "s11", "s12")])
def test_a_gradient_that_is_not_finite_names_its_rows_whatever_the_micro_batches(where, budget):
    toy = engine()
    toy.learner.tokens_per_batch = budget
    before = toy.table.detach().clone()
    toy.forward_backward([shown(i) for i in range(13)], Steep(where=where), {})
    with pytest.raises(SelfloopError, match="the gradient norm became nan") as stopped:
        toy.optim_step(OPTIM, 0.1)
    assert {f"s{i}" for i in range(13) if f"sample s{i} (target)" in str(stopped.value)} \
        == set(where)
    assert torch.equal(toy.table, before) and toy.table.grad is None
    toy.forward_backward([shown(i) for i in range(13)], SFT(), {})  # and it can go on
    assert toy.optim_step(OPTIM, 0.1)["grad_norm"] > 0


def test_rows_of_several_passes_are_looked_through():
    toy = engine()
    toy.forward_backward([shown(0), shown(1)], SFT(), {})
    toy.forward_backward([shown(2), shown(3)], Steep(where=("s3",)), {})
    with pytest.raises(SelfloopError, match=r"it is that of sample s3 \(target\)"):
        toy.optim_step(OPTIM, 0.1)


def test_a_gradient_that_is_fine_when_computed_again_blames_no_row():
    toy = engine()
    toy.forward_backward([shown(0)], SFT(), {})
    toy.table.grad[0, 0, 0] = math.inf
    with pytest.raises(SelfloopError, match="computed again it is finite on every row"):
        toy.optim_step(OPTIM, 0.1)


def test_the_halving_finds_every_row_in_few_passes():
    draw = random.Random(0)
    for _ in range(200):
        n = draw.randint(1, 200)
        bad = set(draw.sample(range(n), min(n, draw.randint(1, 4))))
        asked_for: list[int] = []

        def norm(index, bad=bad, asked_for=asked_for):
            asked_for.append(len(index))
            return math.nan if bad & set(index) else 1.0

        found, alone = not_finite(norm, list(range(n)), tries=100)
        assert set(found) == bad and alone and len(asked_for) <= 101
        few, _ = not_finite(norm, list(range(n)), most=1)
        assert len(few) == 1 and set(few) <= bad
    assert not_finite(lambda index: 1.0, [0, 1]) == ([], True)
    assert not_finite(lambda index: math.nan if len(index) > 2 else 1.0, [0, 1, 2]) \
        == ([0, 1, 2], False)


# -- divergence ---------------------------------------------------------------------------------


def test_the_band():
    band = Band()
    assert not band.left(math.inf, 2.0), "not before it has seen enough"
    for _ in range(WARM):
        band.add(0.01)
    assert not band.left(100.0, 100.0) and band.left(100.1, 100.0), "it is at least 1 wide"
    band.add(50.0)
    assert not band.left(5000.0, 100.0) and band.left(5001.0, 100.0)
    for _ in range(230):
        band.add(0.0)
    assert 4.5 < band.top < 5.5, "and narrows tenfold in 230 updates"
    for _ in range(10_000):
        band.add(0.3)
    assert band.top == pytest.approx(0.3) and not band.left(99.0, 100.0)


def diverging(loss, optim=OPTIM):
    toy = engine()
    rows = [shown(i) for i in range(6)]
    for _ in range(WARM):
        learn(toy, rows, replace(loss, where=()), optim, "k")
    # the same loss by name: only where it is steep is new
    toy.learner.guard.bands = {
        what.replace(repr(replace(loss, where=())), repr(loss)): band
        for what, band in toy.learner.guard.bands.items()}
    before = toy.table.detach().clone()
    with pytest.raises(SelfloopError) as stopped:
        learn(toy, rows, loss, optim, "k")
    assert torch.equal(toy.table, before) and toy.table.grad is None
    return str(stopped.value)


def test_a_gradient_norm_that_leaves_its_band_names_the_heaviest_row():
    said = diverging(Steep(where=("s4",), factor=1e5))
    assert "learning diverges: the gradient norm of Steep" in said
    assert "more than 100 times its running band" in said
    assert "most comes from sample s4 (target) with gradient norm" in said


@dataclass(frozen=True)
class Heavy(SFT):
    """A loss that is very large on some samples, with an ordinary gradient."""

    where: tuple[str, ...] = ()

    def __call__(self, batch):
        (name, (weight, value)), = super().__call__(batch).items()
        more = sum(1e6 * (s.sample in self.where) for s in batch.signals)
        return {name: (weight, value + more)}


def test_a_loss_that_leaves_its_band_names_the_heaviest_row_and_can_be_allowed():
    said = diverging(Heavy(where=("s2",)))
    assert "learning diverges: the loss of Heavy" in said
    assert "most comes from sample s2 (target) with" in said and "raise Optim.diverged" in said
    toy = engine()
    for loss in [Heavy()] * WARM + [Heavy(where=("s1",))]:
        learn(toy, [shown(0), shown(1)], loss, replace(OPTIM, diverged=None), "k")


def test_bands_are_part_of_the_state(tmp_path):
    toy, other = engine(), engine()
    learn(toy, [shown(0)], SFT(), replace(OPTIM, updates=5), "k")
    toy.save_state(tmp_path)
    other.load_state(tmp_path)
    assert other.learner.guard.bands == toy.learner.guard.bands != {}
    other.restart()
    assert other.learner.guard.bands == {}


@pytest.mark.parametrize("more", [{"ema": 1.0}, {"ema": 0.0}, {"publish": "ema"},
                                  {"publish": "best"}, {"diverged": 1.0}])
def test_options_that_mean_nothing_are_refused(more):
    with pytest.raises(SelfloopError, match=rf"Optim\.{next(iter(more))}="):
        Optim(**more)


# -- a run that is stopped, and goes on -----------------------------------------------------------

BREAK = {"at": -1, "as": ""}
"""What breaks, and at which call: as memory that fails once would, outside of all settings."""


@dataclass(frozen=True)
class Fragile(SFT):
    def __call__(self, batch):
        (name, (weight, value)), = super().__call__(batch).items()
        BREAK["at"] -= 1
        if BREAK["at"] < 0 and BREAK["as"]:
            nothing = batch.branches["target"].sum_B.sum()
            nothing = nothing - nothing.detach()
            value = {"loss": value * math.nan, "gradient": value + torch.sqrt(nothing),
                     "divergence": value + 1e7 * nothing}[BREAK["as"]]
        return {name: (weight, value)}


def perform(folder, data, optim):
    loop = replace(toyland.loops()["seldom"], save_every=1, steps=3, iterations=1, learn={
        "solver": Learn(organizer=Chain(maker=Demonstrate()), loss=Fragile(), optim=optim)})
    toy = ToyEngine(("yes", "no", "left", "right", "easy", "hard"), seed=1)
    run(loop, toyland.samples(data, 12), toy, folder, dev=toyland.samples(data, 6, first=12),
        library=Library(folder / "images"))
    return toy


AVERAGED = Optim(lr=0.1, updates=4, batch=32, ema=0.9, publish="ema")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped, and its data."""
    place = tmp_path_factory.mktemp("whole")
    perform(place / "run", place / "data", AVERAGED)
    return place


@pytest.mark.parametrize(("kind", "message"), [
    ("loss", "the loss became nan on sample"), ("gradient", "the gradient norm became nan"),
    ("divergence", "learning diverges: the gradient norm")])
def test_a_stopped_run_resumes_to_the_bits_of_one_that_was_not(whole, tmp_path, kind, message):
    BREAK.update(at=9, **{"as": kind})  # in the third step of three
    with pytest.raises(SelfloopError, match=message):
        perform(tmp_path, whole / "data", AVERAGED)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir())[-1] == "000002", \
        "what was learned stays"
    BREAK.update(at=-1, **{"as": ""})
    perform(tmp_path, whole / "data", AVERAGED)
    assert contents(tmp_path) == contents(whole / "run")


# -- averaged weights ----------------------------------------------------------------------------


def test_the_average_is_the_formula_and_the_current_weights_learn_on():
    toy, plain = engine(), engine()
    average = toy.table.detach().clone()
    for number in range(4):
        learn(toy, [shown(number)], SFT(), replace(OPTIM, ema=0.8), f"{number}")
        learn(plain, [shown(number)], SFT(), OPTIM, f"{number}")
        average = 0.8 * average + 0.2 * toy.table.detach()
    assert torch.equal(toy.table, plain.table), "an average changes nothing about learning"
    with toy.at_version("ema"):
        assert torch.allclose(toy.table, average, rtol=1e-12)
    assert torch.equal(toy.table, plain.table)
    assert not toy.learner._served, "and nobody asked to publish it"


def test_a_published_average_is_drawn_from_kept_and_resumed(tmp_path):
    optim = replace(OPTIM, ema=0.5, publish="ema", updates=3)
    toy = engine()
    toy.publish(0, 1)
    seen = {}
    for version in (1, 2):
        learn(toy, [shown(version)], SFT(), optim, f"{version}")
        toy.publish(version, 1)
        with toy.at_version("ema"):
            seen[version] = toy.table.detach().clone()
    current = toy.table.detach().clone()
    for version, table in seen.items():
        assert not torch.equal(table, current)
        with toy.at_version(version):
            assert torch.equal(toy.table, table)
    with toy.at_version("current"):
        assert torch.equal(toy.table, current)
    request = Request(context=asked(1), key="k", n=1, sampling=Sampling(temperature=1.0))
    turn = toy.generate([request], 2)[0][0]
    with toy.at_version("ema"):
        expected = toy.logprobs([Branch(context=asked(1), turns=(turn,))])[0]
    assert list(turn.logprobs) == pytest.approx(expected, abs=1e-12)

    toy.save_state(tmp_path)
    from safetensors.torch import load_file
    assert torch.equal(load_file(tmp_path / "trainable.safetensors")["table"], seen[2]), \
        "a checkpoint's first file is what the version is"
    other = engine()
    other.load_state(tmp_path)
    for one in (toy, other):
        learn(one, [shown(3)], SFT(), optim, "3")
        one.publish(3, 1)
    assert torch.equal(toy.table, other.table)
    with toy.at_version(3), other.at_version(3):
        assert torch.equal(toy.table, other.table)
    other.restart()
    with other.at_version("ema"):
        assert torch.equal(other.table, engine().table), "a restart forgets the average"


# -- gradient norms by part -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llava(tmp_path_factory.mktemp("llava"))


def test_gradient_norms_by_part_add_up_and_follow_what_learns(folder):
    from selfloop.engines.hf import HFEngine

    rows = [Demonstration(branches={"target": Branch(context=pictured(i), text=str(i))},
                          sample=f"s{i}") for i in range(2)]
    for freeze, learns in ((), ("vision", "projector", "language")), \
            (("vision",), ("projector", "language")), \
            (("vision", "language"), ("projector",)):
        made = HFEngine(folder, device="cpu", freeze=freeze)
        made.bind(open_picture)
        made.forward_backward(rows, SFT(), {})
        by_hand = {part: math.sqrt(sum(float(p.grad.double().pow(2).sum())
                                       for n, p in made.trainable().items()
                                       if p.grad is not None and made.parts[n] == part))
                   for part in learns}
        found = made.optim_step(Optim(clip=0.5), 1e-4)
        assert set(found) == {"grad_norm", *(f"grad_norm_{part}" for part in learns)}
        for part, norm in by_hand.items():
            assert found[f"grad_norm_{part}"] == pytest.approx(norm, rel=1e-5) and norm > 0
        assert found["grad_norm"] == pytest.approx(math.hypot(*by_hand.values()), rel=1e-5)


def test_a_table_has_no_parts():
    toy = engine()
    toy.forward_backward(signals(toy, "advantage"), GRPO(), {})
    assert set(toy.optim_step(OPTIM, 0.1)) == {"grad_norm"}


def test_a_vlm_names_its_rows_too(folder):
    """Finite loss, gradient that is not, on the shared prefix path: two answers to a picture."""
    from selfloop.engines.hf import HFEngine

    made = HFEngine(folder, device="cpu", freeze=("vision", "projector"))
    made.bind(open_picture)
    rows = [Demonstration(branches={"target": Branch(context=pictured(i // 2), text=str(i))},
                          sample=f"s{i}") for i in range(4)]
    before = {n: p.detach().clone() for n, p in made.trainable().items()}
    made.forward_backward(rows, Steep(where=("s1",)), {})
    with pytest.raises(SelfloopError, match=r"it is that of sample s1 \(target\): look"):
        made.optim_step(OPTIM, 0.1)
    assert all(torch.equal(p, before[n]) for n, p in made.trainable().items())
    with torch.no_grad():
        made.model.get_output_embeddings().weight[made.encode("3")[0]] = math.nan
    with pytest.raises(SelfloopError, match=r"log-prob of target token 1 \(id \d+\) is nan"):
        made.forward_backward(rows, SFT(), {})


def test_the_learner_writes_what_it_needs_and_nothing_that_is_not_asked_for(tmp_path):
    toy = engine()
    learn(toy, [shown(0)], SFT(), OPTIM, "k")
    toy.save_state(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "learner.json", "optimizer.safetensors", "trainable.safetensors"]
    assert json.loads((tmp_path / "learner.json").read_text())["serves_average"] is False


def test_pairs_are_named_with_all_their_branches():
    toy = engine()
    pair = Pair(branches={"chosen": Branch(context=asked(0), text="yes"),
                          "rejected": Branch(context=asked(0), text="no")}, sample="p")
    with torch.no_grad():
        toy.table[:] = math.nan
    known = {(0, "chosen"): [0.0, 0.0], (0, "rejected"): [0.0, 0.0]}
    with pytest.raises(SelfloopError, match=r"sample p \(chosen, rejected\): term \w+, log-prob of "
                                            r"chosen token 1"):
        toy.forward_backward([pair], DPO(), {"reference": known})
