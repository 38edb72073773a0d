"""Ask one model a benchmark's questions, shard by shard: what was answered is never lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfloop import store
from selfloop.corruptions import OPERATIONS
from selfloop.evaluate import answers as files
from selfloop.evaluate.answering import answer
from selfloop.evaluate.answers import Answer
from selfloop.evaluate.benchmark import OWN, Benchmark, Way, styled
from selfloop.evaluate.monitors import DRAWS, NO_IMAGE
from selfloop.evaluate.scoring import GREEDY, How
from selfloop.roles import Engine, Sampling, SelfloopError
from selfloop.types import Context, Sample, digest

SHARD = 256
SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Where a robustness curve is measured; 0 is the picture as it is."""
ROOM = 512
"""Longest answer under a structured prompt, which asks for more than the final answer."""
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a benchmark is asked."""

    rules: str = OWN
    style: str | None = None
    """A structured prompt of selfloop.collect.guided.STRUCTURES; None = as it is."""
    no_image: bool = True
    draws: int = 0
    """Answers at temperature 1 beside the greedy one, for pass@k and maj@k."""
    corruptions: tuple[str, ...] = ()
    """Picture operations whose severity is raised step by step."""
    max_new_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [c for c in self.corruptions if c not in OPERATIONS]
        if unknown:
            raise SelfloopError(f"no picture operation {unknown[0]!r}; there are "
                                f"{', '.join(sorted(OPERATIONS))}")
        if self.style is not None and self.rules != OWN:
            raise SelfloopError(f"style={self.style!r} with the rules of {self.rules}: the prompt "
                                "is part of those rules; leave one of the two out")

    def way(self, benchmark: Benchmark) -> Way:
        """The rules. Raises SelfloopError for a style that the benchmark does not offer."""
        way = benchmark.way(self.rules)
        if self.style is not None and way.styles and self.style not in way.styles:
            raise SelfloopError(f"{benchmark.name} is not asked {self.style!r}: its styles are "
                                f"{', '.join(way.styles)}")
        return way

    def tokens(self, way: Way) -> int:
        """The longest answer."""
        room = max(way.max_new_tokens, ROOM) if self.style not in (None, "direct") \
            else way.max_new_tokens
        return self.max_new_tokens or room

    def arms(self) -> dict[str, tuple[str, float] | None]:
        """Arm -> the corruption and its severity, if it has one."""
        found: dict[str, tuple[str, float] | None] = {GREEDY: None}
        if self.no_image:
            found[NO_IMAGE] = None
        if self.draws:
            found[DRAWS] = None
        for name in self.corruptions:
            found |= {f"{name} {severity:g}": (name, severity) for severity in SEVERITIES}
        return found


@dataclass
class Asked:
    """What a model answered, and what it cost."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    """Earlier calls included."""
    kept: int = 0
    """Answers that were there from an earlier, interrupted call."""


def described(benchmark: Benchmark, samples: Sequence[Sample], plan: Plan, name: str) -> How:
    """The six things, as they are stored with the score."""
    way = plan.way(benchmark)
    example = _shown(way, plan, GREEDY, None, benchmark.name)(samples[0])
    marks = digest([s.id for s in samples])
    return How(
        data=f"{name}: {len(samples)} questions, {marks}", prompt=example.text,
        decoding=f"greedy, at most {plan.tokens(way)} tokens",
        extractor=way.extractor, judge=way.judge, fallback=way.fallback, rules=plan.rules,
        style=plan.style or "as it is")


def _unmarked() -> None:
    """Marks nothing: answers are marked afterwards, from their stored text."""


def _shown(way: Way, plan: Plan, arm: str, corrupted: tuple[str, float] | None, key: str
           ) -> Callable[[Sample], Context]:
    ask = styled(plan.style, way.ask)

    def shown(sample: Sample) -> Context:
        context = ask(sample)
        if arm == NO_IMAGE:
            return context.without_media()
        if corrupted is None:
            return context
        name, severity = corrupted
        return context.seen_as(tuple(
            m.with_op(name, severity, f"{key}/{sample.id}/{i}")
            for i, m in enumerate(context.media)))

    return shown


def ask(benchmark: Benchmark, samples: Sequence[Sample], engine: Engine, plan: Plan,
        folder: Path, tell: Tell = lambda _: None) -> Asked:
    """Every arm's answers to every question; shards that `folder` holds are not asked again.

    The folder belongs to one model, one set and one way of asking: what it was made for is
    written to `asked.json`, and SelfloopError is raised when that differs.
    """
    way = plan.way(benchmark)
    _same(folder, {
        "model": engine.fingerprint(), "data": digest([s.id for s in samples]),
        "rules": plan.rules, "style": plan.style, "seed": plan.seed,
        "max_new_tokens": plan.tokens(way), "prompt": described(
            benchmark, samples, plan, "").prompt})
    found, costs = Asked(), folder / "seconds.json"
    seconds = json.loads(costs.read_text(encoding="utf-8")) if costs.exists() else {}
    for arm, corrupted in plan.arms().items():
        drawn = arm == DRAWS
        sampling = Sampling(temperature=1.0 if drawn else 0.0, max_new_tokens=plan.tokens(way))
        shown = _shown(way, plan, arm, corrupted, f"{plan.seed}/{benchmark.name}")
        for at in range(0, len(samples), SHARD):
            chunk = samples[at:at + SHARD]
            stem = f"{arm.replace(' ', '-')}{plan.draws if drawn else ''}-{at // SHARD:04d}"
            path = folder / "answers" / f"{stem}.parquet"
            if path.exists():
                own = files.read(path)
                found.kept += len(own)
            else:
                began = time.monotonic()
                own = answer(list(chunk), {"solver": engine}, engine.version, _unmarked, sampling,
                             n=plan.draws if drawn else 1, arm=arm, seed=plan.seed, shown=shown)
                seconds[stem] = time.monotonic() - began
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write(path, own)
                store.put_json(costs, seconds)
            found.answers += own
            found.seconds += seconds.get(stem, 0.0)
            tell(f"{benchmark.name}: {arm}, {min(at + SHARD, len(samples))} of {len(samples)}")
    return found


def _same(folder: Path, identity: Mapping[str, Any]) -> None:
    path = folder / "asked.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if known is None:
        folder.mkdir(parents=True, exist_ok=True)
        store.put_json(path, dict(identity))
        return
    differs = [name for name, value in identity.items() if known.get(name) != value]
    if differs:
        raise SelfloopError(
            f"{folder} holds answers with another {', '.join(differs)}: give another --out, or "
            "delete the folder to ask again")
