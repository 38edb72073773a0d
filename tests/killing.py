"""Runs of toyland's contracts that are killed and resumed, and what must be equal after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

KILLED, DONE = -signal.SIGKILL, 0

FORK = """
import json, os, signal, sys
from pathlib import Path
import pandas, pyarrow.parquet, torch._dynamo, torch.optim
import selfloop.optimize.learner, toyland
from selfloop import store

toyland.loops()

data, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])

def perform(name, folder, moment):
    plain, put = store.boundary, []
    def boundary(kind):
        plain(kind)
        put.append(kind)
        if moment == len(put) or moment == kind:
            os.kill(os.getpid(), signal.SIGKILL)
    store.boundary = boundary
    toyland.perform(name, Path(folder), data)
    Path(folder + ".trace").write_text("\\n".join(put))

ends = []
for name, folder, moment in jobs:
    # All that a run needs is imported once, before; jemalloc's thread, which knows of forks, is
    # the only one that has been started.
    child = os.fork()
    if not child:
        try:
            perform(name, folder, moment)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


def perform(data: Path, jobs: Sequence[tuple[str, Path, int | str | None]]) -> list[int]:
    """Run each (contract, folder, moment), one after the other, in a process of its own: killed at
    its k-th write boundary, at the first of a name, or not at all. Returns the exit codes."""
    told = json.dumps([(name, str(folder), moment) for name, folder, moment in jobs])
    found = subprocess.run(
        [sys.executable, "-c", FORK, str(data), told], cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return list(json.loads(found.stdout.splitlines()[-1]))


def contents(folder: Path) -> dict[str, bytes]:
    """Everything of a run that must be equal bit for bit: all but the clock's log."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "events.jsonl"
    }
