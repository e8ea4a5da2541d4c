"""Our stream and buckets on a real server: created, different, or with their subjects in another stream."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from nats.aio.client import Client
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.own_streams import command, differences
from nats_backpressure.adapters.nats.remedies import remedy
from nats_backpressure.adapters.nats.resources import Resources
from nats_backpressure.config.nats import Nats
from nats_backpressure.runtime.ports import EventsUnavailable, Unavailable
from tests.simulations.stored_samples import NAMES, Requests, real

WANTED = {"subjects": ["a.>"], "num_replicas": 1, "max_msgs_per_subject": 1, "allow_rollup_hdrs": True}


def resources(nc: Client, manage: bool = True) -> Resources:
    return Resources(JetStreamApi(Requests(nc)), NAMES, 1, 604_800, manage)


async def test_an_existing_stream_with_other_settings_is_left_as_it_is(nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(name=NAMES.events_stream, subjects=["backpressure.v1.event.>"], max_msgs=77)
    async with real(nc):
        assert (await js.stream_info(NAMES.events_stream)).config.max_msgs == 77


async def test_a_stream_on_our_subjects_is_named(nc: Client) -> None:
    await nc.jetstream().add_stream(name="GREEDY", subjects=["backpressure.>"])
    js = JetStreamApi(Requests(nc))
    with capture_logs() as logs, pytest.raises(Unavailable, match="overlap") as raised:
        await Resources(js, NAMES, 1, 604_800, True, partial(remedy, Nats())).ensure()
    said = str(raised.value)
    assert "GREEDY" in said and "take the subjects out of the stream that `error` names" in remedy(Nats(), said)
    (refused,) = [line for line in logs if line["event"] == "resources.refused"]
    assert refused["subjects_held_by"] == ["GREEDY"] and refused["hint"] == remedy(Nats(), said)


async def test_without_the_right_to_manage_nothing_is_made(nc: Client) -> None:
    with capture_logs() as logs, pytest.raises(Unavailable, match="BACKPRESSURE_EVENTS is missing"):
        await resources(nc, manage=False).ensure()
    missing = [line["make_it"].split()[:3] for line in logs if line["event"] == "resources.missing"]
    assert missing == [["nats", "stream", "add"], ["nats", "kv", "add"], ["nats", "kv", "add"]], "all of them at once"
    assert await nc.jetstream().streams_info() == []


@pytest.mark.parametrize(("missing", "only_events"), [(NAMES.events_stream, True), (f"KV_{NAMES.state_bucket}", False)])
async def test_an_events_stream_that_is_missing_alone_is_an_error_of_its_own(
    nc: Client, missing: str, only_events: bool
) -> None:
    await resources(nc).ensure()
    await nc.jetstream().delete_stream(missing)
    with pytest.raises(Unavailable, match=f"{missing} is missing") as raised:
        await resources(nc, manage=False).ensure()
    assert isinstance(raised.value, EventsUnavailable) is only_events


async def test_without_an_answer_nothing_is_said_of_the_policy_bucket(nc: Client) -> None:
    with capture_logs() as logs, pytest.raises(Unavailable):
        await Resources(JetStreamApi(Requests(nc), "nowhere.>"), NAMES, 1, 604_800, True).ensure()
    assert logs == []


def test_the_line_that_makes_it_names_everything() -> None:
    wanted = {
        "name": "BACKPRESSURE_EVENTS",
        "subjects": ["b.>"],
        "max_age": 10**9,
        "duplicate_window": 10**9,
        "num_replicas": 3,
    }
    assert command(wanted, NAMES).startswith("nats stream add BACKPRESSURE_EVENTS --subjects 'b.>'")


async def test_a_stream_that_we_created_does_not_differ(nc: Client) -> None:
    await resources(nc).ensure()
    with capture_logs() as logs:
        await resources(nc).ensure()
    assert logs == []


async def test_replicas_that_start_together_make_it_once(nc: Client) -> None:
    await asyncio.gather(*(resources(nc).ensure() for _ in range(5)))
    assert {info.config.name for info in await nc.jetstream().streams_info()} == {
        NAMES.events_stream,
        f"KV_{NAMES.state_bucket}",
        f"KV_{NAMES.policy_bucket}",
    }


async def test_without_the_right_to_make_a_policy_bucket_the_rest_is_made_all_the_same(nc: Client) -> None:
    await nc.jetstream().add_stream(name="TAKEN", subjects=[f"$KV.{NAMES.policy_bucket}.>"])
    with capture_logs() as logs:
        await resources(nc).ensure()
    assert {line["event"] for line in logs} >= {"resources.refused", "resources.without"}
    (without,) = [line for line in logs if line["event"] == "resources.without"]
    assert without["error"] and without["hint"] and "only the policies of the file" in without["cost"]
    assert (await nc.jetstream().stream_info(f"KV_{NAMES.state_bucket}")).config.name


async def test_what_cannot_be_created_says_what_to_do_about_it(nc: Client) -> None:
    js = JetStreamApi(Requests(nc))
    with capture_logs() as logs, pytest.raises(Unavailable):
        await Resources(js, NAMES, 3, 604_800, True, partial(remedy, Nats())).ensure()
    refused = [line for line in logs if line["event"] == "resources.refused"]
    assert [line["stream"] for line in refused] == [NAMES.events_stream, f"KV_{NAMES.state_bucket}"]
    assert all("set publish.replicas to 1" in line["hint"] for line in refused)


async def test_a_bucket_with_a_max_age_is_logged_once(nc: Client) -> None:
    await nc.jetstream().create_key_value(bucket=NAMES.state_bucket, ttl=60)
    with capture_logs() as logs:
        ours = resources(nc)
        await ours.ensure()
        await ours.ensure()
    differing = [line for line in logs if line["event"] == "resources.differ"]
    (line,) = differing
    assert line["stream"] == "KV_backpressure_state" and line["has"]["max_age"] == 60 * 10**9
    assert line["wanted"]["max_age"] == 0 and line["cost"] and "nats stream edit KV_backpressure_state" in line["hint"]


DIFFERENT: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, set()),
    "no limit, spelt in other ways": ({"max_msgs": -1, "max_bytes": 0, "max_age": 0}, set()),
    "what does not matter": ({"description": "x", "metadata": {"a": "b"}, "compression": "s2"}, set()),
    "subjects": ({"subjects": ["b.>"]}, {"subjects"}),
    "a work queue takes events away": ({"retention": "workqueue"}, {"retention"}),
    "no acknowledgement": ({"no_ack": True}, {"no_ack"}),
    "a mirror takes no writes": ({"mirror": {"name": "X"}, "sealed": True}, {"mirror", "sealed"}),
    "what copies": ({"sources": [{"name": "X"}], "republish": {"dest": "y"}}, {"sources", "republish"}),
    "memory": ({"storage": "memory"}, {"storage"}),
    "a longer history": ({"max_msgs_per_subject": 5}, {"max_msgs_per_subject"}),
}


@pytest.mark.parametrize(("change", "expected"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_only_settings_that_matter_are_a_difference(change: dict[str, Any], expected: set[str]) -> None:
    assert differences(WANTED, WANTED | change).keys() == expected
