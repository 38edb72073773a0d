"""Accuracy over label budgets as one self-contained page: curves, intervals, and the worths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from selfloop.report.figures import Axis, axis

KINDS = ("solid", "dash", "dot", "extra")
"""Colours and dashes by arm, in the order in which arms are first met."""
EDGE = 6.0
"""Percent of the width left free at both ends of the budgets."""


def curve_page(summary: Mapping[str, Any]) -> str:
    """The page of a study's summary.json as text; nothing is fetched when it is opened.

    The chart is hidden from screen readers: the table under it says the same.
    """
    from selfloop.report.page import POLICY, environment

    style = environment().get_template("style.jinja").render()
    arms = list(dict.fromkeys(p["arm"] for p in sorted(
        summary["points"], key=lambda p: (p["arm"] != "supervised", p["arm"]))))
    names = {p["arm"]: p["name"] for p in summary["points"]}
    return str(Markup(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="{}">'
        "<title>Label efficiency</title><style>{}.k-extra{{--c:var(--good)}}"
        ".k-extra .line{{stroke-dasharray:9 3 2 3}}</style></head><body><main>"
        '<p class="kicker">Label efficiency: {}</p><h1>{}</h1>{}{}<h2>Points</h2>{}'
        "<h2>Worth in labels</h2>{}</main></body></html>").format(
            Markup(POLICY), Markup(style), summary["model"], _sentence(summary),
            _legend([(names[a], _kind(arms, a)) for a in arms]), chart(summary, arms),
            _points(summary), _worths(summary)))


def chart(summary: Mapping[str, Any], arms: Sequence[str]) -> Markup:
    """Accuracy (percent of the test questions) over the logarithm of full labels."""
    points = summary["points"]
    values = [v / 100 for p in points for v in (p["accuracy"], *p["interval"])]
    scale = axis(values, inside=(0.0, 1.0))
    budgets = summary["budgets"]
    drawn = [f'<line class="grid" x1="0" x2="100%" y1="{100 - scale.at(t):.2f}%" '
             f'y2="{100 - scale.at(t):.2f}%"/>' for t in scale.ticks]
    for arm in arms:
        mine = sorted((p for p in points if p["arm"] == arm), key=lambda p: p["labels_full"])
        drawn.append(_series(mine, _kind(arms, arm), scale, budgets, arms.index(arm)))
    left = "".join(f'<span style="top:{100 - scale.at(t):.2f}%">{100 * t:g}\u00a0%</span>'
                   for t in scale.ticks)
    below = "".join(f'<span style="left:{place(b, budgets):.2f}%">{b:,}</span>' for b in budgets)
    return Markup(
        '<div class="chart" role="img" aria-label="Accuracy over full labels; the table below '
        f'says the same"><div class="ylabels" aria-hidden="true">{left}</div>'
        f'<svg class="plot" width="100%" height="320" aria-hidden="true">{"".join(drawn)}</svg>'
        f'<div class="ticks" aria-hidden="true">{below}</div></div>'
        '<p class="soft">Labelled questions, logarithmic; bars are 95 % intervals.</p>')


def place(budget: int, budgets: Sequence[int]) -> float:
    """Where a budget stands, in percent of the width, by its logarithm."""
    if len(budgets) == 1:
        return 50.0
    low, high = math.log(budgets[0]), math.log(budgets[-1])
    return EDGE + (100 - 2 * EDGE) * (math.log(budget) - low) / (high - low)


def _kind(arms: Sequence[str], arm: str) -> str:
    return KINDS[min(arms.index(arm), len(KINDS) - 1)]


def _series(points: Sequence[Mapping[str, Any]], kind: str, scale: Axis, budgets: Sequence[int],
            nth: int) -> str:
    """One arm: its line, a bar and a dot a point, moved aside a little so that bars do not hide
    each other."""
    aside = 0.5 * nth
    at = [(place(p["labels_full"], budgets) + aside, p) for p in points]
    path = " ".join(f"{'L' if i else 'M'}{x:.2f} {100 - scale.at(p['accuracy'] / 100):.2f}"
                    for i, (x, p) in enumerate(at))
    parts = [f'<g class="k-{escape(kind)}"><svg viewBox="0 0 100 100" preserveAspectRatio="none" '
             f'overflow="visible"><path class="line" d="{path}"/></svg>']
    for x, p in at:
        low, high = (100 - scale.at(v / 100) for v in p["interval"])
        parts.append(f'<line class="bar" x1="{x:.2f}%" x2="{x:.2f}%" y1="{low:.2f}%" '
                     f'y2="{high:.2f}%"/><circle class="spot" cx="{x:.2f}%" '
                     f'cy="{100 - scale.at(p["accuracy"] / 100):.2f}%" r="4"/>')
    return "".join([*parts, "</g>"])


def _legend(lines: Sequence[tuple[str, str]]) -> Markup:
    rows = (Markup(
        '<li><svg class="k-{}" width="28" height="10" aria-hidden="true"><line class="line" '
        'x1="0" x2="28" y1="5" y2="5"/><circle class="spot" cx="14" cy="5" r="3.5"/></svg>{}</li>'
    ).format(kind, name) for name, kind in lines)
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(rows))


def _sentence(summary: Mapping[str, Any]) -> str:
    seeds, missing = len(summary["seeds"]), summary["missing"]
    rest = f"; {len(missing)} points are not finished and left out" if missing else ""
    return (f"{summary['test']} test questions, {seeds} seed{'s' if seeds != 1 else ''}, "
            f"intervals over {summary['units']}{rest}")


def _points(summary: Mapping[str, Any]) -> Markup:
    rows = [(f"{p['labels_full']:,}", f"{p['labels_answer_only']:,}", p["name"],
             f"{p['accuracy']:.1f}", f"{p['interval'][0]:.1f} to {p['interval'][1]:.1f}",
             f"{sum(p['tokens'].values()):,}", f"{p['flops']:.2g}", f"{p['seconds']:.0f}")
            for p in summary["points"]]
    return _table(("full labels", "answer-only labels", "arm", "accuracy, %", "95 % interval",
                   "tokens", "FLOPs", "seconds"), rows)


def _worths(summary: Mapping[str, Any]) -> Markup:
    rows = [(f"{w['labels_full']:,}", f"{w['labels_answer_only']:,}", w["name"],
             bounded(w["equivalent"]), bounded(w["times"]),
             bounded(w["over_vote"]) if "over_vote" in w else "") for w in summary["worth"]]
    return _table(("full labels", "answer-only labels", "arm", "worth in labels",
                   "times its full labels", "times the vote's worth"), rows)


def bounded(found: Mapping[str, Any]) -> str:
    """ "3.1 [2.2, 4.0]"; what is only a bound is said to be one."""
    if found["at_least"] and found["at_most"]:
        return "not known"
    head = "at least " if found["at_least"] else "at most " if found["at_most"] else ""
    low, high = (f"{found[end]:.3g}" for end in ("low", "high"))
    return (f"{head}{found['value']:.3g} [{'≤ ' if found['low_open'] else ''}{low}, "
            f"{'≥ ' if found['high_open'] else ''}{high}]")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    def line(cells: Sequence[str], tag: str) -> Markup:
        return Markup("<tr>{}</tr>").format(Markup("").join(
            Markup(f"<{tag}>{{}}</{tag}>").format(cell) for cell in cells))

    return Markup('<div class="scroll" tabindex="0"><table><thead>{}</thead><tbody>{}</tbody>'
                  "</table></div>").format(line(head, "th"),
                                           Markup("").join(line(r, "td") for r in rows))
