"""The door: batches are formed by rule, failures name who failed, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from selfloop.collect.drawing import draw
from selfloop.doors import Doors, user
from selfloop.roles import Sampling, SelfloopError
from selfloop.types import Context, Sample, Turn

SAMPLES = [Sample(prompt=user(f"question {i}")) for i in range(12)]


class Recorder:
    """Answers at once and remembers what it was asked, batch by batch."""

    supports = frozenset({"learn"})

    def __init__(self):
        self.batches: list[list[str]] = []

    def generate(self, requests, version):
        assert version == 5
        self.batches.append([r.key for r in requests])
        return [[Turn(token_ids=(1,)) for _ in range(r.n)] for r in requests]

    def decode(self, token_ids):
        return "word"


def doors(engine=None, **more):
    return Doors(more or {"solver": engine}, 5, "0/1.0")


def within(seconds, work):
    """Fail, rather than hang the whole test run, when something waits for ever."""
    result: list = []

    def target():
        try:
            result.append((work(), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, f"still waiting after {seconds} s"
    if result[0][1] is not None:
        raise result[0][1]
    return result[0][0]


async def slow(generate, sample, key):
    """Calls one after the other and side by side, after delays that differ from run to run."""
    await asyncio.sleep(random.random() * 0.02)
    first = await generate(sample, n=2)
    await asyncio.sleep(random.random() * 0.02)
    if int(sample.context.text.split()[1]) % 3 == 0:
        return first
    both = await asyncio.gather(generate(sample, label="left"),
                                generate(sample, label="right", sampling=Sampling(top_k=2)))
    return [*first, *both[0], *both[1]]


def test_batches_do_not_depend_on_when_jobs_become_ready():
    seen = []
    for attempt in range(4):
        random.seed(attempt)
        engine = Recorder()
        groups = within(20, lambda e=engine: draw(slow, SAMPLES, doors(e), {}))
        seen.append((engine.batches, [[r.id for r in g.rollouts] for g in groups]))
    assert all(s == seen[0] for s in seen)
    batches = seen[0][0]
    assert [len(b) for b in batches] == [12, 16], "everybody's first call, then the gathered ones"
    order = [key.split("/")[2] for key in batches[0]]
    assert order == [s.id for s in SAMPLES]
    assert [k.rsplit(".", 1)[1] for k in batches[1][:2]] == ["left", "right"]


def test_keys_name_seed_step_sample_role_version_and_call():
    engine = Recorder()
    group = within(10, lambda: draw(slow, SAMPLES[:2], doors(engine), {}))[1]
    assert engine.batches[0][0] == f"0/1.0/{SAMPLES[0].id}/solver@5/collect.0"
    assert len({r.id for r in group.rollouts}) == 4
    assert {r.policy_version for r in group.rollouts} == {5}
    assert {r.sample for r in group.rollouts} == {SAMPLES[1].id}


def test_roles_go_to_their_engines_in_one_batch_each():
    async def both(generate, sample):
        asked, solved = await asyncio.gather(
            generate(sample, role="proposer"), generate(sample, role="solver"))
        return [*asked, *solved]

    solver, proposer = Recorder(), Recorder()
    within(10, lambda: draw(both, SAMPLES, doors(solver=solver, proposer=proposer), {}))
    assert [len(b) for b in solver.batches] == [len(b) for b in proposer.batches] == [12]
    with pytest.raises(SelfloopError, match=r"no engine plays the role 'proposer'.*solver"):
        within(10, lambda: draw(both, SAMPLES, doors(solver=solver, judge=proposer), {}))


def plain(generate, sample):
    """A plain function; its `generate` simply returns."""
    first = generate(sample, n=2)
    return [*first, *generate(sample.context, label="again")]


def test_plain_functions_work_however_many_wait():
    """More of them than Python's default pool has threads: with fewer, all would wait."""
    engine = Recorder()
    many = [Sample(prompt=user(f"q {i}")) for i in range(70)]
    groups = within(20, lambda: draw(plain, many, doors(engine), {}))
    assert [len(b) for b in engine.batches] == [70, 70]
    assert all(len(g.rollouts) == 3 for g in groups)


async def fails_async(generate, sample):
    if sample.id == SAMPLES[3].id:
        raise KeyError("no such thing")
    await generate(sample)
    await generate(sample)
    return await generate(sample)


def fails_plain(generate, sample):
    generate(sample)
    if sample.id == SAMPLES[3].id:
        raise KeyError("no such thing")
    generate(sample)
    return generate(sample)


@pytest.mark.parametrize("sampler", [fails_async, fails_plain])
def test_a_failing_sampler_stops_the_others_and_is_named_with_its_sample(sampler):
    """The others were waiting for further answers, which nobody would ever give them."""
    with pytest.raises(SelfloopError) as caught:
        within(15, lambda: draw(sampler, SAMPLES, doors(Recorder()), {}))
    for what in (sampler.__name__, SAMPLES[3].id, "KeyError", "no such thing"):
        assert what in str(caught.value)


def test_an_engine_that_fails_is_heard():
    class Broken(Recorder):
        def generate(self, requests, version):
            raise RuntimeError("out of memory")

    with pytest.raises(SelfloopError, match="out of memory"):
        within(10, lambda: draw(slow, SAMPLES, doors(Broken()), {}))


def test_what_is_no_list_of_rollouts_is_refused():
    async def wrong(generate, sample):
        return "yes"

    with pytest.raises(SelfloopError, match=f"returned str for sample {SAMPLES[0].id}"):
        within(10, lambda: draw(wrong, SAMPLES, doors(Recorder()), {}))


def test_it_works_inside_a_running_event_loop():
    async def notebook_cell():
        return draw(slow, SAMPLES[:4], doors(Recorder()), {})

    groups = within(10, lambda: asyncio.run(notebook_cell()))
    assert len(groups) == 4

    async def failing_cell():
        return draw(fails_async, SAMPLES, doors(Recorder()), {})

    with pytest.raises(SelfloopError, match="fails_async"):
        within(10, lambda: asyncio.run(failing_cell()))


def test_samplers_see_no_gold_unless_they_name_it():
    seen = []

    async def blind(generate, sample, guidance):
        seen.append((sample.answer, sample.rationale, dict(guidance)))
        return await generate(sample)

    async def told(generate, sample, answer):
        seen.append((sample.answer, answer))
        return await generate(sample)

    labelled = Sample(prompt=user("q"), answer="7", rationale="so 7")
    for sampler in (blind, told):
        group = within(10, lambda s=sampler: draw(s, [labelled], doors(Recorder()), {"g": 1}))[0]
        assert group.rollouts[0].sample == labelled.id and group.sample.answer == "7"
    assert seen == [(None, None, {"g": 1}), (None, "7")]


def test_a_context_of_its_own_keeps_the_samples_lineage():
    async def elsewhere(generate, sample):
        return await generate(Context(prompt=user("something else")))

    group = within(10, lambda: draw(elsewhere, SAMPLES[:1], doors(Recorder()), {}))[0]
    assert group.rollouts[0].context.text == "something else"
    assert group.rollouts[0].sample == SAMPLES[0].id
