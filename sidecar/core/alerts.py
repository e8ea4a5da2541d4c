"""Placeholder until the alerts' helper replaces this file."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.core.model import Alert, Now, Status
from sidecar.core.rules import Policy
from sidecar.core.state import Member


def follow(
    was: tuple[Alert, ...], policy: Policy, status: Status, members: Iterable[Member], now: Now
) -> tuple[Alert, ...]:
    return was


def changes(was: tuple[Alert, ...], now: tuple[Alert, ...]) -> tuple[Alert, ...]:
    return ()
