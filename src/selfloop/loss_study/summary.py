"""The figures of a study, from tallies.parquet and facts.json alone: gains, claims and words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from selfloop.evaluate.statistics import holm
from selfloop.loss_study.design import LABELS, NAMES, SEED, SHUFFLED
from selfloop.loss_study.figures import Gap, Table, corrected, tables_of, weakest
from selfloop.loss_study.page import gains_page
from selfloop.loss_study.telling import markdown, words
from selfloop.roles import SelfloopError
from selfloop.store import put, put_json, read_table

Found = dict[str, Any]
BESIDE = ("chair_s", "pope", "yes_rate", "words")
"""Figures that are told and not compared: they restate others, or say how these came about."""


def write_summary(folder: Path) -> Found:
    """summary.json, table.md and gains.html from the folder's tallies and facts; the first back.

    Raises SelfloopError when they are missing or do not belong together.
    """
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SelfloopError(f"{folder}/facts.json: no such file: it is written when a study's "
                            "first seed is done; run the study") from None
    kept = read_table(folder / "tallies.parquet")
    if kept is None:
        raise SelfloopError(f"{folder}/tallies.parquet: missing or torn; run the study again, "
                            "which makes it from what is stored")
    summary = summarised(facts, tables_of(kept[0], facts["seeds"], facts["clusters"]))
    put_json(folder / "summary.json", summary)
    put(folder / "table.md", markdown(summary).encode())
    put(folder / "gains.html", gains_page(summary).encode())
    return summary


def summarised(facts: Mapping[str, Any], tables: Mapping[str, Table]) -> Found:
    """Every loss with its gains over every arm, its other figures, and what may be said."""
    main, losses = tables[facts["main"]], list(facts["losses"])
    against = [a for a in facts["shared"] if a in main.sums] + ["shuffled"]
    gains = {arm: corrected([main.gap(w, _own(w, arm)) for w in losses]) for arm in against}
    claims = holm([weakest([g for arm in against if (g := gains[arm][i])])
                   for i in range(len(losses))])
    others = _others(facts, tables, losses)
    found = [{
        "way": way, "name": facts["ways"][way]["name"], **_cost(facts, way),
        "figures": _values(tables, way),
        "gains": {arm: _told(gains[arm][i]) for arm in against},
        "claim": {"p_holm": claims[i], "above_all": claims[i] <= 0.05},
        "others": {name: {arm: _told(gaps[i], _scale(name)) for arm, gaps in by.items()}
                   for name, by in others.items()},
    } for i, way in enumerate(losses)]
    summary = {
        **{name: facts[name] for name in ("bed", "seeds", "missing", "budget", "main", "tuned_at",
                                          "pool", "labelled", "dev", "test_sha256")},
        "units": _units(facts, main), "questions": _questions(main), "against": against,
        "losses": found, "pairs": _pairs(main, losses),
        "arms": [{"arm": arm, "name": NAMES[arm], **_cost(facts, arm),
                  "figures": _values(tables, arm)} for arm in facts["shared"]],
        "shuffled": {way: _values(tables, way + SHUFFLED) for way in losses},
    }
    return {**summary, "words": [words(summary, loss) for loss in found]}


def _own(way: str, arm: str) -> str:
    return way + SHUFFLED if arm == "shuffled" else arm


def _others(facts: Mapping[str, Any], tables: Mapping[str, Table], losses: Sequence[str]
            ) -> dict[str, dict[str, list[Gap | None]]]:
    """Every further figure of every set, against the seed, the own shuffled twin and labels.

    Without pictures only accuracy means something.
    """
    found = {}
    for name, table in tables.items():
        for figure in table.figures:
            if (name, figure) == (facts["main"], "accuracy") or figure in BESIDE \
                    or (name in facts["blind"] and figure != "accuracy"):
                continue
            arms = [a for a in (SEED, "shuffled", LABELS) if _own(losses[0], a) in table.sums]
            found[f"{name}: {figure}"] = {
                arm: corrected([table.gap(w, _own(w, arm), figure) for w in losses])
                for arm in arms}
    return found


def _pairs(main: Table, losses: Sequence[str]) -> list[Found]:
    """Every two losses' difference in accuracy, corrected over all of them."""
    both = list(itertools.combinations(losses, 2))
    gaps = corrected([main.gap(a, b) for a, b in both])
    return [{"first": a, "second": b, **(_told(gap) or {})}
            for (a, b), gap in zip(both, gaps, strict=True)]


def _scale(figure: str) -> int:
    """Shares are told in percent, words a caption are words."""
    return 1 if figure.endswith("words") else 100


def _told(gap: Gap | None, scale: int = 100) -> Found | None:
    """In points, as JSON; None where nothing was counted."""
    if gap is None:
        return None
    return {"gain": round(scale * gap.gain, 2),
            "interval": [round(scale * gap.low, 2), round(scale * gap.high, 2)],
            "p_value": float(f"{gap.p_value:.3g}"), "p_holm": float(f"{gap.p_holm:.3g}"),
            "shown": gap.shown}


def _values(tables: Mapping[str, Table], arm: str) -> Found:
    """{set: {figure: [value, low, high]}} in percent; words a caption are words."""
    found: Found = {}
    for name, table in tables.items():
        if arm not in table.sums:
            continue
        found[name] = {}
        for figure in table.figures:
            each = table.value(arm, figure)
            known = each[0] == each[0]
            found[name][figure] = [round(_scale(figure) * v, 2) for v in each] if known else None
    return found


def _cost(facts: Mapping[str, Any], arm: str) -> Found:
    """What the arm spent, a mean over seeds; and how its learning rate was found."""
    told = [a for a in facts["accounts"] if a["arm"] == arm and "tokens" in a]
    if not told:
        return {}
    tried = facts["tried"].get(arm, {})
    rates = [float(r) for r in tried]
    return {
        "rate": told[0]["rate"], "tried": tried,
        "at_the_edge": len(rates) > 2 and told[0]["rate"] in (min(rates), max(rates)),
        "tokens": {k: round(fmean(a["tokens"][k] for a in told)) for k in told[0]["tokens"]},
        "flops": fmean(a["flops"] for a in told), "updates": fmean(a["updates"] for a in told),
        "labels_full": round(fmean(a["labels_full"] for a in told)),
        "labels_answer_only": round(fmean(a["labels_answer_only"] for a in told)),
        "monitors": {k: float(f"{fmean(a['monitors'].get(k, 0.0) for a in told):.4g}")
                     for k in told[0]["monitors"]},
        "by_seed": {str(a["seed"]): round(100 * a["accuracy"], 2) for a in told},
    }


def _questions(main: Table) -> int:
    return int(main.sums[SEED]["accuracy"][1].sum())


def _units(facts: Mapping[str, Any], main: Table) -> str:
    clusters, seeds = f"{len(main.clusters)} clusters", len(facts["seeds"])
    return f"{seeds} seeds x {clusters}" if seeds > 1 else f"{clusters}, one seed"
