"""Real processors that need torchvision (scripts/test-processors makes an environment for them)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hearing import draws_and_learns, hears, make_sounds, save_gemma, takes_long_sounds_whole
from processors import checks
from processors.folders import WIDE
from selfloop.engines.hf import HFEngine

torch.set_num_threads(1)




@pytest.mark.parametrize("name", WIDE)
def test_folder(name: str, tmp_path: Path) -> None:
    checks.everything(name, WIDE[name], tmp_path)


def test_a_whole_processor_hears(tmp_path: Path) -> None:
    """With the part that reads video, which the default suite has to leave out."""
    save_gemma(WIDE["gemma4"].processor(), tmp_path / "gemma4")
    engine, sounds = HFEngine(tmp_path / "gemma4", threads=1), make_sounds(tmp_path)
    assert type(engine.processor.video_processor).__name__ == "Gemma4VideoProcessor"
    for picture in (False, True):
        hears(engine, sounds, picture)
    draws_and_learns(engine, sounds)
    takes_long_sounds_whole(engine, sounds)
