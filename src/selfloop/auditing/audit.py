"""`selfloop audit`: attack a verifier with answers that deserve nothing, then calibrate it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from selfloop import keys
from selfloop.auditing.attacks import (
    ATTACKS,
    CONTROLS,
    distinct_golds,
    gold_texts,
    shown,
    wrong_for,
)
from selfloop.auditing.calibrating import Calibrated, Known, Measured, Share, calibrate, resampled
from selfloop.auditing.pictured import BLANK, Pictured, Watched, never_reacts
from selfloop.auditing.putting import Put, all_puts, group
from selfloop.doors import Doors
from selfloop.organize.judging import judge
from selfloop.pictures import Library
from selfloop.roles import Engine, SelfloopError, Verifier, name_of, parameters, reads
from selfloop.types import Media, Sample, Verdict

EXAMPLES = 3
"""Paid answers that a case shows."""


@dataclass(frozen=True)
class Limits:
    """What a verifier must keep to before it may gate training. Shares."""

    paid: float = 0.0
    """Of the answers of an attack that may be paid; a noisy judge may need more than none."""
    gold_paid: float = 0.95
    """Of the gold answers that must be paid, by a verifier that reads them."""
    errors: float = 0.01
    precision: float = 0.9
    recall: float = 0.5
    calibration_error: float = 0.15
    """Exceeded when the whole interval lies above; of scores that are more than 0 and 1."""
    bias: float = 0.1
    """Of length and position: exceeded when the whole interval lies beyond."""


@dataclass(frozen=True)
class Case:
    """One attack or control: how many answers were put, and what was paid for them."""

    name: str
    why: str
    paid: Share
    unknown: int
    """Answers on which it abstained."""
    errors: int
    examples: tuple[str, ...] = ()
    """Answers that show the fault."""
    fault: str = ""
    """What is wrong, or nothing."""


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
    reasons: tuple[str, ...]

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
        return {**found, "ok": self.ok}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(case, share paid, abstained and failed, fault) for a table."""
        return [(c.name, str(c.paid), f"{c.unknown} / {c.errors}",
                 c.fault or ("" if c.paid.n else "not tried")) for c in self.cases]


def audit(verifier: Verifier, samples: Sequence[Sample], *, probe: Sequence[Known] = (),
          engines: Mapping[str, Engine] | None = None, limits: Limits = Limits(),
          most: int = 100, quick: bool = False,
          open_picture: Callable[[Media], Any] | None = None) -> Audited:
    """Attack and calibrate a verifier on labelled samples, `most` of them, drawn by key.

    `probe`: answers known to be right or wrong; without it gold answers and those of other
    samples stand in. A verifier of groups sees each attack among three gold answers, and blank
    attacks also as the majority. `engines` serve verifiers that ask a model. `quick` leaves out
    calibration and position bias, and asks a model but once for each attack. Pictures are opened
    by `open_picture` (a Library's, by their paths) to be written on; those that cannot be are left
    out. Raises SelfloopError without labelled samples.
    """
    labelled = [s for s in samples if s.answer is not None]
    if len(labelled) < 2:
        raise SelfloopError(f"audit: {len(labelled)} labelled samples; give at least 2, better "
                            "100: `answer` must be filled")
    used = [labelled[i] for i in sorted(keys.shuffled(len(labelled), "audit")[:most])]
    golds = distinct_golds(labelled)
    watched = {role: Watched(engine) for role, engine in (engines or {}).items()}
    doors = Doors(cast(Mapping[str, Engine], watched),
                  max((e.version for e in watched.values()), default=0), "audit")
    few = quick and "generate" in parameters(verifier)
    with TemporaryDirectory(prefix="audit-") as folder:
        puts = all_puts(verifier, used, golds,
                        Pictured(Path(folder), open_picture or Library().open), few)
        verdicts = _judged(verifier, puts, doors)
    looks = any(w.shown for w in watched.values())
    often = max(Counter(gold_texts(s.answer)[0] for s in used if gold_texts(s.answer)).values(),
                default=0) / len(used)
    cases = _reacting(tuple(_case(name, puts, verdicts, limits, often, bool(reads(verifier)))
                            for name in [*(a.name for a in ATTACKS), *CONTROLS]), limits, looks)
    calibrated = None if quick else _calibrated(verifier, probe, used, golds, doors)
    bias = None if quick else _position_bias(verifier, used, golds, doors)
    reasons = [f"{c.name}: {c.fault}" for c in cases if c.fault]
    reasons += _against(calibrated, limits) if calibrated else []
    if bias is not None and "generate" in parameters(verifier) and _beyond(bias, limits.bias):
        reasons.append(f"position bias {bias}: the order of the answers decides; judge both "
                       "orders and require agreement")
    return Audited(name_of(verifier), tuple(sorted(reads(verifier))), len(used), cases,
                   calibrated, bias, tuple(reasons))


# -- what is found -------------------------------------------------------------------------------

def _judged(verifier: Verifier, puts: Sequence[Put], doors: Doors) -> list[Verdict]:
    """The verdict on each answer that was put: the last of its group."""
    groups = [p.group for p in puts]
    missing = Verdict(error=True, rationale="it left the group without verdicts")
    return [g.verdicts[-1] if g.verdicts else missing
            for g in judge(verifier, groups, doors).groups]


def _case(name: str, puts: Sequence[Put], verdicts: Sequence[Verdict], limits: Limits,
          often: float, reads_gold: bool) -> Case:
    own = [(p, v) for p, v in zip(puts, verdicts, strict=True) if p.case == name]
    paid = [p for p, v in own if v.right]
    errors = [v for _, v in own if v.error]
    attack = next((a for a in ATTACKS if a.name == name), None)
    made = Case(name, attack.why if attack else CONTROLS[name], Share(len(paid), len(own)),
                sum(v.score is None and not v.error for _, v in own), len(errors))
    if name == "gold answer":
        missed = [p for p, v in own if not v.right]
        return _of_gold(made, missed, errors, limits, reads_gold)
    if name == "no gold":
        told = [p for p, v in own if v.score is not None]
        fault = f"a score on {len(told)} of {len(own)} unlabelled samples: return None" \
            if told else ""
        return replace(made, fault=fault, examples=_examples(told))
    allowed = often if attack and attack.by_chance else limits.paid
    share = made.paid.interval[0] if attack and attack.by_chance else made.paid.value
    fault = f"pays for {len(paid)} of {len(own)}, such as {shown(paid[0].said)}" \
        if paid and share > allowed else ""
    return replace(made, fault=fault, examples=_examples(paid))


def _reacting(cases: tuple[Case, ...], limits: Limits, looks: bool) -> tuple[Case, ...]:
    """The cases, that of the blank picture told by how often the real ones were paid."""
    real = next(c.paid for c in cases if c.name == "gold answer")
    blank = next(c for c in cases if c.name == BLANK)
    if not looks:  # it shows nobody a picture, and does not claim to
        told = replace(blank, paid=Share(0, 0), unknown=0, errors=0, fault="", examples=())
    elif blank.paid.n and never_reacts(real.value, blank.paid.value, limits.paid):
        told = replace(blank, fault=f"pays for {blank.paid.k} of {blank.paid.n} whose picture was "
                       f"blank, and for {real.k} of {real.n} with the picture: it does not look")
    else:
        told = replace(blank, fault="")
    return tuple(told if c.name == BLANK else c for c in cases)


def _of_gold(made: Case, missed: Sequence[Put], errors: Sequence[Verdict], limits: Limits,
             reads_gold: bool) -> Case:
    fault = ""
    if made.paid.n and len(errors) / made.paid.n > limits.errors:
        fault = f"fails on {len(errors)} of {made.paid.n}: {errors[0].rationale[:160]}"
    elif reads_gold and made.paid.n and made.paid.value < limits.gold_paid:
        fault = (f"pays for {made.paid.k} of {made.paid.n} gold answers, not for "
                 f"{shown(missed[0].said)}: does it read them, or hide an exception in a zero?")
    return replace(made, fault=fault, examples=_examples(missed))


def _examples(puts: Sequence[Put]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(shown(p.said) for p in puts))[:EXAMPLES]


def _calibrated(verifier: Verifier, probe: Sequence[Known], samples: Sequence[Sample],
                golds: Sequence[str], doors: Doors) -> Calibrated | None:
    """Over the probe, or over answers by construction; None for groups without a probe."""
    if probe:
        known, source = list(probe), "probe"
    elif "group" in parameters(verifier):
        return None
    else:
        known = [Known(s, g, True) for s in samples for g in gold_texts(s.answer)[:1]]
        known += [Known(s, w, False) for s in samples for w in wrong_for(s, golds)[:1]]
        source = "constructed"
    at: dict[str, list[int]] = {}
    for i, one in enumerate(known):
        at.setdefault(one.sample.id, []).append(i)
    groups = [group(known[own[0]].sample, [known[i].said for i in own]) for own in at.values()]
    verdicts: list[Verdict] = [Verdict()] * len(known)
    for own, found in zip(at.values(), judge(verifier, groups, doors).groups, strict=True):
        for i, verdict in zip(own, found.verdicts, strict=False):
            verdicts[i] = verdict
    return calibrate(known, verdicts, source)


def _position_bias(verifier: Verifier, samples: Sequence[Sample], golds: Sequence[str],
                   doors: Doors) -> Measured | None:
    """Two answers in both orders; None for verifiers of single answers."""
    if "group" not in parameters(verifier):
        return None
    pairs = [(s, g, w) for s in samples for g in gold_texts(s.answer)[:1]
             for w in wrong_for(s, golds)[:1]]
    groups = [group(s, said) for s, g, w in pairs for said in ((g, w), (w, g))]
    ahead: list[float] = []
    names: list[str] = []
    for found in judge(verifier, groups, doors).groups:
        scores = [v.score for v in found.verdicts]
        if len(scores) == 2 and scores[0] is not None and scores[1] is not None:
            ahead.append(scores[0] - scores[1])
            names.append(found.sample.id)
    return resampled(lambda at: sum(ahead[i] for i in at) / len(at), names)


def _beyond(measured: Measured, limit: float) -> bool:
    return measured.low > limit or measured.high < -limit


def _against(found: Calibrated, limits: Limits) -> list[str]:
    reasons = []
    if found.precision.n and found.precision.value < limits.precision:
        reasons.append(f"precision {found.precision}, expected {100 * limits.precision:.0f} %")
    if found.recall.n and found.recall.value < limits.recall:
        reasons.append(f"recall {found.recall}, expected {100 * limits.recall:.0f} %")
    if found.errors.value > limits.errors:
        reasons.append(f"it fails on {found.errors}; mend it, or let it return None")
    error, length = found.calibration_error, found.length_bias
    if error is not None and error.low > limits.calibration_error:
        reasons.append(f"calibration error {error}: its scores do not say how often it is right")
    if length is not None and _beyond(length, limits.bias):
        reasons.append(f"length bias {length}: length decides, not what is said")
    return reasons
