"""Reward models on digits: trained on the seed's answers, measured on held-out ones.

    python -m bench.reward_models --out runs/reward-models

An outcome model (Bradley-Terry on pairs) and a process model (cross-entropy on steps) are trained
from the shipped seed by the recipes; on pictures of unseen scans the seed draws answers, and the
models' scores are compared with the rule: pairs, AUC, best of n, beside the seed's own likelihood.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from selfloop.collect.drawing import draw
from selfloop.collect.independent import Independent
from selfloop.data import load
from selfloop.doors import Doors
from selfloop.engines.hf import HFEngine
from selfloop.evaluate.ranking import answer_auc, best_of, pair_accuracy, step_auc
from selfloop.loop import Loop
from selfloop.organize.judging import judge
from selfloop.organize.verify.gold_steps import GoldSteps, words_in
from selfloop.organize.verify.likelihood import SelfLikelihood
from selfloop.organize.verify.process import aggregate
from selfloop.organize.verify.reward_model import OutcomeReward, StepReward
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.recipes.process_reward import process_reward
from selfloop.recipes.reward_model import reward_model
from selfloop.running import run
from selfloop.testbeds import digits, tiny_vlm
from selfloop.types import Group, Rollout, Verdict

SEED = Path(tiny_vlm.__file__).parent / "seed"
LONGEST = 12
OUTCOME = {"n": 8, "per_sample": 8, "updates": 300, "batch": 32, "lr": 5e-4, "views": 0.5}
PROCESS = {"n": 4, "updates": 600, "batch": 64, "lr": 5e-4, "views": 0.3}


def trained(loop: Loop, folder: Path, train: Path) -> str:
    """The folder of the model that the loop trains from the seed."""
    engine = HFEngine(SEED, device="cpu")
    run(loop, load(train), engine, folder / loop.name)
    engine.save(folder / f"{loop.name}-model")
    return str(folder / f"{loop.name}-model")


def answers(dev: Path, n: int) -> list[Group]:
    """`n` answers of the seed to each question of the file."""
    engine = HFEngine(SEED, device="cpu")
    engine.bind(Library().open)
    engine.publish(0, 0)
    sampler = Independent(n=n, max_new_tokens=LONGEST)
    return draw(sampler, list(load(dev)), Doors({"solver": engine}, 0, "reward-models"), {})


def measured(groups: Sequence[Group], outcome: str, process: str) -> dict[str, dict[str, Any]]:
    """Every figure of every scorer, with intervals."""
    doors = Doors({}, 0, "judge")
    rule = judge(exact, groups, doors).groups
    steps = judge(GoldSteps(words_in), groups, doors).groups
    scorers = {"the seed's own likelihood": likely,
               "outcome reward model": OutcomeReward(outcome, device="cpu"),
               "process reward model, min": StepReward(process, "min", words_in, device="cpu")}
    judged = {name: judge(scorer, groups, doors).groups for name, scorer in scorers.items()}
    judged["process reward model, prod"] = [
        multiplied(g) for g in judged["process reward model, min"]]
    found: dict[str, dict[str, Any]] = {}
    for name, scored in judged.items():
        found[name] = {"pairs": pair_accuracy(rule, scored), "auc": answer_auc(rule, scored),
                       "best": best_of(rule, scored)}
        if "outcome" not in name:
            found[name]["steps"] = step_auc(steps, scored)
    found["the step's place alone"] = {"steps": step_auc(steps, by_place(steps))}
    found["any answer"] = {"best": best_of(rule, [alike(g) for g in rule])}
    return found


def likely(rollout: Rollout) -> Verdict:
    """The mean log-prob of an answer's tokens; each word, which is one token, has its own."""
    found = SelfLikelihood()(rollout)
    places = words_in(rollout.text)
    words = (found.token_scores or ())[:len(places)]
    spans = tuple((*p, math.exp(x)) for p, x in zip(places, words, strict=False))
    return found.model_copy(update={"spans": spans if len(spans) == len(places) else ()})


def by_place(groups: Sequence[Group]) -> list[Group]:
    """Each step scored by how often steps at its place are right: what needs no picture at all."""
    def kinds(rollout: Rollout) -> list[str]:
        words = rollout.text.split()
        end = words.index("=") if "=" in words else len(words)
        return [str(i) if i < end else "=" if i == end else "end"
                for i in range(len(words))]

    seen: dict[str, list[float]] = {}
    every = [(r, v) for g in groups for r, v in zip(g.rollouts, g.verdicts, strict=True)]
    for rollout, verdict in every:
        for kind, (_, _, right) in zip(kinds(rollout), verdict.spans, strict=True):
            seen.setdefault(kind, []).append(right)

    def scored(rollout: Rollout, verdict: Verdict) -> Verdict:
        return verdict.model_copy(update={"spans": tuple(
            (a, b, fmean(seen[kind])) for kind, (a, b, _) in
            zip(kinds(rollout), verdict.spans, strict=True))})

    return [g.model_copy(update={"verdicts": tuple(
        scored(r, v) for r, v in zip(g.rollouts, g.verdicts, strict=True))}) for g in groups]


def multiplied(group: Group) -> Group:
    """The product of the steps' scores as the score."""
    return _with_scores(group, lambda v: aggregate([s for *_, s in v.spans], "prod"))


def alike(group: Group) -> Group:
    """All answers scored alike: what one draw is worth."""
    return _with_scores(group, lambda v: None if v.score is None else 0.5)


def _with_scores(group: Group, score: Callable[[Verdict], float | None]) -> Group:
    return group.model_copy(update={"verdicts": tuple(
        v.model_copy(update={"score": score(v)}) for v in group.verdicts)})


def main() -> None:
    """Train, measure, print a table; figures.json beside the runs."""
    say = argparse.ArgumentParser(prog="python -m bench.reward_models")
    say.add_argument("--out", type=Path, default=Path("runs/reward-models"))
    say.add_argument("--train", type=int, default=1000, help="training problems")
    say.add_argument("--dev", type=int, default=200, help="held-out problems")
    say.add_argument("--n", type=int, default=4, help="held-out answers to each")
    asked = say.parse_args()
    digits.write(asked.out, "train", asked.train, seed=11)
    digits.write(asked.out, "test", asked.dev, seed=11)
    start = time.perf_counter()
    loops = [reward_model(exact, max_new_tokens=LONGEST, **OUTCOME),
             process_reward(steps="words", max_new_tokens=LONGEST, **PROCESS)]
    outcome, process = (trained(replace(loop, shard=100), asked.out, asked.out / "train.jsonl")
                        for loop in loops)
    seconds = time.perf_counter() - start
    found = measured(answers(asked.out / "test.jsonl", asked.n), outcome, process)
    print(f"trained in {seconds:.0f} s\n\n| scored by | pairs in order | AUC | best of {asked.n} "
          "right | AUC of steps |\n|---|---|---|---|---|")
    for name, figures in found.items():
        cells = (str(figures.get(f, "")) for f in ("pairs", "auc", "best", "steps"))
        print(f"| {name} | {' | '.join(cells)} |")
    (asked.out / "figures.json").write_text(json.dumps(
        {name: {f: asdict(share) for f, share in figures.items()}
         for name, figures in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
