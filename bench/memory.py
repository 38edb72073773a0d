"""Peak memory of one side, in a child process of its own.

On a CPU: the work is done once to warm up (optimizer moments, caches), freed memory is given back
to the system, the kernel's high-water mark of resident memory is reset (5 into
/proc/self/clear_refs), the work is done again, and the mark (VmHWM) is read. The peak is what lies
above resident memory before the work: model, optimizer and caches are in neither side's figure.
glibc is told to map every block above 64 KiB by itself, so that freed tensors leave at once: the
same for both sides. On a GPU: torch's own counters.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from bench.measure import Work

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000",
               "MALLOC_ARENA_MAX": "1"}


def peak(work: Work) -> int | None:
    """Bytes above what is held before the work; None where the system cannot tell."""
    work()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _kilobytes("VmRSS")
        work()
        return 1024 * (_kilobytes("VmHWM") - before)
    except OSError:
        return None


def _kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"no {field} in /proc/self/status")


def in_child(task: dict[str, object], side: str, seconds: float = 1800) -> int | None:
    """`peak` of one side of a task, measured in a fresh process. Raises RuntimeError if it died."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench.memory", json.dumps(task), side],
        env={**os.environ, **ENVIRONMENT}, cwd=Path(__file__).parent.parent, timeout=seconds,
        capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{side} ended with status {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """A child: one side of one task."""
    from bench.tasks import Task, prepare

    task = Task.read(json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    (ready,) = prepare(task, (sys.argv[2],)).values()
    print(json.dumps(peak(ready.work)))


if __name__ == "__main__":
    main()
