"""Run a study: what is missing, seed by seed; then the figures from what is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.loss_study.design import SEED, LossStudy
from selfloop.loss_study.figures import Sums, Table, columns_of
from selfloop.loss_study.points import Counts, Maker
from selfloop.loss_study.summary import write_summary
from selfloop.roles import SelfloopError
from selfloop.running import Watch
from selfloop.store import RunFolder, put_json, put_table

Tell = Callable[[str], None]


def study_losses(study: LossStudy, *, watch: Watch | None = None,
                 tell: Tell = lambda _: None) -> dict[str, Any]:
    """Make the missing points, seed by seed, and write the summary; returns it.

    A killed study goes on inside the run where it was. A seed counts when all its arms are done,
    so a first summary stands after the first seed.
    """
    maker = Maker(study, watch)
    for seed in study.seeds:
        wanted = [arm for arm in study.arms if not maker.finished(arm, seed)]
        for arm in wanted:
            maker.point(arm, seed)
            tell(f"{study.bed.name}, seed {seed}: {arm} {_said(maker, arm, seed)}")
        maker.point(SEED, study.seeds[0])  # when no run of the first seed is left to be made
        if wanted and seed != study.seeds[-1]:
            collected(study, study.folder)
    return collected(study, study.folder)


def _said(maker: Maker, arm: str, seed: int) -> str:
    told = maker.kept(arm, seed) or {}
    at = f" (rate {told['rate']:g})" if "rate" in told else ""
    return f"{100 * told['accuracy']:.1f} %{at}"


def collected(study: LossStudy, out: Path) -> dict[str, Any]:
    """Gather the finished seeds into tallies.parquet and facts.json, and write the summary.

    Raises SelfloopError when no seed has all its arms.
    """
    maker, first = Maker(study), study.seeds[0]
    seeds = [s for s in study.seeds if all(maker.finished(a, s) for a in study.arms)]
    missing = [f"{arm}, seed {s}" for s in study.seeds for arm in study.arms
               if not maker.finished(arm, s)]
    if not seeds or not maker.finished(SEED, first):
        raise SelfloopError(f"{study.folder}: no seed has all its arms yet (missing: "
                            f"{(missing or [SEED])[0]}): give the same command again to go on")
    tables = {name: _table(study, maker, name, seeds) for name in study.bed.asked}
    b = study.budget
    put_json(out / "facts.json", {
        "bed": study.bed.name, "seeds": seeds, "missing": missing,
        "budget": {"steps": b.steps, "samples": b.samples, "draws": b.draws, "updates": b.updates,
                   "batch": b.batch, "rates": list(b.rates)},
        "losses": list(study.ways),
        "ways": {key: {"name": way.name, "source": way.source, "loss": repr(way.loss),
                       "organizer": repr(way.organizer)} for key, way in study.ways.items()},
        "shared": list(study.shared()), "pool": b.steps * b.samples,
        "labelled": len(study.bed.labelled), "dev": len(study.bed.dev), "main": study.bed.main,
        "blind": [name for name, asked in study.bed.asked.items() if asked.blind],
        "tuned_at": first,
        "tried": {arm: {f"{r:g}": v for r, v in maker.tried(arm).items()} for arm in study.tuned},
        "clusters": {name: list(t.clusters) for name, t in tables.items()},
        "test_sha256": {n: a.test.commitment() for n, a in study.bed.asked.items()},
        "accounts": [maker.kept(arm, s) for s in seeds for arm in study.arms]})
    put_table(out / "tallies.parquet", columns_of(tables), {})
    return write_summary(out)


def _table(study: LossStudy, maker: Maker, name: str, seeds: Sequence[int]) -> Table:
    """What every arm's answers to one set count, over the finished seeds."""
    each = {arm: [_counts(study, maker, arm, s, name)
                  for s in (study.seeds[:1] if arm == SEED else seeds)]
            for arm in (SEED, *study.arms) if name in study.sets(arm)}
    clusters = tuple(sorted({c for counts in each.values() for one in counts for c in one}))
    figures = list(dict.fromkeys(
        f for counts in each.values() for one in counts for by in one.values() for f in by))
    return Table(tuple(seeds), clusters, {
        arm: {f: _sums(counts, clusters, f) for f in figures} for arm, counts in each.items()})


def _counts(study: LossStudy, maker: Maker, arm: str, seed: int, name: str) -> Counts:
    told = maker.kept(arm, seed) or {}
    found: Counts | None = RunFolder(study.place(arm, seed, told.get("rate"))).json(f"{name}.json")
    if found is None:
        raise SelfloopError(f"{study.place(arm, seed, told.get('rate'))}/{name}.json is missing: "
                            f"delete {study.folder}/points/{arm}-{seed}.json and run again")
    return found


def _sums(counts: Sequence[Counts], clusters: Sequence[str], figure: str) -> Sums:
    pairs = np.array([[one.get(c, {}).get(figure, (0.0, 0.0)) for c in clusters]
                      for one in counts], dtype=float)
    return pairs[..., 0], pairs[..., 1]
