"""The parts of one step: plan, collect in waves and shards, organize, optimize; then sum up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from selfloop import keys, learning
from selfloop.collect.drawing import draw
from selfloop.doors import Doors, engine_for
from selfloop.evaluate.monitors import monitors
from selfloop.organize.judging import Judged, Unknown, excess, judge
from selfloop.roles import Optim, SelfloopError, call_by_name, reads
from selfloop.store import put_json
from selfloop.types import AnySignal, Decision, Group, Iteration, Sample, digest
from selfloop.words import Adjustment

if TYPE_CHECKING:
    from selfloop.running import Run


# -- stage 1 and 2 ------------------------------------------------------------------------------

def gather(run: Run, step: int) -> dict[str, Any]:
    """Collect, verify and organize one step; its manifest is written last, and returned."""
    loop = run.loop
    before = run.folder.manifest(_after(run, step) - 1) or {}
    guidance = before.get("guidance", {})
    groups: list[Group] = []
    shards: list[list[str]] = []
    unknown = Unknown()
    wanted = loop.samples or len(run.samples)
    used: list[int] = []
    for wave in range(loop.max_waves):
        chosen = plan(len(run.samples), wanted, step, wave, loop.seed, used)
        used += chosen
        asked = [run.samples[i] for i in chosen] + ([] if wave else proposed(guidance, step))
        for at in range(0, len(asked), loop.shard):
            samples = asked[at:at + loop.shard]
            found = _shard(run, step, wave, samples, guidance, shards)
            groups += found.groups
            unknown += found.unknown
            run.tell("drawn", step=step, done=len(groups), of=len(groups) + len(asked) - at
                     - len(samples))
        wanted = max((getattr(how.organizer, "wants", _none)(_stripped(groups))
                      for how in loop.learn.values()), default=0)
        if not wanted:
            break
    _stop_on_unknown(run, step, unknown)
    return _organize(run, step, groups, shards, before.get("state", {}))


def proposed(guidance: Mapping[str, Any], step: int) -> list[Sample]:
    """The samples that the last step left under `guidance["samples"]`, as JSON: those that a
    model proposed (organize.refine.own_questions). They are drawn beside the data, once.

    Raises SelfloopError for an entry that is no sample.
    """
    found = []
    for i, entry in enumerate(guidance.get("samples", ())):
        try:
            found.append(Sample.model_validate(entry))
        except ValueError as error:
            raise SelfloopError(
                f'step {step}: guidance["samples"][{i}] is no sample ({error}); leave '
                "Sample.model_dump(mode='json') of each") from None
    return found


def _after(run: Run, step: int) -> int:
    """The version whose state and guidance a step goes on from: not those rolled back."""
    done = run.folder.iterations()
    first = bool(done) and done[-1].version == step
    return done[-1].continue_from if first else step


def _adjustment(run: Run) -> Adjustment:
    """What the gate's actions have changed so far: all of it is in the last iteration."""
    done = run.folder.iterations()
    return done[-1].adjustment if done else Adjustment()


def _none(groups: Sequence[Group]) -> int:
    return 0


def plan(n: int, wanted: int, step: int, wave: int, seed: int, used: Sequence[int]) -> list[int]:
    """Which samples a step draws: wave 0 walks through keyed shuffles of the data, pass after
    pass; later waves take others, so that they do not shift what the next step sees."""
    if wave:
        left = [i for i in keys.shuffled(n, f"{seed}/wave/{step}/{wave}") if i not in set(used)]
        return left[:wanted]
    wanted = min(wanted, n)
    epoch, offset = divmod(step * wanted, n)
    chosen = keys.shuffled(n, f"{seed}/pass/{epoch}")[offset:offset + wanted]
    # where a step reaches into the next pass, it takes nobody twice: equal keys draw equal answers
    following = [i for i in keys.shuffled(n, f"{seed}/pass/{epoch + 1}") if i not in set(chosen)]
    return chosen + following[:wanted - len(chosen)]


def _shard(run: Run, step: int, wave: int, samples: Sequence[Sample],
           guidance: Mapping[str, Any], shards: list[list[str]]) -> Judged:
    """Draw and judge one shard, or read what is already stored of it."""
    loop, shard = run.loop, len(shards)
    version = max(0, step - loop.max_staleness)
    scope = f"{loop.seed}/{step}.{wave}"
    described = loop.described()
    heat = _adjustment(run).temperature
    drawing = digest([described["sampler"], scope, version, [s.id for s in samples],
                      dict(guidance), *([heat] if heat != 1 else [])])
    planned = digest([drawing, described["verifier"]])
    shards.append([drawing, planned])
    doors = Doors(run.engines, version, scope, keep=run.library.keep)
    groups = run.folder.rollouts(step, shard, drawing)
    if groups is None:
        groups = draw(loop.sampler, samples, replace(doors, heat=heat), guidance)
        run.folder.put_rollouts(step, shard, drawing, groups)
    stored = run.folder.judged(step, shard, planned, groups)
    if stored is not None and not _excess(run, (kept := Judged(stored[0])).unknown):
        return kept
    began = time.monotonic()
    judged = judge(loop.verifier, groups, doors)
    run.tell("judged", step=step, shard=shard, seconds=time.monotonic() - began)
    run.folder.put_verdicts(step, shard, planned, judged.groups, {
        "errors": judged.unknown.errors, "rollouts": judged.unknown.rollouts})
    return judged


def _excess(run: Run, unknown: Unknown) -> str:
    loop = run.loop
    return excess(unknown, loop.verifier, loop.max_errors, loop.max_unjudged)


def _stop_on_unknown(run: Run, step: int, unknown: Unknown) -> None:
    """Halt where too little is known; the same call, or one with the mend, goes on from here."""
    if why := _excess(run, unknown):
        run.folder.event("stopped", why=why, step=step, resumable=True)
        raise SelfloopError(
            f"{why} and run again: what was collected is kept in {run.folder.path}"
            + ("" if step == 0 else ", but a verifier whose code changes needs a run of another "
               "name, since it has judged earlier steps"))


def _organize(run: Run, step: int, groups: list[Group], shards: list[list[str]],
              states: Mapping[str, Any]) -> dict[str, Any]:
    loop = run.loop
    state: dict[str, Any] = {}
    guidance: dict[str, Any] = {}
    counts: dict[str, int] = {}
    stripped = _stripped(groups)
    for role, how in loop.learn.items():
        signals, state[role], more = call_by_name(
            how.organizer, groups=stripped, state=states.get(role, {}),
            key=f"{loop.seed}/{step}/organize/{role}",
            **_gold(how.organizer, _with_pooled(run, groups, states.get(role, {}))))
        guidance |= more
        counts[f"signals_{role}"] = len(signals)
        run.folder.put_signals(step, role, signals)
    figures = monitors(groups)
    rollouts = [r for g in groups for r in g.rollouts]
    counts |= {
        "problems": len(groups), "proposed": sum(g.sample.parent is not None for g in groups),
        "drawn": len(rollouts),
        "unjudged": sum(v.score is None for g in groups for v in g.verdicts),
        "errors": sum(v.error for g in groups for v in g.verdicts),
        "right": sum(v.right for g in groups for v in g.verdicts),
        "truncated": sum(r.finish_reason == "length" for r in rollouts),
    }
    manifest = {
        "step": step, "drawn_by": max(0, step - loop.max_staleness), "shards": shards,
        "samples": [g.sample.id for g in groups], "counts": counts, "state": state,
        "guidance": guidance, "labels": _labels(run, groups), "tokens": _tokens(groups),
        "monitors": {k: v for k, v in figures.items() if v == v},
    }
    put_json(run.folder.step(step) / "manifest.json", manifest)
    return manifest


def _stripped(groups: Sequence[Group]) -> list[Group]:
    """The groups as organizers see them: gold values are handed over by name or not at all."""
    return [g.model_copy(update={"sample": g.sample.unlabelled()}) for g in groups]


def _with_pooled(run: Run, groups: Sequence[Group], state: Mapping[str, Any]) -> list[Sample]:
    """The step's samples, and those of earlier steps that an organizer's pool passes on again:
    their gold values were read, and counted, when they were drawn. The pool itself holds none."""
    own, pool = [g.sample for g in groups], state.get("pool")
    pooled = {e[0] for e in pool if isinstance(e, list) and e and isinstance(e[0], str)} \
        - {s.id for s in own} if isinstance(pool, list) else set()
    return own + ([s for s in run.samples if s.id in pooled] if pooled else [])


def _gold(organizer: Any, samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    declared = reads(organizer)
    offered: dict[str, dict[str, Any]] = {}
    if "answers" in declared:
        offered["answers"] = {s.id: s.answer for s in samples}
    if "rationales" in declared:
        offered["rationales"] = {s.id: s.rationale for s in samples}
    return offered


def _labels(run: Run, groups: Sequence[Group]) -> dict[str, list[str]]:
    """Ids of the samples whose gold values some component was given, by kind of label."""
    named = frozenset().union(*run.loop.labels_read.values())
    full = [g.sample.id for g in groups if g.sample.rationale is not None] \
        if named & {"rationale", "rationales"} else []
    answers = [g.sample.id for g in groups if g.sample.answer is not None] \
        if named & {"answer", "answers"} else []
    return {"full": full, "answer_only": [i for i in answers if i not in set(full)]}


def _tokens(groups: Sequence[Group]) -> dict[str, int]:
    """Tokens read once per distinct prompt of a group, and tokens drawn."""
    read = drawn = 0
    for group in groups:
        prompts = {t.prompt_token_ids: len(t.prompt_token_ids)
                   for r in group.rollouts for t in r.turns}
        read += sum(prompts.values())
        drawn += sum(r.tokens for r in group.rollouts)
    return {"read": read, "drawn": drawn}


# -- stage 3 ------------------------------------------------------------------------------------

def optimize(run: Run, step: int) -> dict[str, Any]:
    """Learn every role's stored signals, then publish the new version."""
    learned: dict[str, Any] = {}
    adjustment = _adjustment(run)
    for role, how in run.loop.learn.items():
        signals: list[AnySignal] = run.folder.signals(step, role)
        engine = engine_for(run.engines, role)

        def progress(done: int, of: int, metrics: Mapping[str, float], role: str = role) -> None:
            if run.watch is not None:
                run.watch("update", {"step": step, "role": role, "done": done, "of": of})

        try:
            learned[role] = learning.learn(engine, signals, how.loss,
                                           adjusted(how.optim, adjustment),
                                           f"{run.loop.seed}/{step}/learn/{role}", progress)
        except SelfloopError as error:  # an update that must not be made, say
            run.tell("stopped", why=str(error), step=step, resumable=True)
            raise
    for _, engine in run._named():
        engine.publish(step + 1, run.loop.max_staleness)
    put_json(run.folder.step(step) / "learned.json", learned)
    return learned


def adjusted(optim: Optim, adjustment: Adjustment) -> Optim:
    """How a role learns now: the loop's options under the gate's adjustment."""
    return replace(optim, lr=optim.lr * adjustment.lr,
                   reference="previous" if adjustment.refresh else optim.reference)


# -- the end of an iteration --------------------------------------------------------------------

def summary(run: Run, index: int, decision: Decision, best: int, dev: dict[str, float],
            adjustment: Adjustment) -> Iteration:
    """The iteration's record, from what its steps left on disk."""
    steps = run.loop.steps
    version = (index + 1) * steps
    manifests = [run.folder.manifest(s) or {} for s in range(version)]
    mine = manifests[index * steps:]
    learned = [run.folder.json("steps", f"{s:06d}", "learned.json") or {} for s in range(version)]
    full = {i for m in manifests for i in m["labels"]["full"]}
    answers = {i for m in manifests for i in m["labels"]["answer_only"]} - full
    tokens = {k: sum(m["tokens"][k] for m in manifests) for k in ("read", "drawn")}
    for what in ("tokens_read", "tokens_trained", "tokens_scored"):
        tokens["learn_" + what.removeprefix("tokens_")] = int(
            sum(role.get(what, 0) for found in learned for role in found.values()))
    engine = engine_for(run.engines, next(iter(run.loop.learn)))
    best = version if decision.action == "promote" else best
    rewards = [m["monitors"]["mean_score"] for m in mine if "mean_score" in m["monitors"]]
    return Iteration(
        index=index, first_step=index * steps, steps=steps, version=version, best=best,
        continue_from=best if decision.action == "roll back" else version,
        counts={k: sum(m["counts"].get(k, 0) for m in mine) for k in mine[-1]["counts"]},
        reward=sum(rewards) / len(rewards) if rewards else None, dev=dev,
        labels_full=len(full), labels_answer_only=len(answers), tokens=tokens,
        flops=engine.flops(tokens["read"] + tokens["drawn"], 0)
        + engine.flops(tokens["learn_scored"], tokens["learn_read"]),
        decision=decision, adjustment=adjustment,
    )
