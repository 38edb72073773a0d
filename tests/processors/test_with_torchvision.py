"""Real processors that need torchvision (scripts/test-processors makes an environment for them)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from processors import checks
from processors.folders import WIDE

torch.set_num_threads(1)




@pytest.mark.parametrize("name", WIDE)
def test_folder(name: str, tmp_path: Path) -> None:
    checks.everything(name, WIDE[name], tmp_path)
