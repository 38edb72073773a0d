"""The doctor finds what is broken, says how to mend it, and never raises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_models import gemma3, llava
from selfloop.doctor import PACKAGES, Finding, diagnose, worst

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava(tmp_path_factory.mktemp("model"))


def about(findings: list[Finding], text: str) -> Finding:
    return next(f for f in findings if text in f.what)


def test_without_a_model_it_lists_packages() -> None:
    findings = diagnose(None)
    assert len(findings) >= len(PACKAGES) + 1
    assert about(findings, "torch ").level == "ok"
    assert worst(findings) == "ok"


def test_a_sound_folder(folder: Path) -> None:
    findings = diagnose(str(folder))
    assert worst(findings) == "ok", [f for f in findings if f.level != "ok"]
    assert "<eos>" in about(findings, "an answer ends with").what
    assert "as many as" in about(findings, "a picture becomes").what
    assert "<image>" in about(findings, "never sampled (placeholder)").what
    for text in ("equals model.generate", "agree to", "training path: shared prefix",
                 "sampling path: one", "cache: DynamicLayer x2", "two pictures in one prompt",
                 "q_proj x2", "cuts nothing"):
        assert about(findings, text).level == "ok"


def test_truncation_is_seen(folder: Path, tmp_path: Path) -> None:
    cuts = shutil.copytree(folder, tmp_path / "cuts")
    setting = json.loads((cuts / "tokenizer.json").read_text())
    setting["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0,
                             "direction": "Right"}
    (cuts / "tokenizer.json").write_text(json.dumps(setting))
    finding = about(diagnose(str(cuts)), "cuts texts at 8")
    assert finding.level == "warning" and "null" in finding.mend


def test_a_picture_that_does_not_reach_the_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = gemma3(tmp_path / "blind")
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if "mm_input_projection" in n)
    save_file({**weights, name: torch.zeros_like(weights[name])}, folder / "model.safetensors",
              {"format": "pt"})
    finding = about(diagnose(str(folder)), "two different pictures")
    assert finding.level == "warning" and finding.mend


def test_as_many_image_tokens_as_features(folder: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(folder, tmp_path / "odd")
    path = odd / "processor_config.json"
    setting = json.loads(path.read_text())
    setting["num_additional_image_tokens"] = 3
    path.write_text(json.dumps(setting))
    findings = diagnose(str(odd))
    assert about(findings, "pictures: ").level == "error"
    assert about(findings, "LoRA targets").level == "ok"  # later checks still run


@pytest.mark.parametrize("damage", [
    lambda f: shutil.rmtree(f), lambda f: (f / "config.json").unlink(),
    lambda f: (f / "config.json").write_text("{"), lambda f: (f / "config.json").write_text("{}"),
    lambda f: (f / "model.safetensors").write_bytes(b"no"),
    lambda f: (f / "tokenizer.json").write_text("{}"),
    lambda f: (f / "processor_config.json").unlink(),
    lambda f: (f / "chat_template.jinja").write_text("{% if %}"),
    lambda f: (f / "chat_template.jinja").write_text("hello"),
    lambda f: (f / "chat_template.jinja").unlink(),
])
def test_it_never_raises(folder: Path, tmp_path: Path, damage: object) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    damage(broken)  # type: ignore[operator]
    findings = diagnose(str(broken))
    assert worst(findings) == "error"
    errors = [f for f in findings if f.level == "error"]
    assert all(f.mend and "\n" not in f.what for f in errors)
