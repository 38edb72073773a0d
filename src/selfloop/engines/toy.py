"""The toy engine: a table of logits, so that every test and tutorial runs the whole loop.

Each (context, position) has its own softmax over a small vocabulary of words. It generates with
numpy and learns through the same learner as a real model. It is no model of language: what it
shares between contexts is nothing, so it learns exactly what it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfloop import keys
from selfloop.collect.unsayable import Unsayable
from selfloop.engines.attempting import Attempting
from selfloop.optimize.rows import Row, Weight, rows_of
from selfloop.roles import Request, SelfloopError
from selfloop.types import Branch, Context, Media, Turn, digest

PAD, BOS, EOS, IMAGE = 0, 1, 2, 3
SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>")
WORDS = ("yes", "no", *"0123456789", "left", "right", "stop", "=", "ask", "easy", "hard")


class ToyEngine(Attempting):
    """A tabular softmax policy with the whole engine interface; a CPU runs it in microseconds.

    `contexts` rows of logits are addressed by a hash of the prompt's tokens and pictures,
    `positions` columns by the number of answer tokens already drawn. Words outside the
    vocabulary (in prompts and observations) become hashed ids above it.
    """

    supports = frozenset({"images", "forced_prefix", "history", "learn", "contrast",
                          "masked_attention", "diversity"})
    name = "toy"

    def __init__(self, words: Sequence[str] = WORDS, *, contexts: int = 128, positions: int = 6,
                 seed: int = 0, scale: float = 0.5) -> None:
        self.words = (*SPECIAL, *words)
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.shape = (contexts, positions, len(self.words))
        table = keys.generator(f"toy/{seed}").normal(0, scale, self.shape)
        table[:, 1:, EOS] += 3.0  # one-word answers are likely, so that most of them end
        self._start(table)

    def _start(self, table: np.ndarray) -> None:
        import torch

        from selfloop.optimize.learner import Learner

        self.table = torch.nn.Parameter(torch.tensor(table, dtype=torch.float64))
        self.learner = Learner(self)
        self._named = digest([list(self.words), table.tolist()])

    # -- text -------------------------------------------------------------------------------

    def bind(self, open_media: Any) -> None:
        """Pictures are addressed by their hash; opening one proves that it can be opened."""
        self._open = open_media

    def _word(self, word: str) -> int:
        return self.ids.get(word, len(self.words) + keys.bits(word) % 100_000)

    def render(self, context: Context) -> tuple[tuple[int, ...], tuple[Media, ...]]:
        """<bos>, then each message's words; one <image> a picture."""
        ids = [BOS]
        for message in context.prompt:
            ids.append(self._word(f"[{message.role}]"))
            for part in message.content:
                ids += [self._word(w) for w in part.text.split()] if part.type == "text" \
                    else [IMAGE]
        return tuple(ids), context.media

    def encode(self, text: str) -> tuple[int, ...]:
        """The words of an answer, then <eos>. Raises on a word that the toy cannot say."""
        unknown = [w for w in text.split() if w not in self.ids]
        if unknown:
            raise SelfloopError(f"the toy engine has no word {unknown[0]!r}: add it to words=")
        return (*(self.ids[w] for w in text.split()), EOS)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Words, special tokens left out."""
        return " ".join(self.words[i] for i in token_ids if len(SPECIAL) <= i < len(self.words))

    # -- the policy that the learner trains -------------------------------------------------

    def rows(self, branch: Branch) -> list[Row]:
        """See optimize.rows."""
        return rows_of(branch, self.render, self.encode)

    def trainable(self) -> dict[str, Any]:
        """The table."""
        return {"table": self.table}

    def weigh(self, row: Row) -> Weight:
        """A table shares nothing."""
        return Weight(id(row), row.prompt, len(row.token_ids) - row.prompt)

    def _address(self, prompt: Sequence[int], media: Sequence[Media]) -> int:
        return keys.bits(f"{list(prompt)}/{[m.identity for m in media]}") % self.shape[0]

    def logps(self, rows: list[Row], *, entropy: bool = False) -> tuple[list[Any], Any]:
        """Log-probs of the trained tokens; each is conditioned on the prompt of its stretch."""
        import torch

        from selfloop.optimize.wide import asked, columns, in_order

        cells = [self._cells(row) for row in rows]
        counts = [len(c) for c in cells]
        where_N3 = torch.tensor([cell for c in cells for cell in c], dtype=torch.long).view(-1, 3)
        heat_N = torch.tensor([row.temperature for row, n in zip(rows, counts, strict=True)
                               for _ in range(n)], dtype=self.table.dtype)
        logits_NV = self.table[where_N3[:, 0], where_N3[:, 1]] / heat_N[:, None]
        never = torch.zeros(self.shape[2], dtype=torch.bool)
        never[[PAD, BOS, IMAGE]] = True
        logp_NV = torch.log_softmax(logits_NV.masked_fill(never, -torch.inf), -1)
        ask = asked(rows, in_order(rows), logp_NV.device)
        drawn_N = logp_NV.gather(-1, where_N3[:, 2:]).squeeze(-1) if ask is None \
            else columns(logp_NV, where_N3[:, 2], ask)
        found = torch.split(drawn_N, counts)
        if not entropy:
            return list(found), None
        allowed_NV = logp_NV[:, ~never]
        return list(found), list(
            torch.split(-(allowed_NV.exp() * allowed_NV).sum(-1), counts))

    def _cells(self, row: Row) -> list[tuple[int, int, int]]:
        """(context, position, token) of every trained token."""
        found: list[tuple[int, int, int]] = []
        start = context = row.prompt
        for i in range(row.prompt, len(row.token_ids)):
            if not row.trained[i]:
                continue
            if i == row.prompt or not row.trained[i - 1]:  # a new stretch begins
                start = i
                media = row.media[:row.token_ids[:start].count(IMAGE)]
                context = self._address(row.token_ids[:start], media)
            found.append((context, min(i - start, self.shape[1] - 1), row.token_ids[i]))
        return found

    # -- generation -------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], version: int) -> list[list[Turn]]:
        """n turns for each request."""
        with self.at_version(version):
            table = self.table.detach().numpy().copy()
        return [self._answers(table, request) for request in requests]

    def forced(self, prefix: str) -> tuple[int, ...]:
        """Ids of the words that an answer begins with. Raises Unsayable for one it does not know.
        """
        unknown = next((word for word in prefix.split() if word not in self.ids), None)
        if unknown is not None:
            raise Unsayable(f"the toy cannot begin with {prefix[:60]!r}: it does not know the word "
                            f"{unknown!r}: give ToyEngine(words=...) with it")
        return tuple(self.ids[word] for word in prefix.split())

    def _answers(self, table: np.ndarray, request: Request) -> list[Turn]:
        prompt, media = self._prompt(request)
        forced = self.forced(request.sampling.prefix)
        cells = self._read(request, (*prompt, *forced), media, forced)
        taken = np.zeros((request.sampling.max_new_tokens, self.shape[2]))
        return [self._draw(table, request, i, (prompt, media, forced), cells, taken)
                for i in range(request.n)]

    def _read(self, request: Request, start: tuple[int, ...], media: tuple[Media, ...],
              forced: tuple[int, ...]) -> tuple[int, ...]:
        """The row that is asked, and the contrast's; what is hidden is not in the address."""
        sampling = request.sampling
        for medium in media:
            self._open(medium)
        hidden = sampling.hides(range(len(media)), request.key) if sampling.hidden else ()
        seen = [m for i, m in enumerate(media) if i not in hidden]
        asked = self._address(start, seen)
        if sampling.contrast is None or sampling.contrast.idle:
            return (asked,)
        if request.history:
            raise SelfloopError("Sampling(contrast=...) is for the first turn: the other context "
                                "has no history of its own; leave it out of later turns")
        ids, others = self.render(sampling.contrast.context)
        return asked, self._address((*ids, *forced), others)

    def _logp(self, table: np.ndarray, request: Request, cells: tuple[int, ...], t: int
              ) -> np.ndarray:
        """Log-probs [V] of token number t, after the contrast and the temperature."""
        rows = [table[cell, min(t, self.shape[1] - 1)].copy() for cell in cells]
        for row in rows:
            row[[PAD, BOS, IMAGE]] = -np.inf
        logits, contrast = rows[0], request.sampling.contrast
        if len(rows) == 2 and contrast is not None:
            h, may = contrast.at(t), np.isfinite(logits)
            if contrast.floor:
                may &= logits >= logits.max() + np.log(contrast.floor)
            logits = np.where(may, (1 - h) * np.where(may, logits, 0)
                              + h * np.where(may, rows[1], 0), -np.inf)
        logits = logits / (request.sampling.temperature or 1.0)
        logp: np.ndarray = logits - logits.max()
        logp -= np.log(np.exp(logp).sum())
        return logp

    def _draw(self, table: np.ndarray, request: Request, draw: int,
              given: tuple[tuple[int, ...], tuple[Media, ...], tuple[int, ...]],
              cells: tuple[int, ...], taken: np.ndarray) -> Turn:
        (prompt, media, forced), sampling = given, request.sampling
        u = keys.uniforms(f"{request.key}/{draw}", sampling.max_new_tokens)
        tokens, logprobs = list(forced), [0.0] * len(forced)
        for t in range(sampling.max_new_tokens):
            logp = self._logp(table, request, cells, t)
            chosen = logp - sampling.diversity * taken[t] if sampling.diversity else logp
            p = np.exp(chosen) if not sampling.diversity else np.exp(chosen) / np.exp(chosen).sum()
            token = int(chosen.argmax()) if sampling.temperature == 0 else min(
                int(np.searchsorted(np.cumsum(p), u[t], side="right")), len(logp) - 1)
            tokens.append(token)
            logprobs.append(float(logp[token]))
            if sampling.diversity:
                taken[t, token] += 1
            if token == EOS:
                break
        nameless = sampling.guides or (sampling.temperature == 0 and not sampling.diversity)
        return Turn(
            prompt_token_ids=prompt, media=media, token_ids=tuple(tokens),
            logprobs=None if nameless else tuple(logprobs),
            temperature=sampling.temperature or 1.0,
            loss_mask=(0,) * len(forced) + (1,) * (len(tokens) - len(forced)),
            finish_reason="stop" if tokens[-1] == EOS else "length",
        )

    def _prompt(self, request: Request) -> tuple[tuple[int, ...], tuple[Media, ...]]:
        """The drawn tokens of earlier turns stay as they were; only what is new is rendered."""
        if not request.history:
            return self.render(request.context)
        last = request.history[-1]
        new = request.context.prompt
        at = max(i for i, m in enumerate(new) if m.role == "assistant") + 1
        fresh = Context(prompt=new[at:], media=request.context.media[len(last.media):])
        ids, media = self.render(fresh)
        return (*last.prompt_token_ids, *last.token_ids, *ids[1:]), (*last.media, *media)

    # -- the learner's verbs ----------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        verbs = ("logprobs", "forward_backward", "optim_step", "reset_optimizer", "publish",
                 "save_state", "load_state", "restart", "version", "at_version")
        if name in verbs:
            return getattr(self.learner, name)
        raise AttributeError(name)

    def save(self, folder: Path) -> None:
        """The table as JSON: the toy is nobody's pretrained model."""
        folder.mkdir(parents=True, exist_ok=True)
        with self.at_version(self.version):  # what is published, averaged weights among them
            (folder / "toy.json").write_text(json.dumps(
                {"words": self.words, "table": self.table.tolist()}))

    def flops(self, forward_tokens: int, trained_tokens: int) -> float:
        """2V a token read, 6V a token trained."""
        return self.shape[2] * (2.0 * forward_tokens + 6.0 * trained_tokens)

    def fingerprint(self) -> str:
        """Hash of the starting table and the words."""
        return self._named
