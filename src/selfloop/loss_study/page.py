"""Every loss's gain over every arm as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from selfloop.loss_study.telling import AGAINST, differing
from selfloop.report.figures import Axis, axis, interval_row, ticks_row

Found = Mapping[str, Any]


def gains_page(summary: Found) -> str:
    """The page of a study's summary.json as text; nothing is fetched when it is opened.

    Bars are hidden from screen readers: the numbers beside them say the same.
    """
    from selfloop.report.page import POLICY, environment

    style = environment().get_template("style.jinja").render()
    every = [g for loss in summary["losses"] for g in loss["gains"].values() if g]
    scale = axis([v / 100 for g in every for v in (g["gain"], *g["interval"], 0.0)])
    return str(Markup(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="{}">'
        "<title>Losses</title><style>{}</style></head><body><main>"
        '<p class="kicker">Losses under one budget: {}</p><h1>{}</h1>{}<h2>In words</h2><ul>{}</ul>'
        "<p>{}</p></main></body></html>").format(
            Markup(POLICY), Markup(style), summary["bed"], _sentence(summary),
            Markup("").join(_against(summary, arm, scale) for arm in summary["against"]),
            Markup("").join(Markup("<li>{}</li>").format(w) for w in summary["words"]),
            differing(summary)))


def _sentence(summary: Found) -> str:
    missing = f"; {len(summary['missing'])} points are not finished and left out" \
        if summary["missing"] else ""
    return (f"{summary['questions']} test questions, intervals over {summary['units']}{missing}")


def _against(summary: Found, arm: str, scale: Axis) -> Markup:
    rows = Markup("").join(_row(loss, loss["gains"][arm], scale) for loss in summary["losses"])
    return Markup('<h2>Minus {}</h2><div class="arms">{}{}</div>').format(
        AGAINST[arm], rows, ticks_row(scale))


def _row(loss: Found, gain: Found | None, scale: Axis) -> Markup:
    if gain is None:
        return Markup('<div class="arm"><div>{}</div><div></div><div>not counted</div></div>'
                      ).format(loss["name"])
    low, high = gain["interval"]
    bar = interval_row(gain["gain"] / 100, low / 100, high / 100, scale, 0.0,
                       "solid" if gain["shown"] else "dot")
    return Markup(
        '<div class="arm"><div>{}</div><div class="track">{}</div><div>{}</div><div>{}</div></div>'
    ).format(loss["name"], bar, f"{gain['gain']:+.1f} [{low:+.1f}, {high:+.1f}]",
             _state(gain))


def _state(gain: Found) -> str:
    if not gain["shown"]:
        return "not shown"
    return "above" if gain["gain"] > 0 else "below"

