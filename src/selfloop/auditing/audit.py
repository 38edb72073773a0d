"""`selfloop audit`: attack a verifier with answers that deserve nothing, then calibrate it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from selfloop import keys
from selfloop.auditing.attacks import (
    ATTACKS,
    CONTROLS,
    UNREADABLE,
    distinct_golds,
    gold_texts,
    plain,
    shown,
    wrong_for,
)
from selfloop.auditing.calibrating import Calibrated, Known, Measured, Share, calibrate, resampled
from selfloop.doors import Doors
from selfloop.organize.judging import judge
from selfloop.roles import Engine, SelfloopError, Verifier, name_of, parameters, reads
from selfloop.types import Group, Part, Rollout, Sample, Turn, Verdict

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


@dataclass(frozen=True)
class _Put:
    """One answer to be judged: by itself, or as the last of a group."""

    case: str
    sample: Sample
    said: str
    beside: tuple[str, ...] = ()


def audit(verifier: Verifier, samples: Sequence[Sample], *, probe: Sequence[Known] = (),
          engines: Mapping[str, Engine] | None = None, limits: Limits = Limits(),
          most: int = 100, quick: bool = False) -> Audited:
    """Attack and calibrate a verifier on labelled samples, `most` of them, drawn by key.

    `probe`: answers known to be right or wrong; without it gold answers and those of other
    samples stand in. A verifier of groups sees each attack among three gold answers, and blank
    attacks also as the majority. `engines` serve verifiers that ask a model. `quick` leaves out
    calibration and position bias, and asks a model but once for each attack. Raises
    SelfloopError without labelled samples.
    """
    labelled = [s for s in samples if s.answer is not None]
    if len(labelled) < 2:
        raise SelfloopError(f"audit: {len(labelled)} labelled samples; give at least 2, better "
                            "100: `answer` must be filled")
    used = [labelled[i] for i in sorted(keys.shuffled(len(labelled), "audit")[:most])]
    golds = distinct_golds(labelled)
    doors = Doors(engines or {}, max((e.version for e in (engines or {}).values()), default=0),
                  "audit")
    few = quick and "generate" in parameters(verifier)
    puts = [p for s in used for p in _puts(verifier, s, golds, few)]
    verdicts = _judged(verifier, puts, doors)
    often = max(Counter(gold_texts(s.answer)[0] for s in used if gold_texts(s.answer)).values(),
                default=0) / len(used)
    cases = tuple(_case(name, puts, verdicts, limits, often, bool(reads(verifier)))
                  for name in [*(a.name for a in ATTACKS), *CONTROLS])
    calibrated = None if quick else _calibrated(verifier, probe, used, golds, doors)
    bias = None if quick else _position_bias(verifier, used, golds, doors)
    reasons = [f"{c.name}: {c.fault}" for c in cases if c.fault]
    reasons += _against(calibrated, limits) if calibrated else []
    if bias is not None and "generate" in parameters(verifier) and _beyond(bias, limits.bias):
        reasons.append(f"position bias {bias}: the order of the answers decides; judge both "
                       "orders and require agreement")
    return Audited(name_of(verifier), tuple(sorted(reads(verifier))), len(used), cases,
                   calibrated, bias, tuple(reasons))


# -- what is put to the verifier -----------------------------------------------------------------

def _puts(verifier: Verifier, sample: Sample, golds: Sequence[str], few: bool) -> list[_Put]:
    """Every attack and control on a sample; if few, one answer of each."""
    puts = [*_attacks(verifier, [sample], golds), *_controls(verifier, [sample])]
    return list({p.case: p for p in reversed(puts)}.values()) if few else puts


def _attacks(verifier: Verifier, samples: Sequence[Sample], golds: Sequence[str]
             ) -> Iterator[_Put]:
    in_groups = "group" in parameters(verifier)
    for sample in samples:
        gold = gold_texts(sample.answer)[:1]
        beside = tuple(gold * 3) if in_groups else ()
        for attack in ATTACKS:
            for said in attack.write(sample, golds):
                yield _Put(attack.name, sample, said, beside)
                if attack.blank and in_groups and gold:
                    yield _Put("blank majority", sample, said, (gold[0], said, said))


def _controls(verifier: Verifier, samples: Sequence[Sample]) -> Iterator[_Put]:
    for sample in samples:
        gold = gold_texts(sample.answer)[:1]
        yield from (_Put("gold answer", sample, g, (g, g) if "group" in parameters(verifier)
                         else ()) for g in gold)
        if "answer" not in reads(verifier):
            continue
        bare = sample.model_copy(update={"answer": None, "rationale": None})
        yield from (_Put("no gold", bare, said) for said in (*gold, ""))
        for value in UNREADABLE:
            mislabelled = sample.model_copy(update={"answer": value, "rationale": None})
            said = [g for g in gold if plain(g) != plain(str(value))]
            yield from (_Put("unreadable gold", mislabelled, s) for s in (*said, "", "no idea"))


def _rollout(sample: Sample, said: str, index: int) -> Rollout:
    return Rollout(id=f"audit-{sample.id}-{index}", sample=sample.id, context=sample.context,
                   turns=(Turn(token_ids=(1,)),), output=(Part(text=said),))


def _group(sample: Sample, said: Sequence[str]) -> Group:
    return Group(sample=sample, rollouts=tuple(_rollout(sample, s, i)
                                               for i, s in enumerate(said)))


def _judged(verifier: Verifier, puts: Sequence[_Put], doors: Doors) -> list[Verdict]:
    """The verdict on each answer that was put: the last of its group."""
    groups = [_group(p.sample, (*p.beside, p.said)) for p in puts]
    missing = Verdict(error=True, rationale="it left the group without verdicts")
    return [g.verdicts[-1] if g.verdicts else missing
            for g in judge(verifier, groups, doors).groups]


# -- what is found -------------------------------------------------------------------------------

def _case(name: str, puts: Sequence[_Put], verdicts: Sequence[Verdict], limits: Limits,
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


def _of_gold(made: Case, missed: Sequence[_Put], errors: Sequence[Verdict], limits: Limits,
             reads_gold: bool) -> Case:
    fault = ""
    if made.paid.n and len(errors) / made.paid.n > limits.errors:
        fault = f"fails on {len(errors)} of {made.paid.n}: {errors[0].rationale[:160]}"
    elif reads_gold and made.paid.n and made.paid.value < limits.gold_paid:
        fault = (f"pays for {made.paid.k} of {made.paid.n} gold answers, not for "
                 f"{shown(missed[0].said)}: does it read them, or hide an exception in a zero?")
    return replace(made, fault=fault, examples=_examples(missed))


def _examples(puts: Sequence[_Put]) -> tuple[str, ...]:
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
    groups = [_group(known[own[0]].sample, [known[i].said for i in own]) for own in at.values()]
    verdicts: list[Verdict] = [Verdict()] * len(known)
    for own, group in zip(at.values(), judge(verifier, groups, doors).groups, strict=True):
        for i, verdict in zip(own, group.verdicts, strict=False):
            verdicts[i] = verdict
    return calibrate(known, verdicts, source)


def _position_bias(verifier: Verifier, samples: Sequence[Sample], golds: Sequence[str],
                   doors: Doors) -> Measured | None:
    """Two answers in both orders; None for verifiers of single answers."""
    if "group" not in parameters(verifier):
        return None
    pairs = [(s, g, w) for s in samples for g in gold_texts(s.answer)[:1]
             for w in wrong_for(s, golds)[:1]]
    groups = [_group(s, said) for s, g, w in pairs for said in ((g, w), (w, g))]
    ahead: list[float] = []
    names: list[str] = []
    for group in judge(verifier, groups, doors).groups:
        scores = [v.score for v in group.verdicts]
        if len(scores) == 2 and scores[0] is not None and scores[1] is not None:
            ahead.append(scores[0] - scores[1])
            names.append(group.sample.id)
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
