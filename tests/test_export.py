"""Export: what a run promoted, as a folder that plain transformers loads, with an honest card."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import transformers as tf
import yaml

import hf_models
import toyland
from selfloop.data import load
from selfloop.engines.hf import HFEngine, LoRA
from selfloop.export import export
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.recipes.supervised import supervised
from selfloop.roles import SelfloopError
from selfloop.running import run
from selfloop.testbeds import digits
from selfloop.types import Decision


@dataclass(frozen=True)
class Always:
    """A gate with one answer, so that tests need no lucky gain."""

    action: str

    def __call__(self, candidate, best, look, monitors=None, before=None) -> Decision:
        why = {"promote": "promoted: as asked", "hold": "held: as asked"}[self.action]
        return Decision(action=self.action, why=why, gain=0.5, interval=(0.25, 0.75), p_value=0.01)


def learned(home: Path, action: str, lora: LoRA | None) -> HFEngine:
    """A run of one real iteration on a tiny LLaVA in home/run; the engine as it ended."""
    if not (home / "model").exists():
        hf_models.llava(home / "model")
    train = load(digits.write(home / "data", "train", 6, 5))
    dev = load(digits.write(home / "data", "dev", 4, 5))
    loop = supervised(exact, labels="answer", iterations=1, updates=3, batch=6, lr=0.02, views=0.0,
                      max_new_tokens=3)
    engine = HFEngine(home / "model", lora=lora, device="cpu", threads=1)
    run(replace(loop, gate=Always(action)), train, engine, home / "run", dev=dev,
        library=Library(home / "run" / "images"))
    return engine


def logits(model: torch.nn.Module, processor) -> torch.Tensor:
    """Of one question without its picture's help: the weights are what is compared."""
    ids = processor.tokenizer("what is the sum ?", return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**ids).logits


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Full weights, promoted."""
    home = tmp_path_factory.mktemp("full")
    return home, learned(home, "promote", None)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Adapters, promoted."""
    home = tmp_path_factory.mktemp("adapted")
    return home, learned(home, "promote", LoRA(rank=2, alpha=4))


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Full weights, held by the gate."""
    home = tmp_path_factory.mktemp("held")
    return home, learned(home, "hold", None)


def plainly(folder: Path):
    """What a user without selfloop does."""
    return (tf.AutoModelForImageTextToText.from_pretrained(folder),
            tf.AutoProcessor.from_pretrained(folder))


def card(folder: Path) -> tuple[dict, str]:
    """The card's front matter and body."""
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_promoted_weights_load_with_plain_transformers(full, tmp_path):
    home, engine = full
    out = export(home / "run", tmp_path / "out", model="someone/tiny-llava")
    model, processor = plainly(out)
    now = logits(engine.model, engine.processor)
    assert torch.equal(logits(model, processor), now)
    before, _ = plainly(home / "model")
    assert not torch.allclose(logits(before, processor), now, atol=1e-4)
    assert processor.chat_template
    front, body = card(out)
    assert front["base_model"] == "someone/tiny-llava" and front["library_name"] == "transformers"
    assert {"selfloop", "supervised-answer"} <= set(front["tags"])
    assert "| Answers read | 6 |" in body and "promoted" in body
    assert "whether it beats a control" in body and "**not known**" in body


def test_manifest_names_where_the_weights_come_from(full, tmp_path):
    home, _ = full
    out = export(home / "run", tmp_path / "out")
    about = json.loads((out / "selfloop.json").read_text())
    loop = json.loads((home / "run" / "loop.json").read_text())
    assert about["fingerprint"] == loop["fingerprint"] and about["data"] == loop["data"]
    assert about["version"] == 1 and about["promoted"] is True
    assert about["versions"]["torch"] == torch.__version__
    weights = (out / "model.safetensors").read_bytes()
    assert about["files"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert "base_model" not in card(out)[0]


def test_adapters_as_they_are_and_merged(adapted, tmp_path):
    from peft import PeftModel

    home, engine = adapted
    now = logits(engine.model, engine.processor)
    thin = export(home / "run", tmp_path / "thin", model=str(home / "model"))
    config = json.loads((thin / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(home / "model")
    base, processor = plainly(home / "model")
    assert not torch.allclose(logits(base, processor), now, atol=1e-4)
    assert torch.allclose(logits(PeftModel.from_pretrained(base, thin), processor), now, atol=1e-6)
    assert card(thin)[0]["library_name"] == "peft" and "PeftModel" in card(thin)[1]
    for given in (str(home / "model"), None):  # None: the adapters know their base model
        whole = export(home / "run", tmp_path / f"whole{given is None}", merge=True, model=given)
        assert not (whole / "adapter_config.json").exists()
        assert torch.allclose(logits(*plainly(whole)), now, atol=1e-5)
        assert "PeftModel" not in card(whole)[1]


def test_a_checkpoint_of_adapters_keeps_their_settings(adapted, tmp_path):
    home, engine = adapted
    shutil.copytree(home / "run", tmp_path / "run")
    record = tmp_path / "run" / "iterations" / "000" / "iteration.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "best": 0}))
    out = export(tmp_path / "run", tmp_path / "out", version=1, merge=True,
                 model=str(home / "model"))
    now = logits(engine.model, engine.processor)
    assert torch.allclose(logits(*plainly(out)), now, atol=1e-5)
    shutil.rmtree(tmp_path / "run" / "best")
    alone = export(tmp_path / "run", tmp_path / "other", version=1, merge=True,
                   model=str(home / "model"))  # nothing was promoted, and yet all is there
    assert torch.allclose(logits(*plainly(alone)), now, atol=1e-5)


def test_what_was_held_is_exported_only_when_asked_and_says_so(held, tmp_path):
    home, engine = held
    with pytest.raises(SelfloopError, match=r"no version was promoted .*give version=1"):
        export(home / "run", tmp_path / "out")
    with pytest.raises(SelfloopError, match="no checkpoint of version 7: there are 0, 1"):
        export(home / "run", tmp_path / "out", version=7, model=str(home / "model"))
    assert not (tmp_path / "out").exists()
    out = export(home / "run", tmp_path / "out", version=1, model=str(home / "model"))
    assert torch.equal(logits(*plainly(out)), logits(engine.model, engine.processor))
    assert "did **not** promote" in card(out)[1]
    assert json.loads((out / "selfloop.json").read_text())["promoted"] is False


def test_wrong_base_model_and_full_folder_are_refused(held, full, tmp_path):
    hf_models.gemma3(tmp_path / "gemma")
    with pytest.raises(SelfloopError, match="the model= that the run started from"):
        export(held[0] / "run", tmp_path / "out", version=1, model=str(tmp_path / "gemma"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(SelfloopError, match="not empty"):
        export(full[0] / "run", tmp_path / "taken")
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"


def test_toy_runs_have_nothing_to_load(tmp_path):
    toyland.perform("mixture", tmp_path / "run", tmp_path / "data")
    record = tmp_path / "run" / "iterations" / "001" / "iteration.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "best": 4}))
    (tmp_path / "run" / "best" / "solver").mkdir(parents=True)
    (tmp_path / "run" / "best" / "solver" / "toy.json").write_text("{}")
    with pytest.raises(SelfloopError, match="no from_pretrained folder"):
        export(tmp_path / "run", tmp_path / "out")
