"""A stream of ours is full where one of its limits leaves no room for another value, whichever it is."""

from __future__ import annotations

from typing import Any

import pytest

from nats_backpressure.adapters.nats.own_streams import (
    DEFAULTS,
    ROOM,
    bucket,
    differences,
    edit,
    events_stream,
    fixed,
    full,
)
from nats_backpressure.protocol.subjects import Names
from tests.support.advised import check_commands

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


OTHER = {"max_msgs": 5, "max_bytes": 7, "max_age": 3, "num_replicas": 5, "allow_rollup_hdrs": None, "sealed": True}


@pytest.mark.parametrize("wanted", [EVENTS, STATE, POLICY], ids=["events", "state", "policy"])
@pytest.mark.parametrize("key", DEFAULTS)
def test_each_setting_is_changed_by_a_whole_command_or_by_a_new_stream(wanted: dict[str, Any], key: str) -> None:
    flipped = not wanted.get(key, DEFAULTS[key])
    other = differences(wanted, {**wanted, key: OTHER.get(key, "other") if OTHER.get(key, "") is not None else flipped})
    assert other.keys() == {key}
    command = edit(wanted, other)
    assert bool(command) is not (fixed(other) == (key,))
    check_commands(command or f"nats stream rm {wanted['name']}")


def test_one_command_changes_all_that_can_be_changed() -> None:
    other = differences(STATE, {**STATE, "max_age": 5, "max_msgs": 7, "storage": "memory", "num_replicas": 3})
    assert edit(STATE, other) == ("nats stream edit KV_backpressure_state --max-age=0s --max-msgs=-1 --replicas=1")
    assert fixed(other) == ("storage",)
    assert (
        edit(EVENTS, {"subjects": ["x"]}) == "nats stream edit BACKPRESSURE_EVENTS --subjects='backpressure.v1.event.>'"
    )
