"""Requests that fail one by one: a text that cannot be forced is no fault of its neighbours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence

from selfloop.collect.unsayable import Unsayable
from selfloop.engines.chat import Chat
from selfloop.roles import Request
from selfloop.types import Turn


def sayable(text: str, ids: tuple[int, ...], never: Mapping[int, str], chat: Chat,
            ends: Collection[int] = ()) -> tuple[int, ...]:
    """`ids`, which a text was encoded to. Raises Unsayable where one may never be drawn, or is one
    of `ends`: what is drawn behind the end of its turn is no part of an answer."""
    never = {**never, **dict.fromkeys(ends, "it ends the turn")} if ends else never
    bad = next((t for t in ids if t in never), None)
    if bad is not None:
        name = chat.tokenizer.convert_ids_to_tokens(bad)
        raise Unsayable(f"the answer {text[:60]!r} contains {name}, which an assistant cannot "
                        f"write ({never[bad]}): remove it from the text")
    return ids


class Attempting:
    """`attempt` for an engine that knows which texts it can force."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], version: int) -> list[list[Turn]]:
        """See roles.Engine."""

    @abstractmethod
    def forced(self, prefix: str) -> tuple[int, ...]:
        """Ids of the text that an answer shall begin with. Raises Unsayable."""

    def attempt(self, requests: Sequence[Request], version: int) -> list[list[Turn] | Unsayable]:
        """`generate`, with the error in the place of a request that forces what cannot be said."""
        whys = [self._why_unsayable(r.sampling.prefix) for r in requests]
        sayable = [r for r, why in zip(requests, whys, strict=True) if why is None]
        drawn = iter(self.generate(sayable, version) if sayable else ())
        return [why or next(drawn) for why in whys]

    def _why_unsayable(self, prefix: str) -> Unsayable | None:
        try:
            self.forced(prefix)
        except Unsayable as error:
            return error
        return None
