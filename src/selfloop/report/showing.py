"""A run and its samples for the terminal: plain dicts (for --json), and rich tables of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from selfloop.evaluate.answers import Answer
from selfloop.report.facts import Findings, account, gather
from selfloop.report.floors import told as floors
from selfloop.report.gallery import questions
from selfloop.report.negatives import negatives
from selfloop.report.negatives import table as of_negatives
from selfloop.report.words import (
    between,
    decision,
    lasting,
    of_machine,
    percent,
    points,
    short,
    times,
)
from selfloop.roles import SelfloopError
from selfloop.types import AnySignal, Branch, Rollout, Sample, Verdict
from selfloop.types import Group as Judged

_CLOSE = 5


def describe_run(folder: str | Path) -> dict[str, Any]:
    """The decision in one sentence, what it cost, and one entry an iteration; JSON-able."""
    found = gather(folder)
    return {
        "kind": "run", "folder": str(found.folder), "name": found.name,
        "decision": decision(found), "stopped": found.stopped, "missing": found.missing,
        "fingerprint": found.about.get("fingerprint"), "summary": found.summary,
        **account(found), "steps": len(found.manifests), "floors": floors(found),
        "negatives": negatives(found),
        "iterations": [i.model_dump(mode="json") for i in found.iterations],
    }


def show(folder: str | Path, prefix: str | None = None) -> dict[str, Any]:
    """`describe_run`, or with the start of an id `show_sample`; `render` prints either."""
    return describe_run(folder) if prefix is None else show_sample(folder, prefix)


def show_run(folder: str | Path) -> RenderableType:
    """`describe_run`, ready for `rich.print`."""
    return _run(describe_run(folder))


def show_sample(folder: str | Path, prefix: str) -> dict[str, Any]:
    """One sample from picture to signal, by the start of its id or of one of its rollouts' ids.

    Raises SelfloopError for an id that is unknown or not unique, naming the closest ones.
    """
    found = gather(folder)
    held, _ = questions(found)
    sample_id, rollout_id = _resolve(found, prefix, set(held))
    sample: Sample | None = held.get(sample_id)
    draws: list[dict[str, Any]] = []
    for manifest in found.manifests:
        if sample_id not in manifest["samples"]:
            continue
        for group in found.groups(manifest["step"]):
            if group.sample.id == sample_id:
                sample = sample or group.sample
                draws.append(_drawn(found, manifest["step"], group))
    return {
        "kind": "sample", "folder": str(found.folder), "id": sample_id, "rollout": rollout_id,
        "sample": _asked(sample) if sample is not None else None, "draws": draws,
        "dev": [_answered(index, a) for index, answers in sorted(found.dev.items())
                for a in answers if a.sample == sample_id],
    }


# -- finding --------------------------------------------------------------------------------------

def _resolve(found: Findings, prefix: str, held: set[str]) -> tuple[str, str | None]:
    """(sample id, rollout id or None) of the one id that starts with `prefix`."""
    samples = {i for m in found.manifests for i in m["samples"]} | held
    samples |= {a.sample for answers in found.dev.values() for a in answers}
    starts = sorted(i for i in samples if i.startswith(prefix)) if prefix else []
    if prefix in samples or len(starts) == 1:
        return (prefix if prefix in samples else starts[0]), None
    owners = dict(_rollouts(found))
    drawn = sorted(i for i in owners if prefix and i.startswith(prefix))
    if prefix in owners or (len(drawn) == 1 and not starts):
        one = prefix if prefix in owners else drawn[0]
        return owners[one], one
    if both := [*starts, *drawn]:
        more = f" and {len(both) - _CLOSE} more" if len(both) > _CLOSE else ""
        raise SelfloopError(
            f"{len(both)} ids in {found.run.path} start with {prefix!r}: "
            f"{', '.join(both[:_CLOSE])}{more}; give more letters")
    close = _closest(prefix, [*samples, *owners])
    raise SelfloopError(
        f"no sample or rollout in {found.run.path} has an id that starts with {prefix!r}; "
        + (f"close ones: {', '.join(close)}" if close else "the run has stored none yet"))


def _rollouts(found: Findings) -> Iterator[tuple[str, str]]:
    """(rollout id, id of the sample in whose group it is), over the whole run."""
    for manifest in found.manifests:
        for group in found.groups(manifest["step"]):
            for rollout in group.rollouts:
                yield rollout.id, group.sample.id


def _closest(prefix: str, ids: list[str]) -> list[str]:
    """Ids that share the longest beginning with what was asked."""
    for length in range(len(prefix), -1, -1):
        if close := sorted(i for i in ids if i.startswith(prefix[:length])):
            return close[:_CLOSE]
    return []


# -- describing -----------------------------------------------------------------------------------

def _asked(sample: Sample) -> dict[str, Any]:
    return {
        "id": sample.id, "question": sample.context.text, "gold": sample.answer,
        "rationale": sample.rationale, "meta": dict(sample.meta), "parent": sample.parent,
        "pictures": [{"file": m.meta.get("uri"), "sha256": m.sha256,
                      "seen_through": [op.name for op in m.ops]} for m in sample.media],
    }


def _drawn(found: Findings, step: int, group: Judged) -> dict[str, Any]:
    ids = {r.id for r in group.rollouts}
    verdicts = [*group.verdicts, *(None,) * (len(group.rollouts) - len(group.verdicts))]
    roles = [k.removeprefix("signals_") for k in found.manifests[step]["counts"]
             if k.startswith("signals_")]
    signals = []
    for role in roles:
        try:
            made = found.run.signals(step, role)
        except SelfloopError:
            continue  # a missing file is no reason to hide the answers
        signals += [_signal(role, s) for s in made
                    if s.sample == group.sample.id or ids & set(s.rollouts)]
    return {"step": step, "annotations": dict(group.annotations), "signals": signals, "rollouts": [
        _rollout(r, v) for r, v in zip(group.rollouts, verdicts, strict=True)]}


def _rollout(rollout: Rollout, verdict: Verdict | None) -> dict[str, Any]:
    known = [t.logprobs for t in rollout.turns if t.logprobs is not None]
    return {
        "id": rollout.id, "role": rollout.role, "text": rollout.text, "tokens": rollout.tokens,
        "turns": len(rollout.turns), "finish": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        "logprob": sum(map(sum, known)) if known and len(known) == len(rollout.turns) else None,
        "seen_through": [op.name for m in rollout.context.media for op in m.ops],
        "score": verdict.score if verdict else None, "error": bool(verdict and verdict.error),
        "rationale": verdict.rationale if verdict else "",
        "verifier": verdict.verifier if verdict else "",
    }


def _signal(role: str, signal: AnySignal) -> dict[str, Any]:
    return {
        "role": role, "kind": signal.kind, "weight": signal.weight, "why": signal.why,
        "rollouts": list(signal.rollouts), "advantage": getattr(signal, "advantage", None),
        "branches": {name: _branch(b) for name, b in signal.branches.items()},
    }


def _branch(branch: Branch) -> str:
    seen = sorted({op.name for m in branch.context.media for op in m.ops})
    what = branch.text if branch.text is not None else \
        f"{sum(len(t.token_ids) for t in branch.turns)} drawn tokens"
    return f"{what}, seen through {', '.join(seen)}" if seen else what


def _answered(index: int, answer: Answer) -> dict[str, Any]:
    return {"after": "seed" if index < 0 else index + 1, "arm": answer.arm, "text": answer.text,
            "parsed": answer.parsed, "right": answer.right, "gold": answer.gold}


# -- rendering ------------------------------------------------------------------------------------

def render(console: Console, described: dict[str, Any]) -> None:
    """Print what `describe_run` or `show_sample` returned."""
    console.print(_run(described) if described["kind"] == "run" else _sample(described))


def _run(told: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [Text(told["decision"], style="bold")]
    if told["summary"] and told["summary"].get("words"):
        parts.append(Text(f"What may be claimed: {told['summary']['words']}"))
    parts += [Text(f"missing: {what}", style="yellow") for what in told["missing"]]
    if told["stopped"]:
        parts.append(Text(f"not finished: {told['stopped']}", style="yellow"))
    if told["iterations"]:
        table = _table("iteration", "decision", "dev", "no image", "reward", "gain", "drawn",
                       "right")
        for i in told["iterations"]:
            dev, counts, why = i["dev"], i["counts"], i["decision"]
            gain = "–" if why["gain"] is None else points(why["gain"]) + (
                f" ({between(*why['interval'])})" if why["interval"] else "")
            table.add_row(str(i["index"] + 1), why["action"], _share(dev.get("greedy")),
                          _share(dev.get("no_image")), _real(i["reward"]), gain,
                          f"{counts.get('drawn', 0):,}", f"{counts.get('right', 0):,}")
        parts.append(table)
    parts += of_negatives(told["negatives"])
    parts += _floors(told["floors"])
    tokens, seconds = told["tokens"], told["seconds"]
    parts.append(Text(
        f"{told['steps']} steps; labels read: {told['labels_full']:,} full, "
        f"{told['labels_answer_only']:,} answers only; {short(tokens['drawn'])} tokens drawn, "
        f"{short(tokens['learn_trained'])} trained on; {lasting(seconds['all'])}", style="dim"))
    return Group(*parts)


def _floors(known: dict[str, Any]) -> list[RenderableType]:
    """Seconds over the floor, by stage; nothing where the run did not record its machine."""
    if not known["machine"] or not known["stages"]:
        return []
    table = _table("stage", "achieved", "floor", "achieved / floor", "FLOPs")
    for s in known["stages"]:
        table.add_row(s["stage"], lasting(s["seconds"]), *(
            ("–", "–", "–") if s["over"] is None else (
                lasting(s["floor"]), times(s["over"]), short(s["flops"]))))
    left_out = f"; not counted: {'; '.join(known['uncounted'])}" if known["uncounted"] else ""
    return [table, Text(f"floor: {of_machine(known['machine'])}{left_out}", style="dim")]


def _sample(told: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [Text(f"sample {told['id']}", style="bold")]
    sample = told["sample"]
    if sample is None:
        parts.append(Text("its question is not stored with the run", style="yellow"))
    else:
        parts.append(_text(sample["question"]))
        parts += [_text(f"picture: {p['file'] or p['sha256'][:12]}")
                  for p in sample["pictures"]]
        parts.append(_text(f"gold: {sample['gold']}"))
    for draw in told["draws"]:
        table = _table("rollout", "text", "tokens", "logprob", "score", "verdict",
                       title=f"step {draw['step']}: what was drawn")
        for r in draw["rollouts"]:
            mark = "→ " if r["id"] == told["rollout"] else ""
            said = "verifier failed: " if r["error"] else ""
            table.add_row(mark + r["id"][:10], _text(r["text"]), str(r["tokens"]),
                          _real(r["logprob"]), _real(r["score"]), _text(said + r["rationale"]))
        parts.append(table)
        made = _table("signal", "role", "weight", "branches", "why",
                      title=f"step {draw['step']}: signals made from it")
        for s in draw["signals"]:
            what = "\n".join(f"{name}: {b}" for name, b in s["branches"].items())
            made.add_row(s["kind"], s["role"], _real(s["weight"]), _text(what), _text(s["why"]))
        parts.append(made if draw["signals"] else Text(
            f"step {draw['step']}: no signal was made from it", style="dim"))
    if told["dev"]:
        table = _table("after", "arm", "text", "parsed", "right", title="dev answers")
        for a in told["dev"]:
            right = "not judged" if a["right"] is None else "yes" if a["right"] else "no"
            table.add_row(str(a["after"]), a["arm"], _text(a["text"]), _text(a["parsed"] or "–"),
                          right)
        parts.append(table)
    return Group(*parts)


def _text(said: object) -> Text:
    """Text of a model or a data file: shown as it is, but unable to steer the terminal."""
    return Text("".join(c if c.isprintable() or c in "\n\t" else "�" for c in str(said)))


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(*columns, title=title, title_justify="left", title_style="bold", box=None,
                  pad_edge=False, header_style="dim")
    table.columns[0].no_wrap = True
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _real(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
