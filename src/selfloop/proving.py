"""`make proof`: four methods, three seeds, every arm; resumable, and pooled with intervals.

Runs live in `proof-runs/`; the summary and every per-question answer are copied to `proof/`, from
which all figures can be recomputed: `python -m selfloop.proving --recompute`. `--again 4768` asks
runs that are finished that many new questions about the same test scans, and trains nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfloop.data import load
from selfloop.demo import PROOF, data, study
from selfloop.evaluate.answers import Answer, accuracy
from selfloop.evaluate.statistics import holm, paired_gain
from selfloop.proof import ASKED, Study, answers, ask_all, prove, train, verdict
from selfloop.roles import SelfloopError
from selfloop.store import put, put_json

METHODS = ("star", "grpo", "dpo", "agreement")
SEEDS = (0, 1, 2)
FIGURES = (*ASKED, "control_steps", "control_flops", "shuffled", "supervised_on_answers",
           "skyline")
KEY = 20261121
"""What the pictures of a second look are drawn under: the first look's key is 1."""


def one(method: str, seed: int, runs: Path) -> dict[str, Any]:
    """One method at one seed with all its arms, in this process."""
    return prove(study(method, seed, runs / f"{method}-{seed}", scale=PROOF, shared=runs),
                 workers=1)


def sky(seed: int, runs: Path) -> None:
    """The skyline of one seed, which all methods share."""
    train(study("star", seed, runs / f"star-{seed}", scale=PROOF, shared=runs), "skyline")


def all_of_them(runs: Path, out: Path, methods: Sequence[str], seeds: Sequence[int], workers: int
                ) -> None:
    """Run what is missing, two studies at a time, and pool what is there after each."""
    data(runs / "data", PROOF)  # written once, before two processes want it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for skyline in [pool.submit(sky, s, runs) for s in seeds]:
            skyline.result()  # shared by the methods, so it has to be whole before they start
        tasks = {pool.submit(one, m, s, runs): (m, s) for s in seeds for m in methods}
        for task in as_completed(tasks):
            method, seed = tasks[task]
            found = task.result()
            print(f"{method} seed {seed}: {found['words']}", file=sys.stderr, flush=True)
            keep(runs / f"{method}-{seed}", out / f"{method}-{seed}")
            recompute(out)


def again(method: str, seed: int, runs: Path, out: Path, n: int, key: int = KEY, workers: int = 2
          ) -> dict[str, Any]:
    """Ask every arm of a finished study `n` questions drawn under another key.

    The same held-out scans in the same blocks, other pictures; under one key, fewer questions are
    the first of more. Key 1 is the first test once more. Raises SelfloopError for a run that has
    not finished, a picture of the first test, or an `out` that holds another test's answers.
    """
    first = study(method, seed, runs / f"{method}-{seed}", scale=PROOF, shared=runs)
    scale = replace(PROOF, test=n, key=key)
    asked = replace(study(method, seed, first.folder, scale=scale, shared=runs),
                    told=first.folder / f"again-{key}-{n}")
    if asked.test.path != first.test.path:
        _all_new(asked, first)
    place = out / f"{method}-{seed}"
    _not_another(place / "summary.json", asked)
    found = ask_all(asked, workers=workers)
    keep(asked.account(), place)
    return found


def _not_another(kept: Path, asked: Study) -> None:
    if kept.exists() and json.loads(kept.read_text())["test_sha256"] != asked.test.commitment():
        raise SelfloopError(f"{kept} is of another test, which stays beside this one: give another "
                            "--out")


def _all_new(asked: Study, first: Study) -> None:
    shown = {m.sha256 for s in load(first.test.path) for m in s.media}
    old = [s.id for s in load(asked.test.path) if any(m.sha256 in shown for m in s.media)]
    if old:
        raise SelfloopError(f"{asked.test.path}: {len(old)} pictures are of the first test (first: "
                            f"sample {old[0]}): choose another --key")


def keep(study_folder: Path, out: Path) -> None:
    """Copy what figures are recomputed from: the answers and the run's own account."""
    (out / "answers").mkdir(parents=True, exist_ok=True)
    for path in sorted((study_folder / "answers").glob("*.parquet")):
        shutil.copyfile(path, out / "answers" / path.name)
    shutil.copyfile(study_folder / "summary.json", out / "summary.json")


def recompute(out: Path) -> dict[str, Any]:
    """Pool all kept studies into proof/summary.json and proof/table.md."""
    runs = [json.loads(p.read_text()) for p in sorted(out.glob("*-[0-9]*/summary.json"))]
    pooled = {m: pool_of([r for r in runs if r["method"] == m], out)
              for m in METHODS if any(r["method"] == m for r in runs)}
    tests = [(m, arm) for m in pooled for arm in pooled[m]["gains"]]
    for (m, arm), p in zip(tests, holm([pooled[m]["gains"][a]["p_value"] for m, a in tests]),
                           strict=True):
        pooled[m]["gains"][arm]["p_holm"] = p
    summary = {"methods": pooled, "runs": runs}
    put_json(out / "summary.json", summary)
    put(out / "table.md", table(pooled).encode())
    for page in (out.parent / "README.md", out.parent / "docs" / "proof.md"):
        if page.exists():
            show_in(page, table(pooled))
    return summary


def show_in(page: Path, text: str) -> None:
    """Put the table between a page's markers, so that what is told is what was measured."""
    head, marker, rest = page.read_text(encoding="utf-8").partition("<!-- proof -->\n")
    _, end, tail = rest.partition("<!-- /proof -->")
    if marker and end:
        put(page, f"{head}{marker}\n{text}\n{end}{tail}".encode())


def pool_of(runs: Sequence[dict[str, Any]], out: Path) -> dict[str, Any]:
    """One method over its seeds: means, and gains with intervals over seeds x blocks of scans."""
    by_arm: dict[str, list[Answer]] = {}
    for told in runs:
        folder = out / f"{told['method']}-{told['seed']}"
        for arm in FIGURES:
            if (folder / "answers" / f"{arm}.parquet").exists():
                by_arm.setdefault(arm, []).extend(answers(folder, arm))
    figures = {arm: round(100 * accuracy(found), 2) for arm, found in by_arm.items()}
    final = by_arm["final_accuracy"]
    gains = {}
    for arm, found in by_arm.items():
        if arm in ("final_accuracy", "no_image"):
            continue
        gain = paired_gain(final, found)
        gains[arm] = {"gain": round(100 * gain.gain, 2), "p_value": gain.p_value,
                      "interval": [round(100 * gain.low, 2), round(100 * gain.high, 2)]}
    first = runs[0]
    return {
        "method": first["method"], "seeds": [r["seed"] for r in runs], **figures,
        "heldout_n": first["heldout_n"], "labels_full": first["labels_full"],
        "labels_answer_only": first["labels_answer_only"], "gains": gains,
        "gain_over_control": gains["control_steps"]["gain"],
        "interval": gains["control_steps"]["interval"],
        "words": verdict(figures, gains),
        "tokens": {k: sum(r["tokens"][k] for r in runs) // len(runs) for k in first["tokens"]},
        "flops": sum(r["flops"] for r in runs) / len(runs),
        "seconds": round(sum(r["seconds"] for r in runs) / len(runs), 1),
    }


def table(pooled: dict[str, dict[str, Any]]) -> str:
    """The proof as a Markdown table, and each verdict in words."""
    names = {"seed_accuracy": "seed", "final_accuracy": "final", "control_steps": "control, steps",
             "control_flops": "control, FLOPs", "testtime_vote": "seed's vote",
             "shuffled": "shuffled", "supervised_on_answers": "supervised on answers",
             "no_image": "no image", "skyline": "skyline"}
    head = ["method", *names.values(), "gain over control", "labels full / answer"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, found in pooled.items():
        low, high = found["interval"]
        cells = [f"{found[n]:.1f}" if n in found else "–" for n in names]
        lines.append("| " + " | ".join([
            method, *cells, f"{found['gain_over_control']:+.1f} [{low:.1f}, {high:.1f}]",
            f"{found['labels_full']} / {found['labels_answer_only']}"]) + " |")
    said = [f"- **{m}** ({len(f['seeds'])} seeds): {f['words']}" for m, f in pooled.items()]
    return "\n".join([*lines, "", *said, ""])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("proof-runs"))
    parser.add_argument("--out", type=Path, help="default: proof; with --again, proof/larger")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--recompute", action="store_true", help="only pool what is kept")
    parser.add_argument("--again", type=int, metavar="N",
                        help="ask finished runs N new questions; train nothing")
    parser.add_argument("--key", type=int, default=KEY, help="the new pictures are drawn under it")
    given = parser.parse_args()
    out = given.out or Path("proof/larger" if given.again else "proof")
    if given.again is not None:
        for method, seed in itertools.product(given.methods, given.seeds):
            again(method, seed, given.runs, out, given.again, given.key, given.workers)
    elif not given.recompute:
        all_of_them(given.runs, out, given.methods, given.seeds, given.workers)
    print(table(recompute(out)["methods"]))


if __name__ == "__main__":
    main()
