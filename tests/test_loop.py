"""A loop is a value: checked when built, printable, with a fingerprint that means something."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace

import pytest

import toyland
from selfloop.collect.env import EnvSampler
from selfloop.collect.forced import FromGold
from selfloop.collect.hinted import Rationalise
from selfloop.collect.independent import Independent
from selfloop.collect.search import TreeSearch
from selfloop.engines.toy import ToyEngine
from selfloop.evaluate.gate import Gate
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.distill import ReverseKL
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.preference import DPO, MDPO
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.signals import (
    BestWorst,
    Demonstrate,
    GroupAdvantage,
    Privileged,
    Supervise,
    SuperviseAnswers,
    Views,
)
from selfloop.organize.verify.combine import AllOf, Weighted
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.vote import MajorityVote
from selfloop.recipes.star import star
from selfloop.recipes.supervised import supervised
from selfloop.roles import Optim, Sampling, SelfloopError
from selfloop.running import run
from selfloop.stepping import plan
from selfloop.store import RunFolder

DRAW = Independent(n=4, max_new_tokens=3)


def toy(seed: int = 1) -> ToyEngine:
    """Few words, so that some answers are right and there is something to learn."""
    return ToyEngine(("yes", "no"), seed=seed)


def build(maker=None, loss=None, *, optim=None, organizer=None, **options) -> Loop:
    organizer = organizer or Chain(maker=maker or Demonstrate())
    how = Learn(organizer=organizer, loss=loss or SFT(), optim=optim or Optim(lr=0.1))
    return Loop(**{"name": "test", "sampler": DRAW, "verifier": exact, "learn": {"solver": how},
                   "gate": None, **options})


def refused(*names: str):
    """SelfloopError whose one line holds every name."""
    return pytest.raises(SelfloopError, match="".join(f"(?=.*{re.escape(n)})" for n in names))


async def wants_weather(generate, sample, weather):
    return await generate(sample)


def judges_too_early(rollout, generate):
    return generate(rollout.context)


def judges_both(rollout, group):
    return True


def organizes_alone(groups, state):
    return [], {}, {}


def wants_clock(groups, state, clock):
    return [], {}, {}


def a_closure(limit):
    def inner(rollout):
        return len(rollout.text) < limit
    return inner


# -- refusals -----------------------------------------------------------------------------------

def test_arguments_that_are_never_given_are_refused():
    with refused("sampler", "wants_weather", "'weather'", "guidance"):
        build(sampler=wants_weather)
    with refused("organizer", "wants_clock", "'clock'", "answers"):
        build(organizer=wants_clock)
    with refused("judges_too_early", "`generate`", "async def"):
        build(verifier=judges_too_early)
    with refused("judges_both", "`rollout`", "`group`"):
        build(verifier=judges_both)


@pytest.mark.parametrize(("maker", "loss"), [
    (BestWorst(), SFT()), (Demonstrate(), DPO()), (BestWorst(), MDPO()), (Demonstrate(), GRPO()),
    (GroupAdvantage(), DPO()), (Privileged(), GRPO()), (GroupAdvantage(), ReverseKL()),
    (Views(Demonstrate()), DPO()), (Demonstrate(), Mix(((1.0, DPO()), (1.0, GRPO())))),
])
def test_losses_that_cannot_read_the_makers_signals_are_refused(maker, loss):
    with refused("organizer", "Chain", type(loss).__name__, "cannot read"):
        build(maker, loss)


@pytest.mark.parametrize(("maker", "loss"), [
    (BestWorst(), SFT("chosen")), (BestWorst(corrupted="crop"), MDPO()), (BestWorst(), DPO()),
    (BestWorst(corrupted="crop"), DPO()), (GroupAdvantage(), GRPO()), (Privileged(), ReverseKL()),
    (BestWorst(), Mix(((1.0, DPO()), (0.1, SFT("chosen"))))),
])
def test_those_that_can_are_accepted(maker, loss):
    assert build(maker, loss).name == "test"


def makes_nothing_known(groups, key):
    return Demonstrate()(groups, key)


def test_a_plain_function_may_make_signals():
    assert build(makes_nothing_known, SFT()).learn["solver"].organizer.makes == ()


def test_what_has_no_stable_name_is_refused():
    for verifier in (lambda rollout: True, AllOf((exact, lambda rollout: True))):
        with refused("lambda", "module-level function"):
            build(verifier=verifier)
    with refused("a_closure", "frozen dataclass"):
        build(verifier=a_closure(3))
    with refused("partial", "frozen dataclass"):
        build(verifier=functools.partial(exact, answer="7"))


def test_staleness_and_restarts_do_not_go_together():
    with refused("'solver'", "start='seed'", "max_staleness=1"):
        build(max_staleness=1, optim=Optim(start="seed"))


def test_waves_need_somebody_who_wants_them():
    with refused("max_waves=2", "organizes_alone", "wants"):
        build(organizer=organizes_alone, max_waves=2)


@pytest.mark.parametrize("options", [
    {"iterations": 0}, {"steps": 0}, {"shard": 0}, {"samples": 0}, {"max_staleness": -1},
    {"save_every": 0}, {"learn": {}}, {"sampler": None},
])
def test_senseless_numbers_are_refused(options):
    with pytest.raises(SelfloopError):
        build(**options)


def test_roles_without_engines_gates_without_dev_and_empty_data_are_refused(tmp_path):
    data = toyland.samples(tmp_path / "data", 4)
    two = {"judge": ToyEngine(), "critic": ToyEngine()}
    with refused("'solver'", "critic", "judge"):
        run(build(), data, two, tmp_path / "a")
    gated = build(gate=Gate(), evaluation=Evaluation(metric=exact))
    with refused("'test'", "gate", "dev"):
        run(gated, data, ToyEngine(), tmp_path / "b")
    with refused("empty"):
        run(build(), [], ToyEngine(), tmp_path / "c")


# -- printing and fingerprints ------------------------------------------------------------------

def test_repr_is_stable_and_without_addresses():
    again = toyland.loops()
    for name, loop in toyland.loops().items():
        text = repr(loop)
        assert text == repr(again[name])
        assert "0x" not in text and " at " not in text
    text = repr(star(exact, n=5))
    assert "n=5" in text and "selfloop.organize.verify.rules:exact" in text


def test_a_fingerprint_is_of_what_is_computed():
    base = star(exact)
    same = [star(exact), replace(base, iterations=9), replace(base, save_every=3),
            replace(base, max_errors=0.5)]
    assert {loop.fingerprint() for loop in same} == {base.fingerprint()}
    others = [star(exact, n=9), star(exact, lr=2e-5), star(exact, seed=1), star(exact, views=0.0),
              star(MajorityVote(), exact), replace(base, samples=7), replace(base, shard=8),
              star(exact, max_new_tokens=9), replace(base, gate=Gate(alpha=0.01)),
              star(AllOf((exact,))), star(exact, temperature=0.9), replace(base, steps=2)]
    prints = [loop.fingerprint() for loop in others]
    assert len({base.fingerprint(), *prints}) == len(others) + 1


def test_a_fingerprint_changes_with_a_components_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    prints = []
    for number, body in enumerate(("True", "False", "True")):
        path = tmp_path / f"edited_{number}.py"
        path.write_text(f"def verify(rollout):\n    return {body}\n")
        module = __import__(f"edited_{number}")
        module.verify.__module__ = "edited"
        prints.append(star(module.verify, exact).fingerprint())
    assert prints[0] == prints[2] != prints[1]


def test_a_fingerprint_does_not_depend_on_the_process():
    import os
    import subprocess
    import sys
    code = ("from selfloop.recipes.star import star; "
            "from selfloop.organize.verify.rules import exact; print(star(exact).fingerprint())")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           env={**os.environ, "PYTHONHASHSEED": "7"}, check=True)
    assert found.stdout.strip() == star(exact).fingerprint()


# -- labels -------------------------------------------------------------------------------------

SEEN: list = []


@dataclass(frozen=True)
class Watching:
    """Notes what it was given."""

    def __call__(self, rollout, sample, **more):
        SEEN.append((sample.answer, sample.rationale, sorted(more)))
        return rollout.text.startswith("yes")


@dataclass(frozen=True)
class Nosy:
    """Names the answer and the rationale."""

    def __call__(self, rollout, sample, answer, rationale):
        SEEN.append((sample.answer, answer, rationale))
        return rollout.text.startswith(answer)


def watching_organizer(groups, state, key):
    SEEN.append({(g.sample.answer, g.sample.rationale) for g in groups})
    return Demonstrate()(groups, key), {}, {}


def watching_wants(groups):
    SEEN.append({(g.sample.answer, g.sample.rationale) for g in groups})
    return 0


watching_organizer.wants = watching_wants


def labels(tmp_path, loop, relabel=lambda s: s):
    """(labels_full, labels_answer_only) of the loop on six samples, and what components saw."""
    SEEN.clear()
    data = [relabel(s) for s in toyland.samples(tmp_path / "data", 6)]
    found = run(replace(loop, iterations=1), data, toy(), tmp_path / "run")
    return (found[-1].labels_full, found[-1].labels_answer_only), list(SEEN)


def test_components_that_do_not_name_the_answer_never_see_it(tmp_path):
    counted, seen = labels(tmp_path, build(verifier=Watching(), organizer=watching_organizer))
    assert counted == (0, 0)
    assert {s for s in seen if isinstance(s, tuple) for s in [s[:2]]} == {(None, None)}
    assert [s for s in seen if isinstance(s, set)] == [{(None, None)}, {(None, None)}]


@pytest.mark.parametrize("wrap", [
    lambda v: v, lambda v: AllOf((v,)), lambda v: AllOf((Watching(), AllOf((v,)))),
    lambda v: Weighted(((0.5, Watching()), (0.5, v))),
], ids=["bare", "AllOf", "nested", "Weighted"])
def test_naming_reaches_through_wrappers_and_is_counted(tmp_path, wrap):
    counted, seen = labels(tmp_path, build(verifier=wrap(exact)))
    assert counted == (0, 6)
    assert all(s[:2] == (None, None) for s in seen), "the sample itself is always stripped"
    counted, seen = labels(tmp_path / "nosy", build(verifier=wrap(Nosy())))
    assert counted == (6, 0), "a full label holds the answer, and is counted once"
    assert {s[1:] for s in seen if s[0] is None and s[1] is not None} == {
        ("yes", "yes"), ("no", "no")}


@pytest.mark.parametrize(("organizer", "expected"), [
    (Chain(maker=Privileged()), (0, 6)),
    (Chain(maker=Views(Supervise())), (6, 0)), (Chain(maker=SuperviseAnswers()), (0, 6)),
])
def test_labels_that_organizers_read_are_counted(tmp_path, organizer, expected):
    loss = ReverseKL() if isinstance(organizer.maker, Privileged) else SFT()
    assert labels(tmp_path, build(organizer=organizer, loss=loss, verifier=None))[0] == expected


def test_only_labels_that_exist_are_counted(tmp_path):
    def half(sample):
        index = int(sample.media[0].meta["uri"].split("/")[-1].split(".")[0])
        return sample if index % 2 else sample.unlabelled().model_copy(update={"answer": None})

    assert labels(tmp_path, build(), half)[0] == (0, 3)
    assert labels(tmp_path / "free", build(verifier=MajorityVote()))[0] == (0, 0)
    assert labels(tmp_path / "gold", supervised(exact, updates=2))[0] == (6, 0)


# -- which problems a step draws ----------------------------------------------------------------

@pytest.mark.parametrize(("n", "wanted"), [(12, 8), (12, 5), (7, 7), (5, 9), (10, 1)])
def test_a_step_draws_nobody_twice_and_passes_visit_everybody(n, wanted):
    steps = [plan(n, wanted, s, 0, 0, ()) for s in range(4 * n)]
    assert all(len(set(s)) == len(s) == min(n, wanted) for s in steps)
    assert steps == [plan(n, wanted, s, 0, 0, ()) for s in range(4 * n)]
    counts = [sum(s.count(i) for s in steps) for i in range(n)]
    assert min(counts) > 0 and max(counts) - min(counts) <= max(2, len(steps) // 4)
    assert plan(n, wanted, 0, 0, 1, ()) != steps[0] or n == 1
    used = steps[0]
    assert not set(plan(n, 3, 0, 1, 0, used)) & set(used)


# -- one folder, one run ------------------------------------------------------------------------

def small(**options) -> Loop:
    return build(evaluation=Evaluation(metric=exact, sampling=Sampling(
        temperature=0.0, max_new_tokens=3)), optim=Optim(lr=0.1, updates=3), samples=4,
        **{"iterations": 2, "steps": 2, **options})


def weights(folder, version):
    return (RunFolder(folder).checkpoint(version) / "solver" / "trainable.safetensors").read_bytes()


def test_a_finished_run_is_extended_as_if_it_had_been_longer(tmp_path):
    data, dev = toyland.samples(tmp_path / "d", 8), toyland.samples(tmp_path / "d", 6, first=8)

    def go(loop, where):
        return run(loop, data, toy(), tmp_path / where, dev=dev)

    short = go(small(gate=Gate()), "a")
    longer = go(small(gate=Gate(), iterations=4), "a")
    whole = go(small(gate=Gate(), iterations=4), "b")
    assert longer[:2] == short and longer == whole
    assert weights(tmp_path / "a", 8) == weights(tmp_path / "b", 8) != weights(tmp_path / "a", 0)
    assert RunFolder(tmp_path / "a").checkpoints() == RunFolder(tmp_path / "b").checkpoints()


def test_a_used_engine_starts_a_new_run_from_its_seed(tmp_path):
    data = toyland.samples(tmp_path / "d", 8)
    engine = toy()
    for where in ("a", "b"):
        run(small(max_staleness=1), data, engine, tmp_path / where)
    assert weights(tmp_path / "a", 4) == weights(tmp_path / "b", 4)
    assert weights(tmp_path / "a", 4) != weights(tmp_path / "a", 0)


def test_a_run_stopped_by_its_budget_goes_on_where_it_was(tmp_path):
    data = toyland.samples(tmp_path / "d", 8)
    run(small(), data, toy(), tmp_path / "whole")
    # Each call makes one step, however small its budget; the last also sees that all is done.
    done = [len(run(small(save_every=9), data, toy(), tmp_path / "cut", budget=1e-9))
            for _ in range(4)]
    assert done == [0, 1, 1, 2]
    assert weights(tmp_path / "cut", 4) == weights(tmp_path / "whole", 4)
    assert weights(tmp_path / "cut", 4) != weights(tmp_path / "cut", 0)
    kinds = [e["event"] for e in RunFolder(tmp_path / "cut").events()]
    assert "stopped" in kinds and kinds[-1] == "finished"


def test_another_loop_or_other_data_are_refused_in_the_same_folder(tmp_path):
    data = toyland.samples(tmp_path / "d", 8)
    run(small(), data, toy(), tmp_path / "a")
    with refused("another loop", "seed was 0, is 1", "verifier was", "another name"):
        run(small(verifier=AllOf((exact,)), seed=1), data, toy(), tmp_path / "a")
    with refused("other data"):
        run(small(), data[:-1], toy(), tmp_path / "a")
    with refused("other engines"):
        run(small(), data, toy(2), tmp_path / "a")


@dataclass(frozen=True)
class AlwaysBack(Gate):
    """Rolls every iteration back but the second, which it promotes."""

    def __call__(self, candidate, best, look, monitors=None, before=None):
        decision = super().__call__(candidate, best, look, monitors, before)
        action = "promote" if look == 1 else "roll back"
        return decision.model_copy(update={"action": action})


@pytest.mark.parametrize("stale", [0, 1, 2])
def test_a_rollback_goes_on_from_the_promoted_weights_under_new_numbers(tmp_path, stale):
    data, dev = toyland.samples(tmp_path / "d", 8), toyland.samples(tmp_path / "d", 6, first=8)
    loop = small(gate=AlwaysBack(), iterations=4, max_staleness=stale)

    class Spy(ToyEngine):  # notes which checkpoints are loaded
        starts: list = []

        def load_state(self, folder):
            self.learner.load_state(folder)
            self.starts.append(int(folder.parent.name))

    spy = Spy(("yes", "no"), seed=1)
    done = run(loop, data, spy, tmp_path / "a", dev=dev)
    assert [i.version for i in done] == [2, 4, 6, 8]
    assert [i.best for i in done] == [0, 4, 4, 4]
    assert [i.continue_from for i in done] == [0, 4, 4, 4]
    assert spy.starts[1:] == [0, 0, 4, 4], "after the seed's evaluation"
    folder = RunFolder(tmp_path / "a")
    assert [folder.manifest(s)["drawn_by"] for s in range(8)] == [
        max(0, s - stale) for s in range(8)]
    assert set(folder.checkpoints()) == {0, 4, 8}


def test_dev_is_not_answered_by_who_is_told_the_gold_values() -> None:
    """A second chance with the label as a hint would score on dev what it was told there."""
    shared = {"name": "x", "sampler": Independent(**toyland.SHORT), "verifier": exact,
              "learn": {"solver": Learn(organizer=Chain(maker=Demonstrate()), loss=SFT())}}
    for told in (Rationalise(exact), FromGold(n=1), TreeSearch(exact)):
        with pytest.raises(SelfloopError, match=r"Evaluation.sampler .* reads .*gold values"):
            Loop(**shared, evaluation=Evaluation(metric=exact, sampler=told))
    with pytest.raises(SelfloopError, match=r"Evaluation\(draws=4\) with the sampler"):
        Loop(**shared, evaluation=Evaluation(metric=exact, draws=4, sampler=EnvSampler(
            toyland.TwoTurns, n=1)))
    played = Loop(**shared, evaluation=Evaluation(metric=exact, sampler=EnvSampler(
        toyland.TwoTurns, n=1)))
    assert played.asks == {"learn", "history"}, "what dev needs of the engine is asked for, too"
