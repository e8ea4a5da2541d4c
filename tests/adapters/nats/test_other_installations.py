"""What the servers of another installation do not tell is said to be unread, and not that it does not run."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.other_installations import other_installations
from nats_backpressure.adapters.nats.stream_follower import INACTIVE
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.doctor.facts import Failure, OtherInstallation

LOOKS = (StreamLook("EVENTS", "", 0, 0, 0, ("team.v1.event.>",)), StreamLook("KV_team_state", "", 0, 0, 0))
NEVER = {"last_ts": "0001-01-01T00:00:00Z", "consumer_count": 0}
LONG_AGO = {"last_ts": "2026-01-01T00:00:00Z", "consumer_count": 1, "subjects": {"$KV.team_state.orders": 1}}
LED, LEADERLESS = {"name": "C", "leader": "n1"}, {"name": "C"}
UNREAD, RUNS = OtherInstallation("team", (), Failure("unread", "")), OtherInstallation("team", ("orders",))


class _Replies:
    def __init__(self, bucket: dict[str, Any], reader: dict[str, Any]) -> None:
        follower = {"config": {"inactive_threshold": INACTIVE * 1_000_000_000}, **reader}
        self._replies = {"STREAM": {"config": {}, **bucket}, "CONSUMER": {"consumers": [follower]}}

    async def request(self, subject: str, payload: bytes, seconds: float, headers: Any = None) -> Msg:
        return cast(Msg, SimpleNamespace(data=json.dumps(self._replies[subject.split(".")[2]]).encode()))


@pytest.mark.parametrize(
    ("bucket", "reader", "others"),
    [
        pytest.param({"state": NEVER, "cluster": LEADERLESS}, {}, (UNREAD,), id="its bucket has no leader"),
        pytest.param({"state": NEVER, "cluster": LED}, {}, (), id="it has never written"),
        pytest.param(
            {"state": LONG_AGO}, {"num_waiting": 0, "cluster": LEADERLESS}, (UNREAD,), id="its consumer has no leader"
        ),
        pytest.param({"state": LONG_AGO}, {"num_waiting": 0, "cluster": LED}, (), id="it waits for nothing"),
        pytest.param({"state": LONG_AGO}, {"num_waiting": 1, "cluster": LED}, (RUNS,), id="it waits for messages"),
    ],
)
async def test_an_installation_that_no_leader_tells_of_is_named_as_unread(
    bucket: dict[str, Any], reader: dict[str, Any], others: tuple[OtherInstallation, ...]
) -> None:
    js = JetStreamApi(_Replies(bucket, reader))
    assert await other_installations(js, "backpressure", LOOKS, lambda error: Failure("unread", "")) == others
