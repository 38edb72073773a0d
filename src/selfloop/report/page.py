"""One self-contained HTML page of a run or a proof: nothing is fetched when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import selfloop
from selfloop.pictures import write_whole
from selfloop.report import arms, gallery, negatives, sections
from selfloop.report.audited import audited
from selfloop.report.facts import Findings, gather
from selfloop.report.votes import pseudo_labels
from selfloop.report.words import decision
from selfloop.types import Sample

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; " \
         "form-action 'none'"
"""The page's own content policy: even markup that slipped through could load or run nothing."""


def write_report(folder: str | Path, *, dev: Sequence[Sample] = ()) -> Path:
    """Write report.html into a run or proof folder; returns its path.

    `dev` are the dev questions, for the gallery; without them they are looked for near the run.
    Parts that are missing are named on the page. Raises SelfloopError when the folder is neither
    a run nor a proof.
    """
    found = gather(folder)
    path = found.folder / "report.html"
    write_whole(path, render(found, dev).encode())
    return path


def render(found: Findings, dev: Sequence[Sample] = ()) -> str:
    """The page as text."""
    page = environment().get_template("page.jinja")
    return page.render(**_view(found, dev))


def environment() -> Environment:
    """Templates of this package; everything printed is escaped unless it is Markup."""
    made = Environment(loader=PackageLoader("selfloop", "report"), autoescape=True,
                       undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["thousands"] = lambda n: f"{n:,}"
    return made


def _view(found: Findings, dev: Sequence[Sample]) -> dict[str, Any]:
    known, why_not = gallery.questions(found, dev)
    album = gallery.Album([folder / "images" for folder in (found.run.path, found.folder)])
    loop = found.about
    return {
        "title": f"{found.name}: report", "name": found.name, "policy": Markup(POLICY),
        "sentence": decision(found), "words": arms.claim(found),
        "headline": sections.headline(found),
        "arms": arms.arms(found), "progress": sections.progress(found),
        "votes": pseudo_labels(found), "steps": sections.steps(found),
        "decisions": sections.decisions(found),
        "final": found.final, "promoted": found.promoted, "iterations": found.iterations,
        "cost": sections.cost(found), "floors": sections.floors(found),
        "flow": sections.flow(found), "audited": audited(found),
        "negatives": negatives.rows(negatives.negatives(found)), "of_negatives": negatives,
        "changed": gallery.changed(found, known, album), "why_not": why_not,
        "groups": gallery.learned_from(found, album), "missing": _missing(found),
        "printed": str(loop.get("printed", "")), "fingerprint": loop.get("fingerprint", ""),
        "data": loop.get("data", ""), "made_by": loop.get("selfloop", ""),
        "files": sections.files(found), "version": selfloop.__version__,
        "test_hash": (found.summary or {}).get("test_sha256", ""),
        "shown_dev": bool(found.greedy(-1)) and found.final is not None,
    }


def _missing(found: Findings) -> list[str]:
    """What this page would show and cannot, in words."""
    said = list(found.missing)
    if found.stopped:
        said.append(f"the run did not come to its end: {found.stopped}")
    if found.iterations and not found.dev:
        said.append("there are no dev answers: accuracy, gain and gate cannot be shown")
    if found.summary is None:
        said.append("this is a single run without its arms: whether it beats a control is not "
                    "known (selfloop.proof.prove runs them)")
    return said
