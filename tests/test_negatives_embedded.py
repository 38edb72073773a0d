"""Negatives of every cause on the embedded model, whose own texts cannot always be forced."""

from __future__ import annotations

from collections import Counter

import pytest

from scenes_runs import SEED
from selfloop.collect.drawing import draw
from selfloop.collect.negatives import NEGATIVES, Negatives
from selfloop.collect.swapped_pictures import Pool, pool_of
from selfloop.data import load
from selfloop.doors import Doors
from selfloop.engines.hf import HFEngine
from selfloop.pictures import Library
from selfloop.testbeds import scenes
from selfloop.types import Group, Message, Part, Sample


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], HFEngine, Pool]:
    """Six questions of all kinds, one of them with two pictures, and the model."""
    folder = tmp_path_factory.mktemp("scenes")
    samples = list(load(scenes.write(folder, "train", 6, 3)))
    pool = pool_of([m for s in samples for m in s.media], Library())
    media = (samples[0].media[0], samples[1].media[0])
    samples.append(Sample(prompt=(Message(content=(
        Part(type="image"), Part(type="image"), Part(text=samples[0].context.text))),),
        media=media, answer="x"))
    engine = HFEngine(str(SEED), threads=1)
    engine.bind(Library().open)
    return samples, engine, pool


def drawn(bed: tuple[list[Sample], HFEngine, Pool], sampler: Negatives) -> list[Group]:
    samples, engine, _ = bed
    return draw(sampler, samples, Doors({"solver": engine}, 0, "s"), {})


@pytest.mark.parametrize("vocabulary", [(), tuple(scenes.WORDS)], ids=["any", "own words"])
@pytest.mark.parametrize("cause", NEGATIVES)
def test_every_cause_gives_a_negative_or_says_that_it_was_skipped(bed, cause, vocabulary):
    groups = drawn(bed, Negatives(causes=(cause,), n=4, pool=bed[2], vocabulary=vocabulary,
                                  max_new_tokens=scenes.TOKENS))
    for group in groups:
        marks = Counter(str(r.sampling.get("negative")) for r in group.rollouts)
        skipped = sum(r.sampling.get("skipped") == [cause] for r in group.rollouts)
        assert marks["None"] == 4 and marks[cause] + skipped == 4, marks
    if cause in ("truncated", "attribute", "shuffle", "near", "injected", "eliciting"):
        assert any(r.sampling.get("negative") == cause for g in groups for r in g.rollouts)


def test_a_text_that_the_model_cannot_say_is_skipped_and_its_neighbours_are_not(bed):
    """Hot draws hold <unk>, and swaps bring in words that this tokenizer never saw."""
    hot = drawn(bed, Negatives(causes=("truncated", "entity"), n=8, temperature=3.0,
                               max_new_tokens=scenes.TOKENS))
    tokenizer = bed[1].processor.tokenizer
    rollouts = [r for g in hot for r in g.rollouts]
    lost = [r for r in rollouts if "truncated" in r.sampling.get("skipped", ())
            and len(r.text.split()) > 3]
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert lost and any(unknown in tokenizer(r.text, add_special_tokens=False)["input_ids"]
                        for r in lost)
    assert any(r.sampling.get("negative") == "truncated" for r in rollouts)
