"""The worker of `Outside`: reads lines of JSON, judges, writes lines of JSON.

Whatever the verifier prints goes to stderr, so that it cannot be taken for a verdict.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from typing import Any

from selfloop.egress import only
from selfloop.roles import as_verdict, component_named, name_of, parameters, source_hash
from selfloop.types import Group, Rollout, Sample

WORDS: dict[str, Any] = {"rollout": Rollout, "group": Group, "sample": Sample}


def main() -> None:
    """Serve until the other end closes."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(told: dict[str, Any]) -> None:
        replies.write(json.dumps(told) + "\n")
        replies.flush()

    orders = json.loads(sys.stdin.readline())
    _limit(orders["memory"])
    sys.path += [p for p in orders["path"] if p not in sys.path]
    with only(tuple(orders["network"])):
        try:
            verifier = component_named(orders["verifier"])
            verifier = verifier() if inspect.isclass(verifier) else verifier
            reply({"names": list(parameters(verifier)), "source": source_hash(verifier)})
        except BaseException as error:
            reply({"refused": f"{type(error).__name__}: {error}"})
            return
        for line in sys.stdin:
            reply(_judged(verifier, json.loads(line)["offered"]))


def _limit(memory: int | None) -> None:
    if memory is None:
        return
    try:
        import resource
    except ImportError:
        return  # not on this system
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _judged(verifier: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Verdicts, an annotated group, or what the verifier raised."""
    try:
        given = {n: WORDS[n].model_validate(v) if n in WORDS else v for n, v in offered.items()}
        found = verifier(**given)
        if inspect.isawaitable(found):
            found = asyncio.run(_awaited(found))
        if isinstance(found, Group):
            return {"group": found.model_dump(mode="json")}
        each = list(found) if "group" in given else [found]
        return {"verdicts": [as_verdict(v, name_of(verifier)).model_dump(mode="json")
                             for v in each]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


async def _awaited(found: Any) -> Any:
    return await found


if __name__ == "__main__":
    main()
