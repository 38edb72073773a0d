"""`selfloop probe`: twenty questions, eight draws each: what a run can build on, before it starts.

Reads train and dev only. Every figure can be recomputed from the answers that are stored with it.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from selfloop import keys
from selfloop.collect.guided import STRUCTURES
from selfloop.config import RunConfig, build_engine, load_data
from selfloop.evaluate.answering import answer
from selfloop.evaluate.answers import Answer, expected_calibration_error, pass_at_k
from selfloop.evaluate.statistics import wilson
from selfloop.methods import verifier_named
from selfloop.organize.verify.rules import as_number
from selfloop.pictures import Library
from selfloop.roles import Engine, Sampling, SelfloopError, Verifier, name_of
from selfloop.store import put_json
from selfloop.types import Branch, Sample, digest

QUESTIONS, DRAWS = 20, 8
TOKENS = 64
"""Longest answer when options.max_new_tokens says nothing: the recipes' own default."""
ROOM = 4
"""Structured prompts make longer answers: so many times the length is left for them."""
AS_GIVEN = "as given"
"""The question as the run will ask it: as it is, or with the prompt of run.yaml."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Share:
    """k of n, with Wilson's 95 % interval: twenty questions leave much open."""

    k: int
    n: int

    @property
    def value(self) -> float:
        """k / n; NaN for none."""
        return self.k / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, 95 %."""
        return wilson(self.k, self.n)

    def __str__(self) -> str:
        if not self.n:
            return "unknown (no labels)"
        low, high = self.interval
        return f"{100 * self.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


@dataclass(frozen=True)
class Probed:
    """What twenty questions show. Shares are `Share`s; rates are per second on this machine."""

    identity: str
    """Of model, data, verifier and length: another config needs another probe."""
    questions: int
    draws: int
    labelled: float
    """Share of the train samples that have an answer."""
    train: int
    dev: int
    accuracy: Share
    """Greedy answers."""
    pass_at_draws: Share
    """Questions that at least one draw gets right."""
    vote: Share
    """Questions that the majority of draws gets right."""
    calibration_error: float | None
    """Mean gap between the vote's share and how often it is right; None without labels."""
    vote_share: float
    """Mean share of the draws that the winner has."""
    parsed: Share
    """Greedy answers that the verifier can read at all."""
    truncated: Share
    """Draws that were cut at max_new_tokens."""
    no_image: Share
    zero_variance: Share
    """Questions whose draws are all right or all wrong: a group reward teaches nothing there."""
    related: bool
    """Whether the samples carry related questions."""
    structures: dict[str, Share]
    """Greedy accuracy by prompt; "as given" is the question as the run will ask it."""
    machine: dict[str, float]
    """Rates, token counts and sizes: see `_measured`."""
    answers: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def best_structure(self) -> str:
        """The prompt with the most right answers; "as given" unless another has more."""
        return max(self.structures, key=lambda name: (self.structures[name].k,
                                                      name == AS_GIVEN))

    def to_json(self) -> dict[str, Any]:
        """Plain data; every share with its interval."""
        found: dict[str, Any] = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {**found, "best_structure": self.best_structure}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Probed:
        """The inverse of `to_json`."""
        own = {f.name: _shares(data[f.name]) for f in fields(cls)}
        return cls(**own)


def _plain(value: Any) -> Any:
    if isinstance(value, Share):
        return {"k": value.k, "n": value.n, "share": value.value if value.n else None,
                "interval": list(value.interval)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _shares(value: Any) -> Any:
    if isinstance(value, dict) and {"k", "n", "share"} <= value.keys():
        return Share(value["k"], value["n"])
    return {k: _shares(v) for k, v in value.items()} if isinstance(value, dict) else value


# -- the stored probe ----------------------------------------------------------------------------

def place(config: RunConfig) -> Path:
    """probe.json, beside run.yaml."""
    return config.home / "probe.json"


def identity(config: RunConfig) -> str:
    """Of what a probe measures: the model, the data files, the verifier, the length."""
    stamps = []
    for path in (config.data.train, config.data.dev):
        if path is not None and path.exists():
            stamps.append([str(path), path.stat().st_size, path.stat().st_mtime_ns])
    return digest([config.model_path, stamps, config.verifier, _length(config), config.dtype, config.prompt,
                   config.lora.model_dump() if config.lora else None])


def stored(config: RunConfig) -> Probed | None:
    """The probe beside run.yaml, if it is one of this model, data and verifier."""
    try:
        found = Probed.from_json(json.loads(place(config).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.identity == identity(config) else None


def _length(config: RunConfig) -> int:
    length = config.options.get("max_new_tokens", TOKENS)
    return int(length) if isinstance(length, int | float | str) else TOKENS


# -- probing ------------------------------------------------------------------------------------

def chosen(config: RunConfig, train: Sequence[Sample], dev: Sequence[Sample], n: int
           ) -> list[Sample]:
    """`n` questions, labelled first, one a cluster as far as they go, by a keyed shuffle."""
    pool = [*train, *dev]
    if not pool:
        raise SelfloopError(f"{config.data.train}: no samples to probe with")
    order = [pool[i] for i in keys.shuffled(len(pool), f"{config.seed}/probe")]
    seen: set[str] = set()
    first, rest = [], []
    for sample in order:
        fresh = sample.cluster not in seen
        seen.add(sample.cluster)
        (first if fresh else rest).append(sample)
    return sorted([*first, *rest], key=lambda s: s.answer is None)[:n]


def probe(config: RunConfig, *, questions: int = QUESTIONS, draws: int = DRAWS,
          engine: Engine | None = None, tell: Tell = lambda _: None, save: bool = True) -> Probed:
    """Ask the seed model; returns (and stores beside run.yaml) what it shows.

    Raises SelfloopError for bad data, model or verifier. Never reads the test split.
    """
    data = load_data(config.model_copy(update={"prompt": "as it is"}))
    train, dev = list(data.train), list(data.dev or ())
    asked = chosen(config, train, dev, questions)
    metric = verifier_named(config.verifier, config.home)
    if engine is None:
        tell(f"loading {config.model}")
        engine = build_engine(config)
    engine.bind(Library().open)
    engine.publish(0, 0)
    found, rates = _ask(config, asked, engine, metric, draws, tell)
    probed = Probed(
        identity=identity(config), questions=len(asked), draws=draws,
        labelled=sum(s.answer is not None for s in train) / max(1, len(train)),
        train=len(train), dev=len(dev), related=any("related" in s.meta for s in asked),
        **_figures(found, metric, draws, _length(config)),
        machine=rates | _sizes(engine),
        answers=[_short(a) for a in found])
    if save:
        put_json(place(config), probed.to_json())
    return probed


def _short(found: Answer) -> dict[str, Any]:
    return found.model_dump(include={"sample", "arm", "draw", "gold", "text", "parsed", "right",
                                     "tokens"})


def _ask(config: RunConfig, asked: Sequence[Sample], engine: Engine, metric: Verifier, draws: int,
         tell: Tell) -> tuple[list[Answer], dict[str, float]]:
    """Greedy, drawn, blind and structured answers, and how fast they came."""
    engines = {"solver": engine}
    length = _length(config)
    greedy = Sampling(temperature=0.0, max_new_tokens=length)
    plain, asked = asked, _ended(asked, config.prompt)

    def ask(arm: str, samples: Sequence[Sample], sampling: Sampling, n: int = 1) -> list[Answer]:
        tell(f"{arm}: {len(samples) * n} answers")
        return answer(samples, engines, 0, metric, sampling, n=n, arm=arm, seed=config.seed)

    found = ask("greedy", asked, greedy)
    began = time.perf_counter()
    drawn = ask("draws", asked, Sampling(max_new_tokens=length), draws)
    took = time.perf_counter() - began
    found += drawn + ask("no_image", asked, greedy)
    longer = Sampling(temperature=0.0, max_new_tokens=ROOM * length)
    for name in STRUCTURES:
        found += ask(name, _ended(plain, name), longer)
    return found, _measured(engine, asked, drawn, took)


def _ended(samples: Sequence[Sample], prompt: str) -> list[Sample]:
    if prompt == "as it is":
        return list(samples)
    return [s.model_copy(update={"prompt": STRUCTURES[prompt](s.context).prompt})
            for s in samples]


def _measured(engine: Engine, asked: Sequence[Sample], drawn: Sequence[Answer], took: float
              ) -> dict[str, float]:
    """Seconds a drawn token, seconds a token read, and mean lengths, timed just now."""
    render = getattr(engine, "render", None)
    prompts = [len(render(s.context)[0]) for s in asked] if render else [0]
    branches = [Branch(context=s.context, text=next(
        (a.parsed for a in drawn if a.sample == s.id and a.parsed), "0")) for s in asked[:8]]
    try:
        engine.logprobs(branches)  # the first call also pays for what is set up once
        began = time.perf_counter()
        engine.logprobs(branches)
        reading = (time.perf_counter() - began) / max(1, sum(prompts[:8]) + 2 * len(branches))
    except SelfloopError:  # an answer that cannot be scored costs an estimate, not the probe
        reading = math.nan
    tokens = sum(a.tokens for a in drawn)
    found = {
        "prompt_tokens": sum(prompts) / len(prompts),
        "answer_tokens": tokens / max(1, len(drawn)),
        "seconds_per_drawn_token": took / max(1, tokens),
        "seconds_per_read_token": reading,
        "flops_per_read_token": engine.flops(1, 0),
        "flops_per_trained_token": engine.flops(0, 1),
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _sizes(engine: Engine) -> dict[str, float]:
    """What memory depends on: parameters, width, layers, vocabulary, bytes a number."""
    model = getattr(engine, "model", None)
    config = getattr(model, "config", None)
    if model is None or config is None:
        return {}
    text = config.get_text_config(decoder=True)
    parameters = list(model.parameters())
    return {
        "parameters": float(sum(p.numel() for p in parameters)),
        "trainable": float(sum(p.numel() for p in parameters if p.requires_grad)),
        "bytes": float(parameters[0].element_size()),
        "width": float(text.hidden_size), "layers": float(text.num_hidden_layers),
        "vocabulary": float(text.vocab_size),
        "batch_tokens": float(getattr(engine, "max_batch_tokens", 32768)),
    }


# -- figures ------------------------------------------------------------------------------------

def readable(verifier: Verifier, found: Answer) -> bool:
    """Whether the answer has the form that the verifier looks for."""
    if found.parsed is None:
        return False
    rule = name_of(verifier).rpartition(":")[2]
    if rule == "number":
        return as_number(found.parsed) is not None
    words = found.parsed.lower().strip(" .()").split()
    if rule == "yes_no":
        return bool({"yes", "no"} & {w.strip(".,!") for w in words})
    if rule == "choice":
        return bool(words) and len(words[0].strip(".,:)(")) == 1
    return True


def _right(answers: Sequence[Answer]) -> Share:
    judged = [a.right for a in answers if a.right is not None]
    return Share(sum(judged), len(judged))


def _figures(found: Sequence[Answer], metric: Verifier, draws: int, length: int
             ) -> dict[str, Any]:
    arms: dict[str, list[Answer]] = {}
    for one in found:
        arms.setdefault(one.arm, []).append(one)
    groups: dict[str, list[Answer]] = {}
    for one in arms["draws"]:
        groups.setdefault(one.sample, []).append(one)
    drawn = list(groups.values())
    judged = [[a for a in group if a.right is not None] for group in drawn]
    judged = [group for group in judged if group]
    votes = [_vote(group) for group in drawn]
    known = [(share, right) for share, right in votes if right is not None]
    solved = [pass_at_k(len(g), sum(bool(a.right) for a in g), min(draws, len(g)))
              for g in judged]
    return {
        "accuracy": _right(arms["greedy"]),
        "pass_at_draws": Share(sum(p > 0.5 for p in solved), len(solved)),
        "vote": Share(sum(right for _, right in known), len(known)),
        "calibration_error": expected_calibration_error(
            [s for s, _ in known], [r for _, r in known]) if known else None,
        "vote_share": sum(s for s, _ in votes) / max(1, len(votes)),
        "parsed": Share(sum(readable(metric, a) for a in arms["greedy"]), len(arms["greedy"])),
        "truncated": Share(sum(a.tokens >= length for a in arms["draws"]), len(arms["draws"])),
        "no_image": _right(arms["no_image"]),
        "zero_variance": Share(sum(len({a.right for a in g}) == 1 for g in judged), len(judged)),
        "structures": {AS_GIVEN: _right(arms["greedy"]),
                       **{name: _right(arms[name]) for name in STRUCTURES}},
    }


def _vote(group: Sequence[Answer]) -> tuple[float, bool | None]:
    """(share of the winner, whether it is right; None when nothing could be judged)."""
    counts = Counter(a.parsed for a in group if a.parsed is not None)
    if all(a.right is None for a in group):
        right: bool | None = None
    else:
        right = False
    if not counts:
        return 0.0, right
    winner, count = counts.most_common(1)[0]
    verdict = next((a.right for a in group if a.parsed == winner and a.right is not None), right)
    return count / len(group), verdict


def as_dict(probed: Probed) -> dict[str, Any]:
    """For `--json`: everything but the single answers."""
    return {name: value for name, value in probed.to_json().items() if name != "answers"}


