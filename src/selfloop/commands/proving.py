"""prove: the arms that a gain has to beat, on the sealed test split of one's own data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from selfloop.commands.before import Given, split_args
from selfloop.commands.output import AsJson, put_json, say, table, tell

NAMES = {
    "seed_accuracy": "seed", "final_accuracy": "final", "control_steps": "control, same steps",
    "control_flops": "control, same FLOPs", "testtime_vote": "the seed's vote at test time",
    "shuffled": "shuffled verdicts", "supervised_on_answers": "supervised on the answers read",
    "no_image": "final without the picture", "skyline": "skyline: all labels in full",
}


def prove(
    given: Given = None,
    workers: Annotated[int, typer.Option(min=1, help="Arms that train at the same time.")] = 1,
    json: AsJson = False,
) -> None:
    """Run every arm beside the loop and ask all of them the sealed test questions."""
    from selfloop.commands.auditing import admitted
    from selfloop.commands.running import settled_config
    from selfloop.config import load_config, load_data
    from selfloop.egress import only
    from selfloop.own_proof import study_of
    from selfloop.progress import Shown
    from selfloop.proof import prove as run_all
    from selfloop.report.page import write_report

    config = settled_config(load_config(*split_args(given)))
    study = study_of(config)
    tell(f"proving in {study.folder}: {', '.join(study.arms)}")
    admitted(config, study.loop, load_data(config), study.cast(study.make_engine()),
             study.place("loop"))
    with Shown() as shown, only(config.network):
        summary = run_all(study, workers=workers, watch=shown)
    path = write_report(study.folder)
    if json:
        put_json(summary)
        return
    print_summary(summary)
    say(f"report: {path}")


def print_summary(summary: Mapping[str, Any]) -> None:
    """The verdict in words, every arm with the final model's lead over it, and the cost."""
    say(summary["words"])
    rows = []
    for arm, name in NAMES.items():
        if arm in summary:
            lead = summary["gains"].get(arm)
            rows.append((name, f"{summary[arm]:.1f} %", "" if lead is None else
                         f"{lead['gain']:+.1f} [{lead['interval'][0]:.1f}, "
                         f"{lead['interval'][1]:.1f}]"))
    table(rows, ("arm", f"of {summary['heldout_n']} held-out questions",
                 "final minus arm, points [95 % interval]"))
    tokens = sum(summary["tokens"].values())
    say(f"labels read: {summary['labels_full']} full, {summary['labels_answer_only']} answer-only; "
        f"dev {summary['labels_dev']}; {tokens:,} tokens, {summary['flops']:.2g} FLOPs, "
        f"{summary['seconds']:.0f} s with all arms")
    gained = summary["gains"].get("seed_accuracy", {"gain": 0.0})["gain"]
    if gained > 0:
        labels = summary["labels_full"] + summary["labels_answer_only"]
        say(f"a point gained over the seed cost {labels / gained:,.0f} labels, "
            f"{tokens / gained:,.0f} tokens, {summary['flops'] / gained:.2g} FLOPs")
