"""The table, as text and as it stands in docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.results import Result

OPEN, CLOSE = "<!-- bench -->", "<!-- /bench -->"
GRID = ("<!-- grid -->", "<!-- /grid -->")
HEAD = ("work", "model", "checkpointing", "prompts", "P", "G", "R", "ours s", "peer s", "peer",
        "times faster", "S", "share of S", "ours MB", "peer MB")


def cells(result: Result) -> list[str]:
    """One row."""
    where = [result.section, result.kind, "on" if result.checkpointing else "off",
             str(result.prompts), str(result.point.prompt), str(result.point.group),
             str(result.point.answer)]
    if result.why_not:
        return [*where, "", "", result.peer, result.why_not, f"{result.point.bound:.2f}",
                "", "", ""]
    r = result.ratio
    # Of generate and vLLM, S says little: most of a rollout is decoding, which S does not count.
    share = f"{100 * result.share:.0f} %" if result.section != "rollouts" else ""
    return [*where, *(f"{statistics.median(result.seconds[s]):.3g}" for s in ("ours", result.peer)),
            result.peer, f"{r.median:.2f} [{r.low:.2f}, {r.high:.2f}]",
            f"{result.point.bound:.2f}", share,
            *(_megabytes(result.memory.get(s)) for s in ("ours", result.peer))]


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.0f}"


def text(results: Sequence[Result]) -> str:
    """Aligned columns for a terminal."""
    rows = [list(HEAD), *(cells(result) for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)
                               ).rstrip() for row in rows)


def markdown(results: Sequence[Result], machine: dict[str, Any], notes: Sequence[str]) -> str:
    """The same for the documentation, with the machine and what was noted."""
    rows = [list(HEAD), ["---"] * len(HEAD), *(cells(result) for result in results)]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    about = (f"{machine['processor']}, {machine['threads']} threads of {machine['cores']} cores, "
             f"{machine['memory_gib']} GiB, {machine['system']}; Python {machine['python']}, "
             f"{versions}; commit {machine['commit'] or 'unknown'}.")
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([about, "", *lines, *([""] if notes else []), *(f"- {n}" for n in notes)])


def is_grid(results: Sequence[Result]) -> bool:
    """Whether this is one work over many points, which reads better as a matrix."""
    return len(results) > 12 and len({(r.section, r.kind, r.checkpointing) for r in results}) == 1


def matrix(results: Sequence[Result]) -> str:
    """Prompts and groups down, answers across: times faster, its range, and the share of S."""
    lengths = sorted({r.point.answer for r in results})
    head = ["P", "G", *(f"R = {n}" for n in lengths)]
    rows = []
    for prompt, group in sorted({(r.point.prompt, r.point.group) for r in results}):
        mine = {r.point.answer: r for r in results
                if (r.point.prompt, r.point.group) == (prompt, group)}
        rows.append([str(prompt), str(group), *(_square(mine.get(n)) for n in lengths)])
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _square(result: Result | None) -> str:
    if result is None or result.why_not:
        return "too large"
    r = result.ratio
    return f"{r.median:.2f} [{r.low:.2f}, {r.high:.2f}], {100 * result.share:.0f} %"


def write_docs(path: Path, block: str, marks: tuple[str, str] = (OPEN, CLOSE)) -> None:
    """Put the block between the marks. Raises ValueError if the page has no marks."""
    before, mark, rest = path.read_text().partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (mark and end):
        raise ValueError(f"{path} has no {marks[0]} ... {marks[1]}")
    path.write_text(f"{before}{marks[0]}\n\n{block}\n\n{marks[1]}{after}")
