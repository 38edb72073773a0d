"""The study in words and tables. Losses stand in the order of the study, never by their score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfloop.loss_study.design import NAMES

AGAINST = {**NAMES, "shuffled": "its shuffled verdicts"}
PLAIN = {"chair_i": "CHAIR_i", "chair_s": "CHAIR_s", "pope": "POPE accuracy", "pope_f1": "POPE F1",
         "yes_rate": "yes-rate", "recall": "recall", "misled": "misled", "words": "words a caption",
         "accuracy": "accuracy"}
Found = Mapping[str, Any]


def words(summary: Found, loss: Found) -> str:
    """What may be said of one loss, and nothing that its intervals do not carry."""
    said = [_claim(summary, loss)]
    seed = [f"{_figure(name)} {_signed(by['seed'])}" for name, by in loss["others"].items()
            if by["seed"] and by["seed"]["shown"]]
    said.append(f"other figures, against the seed: {', '.join(seed)}" if seed else
                "no other figure is shown to differ from the seed's")
    if loss.get("at_the_edge"):
        said.append(f"its rate {loss['rate']:g} lies at the edge of the grid")
    return f"{loss['name']}: {'; '.join(said)}"


def _claim(summary: Found, loss: Found) -> str:
    """Which arms it is above, which it is below, and where nothing is shown."""
    claim, gains = loss["claim"], loss["gains"]
    if claim["above_all"]:
        return f"above every arm (p = {claim['p_holm']:.2g}, Holm over the losses)"
    shown = {arm: gains[arm]["gain"] for arm in summary["against"]
             if gains[arm] and gains[arm]["shown"]}
    above = [AGAINST[arm] for arm, gain in shown.items() if gain > 0]
    below = [AGAINST[arm] for arm, gain in shown.items() if gain < 0]
    if len(above) == len(summary["against"]):
        return "above each arm by itself, not shown to be above all of them at once"
    rest = [AGAINST[arm] for arm in summary["against"] if arm not in shown]
    parts = [("above", above), ("below", below), ("not shown to differ from", rest)]
    return "; ".join(f"{how} {', '.join(arms)}" for how, arms in parts if arms)


def _signed(gap: Found) -> str:
    low, high = gap["interval"]
    return f"{gap['gain']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _figure(name: str) -> str:
    """ "test: chair_i" -> "CHAIR_i on test"."""
    where, _, figure = name.partition(": ")
    return f"{PLAIN.get(figure, figure)} on {where}"


# -- tables ---------------------------------------------------------------------------------------

def markdown(summary: Found) -> str:
    """Gains over every arm, the shared arms, further figures, differences between losses, words."""
    parts = [_gains(summary), _shared(summary), _further(summary), differing(summary),
             "\n".join(f"- {line}" for line in summary["words"])]
    if summary["missing"]:
        parts.append(f"Not finished, left out: {len(summary['missing'])} points, from "
                     f"{summary['missing'][0]} on.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_line(head), "|" + "---|" * len(head), *(_line(row) for row in rows)])


def _gains(summary: Found) -> str:
    against = summary["against"]
    head = ["loss", "rate", "accuracy", *(f"minus {AGAINST[a]}" for a in against),
            "above all, p", "tokens trained", "FLOPs"]
    rows = [[loss["name"], f"{loss['rate']:g}", _level(loss, summary["main"], "accuracy"),
             *(_marked(loss["gains"][a]) for a in against), f"{loss['claim']['p_holm']:.2g}",
             f"{loss['tokens']['learn_trained']:,}", f"{loss['flops']:.2g}"]
            for loss in summary["losses"]]
    return _table(head, rows)


def _shared(summary: Found) -> str:
    rows = [[arm["name"], f"{arm['rate']:g}" if "rate" in arm else "–",
             _level(arm, summary["main"], "accuracy"),
             f"{arm['updates']:.0f}" if "updates" in arm else "–",
             f"{arm['labels_full']} / {arm['labels_answer_only']}" if "rate" in arm else "–",
             f"{arm['flops']:.2g}" if "flops" in arm else "–"] for arm in summary["arms"]]
    return _table(["arm", "rate", "accuracy", "updates", "labels, full / answer", "FLOPs"], rows)


def _further(summary: Found) -> str:
    """Every other figure of losses and of the seed; a star: shown to differ from the seed's."""
    names = list(summary["losses"][0]["others"])
    if not names:
        return ""
    seed = next(arm for arm in summary["arms"] if arm["arm"] == "seed")
    rows = [["seed", *(_plain(seed, name) for name in names)]]
    for loss in summary["losses"]:
        marks = ["*" if (g := loss["others"][n]["seed"]) and g["shown"] else "" for n in names]
        rows.append([loss["name"], *(f"{_plain(loss, n)}{mark}"
                                     for n, mark in zip(names, marks, strict=True))])
    return _table(["", *(_figure(n) for n in names)], rows)


def differing(summary: Found) -> str:
    """The pairs of losses whose accuracies are shown to differ, and how many are not."""
    names = {loss["way"]: loss["name"] for loss in summary["losses"]}
    shown = [p for p in summary["pairs"] if p.get("shown")]
    told = [f"{names[p['first']]} minus {names[p['second']]} {_signed(p)}" for p in shown]
    rest = len(summary["pairs"]) - len(shown)
    return (f"Of {len(summary['pairs'])} pairs of losses {len(shown)} are shown to differ in "
            f"accuracy{': ' + '; '.join(told) if told else ''}. For the other {rest} the intervals "
            "carry no order.")


def _level(arm: Found, name: str, figure: str) -> str:
    value, low, high = arm["figures"][name][figure]
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _plain(arm: Found, name: str) -> str:
    where, _, figure = name.partition(": ")
    found = arm["figures"].get(where, {}).get(figure)
    return f"{found[0]:.1f}" if found else "–"


def _marked(gain: Found | None) -> str:
    """A gain with its interval; a star where it is shown after the correction."""
    return "–" if gain is None else _signed(gain) + ("*" if gain["shown"] else "")
