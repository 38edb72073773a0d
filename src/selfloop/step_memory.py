"""How much of the machine's memory one step's answers take, and whether so much is free.

A step's groups are held at once: organizers see the whole step, because they compare samples with
one another. `Loop.shard` bounds what is drawn and stored together, `samples` what is held.
"""

from __future__ import annotations

from pathlib import Path

from selfloop.loop import Loop

HALF = 0.5
"""Share of the free memory that a step may plan to take: pictures and the model want some too."""


def group_bytes(answers: float, prompt: float, answer: float) -> float:
    """Peak bytes of one group of `answers`, with prompts and answers of so many tokens. Rough.

    An answer keeps 4 kB of objects and 60 bytes a drawn token (an id and a log-prob), a group its
    prompt's ids once; a signal is 2.2 kB, and while signals are stored there are about four copies
    of their JSON. Measured with CPython 3.11, in kB a group of 8 answers to prompts of 64 tokens:
    answers of 25 tokens 51, signals 17, peak 108 (this says 119); of 200 tokens, 297 (354). Groups
    that were read back from disk, after a kill, take 48 more.
    """
    json = 500 + 6 * prompt + 27 * answer
    return 5000 + 40 * prompt + answers * (6200 + 60 * answer + 4 * json)


def free_memory(system: Path = Path("/")) -> float | None:
    """Bytes that this process may still take: of the machine, or of its control group where that
    is less. None where the system does not say. `system` is the root of its files."""
    found = [_kilobytes(system / "proc/meminfo")]
    group = system / "sys/fs/cgroup"
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and used is not None:
        found.append(max(0.0, limit - used))
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _kilobytes(path: Path) -> float | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * float(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # "max": no limit
        return None


def crowded(loop: Loop, problems: int, answers: float, prompt: float, answer: float,
            free: float | None) -> str | None:
    """A warning where a step would take more than half of the free memory, with the `samples`
    that would fit; None where it would not, or where nobody knows. `problems`: of all the data.
    """
    held = min(loop.samples or problems, problems)
    one = group_bytes(answers, prompt, answer)
    if free is None or held * one <= HALF * free:
        return None
    fits = max(1, int(HALF * free / one))
    return (f"a step holds its {held:,} problems with {answers:.0f} answers each at once: about "
            f"{_gib(held * one)} of memory, more than half of the {_gib(free)} that are free here; "
            f"options.samples={fits} would fit")


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
