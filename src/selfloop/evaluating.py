"""`selfloop eval`: models on benchmarks, every figure with its interval, two models paired.

A folder holds one model's answers to one set, asked in one way; figures are made from it again
whenever they are asked for, under any tool's rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from selfloop import answer_types
from selfloop.data import load, save
from selfloop.evaluate import benchmarks as native
from selfloop.evaluate.answers import Answer
from selfloop.evaluate.asking import Plan, Tell, ask, described
from selfloop.evaluate.benchmark import OWN, Benchmark, Mark, Way, as_it_is, mean_score
from selfloop.evaluate.comparing import Difference, adjusted, compare
from selfloop.evaluate.scoring import Score, mark, score
from selfloop.methods import verifier_named
from selfloop.organize.judging import alone
from selfloop.pictures import Library
from selfloop.roles import Engine, SelfloopError, as_verdict, call_by_name, name_of
from selfloop.store import put_json
from selfloop.types import Rollout, Sample, Turn, Verdict

SETS = ("digits", "scenes", "scenes-broken", "scenes-shifted")
"""The testbeds, which need no files; scenes with its usual colours broken, or another domain."""


@dataclass(frozen=True)
class Given:
    """One set of questions, as it was named: a benchmark and its samples."""

    name: str
    benchmark: Benchmark
    samples: Mapping[str, Sample]


@dataclass
class Evaluated:
    """What one model reached on every set."""

    model: str
    scores: dict[str, Score] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)


# -- what is asked -----------------------------------------------------------------------------

def given(on: str, *, images: Path | None = None, split: str | None = None,
          limit: int | None = None, verifier: str | None = None, folder: Path | None = None
          ) -> Given:
    """A set by its name: `pope=coco_pope_random.json`, `digits`, or `my_questions.jsonl`.

    `images` is where pictures lie that the files name. One's own questions are marked by
    `verifier` (module:name), by default the rule that fits their answers. `limit` takes the
    first questions. Raises SelfloopError for names, files and rows that do not fit.
    """
    name, _, path = on.partition("=")
    if on in SETS:
        return _testbed(on, folder or Path("runs/eval/data"), limit)
    if not path and name in native.NAMES:
        raise SelfloopError(f"--on {name}: where are its files? Give {name}=PATH "
                            f"({native.benchmark(name).layout}); nothing is downloaded")
    if path:
        benchmark = native.benchmark(name)
        found = load(benchmark.rows(path, split), root=images, limit=limit)
        if found.merged:
            note = f"{found.merged} rows asked the same of the same picture and were merged"
            benchmark = replace(benchmark, notes=(*benchmark.notes, note))
    else:
        found = load(on, split=split, root=images, limit=limit)
        benchmark = own_questions(Path(on).stem, list(found), verifier)
    samples = {s.id: s for s in found}
    return Given(benchmark.name, benchmark, samples)


def own_questions(name: str, samples: Sequence[Sample], verifier: str | None = None) -> Benchmark:
    """Anybody's labelled questions as a benchmark, marked by a rule verifier.

    Raises SelfloopError when no question has an answer.
    """
    if all(s.answer is None for s in samples):
        raise SelfloopError(f"{name}: no question has an answer, so nothing can be marked")
    rule = verifier_named(verifier or answer_types.infer([s.answer for s in samples]).verifier,
                          Path.cwd())
    alone(rule)
    way = Way(ask=as_it_is, mark=partial(_by_rule, rule), extractor=name_of(rule),
              styles=(), max_new_tokens=64)
    return Benchmark(name=name, title=name, source="one's own data", layout="any rows that "
                     "selfloop reads", row=dict, ways={OWN: way}, count=mean_score)


def _by_rule(rule: Callable[..., Any], text: str, sample: Sample) -> Verdict:
    """A rule verifier's verdict on a text, as `Mark` gives it."""
    from selfloop.types import Part

    rollout = Rollout(id="stored", sample=sample.id, context=sample.context,
                      turns=(Turn(token_ids=()),), output=(Part(text=text),))
    return as_verdict(call_by_name(rule, rollout=rollout, sample=sample, answer=sample.answer,
                                   rationale=sample.rationale), name_of(rule))


def _testbed(name: str, folder: Path, limit: int | None) -> Given:
    from importlib import import_module

    bed_name, _, split = name.partition("-")
    bed = import_module(f"selfloop.testbeds.{bed_name}")
    path = folder / name / f"{split or 'test'}.jsonl"
    if not path.exists():
        bed.write(path.parent, split or "test", 1192, 1)
    found = load(path, limit=limit)
    made = own_questions(name, list(found), "selfloop.organize.verify.rules:exact")
    made = replace(made, source=f"selfloop.testbeds.{bed_name}, {split or 'test'} split")
    if bed_name == "scenes":
        from selfloop.evaluate.testbed_figures import count

        made = replace(made, count=count)
    return Given(name, made, {s.id: s for s in found})


# -- models ------------------------------------------------------------------------------------

def engine_of(model: str, **options: Any) -> Engine:
    """A model by its name: "embedded", "scenes" (the testbeds' seeds), a run (what it promoted),
    or a folder that from_pretrained reads. Raises SelfloopError for a run without a promotion."""
    from selfloop.demo import SEED, make_engine
    from selfloop.engines.hf import HFEngine

    if model == "embedded":
        return make_engine()
    path = SEED.parent / "scenes_seed" if model == "scenes" else Path(model)
    for run in (path, path / "loop", Path("runs") / model, Path("runs") / model / "loop"):
        if (run / "loop.json").exists():
            path = _promoted(run)
            break
    engine = HFEngine(str(path), **options)
    engine.name = model
    return engine


def _promoted(run: Path) -> Path:
    best = sorted(p.parent for p in (run / "best").glob("*/config.json"))
    if not best:
        adapters = list((run / "best").glob("*/adapter_config.json"))
        raise SelfloopError(
            f"{run}: its best model is a set of adapters; merge them with `selfloop export {run} "
            "--merge` and give that folder" if adapters else
            f"{run} has promoted nothing: evaluate its seed, or a version of it that `selfloop "
            f"export {run} --version N` writes")
    return next((p for p in best if p.name == "solver"), best[0])


# -- the work ----------------------------------------------------------------------------------

def evaluate(model: str | Engine, sets: Sequence[Given], plan: Plan, folder: Path,
             tell: Tell = lambda _: None) -> Evaluated:
    """One model on every set; the same call goes on after an interruption.

    `folder`/MODEL/SET holds the questions, the answers with their whole texts and `score.json`.
    """
    engine = engine_of(model) if isinstance(model, str) else model
    engine.bind(Library().open)
    engine.publish(0, 0)
    found = Evaluated(engine.name)
    for one in sets:
        place = folder / _slug(engine.name) / _slug("-".join(
            [one.name, *([] if plan.rules == OWN else [plan.rules]),
             *([plan.style] if plan.style else [])]))
        samples = list(one.samples.values())
        asked = ask(one.benchmark, samples, engine, plan, place, tell)
        marked, errors = mark(plan.way(one.benchmark), one.samples, asked.answers)
        how = described(one.benchmark, samples, plan, one.name)
        read = sum(a.tokens for a in marked) + sum(a.read for a in marked if a.draw == 0)
        made = score(one.benchmark.under(plan.rules), one.samples, marked, how, errors=len(errors),
                     seconds=asked.seconds, flops=engine.flops(read, 0),
                     notes=[f"a rule failed: {e}" for e in errors[:3]])
        save(samples, place / "questions.jsonl")
        put_json(place / "score.json", {"model": engine.name, **made.to_json()})
        found.scores[one.name], found.answers[one.name] = made, marked
    return found


def paired(a: Evaluated, b: Evaluated, sets: Sequence[Given], *, how: str = "holm",
           alpha: float = 0.05) -> list[Difference]:
    """The two models on every set, p-values corrected over the sets."""
    each = [compare(one.benchmark, one.samples, a.answers[one.name], b.answers[one.name],
                    alpha=alpha) for one in sets]
    return adjusted(each, {one.benchmark.name: one.benchmark for one in sets}, how=how,
                    alpha=alpha)


def style_gains(found: Sequence[Evaluated], sets: Sequence[Given], plan: Plan,
                styles: Sequence[str], folder: Path, tell: Tell = lambda _: None, *,
                how: str = "holm", alpha: float = 0.05) -> list[Difference]:
    """Each structured prompt against the question as it is, corrected over all of them."""
    each: list[Difference] = []
    benchmarks: dict[str, Benchmark] = {}
    for style in styles:
        shaped = replace(plan, style=style, no_image=False, draws=0, corruptions=())
        for plain in found:
            other = evaluate(plain.model, sets, shaped, folder, tell)
            for one, difference in zip(sets, paired(other, plain, sets), strict=True):
                name = f"{one.name}, {style}" + (f", {plain.model}" if len(found) > 1 else "")
                each.append(replace(difference, benchmark=name))
                benchmarks[name] = one.benchmark
    return adjusted(each, benchmarks, how=how, alpha=alpha)


def remarked(folder: str | Path, rules: str, benchmark: Benchmark | None = None,
             mark_with: Mark | None = None) -> Score:
    """The figures of stored answers under another tool's rules; the model is not asked again.

    `folder` is one that `evaluate` wrote. Prompt and decoding stay those of the answers, which
    the score's `how` says.
    """
    from selfloop.evaluate import answers as files
    from selfloop.evaluate.scoring import How

    place = Path(folder)
    if not (place / "score.json").exists():
        raise SelfloopError(f"{place}: no score.json: give a folder that `selfloop eval` wrote")
    stored = json.loads((place / "score.json").read_text(encoding="utf-8"))
    known = benchmark or native.benchmark(str(stored["benchmark"]))
    way = known.way(rules)
    if mark_with is not None:
        way = replace(way, mark=mark_with)
    samples = {s.id: s for s in load(place / "questions.jsonl")}
    found = [a for p in sorted((place / "answers").glob("*.parquet")) for a in files.read(p)]
    marked, errors = mark(way, samples, found)
    how = replace(How(**stored["how"]), extractor=way.extractor, judge=way.judge,
                  fallback=way.fallback, rules=rules)
    return score(known.under(rules), samples, marked, how, errors=len(errors),
                 seconds=stored["seconds"], flops=stored["flops"])


def as_json(found: Sequence[Evaluated], differences: Sequence[Difference]) -> dict[str, Any]:
    """Everything that the command prints, as plain values."""
    return {"models": [{"model": e.model, "scores": [s.to_json() for s in e.scores.values()]}
                       for e in found],
            "differences": [asdict(d) for d in differences]}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", name).strip("-") or "model"
