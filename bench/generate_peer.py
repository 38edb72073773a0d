"""transformers' own way to draw a group: `model.generate(num_return_sequences=G)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.grid import Point
from bench.models import images_only
from bench.questions import Question


class Generate:
    """One padded batch; every prompt with its pictures is repeated G times inside."""

    name = "generate"

    def __init__(self, folder: Path, never: Sequence[int], device: str = "cpu",
                 dtype: str = "float32") -> None:
        images_only()
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype)).to(device).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(folder, padding_side="left")
        self.never = list(never)

    def inputs(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The processor's tensors, made once: ours keeps them too."""
        text = [self.processor.apply_chat_template(q.messages, add_generation_prompt=True)
                for q in questions]
        out = self.processor(text=text, images=[list(q.pictures) for q in questions],
                             return_tensors="pt", padding=True)
        return dict(out.to(self.model.device))

    def draw(self, inputs: dict[str, Any], point: Point, greedy: bool = False) -> torch.Tensor:
        """[prompts * G, R] drawn tokens."""
        out = self.model.generate(
            **inputs, do_sample=not greedy, num_return_sequences=1 if greedy else point.group,
            max_new_tokens=point.answer, suppress_tokens=self.never, temperature=1.0, top_k=0,
            top_p=1.0, pad_token_id=self.processor.tokenizer.pad_token_id)
        return out[:, inputs["input_ids"].shape[1]:]
