"""What a finished run achieved over the floor: seconds a stage beside the least that it could take.

Seconds come from the run's event log, tokens from its manifests and answers, the model's shape and
the machine from the event that the run wrote when it was opened (machines.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from selfloop import floor
from selfloop.evaluate.answering import SHARD
from selfloop.floor import Machine, Shape, Work
from selfloop.report.facts import Findings


@dataclass(frozen=True)
class Achieved:
    """One stage of a run. None: not known, or nothing was asked of the model."""

    stage: str
    seconds: float
    floor: float | None = None
    """Least seconds on the machine that ran it, the vision tower included."""
    flops: float | None = None

    @property
    def over(self) -> float | None:
        """Seconds over the floor: 1 would be perfect."""
        return self.seconds / self.floor if self.floor and self.seconds else None


def achieved(found: Findings) -> list[Achieved]:
    """Collect, verify, learn and evaluate; [] where the run recorded no seconds at all."""
    spent = _seconds(found.events)
    if not any(spent.values()):
        return []
    about = next((e for e in reversed(found.events) if e["event"] == "machine"), None)
    works = _works(found, about) if about else {}
    return [Achieved(stage, seconds, *(
        (work.seconds, work.flops) if (work := works.get(stage)) and work.flops else (None, None)))
        for stage, seconds in spent.items()]


def told(found: Findings) -> dict[str, Any]:
    """`achieved` as plain data, with the machine's name and what is not counted."""
    about = next((e for e in reversed(found.events) if e["event"] == "machine"), None)
    shape = Shape.of(about["shape"]) if about else None
    return {
        "machine": about["machine"] if about else None,
        "uncounted": shape.unknown() if shape else [],
        "stages": [{**asdict(a), "over": a.over} for a in achieved(found)],
    }


def _seconds(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds by stage. What a kill made the run do again counts once: the last time."""
    last: dict[tuple[Any, ...], float] = {}
    for e in events:
        if "seconds" in e:
            where = (e.get("step"), e.get("shard"), e.get("iteration"), e.get("version"))
            last[(e["event"], *where)] = float(e["seconds"])

    def of(*kinds: str) -> float:
        return sum(s for (kind, *_), s in last.items() if kind in kinds)

    return {"collect": max(0.0, of("gathered") - of("judged")), "verify": of("judged"),
            "learn": of("learned"), "evaluate": of("evaluated", "decided")}


# -- the floor of what was done -------------------------------------------------------------------

def _works(found: Findings, about: dict[str, Any]) -> dict[str, Work]:
    known = about["machine"]
    machine = Machine(known["flops"], known["bandwidth"], known["name"], source=known["source"])
    shape, pictures = Shape.of(about["shape"]), float(about["pictures"])
    return {"collect": _collect(found, shape, machine, about),
            "learn": _learn(found, shape, machine, about),
            "evaluate": _evaluate(found, shape, machine, float(about["prompt_tokens"]), pictures)}


def _collect(found: Findings, shape: Shape, machine: Machine, about: dict[str, Any]) -> Work:
    """All steps at their mean lengths: one prefill a problem, answers decoded in full batches."""
    counts = [m["counts"] for m in found.manifests]
    problems, drawn = (sum(c.get(k, 0) for c in counts) for k in ("problems", "drawn"))
    if not drawn:
        return Work()
    group = drawn / problems
    prompt = sum(m["tokens"]["read"] for m in found.manifests) / problems
    answer = sum(m["tokens"]["drawn"] for m in found.manifests) / drawn
    held = max(1.0, about["batch_tokens"] // (prompt + group * answer))
    batch = min(held, problems / len(found.manifests)) * group
    return floor.rollouts(machine, shape, prompts=problems, group=group, prompt=prompt,
                          answer=answer, batch=batch) \
        + _seen(shape, machine, problems * about["pictures"], _different(about), drawn / batch)


def _seen(shape: Shape, machine: Machine, pictures: float, different: float, passes: float) -> Work:
    """The vision tower's part: where it does not learn, each different picture once."""
    share = 1.0 if shape.vision_trained or not pictures else min(1.0, different / pictures)
    return floor.seeing(machine, shape, pictures * share, passes * share) or Work()


def _different(about: dict[str, Any]) -> float:
    """Different pictures of the training set; older runs do not say."""
    return float(about.get("different_pictures", math.inf))


def _learn(found: Findings, shape: Shape, machine: Machine, about: dict[str, Any]) -> Work:
    """Training on what was run, and the scoring before it, prompts shared as in training."""
    roles = [role for step in found.learned for role in step.values()]
    read, trained, scored, updates = (sum(float(r.get(k, 0)) for r in roles) for k in (
        "tokens_read", "tokens_trained", "tokens_scored", "updates"))
    run = sum(float(r.get("tokens_run", r.get("tokens_read", 0))) for r in roles)
    if not run or not trained:
        return Work()
    prompt = max(1.0, float(about["prompt_tokens"]))
    contexts = max(1e-9, (run - trained) / prompt)
    rows = max(contexts, (read - trained) / prompt)
    group, answer = rows / contexts, trained / rows
    lengths = {"prompt": prompt, "answer": answer, "group": group}
    again = scored / read if read else 0.0
    passes = floor.equivalents(1.0, shape.recompute) if shape.vision_trained else 1.0
    return floor.training(machine, shape, prompts=contexts, updates=updates, **lengths) \
        + floor.forward(machine, shape, prompts=again * contexts, **lengths) \
        + _seen(shape, machine, (passes + again) * contexts * about["pictures"],
                0.0 if any(m["counts"].get("drawn") for m in found.manifests)
                and _different(about) < math.inf else _different(about), passes * updates)


def _evaluate(found: Findings, shape: Shape, machine: Machine, prompt: float, pictures: float
              ) -> Work:
    """Every dev answer that is stored: each arm reads its question once and draws."""
    whole, known = Work(), set[str]()
    for answers in found.dev.values():
        for arm in dict.fromkeys(a.arm for a in answers):
            mine = [a for a in answers if a.arm == arm]
            questions = {a.sample for a in mine}
            asked = len(questions)
            seen = 0.0 if arm == "no_image" else pictures
            length = max(1.0, prompt - (pictures - seen) * (shape.picture_tokens or 0.0))
            group = len(mine) / asked
            whole += floor.rollouts(
                machine, shape, prompts=asked, group=group, prompt=length, batch=SHARD * group,
                answer=sum(a.tokens for a in mine) / len(mine))
            if seen:
                whole += _seen(shape, machine, asked * seen, len(questions - known) * seen,
                               asked / SHARD)
                known |= questions
    return whole
