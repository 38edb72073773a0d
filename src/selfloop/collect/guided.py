"""Guided generation: the same question asked in a way that makes the model look, or think, first.

Each is a plain function Context -> Context that ends the last user message with one more line.
All of them ask for "Answer:" at the end, which `rules.final_answer` reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from selfloop.data import Samples
from selfloop.types import Context, Message, Part


def ending(context: Context, suffix: str) -> Context:
    """The context with a line added to the end of its last user message."""
    last = max(i for i, m in enumerate(context.prompt) if m.role == "user")
    prompt = list(context.prompt)
    parts = list(prompt[last].content)
    if parts and parts[-1].type == "text":
        parts[-1] = Part(text=f"{parts[-1].text}\n{suffix}")
    else:
        parts.append(Part(text=suffix))
    prompt[last] = Message(role="user", content=tuple(parts))
    return Context(prompt=tuple(prompt), media=context.media)


@dataclass(frozen=True)
class Asked:
    """`ending` with a text of one's own, as a component that a loop can name."""

    text: str

    def __call__(self, context: Context) -> Context:
        """The context with the text as its last line."""
        return ending(context, self.text)


def direct(context: Context) -> Context:
    """The final answer and nothing else: LLaVA-1.5's short-answer prompt (arXiv 2310.03744)."""
    return ending(context, "Answer with the final answer only.")


def chain_of_thought(context: Context) -> Context:
    """Reason first: zero-shot chain of thought (Kojima et al., arXiv 2205.11916)."""
    return ending(context, 'Think step by step, then end with a line "Answer: ...".')


def describe_then_answer(context: Context) -> Context:
    """Description first, decision second (Wu et al., arXiv 2311.09193)."""
    return ending(context, "First describe what the picture shows that matters for the question, "
                  'then end with a line "Answer: ...".')


def see_think_answer(context: Context) -> Context:
    """Perception, reasoning and answer in parts of their own: Vision-SR1 (arXiv 2508.19652)."""
    return ending(context, "Write what you see between <see> and </see>, your reasoning between "
                  "<think> and </think>, and the final answer between <answer> and </answer>.")


DESCRIBE = (
    "Describe the picture step by step. Name the main things in it and what they do. Then say "
    "where it is and what mood it has, and what in it makes that mood. Then its colours and how it "
    "is composed. Then what in it may stand for something else. End with what it is about.")
"""A guiding prompt for descriptions, in the order that STIC asks for (arXiv 2405.19716; own words).
"""

STRUCTURES: dict[str, Callable[[Context], Context]] = {
    "direct": direct, "chain of thought": chain_of_thought,
    "describe then answer": describe_then_answer, "see, think, answer": see_think_answer,
}
"""The four that `selfloop probe` compares with the question as it is."""


def structured(samples: Samples, prompt: str) -> Samples:
    """The samples with every question ended by one of `STRUCTURES` ("as it is": by none)."""
    if prompt == "as it is":
        return samples
    made = (s.model_copy(update={"prompt": STRUCTURES[prompt](s.context).prompt}) for s in samples)
    return Samples.of(made, samples.name)
