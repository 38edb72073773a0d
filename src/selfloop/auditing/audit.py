"""`selfloop audit`: attack a verifier with answers that deserve nothing, then calibrate it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from selfloop import keys
from selfloop.auditing.attacks import distinct_golds, wrong_for
from selfloop.auditing.calibrating import Calibrated, Known, Measured, Share, calibrate
from selfloop.auditing.cases import Case, Limits, against, all_cases, beyond
from selfloop.auditing.paying import MORE_OFTEN_THAN_NOT, Judged, Scale, untold
from selfloop.auditing.pictured import Pictured, Watched
from selfloop.auditing.placing import order_decides, position_bias
from selfloop.auditing.putting import Asked, Put, all_puts, shape_of
from selfloop.auditing.said import BARE, said
from selfloop.doors import Doors
from selfloop.organize.judging import judge
from selfloop.pictures import Library
from selfloop.roles import (
    Engine,
    SelfloopError,
    Verifier,
    asks_a_model,
    name_of,
    parameters,
    reads,
)
from selfloop.types import Media, Sample, Verdict

__all__ = ["Audited", "Case", "Limits", "audit"]


STANDARD = Limits()


@dataclass(frozen=True)
class Audited:
    """What an audit found. It passes when no reason stands against the verifier."""

    verifier: str
    reads: tuple[str, ...]
    samples: int
    cases: tuple[Case, ...]
    calibrated: Calibrated | None
    position_bias: Measured | None
    """Mean of (score of the first of two answers - score of the second) over both orders, for
    verifiers of groups: 0 when order does not matter, 1 when the first always wins."""
    against: tuple[tuple[str, str], ...]
    """(name, what is wrong) of calibration and place."""
    untold: str = ""
    """Why what was tried says nothing of what the verifier pays for; see paying.py."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """All that stands against the verifier."""
        told = [f"{c.name}: {c.fault}" for c in self.cases if c.fault]
        told += [f"{name} {what}" for name, what in self.against]
        return (*told, *([f"not audited: {self.untold}"] if self.untold else []))

    @property
    def ok(self) -> bool:
        """Whether the verifier may gate training."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        found = asdict(self)
        found["cases"] = [{**asdict(c), "paid": c.paid.to_json()} for c in self.cases]
        if self.calibrated is not None:
            shares = {n: s.to_json() for n, s in vars(self.calibrated).items()
                      if isinstance(s, Share)}
            found["calibrated"] = {**asdict(self.calibrated), **shares}
        return {**found, "reasons": list(self.reasons), "ok": self.ok}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(case, share paid, abstained and failed, fault) for a table."""
        return [(c.name, str(c.paid), f"{c.unknown} / {c.errors}",
                 c.fault or ("" if c.paid.n else "not tried")) for c in self.cases]


def labelled(samples: Sequence[Sample]) -> list[Sample]:
    """Those with a gold answer. An empty list says that there is nothing to find: right is then
    what an attack says, so that it can be no label here."""
    return [s for s in samples if s.answer is not None and s.answer != []]


def audit(verifier: Verifier, samples: Sequence[Sample], *, probe: Sequence[Known] = (),
          engines: Mapping[str, Engine] | None = None, limits: Limits = STANDARD,
          most: int = 100, quick: bool = False,
          open_picture: Callable[[Media], Any] | None = None) -> Audited:
    """Attack and calibrate a verifier on labelled samples, `most` of them, drawn by key.

    `probe`: answers known to be right or wrong; without it gold answers and those of other
    samples stand in. A verifier of groups sees each attack among three gold answers, and blank
    attacks also as the majority. `engines` serve verifiers that ask a model. `quick` leaves out
    calibration without a probe and the size of the position bias, and asks a model but once for
    each attack. Pictures are opened by `open_picture` (a Library's, by their paths) to be written
    on; those that cannot be are left out. Without 2 labelled samples a verifier that reads no
    label gets the attacks that need none; for one that does SelfloopError is raised.
    """
    known = labelled(samples)
    if len(known) < 2 and (reads(verifier) or not samples):
        raise SelfloopError(f"audit: {len(known)} labelled samples; give at least 2, better "
                            "100: `answer` must be filled")
    known = known if len(known) > 1 else [s.unlabelled() for s in samples]
    asked = [Asked.of(s, verifier) for s in known]
    used = [asked[i] for i in sorted(keys.shuffled(len(asked), "audit")[:most])]
    golds = distinct_golds([a.known for a in asked])
    watched = {role: Watched(engine) for role, engine in (engines or {}).items()}
    doors = Doors(cast(Mapping[str, Engine], watched),
                  max((e.version for e in watched.values()), default=0), "audit")
    few = quick and asks_a_model(verifier)
    with TemporaryDirectory(prefix="audit-") as folder:
        judged = _judged(verifier, all_puts(verifier, used, golds, Pictured(
            Path(folder), open_picture or Library().open), few), doors)
    often = max(Counter(g for a in used for g in a.gold).values(), default=0) / len(used)
    cases = all_cases(judged, Scale.of(verifier, judged), limits, often,
                      any(w.shown for w in watched.values()))
    calibrated = None if quick and not probe else _calibrated(verifier, probe, used, golds, doors)
    bias = None if quick else position_bias(verifier, used, golds, doors)
    wrong = against(calibrated, limits) if calibrated else []
    wrong += _by_place(bias, order_decides(verifier, used, golds, doors), limits,
                       asks_a_model(verifier))
    return Audited(name_of(verifier), tuple(sorted(reads(verifier))), len(used), cases,
                   calibrated, bias, tuple(wrong), untold(judged))


def _judged(verifier: Verifier, puts: Sequence[Put], doors: Doors) -> list[Judged]:
    """The verdict on each answer that was put: the last of its group."""
    missing = Verdict(error=True, rationale="it left the group without verdicts")
    found = judge(verifier, [p.group for p in puts], doors).groups
    return [Judged(p, g.verdicts[-1] if g.verdicts else missing,
                   tuple(v.score for v in g.verdicts[:-1]))
            for p, g in zip(puts, found, strict=True)]


def _by_place(bias: Measured | None, decides: Share | None, limits: Limits, asks: bool
              ) -> list[tuple[str, str]]:
    """A judge that leans to a place, and any verifier of groups that looks at nothing else."""
    if bias is not None and asks and beyond(bias, limits.bias):
        return [("position bias", f"{bias}: the order of the answers decides; judge both orders "
                 "and require agreement")]
    if decides is not None and decides.n and decides.value > MORE_OFTEN_THAN_NOT:
        return [("position bias", f"on {decides.k} of {decides.n} samples the scores follow the "
                 "place of the answers alone, whichever of them is right")]
    return []


def _calibrated(verifier: Verifier, probe: Sequence[Known], samples: Sequence[Asked],
                golds: Sequence[str], doors: Doors) -> Calibrated | None:
    """Over the probe, or over answers by construction; None for groups without a probe."""
    if probe:
        known, source = list(probe), "probe"
    elif "group" in parameters(verifier):
        return None
    else:
        shape = shape_of(verifier, samples)
        known = [Known(a.sample, shape.replace(BARE, g), True) for a in samples for g in a.gold]
        known += [Known(a.sample, shape.replace(BARE, w), False) for a in samples
                  for w in wrong_for(a.known, golds)[:1]]
        source = "constructed"
    at: dict[str, list[int]] = {}
    for i, one in enumerate(known):
        at.setdefault(one.sample.id, []).append(i)
    groups = [said(known[own[0]].sample, [known[i].said for i in own]) for own in at.values()]
    verdicts: list[Verdict] = [Verdict()] * len(known)
    for own, found in zip(at.values(), judge(verifier, groups, doors).groups, strict=True):
        for i, verdict in zip(own, found.verdicts, strict=False):
            verdicts[i] = verdict
    return calibrate(known, verdicts, source)
