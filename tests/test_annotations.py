"""Annotations that filters read have a source: embeddings by dual encoders, descriptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from selfloop.doors import Doors
from selfloop.engines.toy import ToyEngine
from selfloop.organize.judging import judge
from selfloop.organize.refine.annotate import WithDescription, WithEmbedding
from selfloop.organize.refine.balance import AtMost
from selfloop.organize.refine.builders import Described
from selfloop.organize.refine.duplicates import SameMeaning
from selfloop.organize.signals import SuperviseAnswers
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library, read
from selfloop.testbeds import scenes, tiny_vlm
from selfloop.types import Context, Group, Media, Message, Part, Rollout, Sample

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def encoder(request, tmp_path_factory) -> Path:
    """A dual encoder of random weights in a folder."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    tokenizer = tiny_vlm.make_tokenizer(scenes.WORDS)
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 12,
            "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    if request.param == "clip":
        model = tf.CLIPModel(tf.CLIPConfig(projection_dim=8, text_config=text,
                                           vision_config=vision))
        images = tf.CLIPImageProcessor(size={"shortest_edge": 32},
                                       crop_size={"height": 32, "width": 32})
        processor = tf.CLIPProcessor(images, tokenizer)
    else:
        model = tf.SiglipModel(tf.SiglipConfig(text_config={**text, "projection_size": 16},
                                               vision_config=vision))
        images = tf.SiglipImageProcessor(size={"height": 32, "width": 32})
        processor = tf.SiglipProcessor(images, tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def noise(folder: Path, name: str, seed: int) -> Media:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return read(folder / f"{name}.png")[0]


def drawn(media: tuple[Media, ...], text: str) -> Group:
    parts = (*(Part(type="image") for _ in media), Part(text=text))
    sample = Sample(prompt=(Message(role="user", content=parts),), media=media, answer="yes")
    return Group(sample=sample, rollouts=(Rollout(
        id=sample.id, sample=sample.id, context=sample.context, turns=(),
        output=(Part(text="yes"),)),))


def annotated(verifier, groups: list[Group]) -> list[Group]:
    return list(judge(verifier, groups, Doors({}, 0, "t")).groups)


def test_embeddings_are_the_models_own(encoder, tmp_path):
    groups = [drawn((noise(tmp_path, "a", 1),), "a red 3"), drawn((), "a blue 4")]
    found, bare = annotated(WithEmbedding(exact, str(encoder)), groups)
    assert [v.score for v in found.verdicts] == [1] and "embedding" not in bare.annotations
    model = tf.AutoModel.from_pretrained(encoder).eval()
    images = tf.AutoProcessor.from_pretrained(encoder)(
        images=[Library().open(groups[0].sample.media[0])], text=["a"], padding="max_length",
        max_length=12, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(**images).image_embeds[0], dim=0)
    assert found.annotations["embedding"] == pytest.approx(expected.tolist(), abs=2e-6)


def test_both_has_the_mean_of_the_two_cosines(encoder, tmp_path):
    groups = [drawn((noise(tmp_path, n, i),), t)
              for i, (n, t) in enumerate([("a", "a red 3"), ("b", "a blue circle")])]
    cosine = {}
    for of in ("picture", "question", "both"):
        a, b = (np.array(g.annotations["embedding"])
                for g in annotated(WithEmbedding(exact, str(encoder), of), groups))
        assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5)
        cosine[of] = float(a @ b)
    assert cosine["both"] == pytest.approx((cosine["picture"] + cosine["question"]) / 2, abs=1e-5)
    assert cosine["picture"] != pytest.approx(cosine["question"], abs=1e-4)


def test_duplicates_by_meaning_end_to_end(encoder, tmp_path):
    first = noise(tmp_path, "a", 1)
    Image.open(tmp_path / "a.png").save(tmp_path / "copy.bmp")
    copy, other = read(tmp_path / "copy.bmp")[0], noise(tmp_path, "other", 2)
    groups = annotated(WithEmbedding(exact, str(encoder)),
                       [drawn((m,), "a red 3") for m in (first, copy, other)])
    assert first.sha256 != copy.sha256
    alike = SameMeaning(cosine=0.99999)
    assert alike(groups) == [0, 0, 1]
    assert len(AtMost(1, (alike,))(groups, "k")) == 2


def test_what_is_no_encoder_is_a_failure_that_says_so(tmp_path):
    group = drawn((noise(tmp_path, "a", 1),), "a red 3")
    judged = annotated(WithEmbedding(exact, str(tmp_path)), [group])[0]
    assert judged.verdicts[0].error and "CLIP or SigLIP" in judged.verdicts[0].rationale


def test_descriptions_reach_the_maker_that_reads_them(tmp_path):
    groups = [drawn((noise(tmp_path, "a", 1),), "is it red ?"), drawn((), "is it blue ?")]
    engine = ToyEngine(("red", "blue"), seed=3)
    engine.bind(Library().open)
    doors = Doors({"solver": engine}, 0, "t")
    shown, bare = judge(WithDescription(exact, max_new_tokens=3), groups, doors).groups
    assert shown.verdicts[0].score == 1 and "description" not in bare.annotations
    described = shown.annotations["description"]
    assert described and set(described.split()) <= {"red", "blue"}
    made = Described(SuperviseAnswers())([shown], "k", answers={shown.sample.id: "yes"})
    context: Context = made[0].branches["target"].context
    assert f"Description of the picture: {described}\n" in context.text
