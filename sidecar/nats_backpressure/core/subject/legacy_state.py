"""Converts states of versions before schema 1, with all fields side by side. Each is read once, then rewritten.

May be removed, with its branch in `stored_state`, once no bucket written by such a version is left.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from nats_backpressure.protocol.values import Status

SCHEMA = 0
"""These states have no field `schema`."""
SAME_NAME = (
    *("subject", "epoch", "seq", "incident", "reasons", "diagnosis"),
    *("recoveries", "totals", "alerts", "nonce"),
)
"""Fields with the same name in the record."""


def record_fields(state: dict[str, Any]) -> dict[str, Any]:
    """The fields of `record` for a flat state; unsent events go without their measurements.

    Raises KeyError, TypeError or AttributeError where it is not such a state.
    """
    unknown, announced = state["status"] == "unknown", state.get("lost_listed")
    return {name: state[name] for name in SAME_NAME if name in state} | {
        "status": Status[state["known_status"].upper()],
        "announced": Status[state["told"].upper()],
        "unknown": unknown,
        "unknown_announced": unknown if announced is None else announced,
        "stale": state["freshness"] == "stale",
        "since": state["since_unix"],
        "admission": {
            "action": state["action"],
            "would": state["would"],
            "admit_ratio": state["admit_ratio"],
            "retry_after": state["retry_after_seconds"],
        },
        "latched": [[[one["stream"], one["consumer"]], one["latched"]] for one in state.get("latches", ())],
        "carried": [[[one["stream"], one["consumer"]], one["facts"]] for one in state.get("carried", ())],
        "unsent": [event | {"reading": None, "marks": None} for event in state.get("unsent", ())],
        "announced_rejections": [state["rejected"]] if state.get("rejected") else [],
        "override": _override(state.get("override")),
    }


def _override(shown: dict[str, Any] | None) -> dict[str, Any] | None:
    """With `until` as Unix seconds."""
    if shown is None:
        return None
    try:
        until = datetime.fromisoformat(shown["until"])
    except (TypeError, ValueError):
        return None
    return {"action": shown["action"], "until": until.timestamp()} if until.tzinfo is not None else None
