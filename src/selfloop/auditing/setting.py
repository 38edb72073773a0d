"""`audit:` of run.yaml: whether the verifier is attacked before it trains, and what is accepted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:
    from selfloop.auditing.cases import Limits


_Share = Annotated[float, Field(ge=0, le=1)]


class AuditConfig(BaseModel):
    """`audit:` of run.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    allow: tuple[str, ...] = ()
    """Faults that are accepted: by the attack's name, or all of a verifier's by its name."""
    probe: Path | None = None
    """Known answers, one {"row": 3, "said": "...", "right": true} a line, that the verifier is
    calibrated on; `row` counts the dev samples (else train) from 1."""
    precision: _Share | None = None
    recall: _Share | None = None
    calibration_error: _Share | None = None
    bias: _Share | None = None
    """What it must keep to on the probe; None: what cases.Limits says."""

    def limits(self, own: Limits) -> Limits:
        """The limits with what run.yaml says of them."""
        told = {n: getattr(self, n) for n in ("precision", "recall", "calibration_error", "bias")}
        return replace(own, **{n: value for n, value in told.items() if value is not None})


def _switch(value: Any) -> Any:
    """YAML reads `off` and `on` as false and true."""
    return {False: "off", True: {}}.get(value, value) if isinstance(value, bool) else value


Setting = Annotated[Literal["off"] | AuditConfig, BeforeValidator(_switch)]
