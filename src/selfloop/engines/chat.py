"""The chat template as text: prompts, how an assistant's turn ends, and what follows a turn.

Only the template writes control tokens. A text that spells one (a model's answer that is quoted to
a judge, "7<|im_end|>...") would else close its own turn and speak as somebody else, and one that
spells a picture's placeholder would ask for a picture that is not there.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from selfloop.engines.tokens import controls
from selfloop.roles import SelfloopError
from selfloop.types import Message

_PROBE = "one"
"""An answer that every template writes verbatim; found again to see what it puts around it."""


class Chat:
    """What one processor's chat template and tokenizer do with plain text."""

    def __init__(self, processor: Any, ends: frozenset[int]) -> None:
        self.processor, self.tokenizer, self.ends = processor, processor.tokenizer, ends
        self.pad = self.tokenizer.pad_token_id or 0
        self._told = False

    def render(self, messages: Sequence[Message], *, generate: bool) -> str:
        """The template's text, up to where the assistant starts to write if `generate`.

        Control tokens that a message's own text spells are broken by a space, "< eos>".
        """
        said = [{"role": m.role, "content": [
            {"type": "text", "text": self._harmless(p.text)} if p.type == "text"
            else {"type": p.type}
            for p in m.content]} for m in messages]
        try:
            return str(self.processor.apply_chat_template(
                said, tokenize=False, add_generation_prompt=generate))
        except Exception as error:
            roles = ", ".join(m.role for m in messages)
            raise SelfloopError(f"the chat template refuses messages of roles {roles}: "
                                f"{type(error).__name__}: {error}") from error

    def _harmless(self, text: str) -> str:
        found = self._controls.search(text) if self._controls else None
        if self._controls is None or found is None:
            return text
        if not self._told:
            self._told = True
            warnings.warn(
                f"the text of a prompt spells the control token {found[0]} (in {text[:60]!r}): it "
                "is read as words, here and wherever else one does", stacklevel=3)
        return self._controls.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)

    @cached_property
    def _controls(self) -> re.Pattern[str] | None:
        """Any control token, the longest first."""
        known = sorted(controls(self.tokenizer), key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, known))) if known else None

    def adds_special(self, text: str) -> bool:
        """Whether the tokenizer still has to add its own bos (the template wrote none)."""
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))

    def tokens(self, text: str) -> tuple[int, ...]:
        """Ids of a text without pictures, nothing added, nothing cut."""
        return tuple(self.tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])

    @cached_property
    def _probe(self) -> tuple[str, str, str]:
        """(prompt, what precedes an answer, what follows it) for a one-word conversation."""
        asked = Message.model_validate({"role": "user", "content": _PROBE})
        answer = Message.model_validate({"role": "assistant", "content": _PROBE})
        prompt = self.render([asked], generate=True)
        whole = self.render([asked, answer], generate=False)
        if whole.startswith(prompt):
            lead, found, tail = whole[len(prompt):].partition(_PROBE)
        else:
            # The generation prompt opens something (thinking) that finished answers lack.
            lead, (_, found, tail) = "", whole.rpartition(_PROBE)
        if not found:
            raise SelfloopError("the chat template does not write an assistant's text: selfloop "
                                "cannot tell where an answer ends; mend chat_template.jinja")
        return prompt, lead, tail

    @cached_property
    def end(self) -> tuple[int, ...]:
        """What closes an assistant's turn: the template's tokens up to end-of-turn, else eos."""
        closing = self._closing[0]
        if closing:
            return self.tokens(closing)
        if self.tokenizer.eos_token_id is None:
            raise SelfloopError("neither the chat template nor the tokenizer has an end-of-turn "
                                "token: set eos_token in tokenizer_config.json")
        return (int(self.tokenizer.eos_token_id),)

    @cached_property
    def _closing(self) -> tuple[str, str]:
        """(text up to and including the end-of-turn token, text that follows it)."""
        tail = self._probe[2]
        special = set(self.tokenizer.all_special_ids) | self.ends
        for token in self.tokens(tail):
            text = self.tokenizer.convert_ids_to_tokens(token)
            if token in special and text in tail:
                at = tail.index(text) + len(text)
                return tail[:at], tail[at:]
        return "", tail

    def encode(self, text: str, *, closed: bool = True) -> tuple[int, ...]:
        """An answer's ids as they follow a prompt, end-of-turn included if `closed`."""
        prompt, lead, _ = self._probe
        before, ids = self.tokens(prompt), self.tokens(prompt + lead + text)
        # Tokenised behind a prompt, as sampling would have it: some tokenizers mark text starts.
        ids = ids[len(before):] if ids[:len(before)] == before else self.tokens(lead + text)
        return (*ids, *self.end) if closed else ids

    def delta(self, messages: Sequence[Message], drawn: Sequence[int]
              ) -> tuple[str, Sequence[Message]] | None:
        """Text (and its messages) that continues `drawn`, the last assistant message's tokens.

        None where the template strips or rewrites what was said before.
        """
        place = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=None)
        if place is None:
            return None
        asked = self.render(messages[:place], generate=True)
        answered = self.render(messages[:place + 1], generate=False)
        whole = self.render(messages, generate=True)
        tail = self._probe[2]
        if not answered.startswith(asked) or not answered.endswith(tail) \
                or not whole.startswith(answered):
            return None
        closing, following = self._closing
        ended = bool(drawn) and drawn[-1] in self.ends
        return ("" if ended else closing) + following + whole[len(answered):], messages[place + 1:]
