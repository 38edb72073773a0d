"""A bonus for tools that helped (primitives V27)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from selfloop.calling import as_verdict, call_by_name, name_of
from selfloop.roles import Verifier
from selfloop.types import Rollout, Verdict


@dataclass(frozen=True)
class ToolBonus:
    """What `right` says, plus `bonus` if a tool was called AND the answer is right.

    DeepEyes (arXiv 2505.14362, released code: 1.2). A bonus for calls alone would be
    earned by calls alone. A call is a match of `call` in the output. None stays None.
    """

    right: Verifier
    bonus: float = 1.2
    call: str = r"<tool_call>.+?</tool_call>"

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """Gold values reach `right` alone."""
        found = as_verdict(call_by_name(self.right, rollout=rollout, **offered),
                           name_of(self.right))
        if found.score is None:
            return found
        used = re.search(self.call, rollout.text, re.S) is not None
        return found.model_copy(update={"score": found.score + self.bonus * (used and found.right),
                                        "parts": {**found.parts, "tool": float(used)}})
