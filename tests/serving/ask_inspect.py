"""Runs in the clients' environment: the questions as an inspect_ai task.

    python ask_inspect.py URL QUESTIONS.jsonl OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from inspect_ai import Task
from inspect_ai import eval as run
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import Score, Target, accuracy, scorer
from inspect_ai.solver import TaskState, generate


@scorer(metrics=[accuracy()])
def concluded():
    """What stands behind the last "=" is the answer."""
    async def score(state: TaskState, target: Target) -> Score:
        said = state.output.completion.rpartition("=")[2].strip()
        return Score(value=said == target.text, answer=said)
    return score


def main(url: str, questions: str, out: str) -> None:
    folder = Path(questions).parent
    rows = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    samples = [Sample(id=row["id"], target=row["answer"], input=[ChatMessageUser(content=[
        ContentImage(image=str(folder / row["images"][0])), ContentText(text=row["prompt"])])])
        for row in rows]
    task = Task(dataset=MemoryDataset(samples), solver=generate(), scorer=concluded(),
                config=GenerateConfig(temperature=0, max_tokens=16))
    model = get_model("openai-api/selfloop/embedded", base_url=url, api_key="sk-any")
    log = run(task, model=model, log_dir=str(Path(out).parent / "logs"), display="none")[0]
    assert log.status == "success", log.error
    said = {s.id: s.output.completion for s in log.samples}
    Path(out).write_text(json.dumps({
        "answers": [said[row["id"]] for row in rows],
        "accuracy": log.results.scores[0].metrics["accuracy"].value}))


if __name__ == "__main__":
    main(*sys.argv[1:])
