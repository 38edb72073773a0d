"""Errors as OpenAI's clients read them: a status, and JSON with one clear sentence."""

from __future__ import annotations

from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: int, message: str, *, param: str | None = None,
                 code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def json(self) -> dict[str, Any]:
        """{"error": {message, type, param, code}}, the shape of OpenAI's API reference."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {
            "message": " ".join(self.message.split()), "type": _TYPES.get(self.status, usual),
            "param": self.param, "code": self.code}}


def unexpected(error: Exception) -> Refusal:
    """500, for what is ours to mend."""
    first = (str(error).strip().splitlines() or ["no message"])[0][:300]
    return Refusal(500, f"unexpected {type(error).__name__}: {first}")
