"""selfloop beside TRL, model.generate and vLLM: same model, pictures, prompts, G, R, precision."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import baselines, grid, machine, models, table, vllm_peer
from bench.agreement import Disagreement
from bench.measure import Ratio
from bench.results import Result, Store
from bench.runner import run
from bench.tasks import SECTIONS, Task, peers

DOCS = Path(__file__).parent.parent / "docs" / "performance.md"


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="which work")
    add("--model", choices=("llava", "qwen2_5_vl", "gemma3", "both"), default="llava",
        help="both: the first two")
    add("--checkpointing", choices=("off", "on", "both"), default="off")
    add("--points", nargs="+", metavar="P,G,R", help="points of your own")
    add("--full", action="store_true", help="P x G x R, resumable: hours")
    add("--resume", action="store_true", help="keep finished points of the last run")
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count())
    add("--no-memory", action="store_true", help="time only")
    add("--head", choices=("lean", "shipped"), default="lean",
        help="TRL's head: at its best (default), or as TRL ships it")
    add("--vocabulary", type=int, default=models.TINY.vocabulary,
        help="words of the small models: the wider, the more the head weighs, on both sides")
    add("--width", type=int, default=models.TINY.width,
        help="channels of the small models' text part: the wider, the less a fixed cost weighs")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--out", type=Path, default=Path("runs/bench"))
    add("--vllm-env", type=Path, default=Path(os.environ.get("VLLM_ENV", vllm_peer.DEFAULT)))
    add("--compare", action="store_true", help="exit with 1 where a ratio fell")
    add("--save-baselines", action="store_true", help="write this run's ratios to baselines.json")
    add("--write-docs", action="store_true", help="put the stored table into docs/performance.md; "
        "measures nothing")
    return parser


def tasks(given: argparse.Namespace) -> Iterator[Task]:
    """What the command line asks for, in order."""
    kinds = ("llava", "qwen2_5_vl") if given.model == "both" else (given.model,)
    large = given.device == "cuda"
    flags = {"off": (False,), "on": (True,), "both": (False, True)}[given.checkpointing]
    for kind in ("qwen2_5_vl",) if large else kinds:
        for section in given.only:
            for checkpointing in flags if section != "rollouts" else (False,):
                for point in points(section, given):
                    for prompts in grid.PROMPTS if section == "rollouts" else (1,):
                        yield Task(section, kind, point, prompts, checkpointing, given.head,
                                   given.device, given.dtype, given.threads, str(given.out), large,
                                   given.vocabulary, given.width)


def points(section: str, given: argparse.Namespace) -> tuple[grid.Point, ...]:
    """The points of one section."""
    if given.points:
        asked = grid.parse(given.points)
        return tuple(dataclasses.replace(p, group=2) for p in asked) \
            if section.startswith("dpo") else asked
    if given.device == "cuda":
        return grid.GPU_STEPS if section == "step" else ()
    if section == "update":
        return grid.FULL if given.full else grid.DEFAULT
    return {"dpo": grid.PREFERENCE, "dpo-step": grid.PREFERENCE, "step": grid.STEPS,
            "rollouts": grid.ROLLOUTS}[section]


def settings(given: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    """What a stored point must share with this run to be kept."""
    return {"machine": about, "repeats": given.repeats, "head": given.head, "dtype": given.dtype,
            "device": given.device, "vocabulary": given.vocabulary, "width": given.width}


def measure(given: argparse.Namespace, store: Store) -> None:
    """All tasks; each result is stored and printed as it comes. Raises Disagreement."""
    for task in tasks(given):
        blank = Result(task.section, task.kind, task.checkpointing, task.point, task.prompts,
                       peers(task.section, task.device)[0], Ratio(0.0, 0.0, 0.0), {})
        if store.has(blank.name):
            print(f"kept: {blank.name}", flush=True)
            continue
        began = time.perf_counter()
        for result in run(task, given.repeats, measure_memory=not given.no_memory,
                          vllm=given.vllm_env):
            store.add(result)
            line = result.why_not or (
                f"{result.ratio.median:.2f}x [{result.ratio.low:.2f}, {result.ratio.high:.2f}]"
                f"{few(result, given.repeats)} {result.remark}".rstrip())
            print(f"{result.name}: {line} ({time.perf_counter() - began:.0f} s)", flush=True)


def few(result: Result, repeats: int) -> str:
    """Said where a slow point was repeated less often."""
    rounds = len(result.seconds["ours"])
    return f", {rounds} rounds only" if rounds < repeats else ""


def notes(given: argparse.Namespace, results: list[Result]) -> list[str]:
    """What a reader of the table has to know."""
    vocabulary = models.LARGE.vocabulary if given.device == "cuda" else given.vocabulary
    width = models.LARGE.width if given.device == "cuda" else given.width
    found = [
        f"{given.dtype}, {width} channels, vocabulary {vocabulary}, random weights; median of "
        f"{given.repeats} interleaved rounds after a warm one; in brackets the range of the "
        "rounds' own ratios. "
        "Memory: peak above what is held before the work.",
        "TRL's head: " + ("at its best, faster on a CPU than TRL has it" if given.head == "lean"
                          else "as shipped")]
    gaps = [r.agreement for r in results if "gradient" in r.agreement]
    if gaps:
        worst = {name: max(gap[name] for gap in gaps) for name in ("logp", "loss", "gradient")}
        found.append("Both sides agree: log-probs within {logp:.1g}, losses within {loss:.1g}, "
                     "gradients within {gradient:.1g} of their norm.".format(**worst))
    found += [f"{r.name}: {r.remark}" for r in results if r.remark]
    if vllm_peer.python(given.vllm_env) is None:
        found.append(vllm_peer.MISSING)
    return found


def report(given: argparse.Namespace, store: Store) -> None:
    """The table on the screen and the whole run as JSON."""
    said = notes(given, store.results)
    print("", table.text(store.results), "", *said, sep="\n")
    (given.out / "bench.json").write_text(json.dumps({
        "machine": store.settings["machine"], "settings": store.settings, "notes": said,
        "results": [result.json for result in store.results]}, indent=1) + "\n")


def judge(given: argparse.Namespace, store: Store) -> int:
    """Compare with what was reached before, and keep what was reached now."""
    about, status = store.settings["machine"], 0
    if given.compare:
        worse = baselines.regressions(store.results, about)
        if worse is None:
            print(f"no baselines for this machine ({machine.key(about)}): --save-baselines")
        else:
            print(*(worse or ["no regression against bench/baselines.json"]), sep="\n")
            status = 1 if worse else 0
    if given.save_baselines:
        baselines.save(store.results, about)
    return status


def write_docs(out: Path) -> int:
    """Fill the marked place of the page from the last run's JSON."""
    found = json.loads((out / "bench.json").read_text())
    results = [Result.read(result) for result in found["results"]]
    if table.is_grid(results):
        about = (f"{results[0].section}, {results[0].kind}, checkpointing "
                 f"{'on' if results[0].checkpointing else 'off'}, median of "
                 f"{found['settings']['repeats']} rounds; the same machine, threads and commit as "
                 f"above unless said: commit {found['machine']['commit']}.")
        table.write_docs(DOCS, f"{about}\n\n{table.matrix(results)}", table.GRID)
    else:
        table.write_docs(DOCS, table.markdown(results, found["machine"], found["notes"]))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 where sides disagree or a ratio fell."""
    parser = options()
    given = parser.parse_args(arguments)
    if given.width != models.TINY.width and (given.compare or given.save_baselines):
        parser.error("baselines are kept for the default --width only")
    if given.width % 64 or not models.TINY.width <= given.width < models.LARGE.width:
        parser.error(f"--width {given.width}: expected a multiple of 64 from {models.TINY.width} "
                     f"to below {models.LARGE.width}")
    if given.write_docs:
        return write_docs(given.out)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that vLLM's worker is ended too
    torch.set_num_threads(given.threads)
    about = machine.describe(given.device)
    store = Store(given.out / "points.jsonl", settings(given, about), given.resume or given.full)
    try:
        measure(given, store)
    except Disagreement as error:
        print(f"FAILED: {error}")
        return 1
    report(given, store)
    return judge(given, store)


if __name__ == "__main__":
    raise SystemExit(main())
