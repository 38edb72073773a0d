"""Runs in the clients' environment: the questions by the openai package, with all it offers.

    python ask_openai.py URL QUESTIONS.jsonl OUT.json
"""

from __future__ import annotations

import base64
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai


def messages(row: dict, folder: Path) -> list[dict]:
    picture = base64.b64encode((folder / row["images"][0]).read_bytes()).decode()
    return [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": row["prompt"]}]}]


def main(url: str, questions: str, out: str) -> None:
    folder = Path(questions).parent
    rows = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    client = openai.OpenAI(base_url=url, api_key="sk-any", max_retries=0)
    name = client.models.list().data[0].id

    def create(row: dict, **more):
        return client.chat.completions.create(
            model=name, messages=messages(row, folder),
            **{"temperature": 0, "max_tokens": 16, **more})

    with ThreadPoolExecutor(8) as pool:
        answers = [r.choices[0].message.content for r in pool.map(create, rows)]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in create(
        rows[0], stream=True) if chunk.choices)
    drawn = create(rows[0], temperature=1, n=4, seed=5, logprobs=True)
    again = create(rows[0], temperature=1, n=4, seed=5)
    refused = {}
    for kind, call in {
            "BadRequestError": lambda: create(rows[0], max_tokens=10**6),
            "NotFoundError": lambda: client.chat.completions.create(
                model="other", messages=[{"role": "user", "content": "a"}])}.items():
        try:
            call()
        except openai.APIStatusError as error:
            refused[kind] = [type(error).__name__, error.body["message"]]
    Path(out).write_text(json.dumps({
        "answers": answers, "streamed": streamed, "refused": refused,
        "drawn": [c.message.content for c in drawn.choices],
        "again": [c.message.content for c in again.choices],
        "tokens": ["".join(t.token for t in c.logprobs.content) for c in drawn.choices]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
