"""The embedded model before it has seen a picture or a label: its language part, trained on text.

Digits stand as tokens where a picture's features would, so the model learns to read a
picture-sized slot in order and to do the arithmetic. This is the first of the two stages in which
the shipped seed is made; a study of labels has to start here, because the seed has seen 300.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

from selfloop.keys import generator
from selfloop.testbeds import digits, tiny_vlm

UPDATES = 900
BATCH = 64
RATE = 2e-3
WARMUP = 20
Tensor = torch.Tensor


@cache
def prompt_ids(processor: Any, task: str) -> list[int]:
    """The prompt of `task` with one placeholder token a patch."""
    parts = [{"type": "image"}, {"type": "text", "text": digits.prompts[task]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True)
    patches = (tiny_vlm.SIDE // tiny_vlm.PATCH) ** 2
    text = text.replace(tiny_vlm.IMAGE, tiny_vlm.IMAGE * patches)
    return list(processor.tokenizer.encode(text, add_special_tokens=False))


def _question(processor: Any, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids) of one question about random digits given as tokens."""
    tok = processor.tokenizer
    image, blank = tok.convert_tokens_to_ids([tiny_vlm.IMAGE, " "])
    # Half of the questions are sums: every other task is learned long before addition is.
    names = [*digits.prompts, "sum", "sum", "sum"]
    task = names[int(rng.integers(len(names)))]
    count = int(rng.integers(digits.FEWEST, digits.MOST + 1))
    read = "".join(str(d) for d in rng.integers(0, 10, size=count))
    prompt = list(prompt_ids(processor, task))
    slots = [i for i, token in enumerate(prompt) if token == image]
    for i in slots:
        prompt[i] = blank
    for digit, place in zip(read, sorted(rng.permutation(len(slots))[:count]), strict=True):
        prompt[slots[place]] = tok.convert_tokens_to_ids(f" {digit}")
    chain = tok.encode(digits.chain_for(task, read), add_special_tokens=False)
    return prompt, [*chain, tok.eos_token_id]


def text_batch(processor: Any, rng: np.random.Generator, size: int
               ) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels (-100 where nothing is learned) and mask: int64 (size, L), padded right."""
    rows = [_question(processor, rng) for _ in range(size)]
    length = max(len(p) + len(a) for p, a in rows)
    ids = torch.full((size, length), processor.tokenizer.pad_token_id)
    labels = torch.full((size, length), -100)
    mask = torch.zeros((size, length), dtype=torch.long)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt):end] = torch.tensor(answer)
        mask[i, :end] = 1
    return ids, labels, mask


def text_start(folder: str | Path, *, seed: int = 0, updates: int = UPDATES) -> Path:
    """Write the text-trained model as a from_pretrained folder and return it.

    AdamW with warm-up and cosine, about a minute on one core at 900 updates. The weights depend on
    `seed` and `updates` alone. Raises OSError when the folder cannot be written.
    """
    folder = tiny_vlm.build(folder, seed=seed)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = tiny_vlm.make_processor()
    rng = generator(f"make_seed/text/{seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98),
                                  weight_decay=0.05)
    model.train()
    for step in range(updates):
        cosine = 0.5 * (1 + math.cos(math.pi * step / updates))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * cosine
        ids, labels, mask = text_batch(processor, rng, BATCH)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    model.save_pretrained(folder)
    return folder
