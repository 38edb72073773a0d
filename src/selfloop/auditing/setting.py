"""`audit:` of run.yaml: whether the verifier is attacked before it trains, and what is accepted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


class AuditConfig(BaseModel):
    """`audit:` of run.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    allow: tuple[str, ...] = ()
    """Faults that are accepted: by the attack's name, or all of a verifier's by its name."""


def _switch(value: Any) -> Any:
    """YAML reads `off` and `on` as false and true."""
    return {False: "off", True: {}}.get(value, value) if isinstance(value, bool) else value


Setting = Annotated[Literal["off"] | AuditConfig, BeforeValidator(_switch)]
