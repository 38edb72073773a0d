"""vLLM on the same folder, prompts and counts, in an environment and process of its own.

The process is stopped (SIGSTOP) while the others run, so that its busy waiting costs them nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.grid import Point
from bench.questions import Question

DEFAULT = Path("runs/vllm-env")
MISSING = "vLLM: not installed, see bench/setup_vllm"


def python(environment: Path) -> Path | None:
    """The environment's interpreter, if vLLM is installed beside it."""
    found = environment.absolute() / "bin" / "python"
    installed = list(environment.glob("lib/python*/site-packages/vllm/__init__.py"))
    return found if found.exists() and installed else None


class Vllm:
    """A worker that draws on demand."""

    name = "vLLM"

    def __init__(self, interpreter: Path, folder: Path, processor: Any,
                 questions: Sequence[Question], point: Point, *, out: Path, dtype: str,
                 threads: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "vllm.log"
        self.expected = {"read": [point.prompt] * len(questions),
                         "drawn": [point.answer] * point.group * len(questions)}
        job = out / "job.json"
        job.write_text(json.dumps({
            "folder": str(folder.absolute()), "dtype": dtype, "prompt": point.prompt,
            "group": point.group, "answer": point.answer,
            "prompts": [_written(q, processor, out, i) for i, q in enumerate(questions)]}))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [interpreter, Path(__file__).with_name("vllm_worker.py").absolute(),
                 job.absolute()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True, env=_environment(threads))
        try:
            self._read()  # loading and compiling, some forty seconds
        except BaseException:
            self.close()
            raise
        self._pause()

    def draw(self) -> None:
        """One round. Raises RuntimeError where the counts are not those asked for."""
        os.killpg(self.process.pid, signal.SIGCONT)
        print("go", file=self.process.stdin, flush=True)
        found = self._read()
        self._pause()
        if found != self.expected:
            raise RuntimeError(f"vLLM read and drew {found}, not {self.expected}")

    def close(self) -> None:
        """End the worker and all that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def _read(self) -> Any:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"vLLM ended with status {self.process.wait()}: see {self.log}")
        return json.loads(line)


def _written(question: Question, processor: Any, out: Path, number: int) -> dict[str, Any]:
    paths = []
    for i, picture in enumerate(question.pictures):
        path = out.absolute() / f"picture-{number}-{i}.png"
        picture.save(path)
        paths.append(str(path))
    text = processor.apply_chat_template(question.messages, add_generation_prompt=True)
    return {"text": text, "pictures": paths}


def _environment(threads: int) -> dict[str, str]:
    """No binding to cores (a bound core is not shared fairly), the same threads, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "2", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": ""}
