"""Charts as inline SVG that keep their line widths and letter sizes at any width.

Positions are percentages and letters are HTML beside the drawing, so that a phone shows the same
labels as a desk. Every chart is decoration for a table that says the same: it is aria-hidden where
that table is beside it, and carries its own words where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_MOST = 160
"""Points a line keeps; more are averaged, so that a long run does not make a heavy page."""


@dataclass(frozen=True)
class Line:
    """One series. `kind` picks colour, dash and marker (style.jinja: .k-solid, .k-dash, .k-dot)."""

    name: str
    values: Sequence[float | None]
    kind: str = "solid"
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()


@dataclass(frozen=True)
class Axis:
    """A value axis with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value lies, in percent of the axis."""
        return 100 * (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float | None], *, ticks: int = 4,
         inside: tuple[float, float] | None = None) -> Axis:
    """Round ends and steps around the finite values, kept within `inside`."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low < 1e-12:
        half = max(abs(high) * 0.1, 0.05 if inside else 1e-6)
        low, high = low - half, high + half
    step = 10 ** math.floor(math.log10((high - low) / ticks))
    step *= next((m for m in (1, 2, 2.5, 5, 10) if (high - low) / (step * m) <= ticks), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = [round(i * step, 12) for i in range(first, last + 1)]
    if inside is not None:
        marks = [m for m in marks if inside[0] - 1e-9 <= m <= inside[1] + 1e-9]
    if len(marks) < 2:
        marks = [low, high]
    low, high = min(marks[0], low), max(marks[-1], high)
    return Axis(max(low, inside[0]) if inside else low, min(high, inside[1]) if inside else high,
                tuple(marks))


def interval_row(value: float, low: float | None, high: float | None, scale: Axis,
                 mark: float | None, kind: str) -> Markup:
    """One arm on its track: a dot, its interval, the ticks, and the final model's line."""
    parts = [f'<line class="grid" x1="{scale.at(t):.2f}%" x2="{scale.at(t):.2f}%" y1="0" '
             'y2="100%"/>' for t in scale.ticks]
    if mark is not None:
        x = f"{scale.at(mark):.2f}%"
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="0" y2="100%"/>')
    if low is not None and high is not None:
        a, b = f"{scale.at(low):.2f}%", f"{scale.at(high):.2f}%"
        parts.append(f'<line class="bar" x1="{a}" x2="{b}" y1="50%" y2="50%"/>')
    parts.append(f'<circle class="spot" cx="{scale.at(value):.2f}%" cy="50%" r="5"/>')
    return Markup(f'<svg class="track k-{escape(kind)}" width="100%" '
                  f'aria-hidden="true">{"".join(parts)}</svg>')


def ticks_row(scale: Axis) -> Markup:
    """The percent labels under the tracks."""
    return Markup('<div class="ticks" aria-hidden="true">' + "".join(
        f'<span style="left:{scale.at(t):.2f}%">{100 * t:g}</span>' for t in scale.ticks)
        + "</div>")


def curves(lines: Sequence[Line], labels: Sequence[str], *, title: str, percent: bool = True,
           height: int = 240) -> Markup:
    """Values over few positions (iterations): dots, lines and interval bars."""
    every = [v for line in lines for v in (*line.values, *line.lows, *line.highs)]
    scale = axis(every, inside=(0.0, 1.0) if percent else None)
    xs = [_spread(i, len(labels)) for i in range(len(labels))]
    inner = [_grid(scale)]
    for line in lines:
        drawn = [f'<g class="k-{escape(line.kind)}">', _path(xs, line.values, scale)]
        for x, low, high in zip(xs, line.lows, line.highs, strict=False):
            if low is not None and high is not None:
                drawn.append(f'<line class="bar" x1="{x:.2f}%" x2="{x:.2f}%" '
                             f'y1="{100 - scale.at(low):.2f}%" y2="{100 - scale.at(high):.2f}%"/>')
        drawn += [f'<circle class="spot" cx="{x:.2f}%" cy="{100 - scale.at(v):.2f}%" r="4"/>'
                  for x, v in zip(xs, line.values, strict=True) if v is not None]
        inner.append("".join((*drawn, "</g>")))
    below = "".join(f'<span style="left:{x:.2f}%">{escape(label)}</span>'
                    for x, label in zip(xs, labels, strict=True))
    return _framed(title, inner, scale, below, height, percent)


def small(name: str, values: Sequence[float | None], *, percent: bool = False, first: int = 0
          ) -> Markup:
    """One quantity over many steps, small; the words give its first, last, least and most."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return Markup("")
    scale = axis(known, ticks=2, inside=(0.0, 1.0) if percent else None)
    thin = _thinned(values)
    xs = [_spread(i, len(thin), 2.0) for i in range(len(thin))]
    drawn = [f'<g class="k-solid">{_path(xs, thin, scale)}']
    if len(thin) <= 24:
        drawn += [f'<circle class="spot" cx="{x:.2f}%" cy="{100 - scale.at(v):.2f}%" r="2.5"/>'
                  for x, v in zip(xs, thin, strict=True) if v is not None and math.isfinite(v)]
    drawn.append("</g>")
    said = f"{name}: {_number(known[0], percent)} at the first of {len(values)} steps, " \
           f"{_number(known[-1], percent)} at the last, between {_number(min(known), percent)} " \
           f"and {_number(max(known), percent)}"
    below = f'<span style="left:{xs[0]:.2f}%">{first}</span>'
    if len(values) > 1:
        below += f'<span style="left:{xs[-1]:.2f}%">{first + len(values) - 1}</span>'
    return _framed(said, [_grid(scale), "".join(drawn)], scale, below, 84, percent)


def stacked(shares: Sequence[tuple[str, float]]) -> Markup:
    """One horizontal bar of named shares that add up to one."""
    at, parts = 0.0, []
    for kind, share in shares:
        if share > 0:
            parts.append(f'<rect class="s-{escape(kind)}" x="{at:.2f}%" y="0" '
                         f'width="{100 * share:.2f}%" height="100%"/>')
            at += 100 * share
    return Markup(f'<svg class="stack" width="100%" height="12" aria-hidden="true">'
                  f'{"".join(parts)}</svg>')


def _framed(title: str, inner: Sequence[str], scale: Axis, below: str, height: int, percent: bool
            ) -> Markup:
    left = "".join(f'<span style="top:{100 - scale.at(t):.2f}%">{_number(t, percent)}</span>'
                   for t in scale.ticks)
    return Markup(
        f'<div class="chart" role="img" aria-label="{escape(title)}">'
        f'<div class="ylabels" aria-hidden="true">{left}</div>'
        f'<svg class="plot" width="100%" height="{height}" aria-hidden="true">{"".join(inner)}'
        f'</svg><div class="ticks" aria-hidden="true">{below}</div></div>')


def _grid(scale: Axis) -> str:
    return "".join(f'<line class="grid" x1="0" x2="100%" y1="{100 - scale.at(t):.2f}%" '
                   f'y2="{100 - scale.at(t):.2f}%"/>' for t in scale.ticks)


def _path(xs: Sequence[float], values: Sequence[float | None], scale: Axis) -> str:
    """The line through the known values; a gap where one is not known."""
    steps: list[str] = []
    pen = "M"
    for x, value in zip(xs, values, strict=True):
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        steps.append(f"{pen}{x:.2f} {100 - scale.at(value):.2f}")
        pen = "L"
    # Stretched to the chart's box; the stroke is not (vector-effect in style.jinja).
    return ('<svg viewBox="0 0 100 100" preserveAspectRatio="none" overflow="visible">'
            f'<path class="line" d="{" ".join(steps)}"/></svg>')


def _spread(i: int, n: int, edge: float = 6.0) -> float:
    return 50.0 if n == 1 else edge + (100 - 2 * edge) * i / (n - 1)


def _thinned(values: Sequence[float | None]) -> list[float | None]:
    if len(values) <= _MOST:
        return list(values)
    found: list[float | None] = []
    for k in range(_MOST):
        part = [v for v in values[k * len(values) // _MOST:(k + 1) * len(values) // _MOST]
                if v is not None and math.isfinite(v)]
        found.append(sum(part) / len(part) if part else None)
    return found


def _number(value: float, percent: bool) -> str:
    text = f"{100 * value:.3g}\u00a0%" if percent else f"{value:.3g}"
    return text.replace("-", "−")
