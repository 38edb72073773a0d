"""Rollouts and updates on the embedded model: ours beside the plain way, measured in one run.

Rollouts: our engine against `model.generate(num_return_sequences=G)` on the same prompts and
number of new tokens. Updates: the shared-prefix forward and backward against the plain rows, same
engine and loss. Both sides float32, one thread, warm, interleaved; median of --repeats with the
spread. The token formula S = G(P+R)/(P+GR) is printed beside the ratio of the updates.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from selfloop.demo import make_engine
from selfloop.optimize.score import Plain
from selfloop.pictures import Library, read
from selfloop.roles import Request, Sampling
from selfloop.testbeds import digits
from selfloop.types import Context, Message, Part


def contexts(folder: Path, n: int) -> list[Context]:
    """n questions about n pictures."""
    written = digits.write(folder, "train", n, 9).read_text().splitlines()
    rows = [json.loads(line) for line in written]
    return [Context(
        prompt=(Message(content=(Part(type="image"), Part(text=row["prompt"]))),),
        media=tuple(read(folder / row["images"][0]))) for row in rows]


def generate_plainly(engine: Any, seen: list[Context], group: int, tokens: int) -> None:
    """transformers' own way: one padded batch, every prompt repeated `group` times inside."""
    texts = [engine.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text",
                                                          "text": c.prompt[0].content[1].text}]}],
        add_generation_prompt=True) for c in seen]
    images = [engine.prompts.open_media(c.media[0]) for c in seen]
    batch = engine.processor(text=texts, images=images, return_tensors="pt", padding=True)
    engine.model.generate(**batch, do_sample=True, num_return_sequences=group,
                          max_new_tokens=tokens)


def medians(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """(median, spread) of seconds for each side: warm, then in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, work in sides.items():
            began = time.perf_counter()
            work()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - began)
    return {n: (statistics.median(t), max(t) - min(t)) for n, t in times.items()}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    given = parser.parse_args()
    engine: Any = make_engine()
    engine.bind(Library().open)
    engine.publish(0, 0)
    seen = contexts(given.out / "data", given.prompts)
    sampling = Sampling(max_new_tokens=given.tokens)
    requests = [Request(context=c, key=str(i), n=given.group, sampling=sampling)
                for i, c in enumerate(seen)]
    drawn = engine.generate(requests, 0)
    from selfloop.types import Branch

    rows = [row for c, turns in zip(seen, drawn, strict=True) for t in turns
            for row in engine.rows(Branch(context=c, turns=(t,)))]
    plain = Plain(engine.model, engine.prompts, engine.banned_V, engine.max_batch_tokens)

    def update(path: Callable[..., Any]) -> None:
        logps, _ = path(rows)
        (-torch.cat(list(logps)).mean()).backward()
        engine.reset_optimizer()

    times = medians({
        "rollouts, ours": lambda: engine.generate(requests, 0),
        "rollouts, model.generate": lambda: generate_plainly(engine, seen, given.group,
                                                             given.tokens),
        "update, shared prefix": lambda: update(engine.scorer),
        "update, plain rows": lambda: update(plain),
    }, given.repeats)
    prefix = statistics.mean(row.prompt for row in rows)
    answer = statistics.mean(len(row.token_ids) - row.prompt for row in rows)
    bound = given.group * (prefix + answer) / (prefix + given.group * answer)
    ratios = {
        "rollouts": times["rollouts, model.generate"][0] / times["rollouts, ours"][0],
        "update": times["update, plain rows"][0] / times["update, shared prefix"][0],
    }
    for name, (median, spread) in times.items():
        print(f"{name:28} {1000 * median:8.1f} ms  (spread {1000 * spread:.1f})")
    print(f"ratios: rollouts {ratios['rollouts']:.2f}x, update {ratios['update']:.2f}x; token "
          f"formula S = {bound:.2f} at P = {prefix:.0f}, R = {answer:.1f}, G = {given.group}")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "embedded.json").write_text(json.dumps({
        "seconds": times, "ratios": ratios, "S": bound, "prompt": prefix, "answer": answer,
        "options": {k: str(v) for k, v in vars(given).items()}, "threads": torch.get_num_threads(),
        "machine": platform.platform(), "processor": platform.processor(),
        "torch": torch.__version__, "transformers": transformers.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
