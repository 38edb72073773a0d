"""What the gate is shown: the answers of a version, and the figures that guards read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfloop.evaluate import forgetting
from selfloop.evaluate.answering import evaluate
from selfloop.evaluate.answers import Answer, accuracy, read
from selfloop.evaluate.monitors import GREEDY, of_answers
from selfloop.evaluate.rewarding import rewarded
from selfloop.roles import call_by_name
from selfloop.types import Decision

if TYPE_CHECKING:
    from selfloop.running import Run


def ask(run: Run, version: int) -> list[Answer]:
    """Everything that is asked of a version: dev, the suites, and the loop's verdicts on dev."""
    how = run.loop.evaluation
    assert how is not None  # the caller has one
    found = evaluate(run.loop, run.dev, run.engines, version, run.library.keep)
    found += rewarded(run.loop, run.dev, run.engines, version, found)
    return found + forgetting.ask(how.suites, run.engines, version, run.loop.seed)


def dev_figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Accuracy by arm, of those that have one."""
    arms = dict.fromkeys(a.arm for a in answers)
    shares = {arm: accuracy([a for a in answers if a.arm == arm]) for arm in arms}
    return {arm: share for arm, share in shares.items() if share == share}


def decide(run: Run, index: int, best: int, answers: Sequence[Answer]) -> Decision:
    """Put the answers of now and of the last promoted version `best` before the gate."""
    loop = run.loop
    if loop.gate is None:
        return Decision(action="hold", why="no gate: trained without deciding")
    first = best // loop.steps  # the iterations that were compared with `best`
    before = _answers(run, first - 1)
    now = of_answers(answers) | _training(run, (index + 1) * loop.steps - 1)
    if loop.evaluation is not None and loop.evaluation.suites:
        now |= forgetting.compared(loop, answers, _answers(run, -1))
    decision: Decision = call_by_name(
        loop.gate, candidate=_greedy(answers), best=_greedy(before), look=index, monitors=now,
        before=of_answers(before) | _training(run, best),
        earlier=[_greedy(_answers(run, i)) for i in range(first, index)])
    return decision


def _answers(run: Run, index: int) -> list[Answer]:
    """What the version at the end of an iteration answered; -1: the seed."""
    folder = run.folder.iteration("seed" if index < 0 else index)
    return read(folder / "answers.parquet")


def _greedy(answers: Sequence[Answer]) -> list[Answer]:
    return [a for a in answers if a.arm == GREEDY]


def _training(run: Run, step: int) -> dict[str, float]:
    """Figures of a step's groups, for guards. Step v is the first that version v drew."""
    manifest = run.folder.manifest(step)
    if manifest is None:
        return {}
    named = {"mean_score": "train_reward", "disagreement": "train_disagreement"}
    found = {named[k]: v for k, v in manifest["monitors"].items() if k in named}
    return {**found, "train_n": float(manifest["counts"]["problems"])}
