"""Real processors that run on Pillow alone, from folder to gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from processors import checks
from processors.folders import PLAIN

torch.set_num_threads(1)




@pytest.mark.parametrize("name", PLAIN)
def test_folder(name: str, tmp_path: Path) -> None:
    checks.everything(name, PLAIN[name], tmp_path)
