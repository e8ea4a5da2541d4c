"""A stream of ours is full where one of its limits leaves no room for another value, whichever it is."""

from __future__ import annotations

from typing import Any

import pytest

from nats_backpressure.adapters.nats.own_streams import ROOM, bucket, events_stream, full
from nats_backpressure.protocol.subjects import Names

NAMES = Names()
EVENTS, STATE, POLICY = events_stream(NAMES, 1, 60.0), bucket(NAMES.state_bucket, 1), bucket(NAMES.policy_bucket, 1)
HELD = {"messages": 7, "bytes": 9000}


@pytest.mark.parametrize("wanted", [EVENTS, STATE, POLICY], ids=["events", "state", "policy"])
@pytest.mark.parametrize("discard", ["old", "new"])
@pytest.mark.parametrize(
    ("limit", "most", "reached"),
    [
        ("max_bytes", 1000, True),
        ("max_bytes", 9000 + ROOM - 1, True),
        ("max_bytes", 9000 + ROOM, False),
        ("max_bytes", -1, False),
        ("max_bytes", 0, False),
        ("max_msgs", 7, True),
        ("max_msgs", 8, False),
        ("max_msgs", -1, False),
        ("max_msg_size", ROOM - 1, True),
        ("max_msg_size", ROOM, False),
        ("max_msg_size", -1, False),
    ],
)
def test_a_limit_that_is_reached_is_named_where_something_is_lost_by_it(
    wanted: dict[str, Any], discard: str, limit: str, most: int, reached: bool
) -> None:
    said = full(wanted, {**wanted, "discard": discard, limit: most}, HELD)
    events_give_way = wanted is EVENTS and discard == "old" and limit != "max_msg_size"
    assert bool(said) == (reached and not events_give_way)
    assert not said or f"({limit})" in said
