"""A verifier in a process of its own: same verdicts, and what goes wrong stays with its row."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

import toyland
from selfloop.calling import parameters, reads
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Learn, Loop
from selfloop.methods import verifier_named
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.signals import Demonstrate
from selfloop.organize.verify.outside import Outside, OutsideError
from selfloop.organize.verify.rules import exact
from selfloop.roles import Optim, SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Group, Message, Part, Rollout, Sample, Turn, Verdict

CODE = '''
import ctypes, os, socket, sys, time
from dataclasses import dataclass
from selfloop.types import Verdict

print("importing is noisy")

def judge(rollout, answer):
    """Misbehaves as it is told by what it judges."""
    said = rollout.text
    if said == "none": return None
    if said == "raise": raise ValueError("cannot read " + said)
    if said == "hang": time.sleep(60)
    if said == "die": os._exit(7)
    if said == "crash": ctypes.string_at(0)
    if said == "flood": print("x" * 3_000_000)
    if said == "long": return Verdict(score=1.0, rationale="y" * 3_000_000)
    if said == "eat": bytearray(4 << 30)
    if said == "call": socket.create_connection(("203.0.113.1", 80), 0.5)
    if said == "key": return Verdict(score=0.0, rationale=os.environ.get("MY_TOKEN", "no token"))
    if said == "pid": return Verdict(score=0.0, rationale=str(os.getpid()))
    if said == "forge": os.write(1, b'{"verdicts": [{"score": 1.0}]}\\n'); return 0
    if said == "nan": return float("nan")
    return Verdict(score=float(said == answer), rationale=said, parts={"length": len(said)})

def vote(group):
    texts = [r.text for r in group.rollouts]
    return [None if not t else texts.count(t) > 1 for t in texts]

def marks(group):
    return group.model_copy(update={"annotations": {"n": len(group.rollouts)}, "verdicts": tuple(
        Verdict(score=1.0) for _ in group.rollouts)})

async def waits(rollout):
    return rollout.text == "yes"

def asks(rollout, generate): ...

@dataclass(frozen=True)
class Built:
    def __call__(self, sample):
        return sample.answer is None

def word(rollout, answer):
    """Fails on one answer in a way that takes the process with it."""
    if rollout.text.startswith("no no"): os._exit(3)
    if rollout.text.startswith("yes yes"): return None
    return rollout.text.split()[:1] == [answer]
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "third_party.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MY_TOKEN", "s3cret")


@pytest.fixture
def judge():
    made = Outside("third_party:judge", seconds=3, memory=2 << 30)
    yield made
    made.close()


ASKED = Sample(prompt=(Message(content="what is it?"),), answer="cat")


def says(text: str) -> Rollout:
    return Rollout(id=f"r-{text}", sample=ASKED.id, context=ASKED.context,
                   turns=(Turn(token_ids=(1,)),), output=(Part(text=text),))


def test_score_abstention_and_error_come_back_as_such(judge):
    right = judge(rollout=says("cat"), answer="cat")
    assert right == Verdict(score=1.0, rationale="cat", parts={"length": 3.0},
                            verifier="third_party:judge")
    assert judge(rollout=says("dog"), answer="cat").score == 0
    unknown = judge(rollout=says("none"), answer="cat")
    assert unknown.score is None and not unknown.error
    with pytest.raises(OutsideError, match="third_party:judge: ValueError: cannot read raise"):
        judge(rollout=says("raise"), answer="cat")
    with pytest.raises(OutsideError, match="finite"):
        judge(rollout=says("nan"), answer="cat")


@pytest.mark.parametrize(("said", "why"), [
    ("hang", "no verdict within 0.5 s"), ("die", "ended with status 7"),
    ("crash", "ended by signal 11"), ("flood", "more than 1,000,000 bytes"),
    ("long", "more than 1,000,000 bytes"), ("eat", "MemoryError"),
    ("call", "connection to 203.0.113.1 was stopped"),
])
def test_one_bad_row_does_not_spoil_the_next(said, why):
    judge = Outside("third_party:judge", seconds=0.5 if said == "hang" else 10,
                    memory=2 << 30)
    before = judge(rollout=says("pid"), answer="cat").rationale
    with pytest.raises(OutsideError, match=why):
        judge(rollout=says(said), answer="cat")
    if said not in ("eat", "call"):
        assert not Path(f"/proc/{before}").exists(), "the old worker is gone"
    assert judge(rollout=says("cat"), answer="cat").right
    judge.close()


def test_what_the_verifier_prints_is_no_verdict(judge):
    assert judge(rollout=says("forge"), answer="cat").score == 0
    assert judge(rollout=says("cat"), answer="cat").score == 1


def test_the_environment_is_given_by_name(judge):
    assert judge(rollout=says("key"), answer="").rationale == "no token"
    named = Outside("third_party:judge", environment=("MY_TOKEN",))
    assert named(rollout=says("key"), answer="").rationale == "s3cret"
    named.close()


def test_it_declares_what_the_verifier_names(judge):
    assert set(parameters(judge)) == {"rollout", "answer"} and reads(judge) == {"answer"}
    vote = Outside("third_party:vote")
    assert set(parameters(vote)) == {"group"} and not reads(vote)
    group = Group(sample=ASKED, rollouts=(says("a"), says("a"), says("b"), says("")))
    assert [v.score for v in vote(group=group)] == [1, 1, 0, None]
    found = Outside("third_party:marks")(group=group)
    assert found.annotations == {"n": 4} and len(found.verdicts) == 4
    assert Outside("third_party:waits")(rollout=says("yes")).right
    assert Outside("third_party:Built")(sample=ASKED.unlabelled()).right


def test_a_rule_says_the_same_outside():
    outside = Outside("selfloop.organize.verify.rules:exact")
    for text, gold in (("cat", "cat"), ("dog", "cat"), ("", "cat"), ("cat", None), ("é\n\"", "é")):
        inside = exact(says(text), answer=gold)
        told = outside(rollout=says(text), answer=gold)
        score = inside.score if isinstance(inside, Verdict) else inside
        assert told.score == (None if score is None else float(score)), (text, gold)
    outside.close()


def test_a_mended_verifier_has_another_fingerprint(tmp_path):
    before = Outside("third_party:waits")
    (tmp_path / "third_party.py").write_text(CODE.replace('== "yes"', '== "Yes"'))
    after = Outside("third_party:waits")
    assert before.source != after.source and before.source.startswith("third_party:waits#")


@pytest.mark.parametrize(("make", "said"), [
    (lambda: Outside("third_party:missing"), "'third_party:missing'.*no attribute 'missing'"),
    (lambda: Outside("no_such_module:x"), "No module named 'no_such_module'"),
    (lambda: Outside("third_party:asks"), "names `generate`"),
    (lambda: Outside("third_party:judge", seconds=0), "above 0"),
])
def test_what_cannot_work_is_refused_when_it_is_built(make, said):
    with pytest.raises(SelfloopError, match=said):
        make()


def test_a_worker_that_is_not_started_in_time_is_told(tmp_path):
    (tmp_path / "slow_party.py").write_text("import time; time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(SelfloopError, match="within 1 s"):
        Outside("slow_party:x", start_seconds=1)
    assert time.monotonic() - began < 5


def test_memory_is_limited_unless_switched_off(tmp_path):
    judge = Outside("third_party:judge")
    assert judge.memory == 2 << 30
    with pytest.raises(OutsideError, match="MemoryError"):
        judge(rollout=says("eat"), answer="cat")
    judge.close()
    (tmp_path / "with_torch.py").write_text(
        "import torch\ndef f(rollout): return float(torch.ones(3).sum() == 3)\n")
    found = Outside("with_torch:f")
    assert found(rollout=says("x")).score == 1, "torch maps much and fills little"
    found.close()


@pytest.mark.parametrize(("said", "limits"), [
    ("", {"memory": 2 << 30, "seconds": 30.0}), (" memory=none", {"memory": None}),
    (" memory=3GiB seconds=5", {"memory": 3 << 30, "seconds": 5.0}),
    (" memory=128MiB network=a.org,b.org environment=MY_TOKEN", {
        "memory": 128 << 20, "network": ("a.org", "b.org"), "environment": ("MY_TOKEN",)}),
    (" output=2000 start_seconds=60", {"output": 2000, "start_seconds": 60.0})])
def test_limits_in_run_yaml(tmp_path, said, limits):
    found = verifier_named(f"outside:third_party:waits{said}", tmp_path)
    assert {n: getattr(found, n) for n in limits} == limits
    assert found(rollout=says("yes")).right
    found.close()


@pytest.mark.parametrize("said", ["memory=much", "second=5", "seconds=soon", "memory=4TiB"])
def test_limits_that_are_none_are_named(tmp_path, said):
    with pytest.raises(SelfloopError, match=f"'{said}' is no limit; write seconds=60"):
        verifier_named(f"outside:third_party:waits {said}", tmp_path)


def test_by_name_in_run_yaml(tmp_path):
    found = verifier_named("outside:third_party:judge", tmp_path)
    assert isinstance(found, Outside) and found(rollout=says("cat"), answer="cat").right
    found.close()


def test_through_a_whole_run(tmp_path):
    """Verdict, abstention and a dying worker, told apart on disk."""
    verifier = Outside("third_party:word")
    loop = Loop(name="outside", sampler=toyland.Independent(n=6, max_new_tokens=3),
                verifier=verifier, iterations=1, gate=None, max_errors=0.9, learn={
                    "solver": Learn(organizer=Chain(maker=Demonstrate()), loss=SFT(),
                                    optim=Optim(lr=0.1, updates=2))})
    assert loop.labels_read == {"verifier": {"answer"}}
    run(loop, toyland.samples(tmp_path / "data", 6), ToyEngine(("yes", "no"), seed=1),
        tmp_path / "run")
    groups = RunFolder(tmp_path / "run").groups(0)
    seen = set()
    for group in groups:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            if rollout.text.startswith("no no"):
                seen.add("error")
                assert verdict.error and "status 3" in verdict.rationale
                assert rollout.id in verdict.rationale and group.sample.id in verdict.rationale
            elif rollout.text.startswith("yes yes"):
                seen.add("unknown")
                assert verdict.score is None and not verdict.error
            else:
                seen.add("judged")
                assert verdict.right == (rollout.text.split()[:1] == [group.sample.answer])
    assert seen == {"error", "unknown", "judged"}
    verifier.close()


def test_two_at_once_are_served_in_turn(judge):
    async def both():
        return await asyncio.gather(*(asyncio.to_thread(
            judge, rollout=says(t), answer="cat") for t in ("cat", "dog", "none", "cat") * 5))
    scores = [v.score for v in asyncio.run(both())]
    assert scores == [1.0, 0.0, None, 1.0] * 5


def test_the_worker_ends_with_its_parent(tmp_path):
    code = ("from selfloop.organize.verify.outside import Outside\n"
            "print(Outside('selfloop.organize.verify.rules:exact')._worker.process.pid)")
    import subprocess
    import sys
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for _ in range(50):
        if not Path(f"/proc/{said.stdout.strip()}").exists():
            return
        time.sleep(0.1)
    os.kill(int(said.stdout), 9)
    pytest.fail("the worker outlived its parent")
