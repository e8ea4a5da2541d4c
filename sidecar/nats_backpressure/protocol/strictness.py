"""The sort order of answers by strictness; the sidecar and all gateways use the same one."""

from __future__ import annotations

from typing import Final

STRICTNESS: Final[dict[str, int]] = {"continue": 0, "throttle": 1, "reject": 2}

Rank = tuple[int, float, int, float, bool]


def rank(action: str, admit_ratio: float, severity: int, pressure: float, enforced: bool) -> Rank:
    """Sort key, strictest last: by action (throttle: by smaller ratio), then status, then pressure; at equal rank
    `enforce` is above `observe`. `severity` is the value of a `values.Status`."""
    return STRICTNESS[action], -admit_ratio, severity, pressure, enforced
