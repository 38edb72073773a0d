"""The answers of one batch as they grow: tokens, log-probs, and where each of them ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from selfloop.engines.hf_jobs import Drawn, Job
from selfloop.roles import SelfloopError


class Answers:
    """A batch's answers, on the model's device. Stop strings are looked for on the CPU: for them
    each step's tokens are read once, all together, since a GPU has to be waited for at each read.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], ends: frozenset[int], rows: int,
                 job: Job, logits: torch.Tensor) -> None:
        device, wide = logits.device, torch.promote_types(logits.dtype, torch.float32)
        self.decode, self.stop, self.given = decode, job.sampling.stop, len(job.forced)
        self.ends = torch.tensor(sorted(ends), device=device)
        self.token_NR = torch.zeros(rows, job.steps, dtype=torch.long, device=device)
        self.logp_NR = torch.zeros(rows, job.steps, device=device, dtype=wide)
        self.length_N = torch.zeros(rows, dtype=torch.long, device=device)
        self.open_N = torch.ones(rows, dtype=torch.bool, device=device)
        self.said = [list(job.forced) for _ in range(rows)] if self.stop else []
        """Forced and drawn ids of each row, where stop strings are looked for."""

    def write(self, step: int, rows_M: Any, token_M: Any, logp_M: Any, all_open: bool) -> Any:
        """Append to those of rows_M that are open; returns which of them still are."""
        rows, token, logp = rows_M, token_M, logp_M
        if not all_open:
            was = self.open_N[rows_M].nonzero()[:, 0]
            rows, token, logp = rows_M[was], token_M[was], logp_M[was]
        numbers = rows
        if all_open and len(rows_M) == len(self.open_N):  # all there are: no numbers to look up
            rows = slice(None)
        self.token_NR[rows, step] = token
        self.logp_NR[rows, step] = logp
        self.length_N[rows] = step + 1
        self.open_N[rows] = (token[:, None] != self.ends).all(-1)
        if self.stop:
            self._stop(numbers, token)
        return self.open_N[rows_M]

    def _stop(self, rows_M: Any, token_M: Any) -> None:
        """Close those of the rows, whose latest tokens these are, that a stop string ends."""
        met = []
        for row, token, still in torch.stack((rows_M, token_M, self.open_N[rows_M])).T.tolist():
            self.said[row].append(token)
            if still and self._stopped(row):
                met.append(row)
        if met:
            self.open_N[torch.tensor(met, device=self.open_N.device)] = False

    def _stopped(self, row: int) -> bool:
        # A stop string of k bytes lies within the last k tokens (each has at least one); four
        # more keep tokenizers honest that drop a leading space or split a character.
        ids = self.said[row]
        longest = wanted = max(len(s.encode()) for s in self.stop) + 4
        tail = self.decode(ids[-longest:])
        while len(tail.encode()) < wanted and longest < len(ids):  # special tokens give no text
            longest *= 2
            tail = self.decode(ids[-longest:])
        # What was forced does not stop the answer: a match has to end in drawn text.
        drawn = len(ids) - self.given
        given = len(self.decode(ids[-longest:-drawn])) if drawn < longest else 0
        return any(tail.find(s, max(0, given - len(s) + 1)) >= 0 for s in self.stop)

    def drawn(self) -> list[Drawn]:
        """The finished answers. Raises SelfloopError where the model's scores are no numbers."""
        if bool(self.logp_NR.isnan().any()):
            raise SelfloopError("the model's scores are not numbers (NaN), so nothing can be "
                                "drawn: its weights hold some, or its precision is too low "
                                "(float16?)")
        tokens, logps = self.token_NR.tolist(), self.logp_NR.tolist()
        opened, lengths = self.open_N.tolist(), self.length_N.tolist()
        return [Drawn(tuple(t[:n]), tuple(lp[:n]), "length" if still else "stop")
                for t, lp, n, still in zip(tokens, logps, lengths, opened, strict=True)]
