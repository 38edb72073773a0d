"""The digits testbed and the tiny model that ships with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import selfloop.testbeds
from selfloop.keys import generator
from selfloop.testbeds import digits, tiny_vlm

SEED_FOLDER = Path(selfloop.testbeds.__file__).parent / "seed"


@pytest.fixture(scope="module")
def seed() -> Iterator[tuple[Any, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield (AutoModelForImageTextToText.from_pretrained(SEED_FOLDER),
           AutoProcessor.from_pretrained(SEED_FOLDER))
    torch.set_num_threads(threads)


def ask(processor: Any, items: list[digits.Item]) -> Any:
    """What a plain transformers user writes: messages, pictures, one padded batch."""
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"},
                                          {"type": "text", "text": digits.prompts[item.task]}]}],
            add_generation_prompt=True,
        )
        for item in items
    ]
    pictures = [[digits.picture(item)] for item in items]
    return processor(images=pictures, text=texts, padding=True, return_tensors="pt")


def test_every_scan_is_in_exactly_one_split() -> None:
    splits = digits.split_scans()
    assert {k: len(v) for k, v in splits.items()} == {"train": 1000, "dev": 200, "test": 597}
    everything = [scan for ids in splits.values() for scan in ids]
    assert sorted(everything) == list(range(1797))
    # No scan is in the data set twice, so disjoint ids are disjoint pictures.
    assert len({scan.tobytes() for scan in digits.load_scans().pixels}) == 1797


@pytest.mark.parametrize("split", ["dev", "test"])
def test_held_out_pictures_stay_inside_their_block(split: Any) -> None:
    owner = {scan: f"{split}-{k:03d}"
             for k, block in enumerate(digits.blocks(split)) for scan in block}
    assert len(owner) == 4 * (len(digits.split_scans()[split]) // 4)
    items = digits.items(split, 400, 3)
    for item in items:
        assert {owner[scan] for scan in item.scan_ids} == {item.cluster}
        assert len(set(item.scan_ids)) == len(item.scan_ids)
    counts = np.unique([item.cluster for item in items], return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


def test_train_pictures_use_train_scans_only_and_seed_pictures_stay_apart() -> None:
    train = set(digits.split_scans()["train"])
    pool, labelled = digits.items("train", 500, 1), digits.seed_items()
    assert all(set(item.scan_ids) <= train for item in [*pool, *labelled])
    assert len(labelled) == len({item.cluster for item in labelled}) == digits.SEED_LABELS
    seen = {digits.picture(item).tobytes() for item in labelled}
    assert not seen & {digits.picture(item).tobytes() for item in pool}


def test_rows_are_right_and_their_prefix_does_not_depend_on_n() -> None:
    rows = digits.rows("train", 60, 5)
    assert rows[:20] == digits.rows("train", 20, 5) != digits.rows("train", 20, 6)[:20]
    assert {row["task"] for row in rows} == set(digits.prompts)
    for row in rows:
        values = [int(d) for d in row["digits"]]
        gold = {"sum": sum(values), "largest": max(values), "smallest": min(values),
                "even": len([v for v in values if v in (0, 2, 4, 6, 8)]), "read": row["digits"]}
        assert row["answer"] == str(gold[row["task"]])
        assert digits.parse(row["chain"]) == (row["digits"], row["answer"])
        assert row["prompt"] in row["related"] and len(row["related"]) == 5


def test_write_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = digits.write(tmp_path / "a", "dev", 12, 0)
    second = digits.write(tmp_path / "b", "dev", 12, 0)
    assert first.read_bytes() == second.read_bytes()
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert rows == digits.rows("dev", 12, 0)
    for row in rows:
        one, two = (path.parent / row["images"][0] for path in (first, second))
        assert one.read_bytes() == two.read_bytes()
        assert Image.open(one).size == (digits.SIDE, digits.SIDE)


def test_pictures_are_functions_of_their_key_alone() -> None:
    scans = digits.split_scans()["train"][:3]
    image = digits.compose(scans, generator("k"))
    assert image.tobytes() == digits.compose(scans, generator("k")).tobytes()
    assert image.tobytes() != digits.compose(scans, generator("other")).tobytes()
    turned = digits.augment(image, generator("a"))
    assert turned.size == image.size and turned.mode == "RGB"
    assert turned.tobytes() == digits.augment(image, generator("a")).tobytes() != image.tobytes()
    with pytest.raises(ValueError, match="one to 4"):
        digits.compose([], generator("k"))


def test_augment_loses_no_digit() -> None:
    """A digit's ink is still there after every operation, within what contrast may take."""
    for item in digits.items("train", 40, 2):
        image = digits.picture(item)
        ink = np.asarray(image, dtype=float)[..., 0]
        for draw in range(5):
            seen = digits.augment(image, generator(f"{item.id}/{draw}"))
            after = np.asarray(seen, dtype=float)[..., 0]
            before = np.clip(ink - np.median(ink), 30, None).sum() - 30 * ink.size
            kept = np.clip(after - np.median(after), 30, None).sum() - 30 * ink.size
            assert kept > 0.3 * before


@pytest.mark.parametrize(("text", "task", "expected"), [
    ("3 5 2 = 10", "sum", True), ("3 5 2 = 11", "sum", False), ("3 5 2 = 5", "largest", True),
    ("3 5 2 = 2", "largest", False), ("3 5 2 = 2", "smallest", True), ("0 0 = 2", "even", True),
    ("1 3 = 0", "even", True), ("1 3 = 1", "even", False), ("0 5 2 = 052", "read", True),
    ("0 5 2 = 52", "read", False), ("0 0 = 00", "sum", False), ("= 10", "sum", None),
    ("", "sum", None),
])
def test_chain_ok(text: str, task: str, expected: bool | None) -> None:
    assert digits.chain_ok(text, task) is expected


@pytest.mark.parametrize("text", [
    "", "=", "10", "3 5 2", "3 5 2 =", "3 5 = 1 0", "35 = 8", "3 5 = 8 = 8", "3 5 = 8 .", "3 = x",
    "3 5 = -8", "3 5 = ٨", "3 5 = 8 <eos>", "\n",
])
def test_parse_refuses_what_it_cannot_read(text: str) -> None:
    assert digits.parse(text) is None


def test_parse_forgives_white_space_only() -> None:
    assert digits.parse(" 3  5=8\n") == ("35", "8")
    with pytest.raises(ValueError, match="no task 'product'"):
        digits.chain_ok("3 5 = 15", "product")
    with pytest.raises(ValueError, match="no split"):
        digits.rows("validation", 1, 0)  # type: ignore[arg-type]


def test_known_text_comes_back_exactly_and_numbers_are_digit_by_digit() -> None:
    tok = tiny_vlm.make_tokenizer()
    for row in [*digits.rows("train", 50, 0)]:
        for text in (row["chain"], row["prompt"], row["answer"]):
            ids = tok.encode(text, add_special_tokens=False)
            assert tok.decode(ids) == text and tok.unk_token_id not in ids
    assert len(tok.encode("1024", add_special_tokens=False)) == 4
    assert tok.unk_token_id in tok.encode("what is the zebra ?", add_special_tokens=False)


def test_untrained_model_depends_on_its_seed_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    seeds = {"a": 1, "b": 1, "c": 2}
    folders = [tiny_vlm.build(tmp_path / name, seed=s) for name, s in seeds.items()]
    assert torch.equal(before, torch.get_rng_state())
    a, b, c = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert a == b != c
    with pytest.raises(ValueError, match="multiple of 32"):
        tiny_vlm.build(tmp_path / "d", width=100)


def test_placeholders_match_features_for_any_picture(seed: tuple[Any, Any]) -> None:
    model, processor = seed
    for image in (Image.new("L", (5, 90)), Image.new("RGBA", (640, 3)), Image.new("RGB", (32, 32))):
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}],
            add_generation_prompt=True,
        )
        inputs = processor(images=[image], text=text, return_tensors="pt")
        held = int((inputs["input_ids"] == model.config.image_token_id).sum())
        features = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        assert held == len(features[0]) == model.config.image_seq_length
        assert model(**inputs).logits.isfinite().all()


def test_seed_answers_as_well_as_it_says(seed: tuple[Any, Any]) -> None:
    model, processor = seed
    facts = json.loads((SEED_FOLDER / "seed.json").read_text())
    items = digits.items("test", 200, 0)
    inputs = ask(processor, items)
    with torch.inference_mode():
        out = model.generate(**inputs)
    texts = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [(digits.parse(text) or ("", ""))[1] == digits.row(item)["answer"]
             for item, text in zip(items, texts, strict=True)]
    # Three standard errors of 200 questions.
    assert abs(np.mean(right) - facts["test_accuracy"]) < 0.11
    assert sum(digits.parse(text) is not None for text in texts) > 190


def test_sampling_never_writes_a_special_token(seed: tuple[Any, Any]) -> None:
    model, processor = seed
    torch.manual_seed(0)
    inputs = ask(processor, digits.items("test", 20, 1))
    out = model.generate(**inputs, do_sample=True, temperature=3.0, num_return_sequences=5)
    tok = processor.tokenizer
    never = {tok.convert_tokens_to_ids(t) for t in tiny_vlm.SPECIALS} - {
        tok.eos_token_id, tok.pad_token_id}
    assert not never & set(out[:, inputs["input_ids"].shape[1] :].flatten().tolist())
