"""`selfloop probe`: twenty questions, eight draws each: what a run can build on, before it starts.

Reads train and dev only. Every figure can be recomputed from the answers that are stored with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from selfloop import elsewhere, keys
from selfloop.casting import cast
from selfloop.collect.guided import STRUCTURES
from selfloop.config import RunConfig, build_engine, load_data
from selfloop.evaluate.answering import answer
from selfloop.evaluate.answers import Answer
from selfloop.machines import numbers
from selfloop.methods import verifier_named
from selfloop.organize.judging import alone
from selfloop.pictures import Library
from selfloop.probed import Probed, Share, as_dict, figures, identity, length_of, place, stored
from selfloop.roles import Engine, Sampling, SelfloopError, Verifier
from selfloop.store import put_json
from selfloop.types import Branch, Sample

__all__ = ["Probed", "Share", "as_dict", "chosen", "place", "probe", "stored"]

QUESTIONS, DRAWS = 20, 8
ROOM = 4
"""Structured prompts make longer answers: so many times the length is left for them."""
Tell = Callable[[str], None]


# -- probing ------------------------------------------------------------------------------------

def chosen(config: RunConfig, train: Sequence[Sample], dev: Sequence[Sample], n: int
           ) -> list[Sample]:
    """`n` questions, labelled first, one a cluster as far as they go, by a keyed shuffle."""
    pool = [*train, *dev]
    if not pool:
        raise SelfloopError(f"{config.data.train}: no samples to probe with")
    order = [pool[i] for i in keys.shuffled(len(pool), f"{config.seed}/probe")]
    seen: set[str] = set()
    first: list[Sample] = []
    rest: list[Sample] = []
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
    data = load_data(config.model_copy(update={"prompt": "as it is"}), asking=True)
    train, dev = list(data.train), list(data.dev or ())
    asked = chosen(config, train, dev, questions)
    metric = verifier_named(config.verifier, config.home)
    alone(metric)
    if engine is None:
        tell(f"loading {config.model}")
        engine = build_engine(config)
    engine.bind(Library().open)
    engine.publish(0, 0)
    found, rates = _ask(config, asked, _cast(config, engine), metric, draws, tell)
    probed = Probed(
        identity=identity(config), questions=len(asked), draws=draws,
        labelled=sum(s.answer is not None for s in train) / max(1, len(train)),
        train=len(train), dev=len(dev), related=any("related" in s.meta for s in asked),
        **figures(found, metric, draws, length_of(config)),
        machine=rates | _sizes(engine) | numbers(engine, asked),
        answers=[_short(a) for a in found])
    if save:
        put_json(place(config), probed.to_json())
    return probed


def _short(found: Answer) -> dict[str, object]:
    return found.model_dump(include={"sample", "arm", "draw", "gold", "text", "parsed", "right",
                                     "tokens"})


def _cast(config: RunConfig, engine: Engine) -> dict[str, Engine]:
    """The roles of run.yaml, for a verifier that asks a judge; answers are kept beside the file."""
    engines = cast(config, engine)
    for other in engines.values():
        other.bind(Library().open)
    elsewhere.keep_records(engines.items(), place(config).parent)
    return engines


def _ask(config: RunConfig, asked: Sequence[Sample], engines: dict[str, Engine],
         metric: Verifier, draws: int, tell: Tell) -> tuple[list[Answer], dict[str, float]]:
    """Greedy, drawn, blind and structured answers, and how fast they came."""
    engine = engines["solver"]
    length = length_of(config)
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
