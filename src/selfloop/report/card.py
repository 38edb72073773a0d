"""The model card: base model, data, labels counted, arms with intervals, decisions, limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from selfloop.report import arms, sections
from selfloop.report.facts import Findings
from selfloop.report.words import decision


def card(found: Findings, *, base: str | None, adapter: bool, version: int, promoted: bool) -> str:
    """README.md of an exported model. `version` is that of the weights beside it."""
    made = Environment(loader=PackageLoader("selfloop", "report"), undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
                       finalize=_line)
    hub = base if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() \
        else None
    about = found.about
    return made.get_template("card.jinja").render(
        title=f"{Path(base or 'model').name}, improved with {found.name}", name=found.name,
        base=hub or (Path(base).name if base else "a model that the run does not name"),
        base_hub=hub, adapter=adapter, sentence=decision(found), words=arms.claim(found),
        tags=["selfloop", "self-improvement", "vision-language", found.name],
        which=_which(found, version, promoted), other=not promoted,
        made_by=about.get("selfloop", "(version not stored)"),
        fingerprint=about.get("fingerprint", "not stored"), data=about.get("data", "not stored"),
        dev=about.get("dev", "not stored"),
        test_hash=(found.summary or {}).get("test_sha256", ""), cost=sections.cost(found),
        arms=arms.arms(found), decisions=sections.decisions(found),
        limits=_limits(found, promoted))


def _which(found: Findings, version: int, promoted: bool) -> str:
    if promoted:
        return f"This is version {version}, the last that the gate promoted."
    return (f"This is version {version}, which the gate did **not** promote: it is not shown to be "
            "better than the base model.")


def _limits(found: Findings, promoted: bool) -> list[str]:
    said = [] if promoted else ["These weights were exported although they were not promoted."]
    if found.stopped:
        said.append(f"The run did not come to its end: {found.stopped}.")
    if found.summary and found.dev_gain and found.dev_gain.units.endswith("one seed"):
        said.append("One seed: the spread between seeds is not in the intervals.")
    return said


def _line(value: Any) -> Any:
    """Text from a run stays on its line and inside its table cell."""
    if not isinstance(value, str):
        return value
    return value.replace("\r", " ").replace("\n", " ").replace("|", "\\|")
