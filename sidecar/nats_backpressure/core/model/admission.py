"""Admission: what gateways may admit."""

from __future__ import annotations

from msgspec import Struct

from nats_backpressure.protocol.values import Action


class GatewayAdmission(Struct, frozen=True, gc=False):
    """What gateways may admit, before the override and the priority of one request are applied."""

    action: Action = Action.CONTINUE
    would: Action | None = None
    admit_ratio: float = 1.0
    retry_after: int = 0
