"""The page's sections as plain values: what page.jinja prints, one function a section."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from selfloop.report import figures
from selfloop.report.arms import SAYS
from selfloop.report.facts import ARMS, Estimate, Findings, account, estimate
from selfloop.report.floors import told
from selfloop.report.words import between, lasting, of_machine, percent, points, short, times


def headline(found: Findings) -> list[tuple[str, str, str]]:
    """The figures at the top: (what, value, interval or remark)."""
    cost = account(found)
    rows = _headline_arms(found) if found.summary else _headline_dev(found)
    full, answers = cost["labels_full"], cost["labels_answer_only"]
    rows.append(("Labels read", f"{full + answers:,}",
                 f"{full:,} full, {answers:,} answers only" if full + answers
                 else "no gold value was read while training"))
    tokens = cost["tokens"]
    rows.append(("Tokens drawn", short(tokens["drawn"]),
                 f"{short(tokens['learn_trained'])} trained on"))
    rows.append(("FLOPs", short(cost["flops"]) if cost["flops"] else "not known",
                 "collecting and learning" if cost["flops"] else "no iteration has ended"))
    seconds = cost["seconds"]["all"]
    whole = float((found.summary or {}).get("seconds", 0.0))
    rows.append(("Time of the loop", lasting(seconds),
                 f"{lasting(whole)} with every arm" if whole else ""))
    return rows


def _headline_arms(found: Findings) -> list[tuple[str, str, str]]:
    summary = found.summary or {}
    rows = []
    for what, arm in (("Seed", "seed_accuracy"), ("Final", "final_accuracy")):
        if arm in summary:
            known = estimate(found.arms.get(arm, []))
            rows.append((what, percent(summary[arm] / 100), _ends(known)))
    if "gain_over_control" in summary:
        low, high = (v / 100 for v in summary["interval"])
        rows.append(("Gain over control", points(summary["gain_over_control"] / 100),
                     between(low, high)))
    return rows


def _headline_dev(found: Findings) -> list[tuple[str, str, str]]:
    rows = []
    for what, index in (("Seed, on dev", -1), (
            "Final, on dev" if found.promoted else "Last, on dev", found.final)):
        known = estimate(found.greedy(index)) if index is not None else None
        if known:
            rows.append((what, percent(known.value), _ends(known)))
    gain = found.dev_gain
    if gain:
        rows.append(("Gain over the seed", points(gain.gain), between(gain.low, gain.high)))
    return rows


def _ends(known: Estimate | None) -> str:
    if known is None or known.low is None or known.high is None:
        return ""
    return f"95\u00a0% interval {100 * known.low:.1f} to {100 * known.high:.1f}"


def progress(found: Findings) -> dict[str, Any] | None:
    """Dev accuracy, reward and no-image accuracy, from the seed on; None when nothing is known."""
    order = [-1, *(i.index for i in found.iterations)]
    held = [estimate(found.greedy(i)) for i in order]
    blind = [estimate([a for a in found.dev.get(i, ()) if a.arm == "no_image"]) for i in order]
    rewards: list[float | None] = [None, *(i.reward for i in found.iterations)]
    if not any(held) and not any(r is not None for r in rewards):
        return None
    as_share = all(r is None or 0 <= r <= 1 for r in rewards)
    labels = ["seed", *(str(i.index + 1) for i in found.iterations)]
    lines = [figures.Line(
        "Held-out (dev) accuracy", [e.value if e else None for e in held],
        lows=[e.low if e else None for e in held], highs=[e.high if e else None for e in held])]
    if as_share and any(r is not None for r in rewards):
        lines.append(figures.Line("Mean reward of training answers", rewards, "dash"))
    if any(blind):
        lines.append(figures.Line("Dev accuracy without pictures", [
            e.value if e else None for e in blind], "dot"))
    lines = [line for line in lines if any(v is not None for v in line.values)]
    table = [{"label": label, "held": _cell(e), "blind": _cell(b),
              "reward": "–" if r is None else f"{r:.3f}"}
             for label, e, b, r in zip(labels, held, blind, rewards, strict=True)]
    return {
        "chart": figures.curves(lines, labels, title="Curves over iterations; the same figures "
                                "are in the table below"),
        "lines": [(line.name, line.kind) for line in lines], "table": table,
        "reward": None if as_share else figures.small("Mean reward", rewards[1:], first=1),
    }


def _cell(e: Estimate | None) -> str:
    if e is None:
        return "–"
    ends = "" if e.low is None or e.high is None else f" [{100 * e.low:.1f}, {100 * e.high:.1f}]"
    return f"{percent(e.value)}{ends}"


def steps(found: Findings) -> list[dict[str, Any]]:
    """Small charts over steps: every loss term, gradient norm, zero-variance share, reward."""
    roles = list(dict.fromkeys(role for step in found.learned for role in step))
    charts = []
    for role in roles:
        names = list(dict.fromkeys(n for step in found.learned for n in step.get(role, {})))
        own = f"{role}: " if len(roles) > 1 else ""
        norms = [n for n in names if n.startswith("grad_norm")]
        terms = [n for n in names if n not in (*norms, "updates") and "tokens_" not in n]
        charts += [(own + n.replace("grad_norm", "gradient norm").replace("norm_", "norm, "), [
            step.get(role, {}).get(n) for step in found.learned], False)
            for n in (*terms[:8], *norms)]
    for name, said in (("zero_variance", "questions with equal verdicts"),
                       ("mean_score", "mean score"), ("truncated", "answers cut off")):
        values = [m["monitors"].get(name) for m in found.manifests]
        percent = all(v is None or 0 <= v <= 1 for v in values)
        charts.append((said, values, percent))
    return [{"name": name, "chart": chart} for name, values, percent in charts
            if (chart := figures.small(name, values, percent=percent))]


def flow(found: Findings) -> list[dict[str, Any]]:
    """What was drawn and what became of it, by iteration, unfinished ones included."""
    each = found.steps_per_iteration
    done = {i.index for i in found.iterations}
    rows = []
    for index in range(-(-len(found.manifests) // each)):
        counts: dict[str, int] = {}
        for manifest in found.manifests[index * each:(index + 1) * each]:
            for name, count in manifest["counts"].items():
                counts[name] = counts.get(name, 0) + count
        drawn = max(1, counts.get("drawn", 0))
        # Errors are verdicts without a score too: they are counted once, as errors.
        unsure = counts.get("unjudged", 0) - counts.get("errors", 0)
        wrong = counts.get("drawn", 0) - counts.get("right", 0) - counts.get("unjudged", 0)
        signals = {k.removeprefix("signals_"): v for k, v in counts.items()
                   if k.startswith("signals_")}
        rows.append({
            "label": str(index + 1) + ("" if index in done else " (unfinished)"), **{
                k: counts.get(k, 0) for k in ("problems", "drawn", "right", "errors", "truncated")},
            "wrong": wrong, "unjudged": unsure, "signals": ", ".join(
                f"{v:,}" + (f" {k}" if len(signals) > 1 else "") for k, v in signals.items()),
            "bar": figures.stacked([("right", counts.get("right", 0) / drawn), ("wrong",
                                    wrong / drawn), ("unjudged", unsure / drawn),
                                    ("error", counts.get("errors", 0) / drawn)]),
        })
    return rows


def decisions(found: Findings) -> list[dict[str, Any]]:
    """What the gate did and why, one entry an iteration."""
    names = {"promote": "promoted", "hold": "held", "roll back": "rolled back"}
    rows = []
    for i in found.iterations:
        d = i.decision
        why = d.why
        for prefix in ("promoted: ", "held: ", "rolled back: "):
            why = why.removeprefix(prefix)
        for plain, sign in ((" -> ", " → "), (" >= ", " ≥ "), (" -", " −"), ("[-", "[−")):
            why = why.replace(plain, sign)
        rows.append({
            "label": i.index + 1, "version": i.version, "action": names[d.action], "why": why,
            "gain": points(d.gain) if d.gain is not None else "–",
            "p": "–" if d.p_value is None else "<0.0001" if d.p_value < 1e-4
            else f"{d.p_value:.2g}",
            "spent": f"{d.alpha_spent:.3g}", "best": i.best,
            "guards": ", ".join(d.guards) + (f" ({', '.join(d.actions)})" if d.actions else ""),
        })
    return rows


def cost(found: Findings) -> list[tuple[str, str, str]]:
    """The account of labels, tokens, compute and time: (what, figure, what it counts)."""
    known = account(found)
    tokens, seconds = known["tokens"], known["seconds"]
    return [
        ("Full labels read", f"{known['labels_full']:,}",
         "training questions whose worked solution some component was given"),
        ("Answers read", f"{known['labels_answer_only']:,}",
         "training questions whose gold answer, and no more, some component was given"),
        ("Dev questions", f"{known['labels_dev']:,}",
         "whose answers only the evaluation and the gate read"),
        ("Tokens read while drawing", f"{tokens['read']:,}", "prompts, once per question"),
        ("Tokens drawn", f"{tokens['drawn']:,}", "answers"),
        ("Tokens read while learning", f"{tokens['learn_read']:,}", "prompts and answers"),
        ("Tokens trained on", f"{tokens['learn_trained']:,}", "those that carry the loss"),
        ("FLOPs", f"{known['flops']:.3g}" if known["flops"] else "not known",
         "estimated from tokens and parameters" if known["flops"] else "no iteration has ended"),
        ("Time collecting", lasting(seconds["collecting"]), "drawing and judging"),
        ("Time learning", lasting(seconds["learning"]), "optimizer updates"),
        ("Time in all", lasting(seconds["all"]), "evaluation and writing included; pauses not"),
        ("Network", network(found), "hosts that the run was allowed to reach"),
        *elsewhere(found),
    ]


def elsewhere(found: Findings) -> list[tuple[str, str, str]]:
    """What servers were asked and what their answers cost, one row a role."""
    last = {e["role"]: e for e in found.events if e["event"] == "spent"}
    rows = []
    for role, spent in sorted(last.items()):
        dollars = spent.get("dollars")
        figure = f"{spent['answers']:,} answers, {spent['prompt_tokens']:,} tokens read, " \
            f"{spent['completion_tokens']:,} drawn" + (
                "" if dollars is None else f", ${dollars:,.4f}")
        missing = spent.get("uncounted", 0)
        note = f"; {missing:,} answers came without a count" if missing else ""
        rows.append((f"Asked of {spent['model']} ({role})", figure,
                     f"as the server counted; prices are run.yaml's{note}"))
    return rows


def network(found: Findings) -> str:
    """The rule that run.yaml set for the run; "not limited" for one started from Python."""
    path = found.run.path / "run.yaml"
    if not path.is_file():
        return "not limited"
    rule = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("network", "none")
    return rule if isinstance(rule, str) else ", ".join(rule)


def floors(found: Findings) -> dict[str, Any] | None:
    """Seconds over the floor, by stage; None where the run did not record its machine."""
    known = told(found)
    if not known["machine"] or not known["stages"]:
        return None
    rows = [(s["stage"], lasting(s["seconds"]), *(("–", "–") if s["over"] is None else (
        lasting(s["floor"]), times(s["over"])))) for s in known["stages"]]
    return {"rows": rows, "machine": of_machine(known["machine"]),
            "uncounted": "; ".join(known["uncounted"])}


def files(found: Findings) -> list[tuple[str, str, str]]:
    """What the figures can be recomputed from: (path, what it holds, first of its sha256)."""
    home, run = found.folder, found.run.path
    wanted: list[tuple[Path, str]] = []
    if found.summary is not None:
        wanted.append((home / "summary.json", "every headline figure"))
        wanted += [(home / "answers" / f"{arm}.parquet", f"test answers: {SAYS[arm][0]}")
                   for arm in ARMS]
    wanted += [(run / "loop.json", "the loop, its fingerprint, hashes of data and engines"),
               (run.joinpath("iterations", "seed", "answers.parquet"), "dev answers of the seed")]
    for i in found.iterations:
        place = found.run.iteration(i.index)
        wanted += [(place / "answers.parquet", f"dev answers after iteration {i.index + 1}"),
                   (place / "iteration.json", f"the gate's decision {i.index + 1}")]
    wanted.append((run / "events.jsonl", "clocks, rates, and what happened when"))
    rows = [(path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path), what,
             hashlib.sha256(path.read_bytes()).hexdigest()[:12])
            for path, what in wanted if path.is_file()]
    if found.manifests:
        near = (run / "steps").relative_to(home) if run.is_relative_to(home) else run / "steps"
        rows.append((f"{near.as_posix()}/", f"{len(found.manifests)} steps: every answer drawn, "
                     "every verdict, every signal, with a manifest each", ""))
    return rows
