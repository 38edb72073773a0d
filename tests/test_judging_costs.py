"""What judges will ask: counted against hand-made figures, and against what a run really asks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clidata import with_splits
from scripted import asked
from selfloop import floor
from selfloop.config import RunConfig, load_config
from selfloop.costs import Stage, counts
from selfloop.floor import Machine, Shape
from selfloop.judging_costs import CLAIMS, Judging, asked_for, judging, over_budget, with_judging
from selfloop.methods import build_loop
from selfloop.organize.verify.asking import ask
from selfloop.organize.verify.claims import ClaimCheck
from selfloop.organize.verify.judges import PairwiseJudge, PointwiseJudge, ReferenceJudge
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.vote import MajorityVote
from selfloop.planning import plan
from selfloop.roles import Sampling
from test_probing import made

SAMPLES = [asked(f"question {i} ?") for i in range(4)]
SHORT = Sampling(temperature=0.0, max_new_tokens=24)


def requests(verifier: Any, answers: int) -> dict[str, float]:
    found, why = asked_for(verifier, SAMPLES, answers, words=5)
    assert not why
    return {role: tally.requests for role, tally in found.items()}


@pytest.mark.parametrize(("verifier", "answers", "expected"), [
    (exact, 8, {}), (MajorityVote(), 8, {}), (None, 8, {}), (PointwiseJudge(), 0, {}),
    (PointwiseJudge(), 8, {"judge": 8}), (PointwiseJudge(n=3), 8, {"judge": 24}),
    (PointwiseJudge(canary="all right"), 8, {"judge": 16}),
    (ReferenceJudge(PointwiseJudge(role="critic")), 2, {"critic": 2}),
    (PairwiseJudge(), 4, {"judge": 12}),                      # 6 pairs, both orders
    (PairwiseJudge(opponents=1), 4, {"judge": 8}),            # 4 around the ring
    (ClaimCheck(n=2), 1, {"splitter": 1, "checker": 6}),      # three claims, twice each
])
def test_requests_of_one_problem(verifier: Any, answers: int, expected: dict[str, float]) -> None:
    assert requests(verifier, answers) == expected


def test_tokens_of_one_problem() -> None:
    found, _ = asked_for(PointwiseJudge(n=2, sampling=SHORT), SAMPLES, 3, words=5)
    tally = found["judge"]
    assert tally.drawn == 3 * 2 * 24 and tally.pictures == 3 * 2
    longer, _ = asked_for(PointwiseJudge(n=2, sampling=SHORT), SAMPLES, 3, words=105)
    assert longer["judge"].letters - tally.letters == 3 * 2 * 100 * len("word ")
    assert CLAIMS.count("\n") == 2


async def own(generate: Any, rollout: Any, sample: Any) -> bool:
    """A verifier of the user's own: two questions an answer."""
    for name in ("one", "two"):
        await ask(generate, name, (), "critic", SHORT, name)
    return True


async def fails(generate: Any, rollout: Any) -> bool:
    raise RuntimeError("no such word")


def test_a_verifier_of_ones_own_is_counted_and_one_that_fails_is_named() -> None:
    assert requests(own, 4) == {"critic": 8}
    found, why = asked_for(fails, SAMPLES, 1, 5)
    assert not found and "fails" in why and "no such word" in why


# -- whole runs -----------------------------------------------------------------------------------

JUDGED = """\
from selfloop.organize.verify.judges import PointwiseJudge
from selfloop.roles import Sampling
judge = PointwiseJudge(sampling=Sampling(temperature=0.0, max_new_tokens=24))
"""


def configured(tmp_path: Path, engine: str, *overrides: str) -> RunConfig:
    path = with_splits(tmp_path)
    (tmp_path / "judging.py").write_text(JUDGED)
    path.write_text(path.read_text() + f"engines:\n  judge: {engine}\n")
    return load_config(path, ["verifier=judging:judge", *overrides])


SERVER = "{model: m, base_url: 'http://127.0.0.1:9/v1', concurrency: 5, token_budget: 1000}"
PRICED = SERVER[:-1] + ", prices: {prompt: 1, completion: 2}, budget: 0.001}"


def test_a_priced_server(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    config = configured(tmp_path, PRICED)
    found = plan(config, made())
    (one,) = found.judges
    n = counts(build_loop(config), made())
    # Every draw, every dev answer with and without its picture, and the reward of the greedy ones.
    assert one.requests == round(n.problems * 2 + n.asked + n.blind + n.asked)
    assert one.most_drawn == 24 * one.requests and one.pictures and one.model == "m"
    assert one.dollars == pytest.approx((one.prompt_tokens + 2 * one.most_drawn) / 1e6)
    assert one.rounds == -(-one.requests // 5) and one.floor is None
    assert any("engines.judge.budget is $0.001" in note for note in found.notes)
    assert any("token_budget is 1,000" in note for note in found.notes)
    assert any(note.startswith("judge (m): ") and "at most $" in note for note in found.notes)
    assert any("pictures in what the judge is asked" in what for what in found.uncounted)
    verify = next(s for s in found.stages if s.name == "verify")
    assert verify == Stage("verify"), "what a server computes is not this machine's"


def test_a_server_without_prices_costs_nothing_that_is_known(tmp_path: Path, monkeypatch: Any
                                                             ) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (one,) = plan(configured(tmp_path, SERVER), made()).judges
    assert one.dollars is None and "$" not in str(one) and "in a row" in str(one)


def test_the_model_as_its_own_judge_is_in_the_verify_stage(tmp_path: Path, monkeypatch: Any
                                                           ) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    config, shape, machine = configured(tmp_path, "model"), Shape(
        1e6, bytes=4, layers=2, query=64, kv=64), Machine(1e10, 1e9)
    n = counts(build_loop(config), made())
    (one,), unknown = judging(build_loop(config), config, n, SAMPLES, shape, machine)
    assert not unknown and one.model == "" and one.rounds is None
    least = floor.rollouts(machine, shape, prompts=one.requests, group=1, answer=1.0,
                           prompt=one.prompt_tokens / one.requests, batch=one.requests)
    assert one.floor == pytest.approx(least.seconds) and one.flops == pytest.approx(least.flops)
    stages = with_judging((Stage("verify"), Stage("total", read=10, floor=1.0)), [one])
    assert stages[0].read == one.prompt_tokens and stages[1].read == 10 + one.prompt_tokens
    assert stages[1].floor == pytest.approx(1.0 + least.seconds)
    assert not over_budget([one], config)


def test_rules_ask_nothing(tmp_path: Path) -> None:
    found = plan(load_config(with_splits(tmp_path)), made())
    assert found.judges == () and not any("requests" in note for note in found.notes)


def test_what_is_planned_is_what_a_run_asks(tmp_path: Path, monkeypatch: Any) -> None:
    """The verify stage of a real run on the embedded model, request by request."""
    from selfloop.collect.drawing import draw
    from selfloop.collect.independent import Independent
    from selfloop.data import load
    from selfloop.doors import Doors
    from selfloop.engines.toy import ToyEngine
    from selfloop.organize.judging import judge

    class Counting(ToyEngine):
        asked = 0

        def generate(self, given: Any, version: int) -> Any:
            Counting.asked += sum(r.n for r in given)
            return super().generate(given, version)

    from selfloop.pictures import Library

    with_splits(tmp_path)
    engine = Counting(list("0123456789"))
    engine.bind(Library().open)
    samples = list(load(tmp_path / "train" / "train.jsonl"))[:5]
    doors = Doors({"solver": engine}, 0, "s")
    groups = draw(Independent(n=3, max_new_tokens=2), samples, doors, {})
    said = sum(bool(r.text.strip()) for g in groups for r in g.rollouts)
    Counting.asked = 0
    judge(PointwiseJudge(sampling=SHORT), groups, doors)
    planned = requests(PointwiseJudge(sampling=SHORT), 3)["judge"] * len(samples)
    assert Counting.asked == said <= planned == 15, "empty answers are judged unasked"


def test_it_reads_well() -> None:
    one = Judging("judge", "m", 1200, 480_000, 307_200, True, dollars=1.5, rounds=150)
    assert re.fullmatch(r"judge \(m\): 1,200 requests, 480,000 tokens asked, at most 307,200 "
                        r"answered, at most \$1\.50; 150 times a server's answer in a row",
                        str(one))
    assert "the model itself" in str(replace(one, model=""))
