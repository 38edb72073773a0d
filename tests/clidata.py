"""A user's first half hour in small: a folder of pictures, a table of labels, a quick model."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

from selfloop.testbeds import digits

HERE = Path(__file__).parent


def pictures(folder: Path, n: int = 36) -> tuple[Path, Path]:
    """(a folder of n digit pictures, a table of their labels)."""
    digits.write(folder / "raw", "train", n, 5)
    rows = [json.loads(line) for line in
            (folder / "raw" / "train.jsonl").read_text().splitlines()]
    images = folder / "raw" / "images"
    labels = folder / "labels.jsonl"
    labels.write_text("".join(json.dumps({
        "file": Path(row["images"][0]).name, "question": row["prompt"], "label": row["answer"],
    }) + "\n" for row in rows))
    return images, labels


def with_splits(folder: Path, model: str = "embedded", method: str = "star") -> Path:
    """A folder with data/ and a run.yaml over 12 train, 8 dev and 4 test questions."""
    for split, n in (("train", 12), ("dev", 8), ("test", 4)):
        digits.write(folder / split, split, n, 1)  # type: ignore[arg-type]
    path = folder / "run.yaml"
    path.write_text(f"""\
model: {json.dumps(model)}
data:
  train: train/train.jsonl
  dev: dev/dev.jsonl
  test: test/test.jsonl
verifier: exact
method: {method}
threads: 1
iterations: 1
options: {{n: 2, max_new_tokens: 12, updates: 2, batch: 4, lr: 5e-4}}
""")
    return path


@cache
def quick_model(folder: Path) -> Path:
    """The smallest VLM that there is, with random weights."""
    from selfloop.testbeds.tiny_vlm import build

    return build(folder / "model", width=32, layers=1)


def selfloop(*args: str) -> list[str]:
    """The command line as a process."""
    return [sys.executable, "-c", "from selfloop.cli import main; main()", *args]
