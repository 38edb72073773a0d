"""Picture features are kept, never stale, and change no result."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from families import FAMILIES as MADE
from hf_models import FAMILIES, asked, gemma3, llava, open_picture, picture
from selfloop.engines.feature_store import FeatureStore
from selfloop.engines.hf import HFEngine, LoRA
from selfloop.engines.hf_features import Features, settings_of
from selfloop.engines.joining import flat, join, kind_of
from selfloop.roles import Request, Sampling
from selfloop.types import Branch, ImageOp

torch.set_num_threads(1)
FROZEN = ("vision", "projector")


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp("model"))


def engine(folder: Path, features: Any = True, **more: Any) -> HFEngine:
    made = HFEngine(folder, device="cpu", features=features, **{"freeze": FROZEN, **more})
    made.bind(open_picture)
    made.publish(0, 0)
    return made


def result(made: HFEngine) -> tuple[list[Any], torch.Tensor, dict[str, torch.Tensor]]:
    """Draws, log-probs and gradients over one, two and repeated pictures."""
    requests = [Request(context=asked(i % 3, pictures=1 + i % 2), key=f"k{i}", n=3,
                        sampling=Sampling(max_new_tokens=8)) for i in range(5)]
    turns = made.generate(requests, 0)
    rows = [row for r, mine in zip(requests, turns, strict=True) for turn in mine
            for row in made.rows(Branch(context=r.context, turns=(turn,)))]
    logps = torch.cat(list(made.logps(rows)[0]))
    for parameter in made.trainable().values():
        parameter.grad = None
    logps.sum().backward()
    return ([t.token_ids for mine in turns for t in mine], logps.detach(),
            {n: p.grad for n, p in made.trainable().items() if p.grad is not None})


def same(a: Any, b: Any, exactly: bool) -> None:
    assert a[0] == b[0] and a[2].keys() == b[2].keys()
    pairs = [(a[1], b[1]), *((a[2][n], b[2][n]) for n in a[2])]
    for x, y in pairs:
        assert torch.equal(x, y) if exactly else torch.allclose(x, y, rtol=1e-4, atol=1e-5)


def test_each_picture_is_encoded_once_and_nothing_changes(folder: Path) -> None:
    kept, usual = engine(folder), engine(folder, features=False)
    with_store = result(kept)
    assert not kept.features.why_not
    same(with_store, result(usual), exactly=False)
    stats = kept.features.stats()
    assert stats["misses"] == stats["rows"] == 6 - 1  # pairs and single pictures, each once
    assert stats["hits"] > 0
    seen: list[int] = []
    tower = next(m for n, m in kept.model.named_modules() if n.endswith(("vision_tower",
                                                                         "vision_model")))
    hook = tower.register_forward_hook(lambda *_: seen.append(1))
    again = result(kept)
    hook.remove()
    assert not seen
    same(with_store, again, exactly=True)


def test_results_do_not_depend_on_what_is_kept(folder: Path, tmp_path: Path) -> None:
    expected = result(engine(folder))
    tight = engine(folder, FeatureStore(memory_bytes=1))
    same(expected, result(tight), exactly=True)
    assert tight.features.stats()["rows"] == 0
    disk = FeatureStore(memory_bytes=1, folder=tmp_path / "kept")
    same(expected, result(engine(folder, disk)), exactly=True)
    disk.flush()
    later = FeatureStore(folder=tmp_path / "kept")
    same(expected, result(engine(folder, later)), exactly=True)
    assert later.misses == 0 and later.hits > 0


def test_weights_that_change_change_features(tmp_path: Path) -> None:
    made = engine(llava(tmp_path / "model"))
    before = result(made)
    misses = made.features.stats()["misses"]
    name, weight = next((n, p) for n, p in made.model.named_parameters() if "vision" in n
                        and p.dim() > 1)
    with torch.no_grad():
        weight.mul_(2.0)
    after = result(made)
    assert made.features.stats()["misses"] == 2 * misses
    assert not torch.allclose(before[1], after[1]) or before[0] != after[0]
    usual = engine(tmp_path / "model", features=False)
    with torch.no_grad():
        dict(usual.model.named_parameters())[name].mul_(2.0)
    same(after, result(usual), exactly=False)
    with torch.no_grad():
        weight.div_(2.0)
    same(before, result(made), exactly=True)


def test_a_vision_side_that_learns_keeps_nothing(tmp_path: Path) -> None:
    folder = gemma3(tmp_path / "model")
    for frozen in ((), ("vision",)):
        made = engine(folder, freeze=frozen)
        result(made)
        assert "of the vision side learn" in made.features.why_not
        assert not made.features.stats()["rows"]
    adapted = engine(folder, freeze=(), lora=LoRA(rank=2))
    result(adapted)
    assert not adapted.features.why_not and adapted.features.stats()["rows"]


def test_operations_and_settings_have_their_own_features(tmp_path: Path) -> None:
    made = engine(llava(tmp_path / "model"))
    plain, context = picture(1), asked(1)
    seen = plain.model_copy(update={"ops": (ImageOp(name="blank", severity=1.0, key="k"),)})
    for medium in (plain, seen, plain):
        made.generate([Request(context=context.model_copy(update={"media": (medium,)}), key="k",
                               sampling=Sampling(max_new_tokens=2))], 0)
    assert made.features.stats()["misses"] == 2
    one = settings_of(made.processor, torch.float32)
    made.processor.image_processor.do_normalize = not made.processor.image_processor.do_normalize
    assert settings_of(made.processor, torch.float32) != one
    assert settings_of(made.processor, torch.float64) != one


def test_a_model_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    made = engine(llava(tmp_path / "model"))
    owner = made.features._owner
    usual = made.features._original
    count = [0.0]

    def drifting(*args: Any, **named: Any) -> Any:
        out = usual(*args, **named)
        count[0] += 1.0
        out.pooler_output = [x + count[0] for x in out.pooler_output]
        return out

    made.features._original = drifting
    with pytest.warns(UserWarning, match="picture features are not kept: "):
        result(made)
    assert made.features.why_not and "get_image_features" not in vars(owner)


def test_a_copied_model_keeps_nothing_of_the_other(tmp_path: Path) -> None:
    made = engine(llava(tmp_path / "model"))
    result(made)
    twin = copy.deepcopy(made.model)
    call = vars(made.features._owner)["get_image_features"]
    owner = next(m for m in twin.modules() if "get_image_features" in vars(m))
    mine = vars(owner)["get_image_features"].__self__
    assert mine is not call.__self__ and mine._original.__self__ is owner


# -- any family ---------------------------------------------------------------------------------

def test_levels_and_pictures_join() -> None:
    def output(pictures: int) -> Any:
        made = {"last_hidden_state": torch.zeros(1), "pooler_output": tuple(
            torch.full((2 + i, 3), float(i)) for i in range(pictures)),
            "levels": [tuple(torch.full((2 + i, 3), float(10 * level + i))
                             for i in range(pictures)) for level in range(2)]}
        return tf.utils.ModelOutput(made)

    one, two = output(1), output(2)
    kind = kind_of(one, tf.utils.ModelOutput({
        "last_hidden_state": torch.zeros(1), "pooler_output": one.pooler_output * 2,
        "levels": [level * 2 for level in one["levels"]]}))
    assert kind.inside[0][0] == "pooler_output"  # the hidden states are not kept
    rows = [flat(kind, one), flat(kind, two)]
    both = join(kind, rows)
    assert [x.shape[0] for x in both["pooler_output"]] == [2, 2, 3]
    assert [[float(x[0, 0]) for x in level] for level in both["levels"]] == [
        [0, 0, 1], [10, 10, 11]]


UNKEPT = {"mllama": "no get_image_features"}
"""Families whose features are not kept, and what the reason says."""


@pytest.mark.parametrize("name", MADE)
def test_families_are_kept_without_being_named(name: str) -> None:
    """All levels that a model injects come from the store, or it says why not."""
    family = MADE[name](torch.float32)
    for parameter in family.model.parameters():
        parameter.requires_grad_(False)
    store = FeatureStore()
    features = Features(family.model, None, lambda row: family.reader._pixels(row), store)
    rows = [family.rows(numbers, 5, (4,))[0] for numbers in ((1,), (2, 1), (1,), (2,))]
    rows = [row for row in rows if family.reader.signature(row.media)
            == family.reader.signature(rows[0].media)]
    inputs = family.reader.inputs([(row.token_ids, row.media) for row in rows])
    with torch.no_grad():
        expected = family.model(**inputs).logits
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            features.note(inputs, [row.media for row in rows])
        found = [family.model(**inputs).logits for _ in range(2)]
    top = float(expected.abs().max())
    assert all(torch.allclose(x, expected, rtol=0, atol=1e-4 * top) for x in found)
    if name in UNKEPT:
        assert features.why_not and UNKEPT[name] in features.why_not
        return
    assert not features.why_not, features.why_not
    assert store.misses == len({tuple(m.identity for m in row.media) for row in rows})
    assert store.hits >= 2
    assert torch.equal(*found)
    if name.startswith("qwen3_vl"):  # the last level and the earlier ones
        assert len(next(iter(store._kept.values()))) == 1 + len(
            family.model.config.vision_config.deepstack_visual_indexes)


# -- the store ----------------------------------------------------------------------------------

def test_bounds_and_order() -> None:
    store = FeatureStore(memory_bytes=3 * 400)
    for name in "abc":
        store.put(name, {"x": torch.zeros(100)})
    assert store.get("a") is not None
    store.put("d", {"x": torch.zeros(100)})
    assert store.get("b") is None and store.get("a") is not None
    assert store.stats() == {"hits": 2, "misses": 1, "rows": 3, "bytes": 1200}
    kept = store.put("e", {"x": (source := torch.zeros(2))})
    source += 1
    assert float(kept["x"].sum()) == 0


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    store = FeatureStore(memory_bytes=0, folder=tmp_path, disk_bytes=3000)
    for name in "abc":
        store.put(name, {"x": torch.full((100,), 1.0)})
        store.flush()
    assert store.get("a") is not None
    (tmp_path / "b.safetensors").write_bytes(b"torn")
    assert store.get("b") is None and not (tmp_path / "b.safetensors").exists()
    for name in "defghij":
        store.put(name, {"x": torch.full((100,), 1.0)})
        store.flush()
    assert sum(p.stat().st_size for p in tmp_path.glob("*.safetensors")) <= 3000
    assert not list(tmp_path.glob("*.part"))


def test_a_file_with_other_bytes_than_were_written_counts_as_missing(tmp_path: Path) -> None:
    store = FeatureStore(folder=tmp_path)
    store.put("a", {"x": torch.arange(64.0)})
    store.flush()
    path = tmp_path / "a.safetensors"
    data = bytearray(path.read_bytes())
    data[-8:] = bytes(8)  # power was lost: the header is whole, the numbers are not
    path.write_bytes(data)
    assert FeatureStore(folder=tmp_path).get("a") is None and not path.exists()


def test_memory_that_runs_out_at_first_use_does_not_switch_the_store_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(folder)
    usual, calls = made.features._logits, []

    def full(inputs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory, tried to allocate 2 GiB")
        return usual(inputs)

    monkeypatch.setattr(made.features, "_logits", full)
    with pytest.warns(UserWarning, match="while drawing"):
        result(made)
    assert not made.features.why_not and made.features.stats()["hits"] > 0


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    script = ("import sys, torch; from selfloop.engines.feature_store import FeatureStore\n"
              f"store = FeatureStore(folder={str(tmp_path)!r})\n"
              "[store.put(str(i), {'x': torch.full((50,), float(i))}) for i in range(40)]\n"
              "store.flush()")
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [p.wait(60) for p in running] == [0, 0]
    store = FeatureStore(folder=tmp_path)
    for i in range(40):
        kept = store.get(str(i))
        assert kept is not None and float(kept["x"][0]) == i
