"""The server's replies are converted to `Sample` and `StreamLook`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulations.scripted_server import TS, Reader, Scripted, consumer, page, read, stream


@pytest.mark.parametrize(
    ("config", "state", "full"),
    [
        ({"max_msgs": 10}, {}, True),
        ({"max_msgs": 11}, {}, False),
        ({"max_msgs": -1, "max_bytes": -1}, {}, False),
        ({"max_bytes": 100}, {"bytes": 95}, True),
        ({"max_bytes": 100}, {"bytes": 94}, False),
        ({"max_msgs_per_subject": 1}, {"num_subjects": 10}, False),  # newer messages replace older ones: none is lost
        ({"max_msgs": 10, "discard": "new"}, {}, False),
    ],
)
async def test_a_stream_at_its_limit_removes_old_messages(config: dict[str, Any], state: Any, full: bool) -> None:
    reader = Reader(Scripted(CONSUMER_LIST=page(), STREAM_INFO=stream(config=config, **state)))
    assert (await reader.consumers("S")).look.at_limit is full


async def test_a_mirror_is_recognised_by_its_config() -> None:
    config = {"subjects": None, "mirror": {"name": "S"}}
    look = (await Reader(Scripted(STREAM_LIST={"total": 1, "streams": [stream(config=config)]})).streams()).looks[0]
    assert (look.origin, look.subjects) == ("S", ())


@pytest.mark.parametrize(
    ("mirror", "subjects"),
    [
        ({}, ("of.origin",)),
        ({"filter_subject": "eu.>"}, ("eu.>",)),
        ({"subject_transforms": [{"src": "eu.>", "dest": ""}, {"src": "us.>", "dest": ""}]}, ("eu.>", "us.>")),
        ({"subject_transforms": [{"src": "eu.>", "dest": "copied"}]}, ("copied",)),
        ({"subject_transforms": [{"src": "eu.*", "dest": "copied.{{wildcard(1)}}"}]}, ()),
        ({"external": {"api": "$JS.hub.API"}}, ()),
        ({"external": {"api": "$JS.hub.API"}, "filter_subject": "eu.>"}, ("eu.>",)),
    ],
)
async def test_a_mirror_has_what_it_takes_of_its_origin(mirror: dict[str, Any], subjects: tuple[str, ...]) -> None:
    config = {"subjects": None, "mirror": {"name": "S", **mirror}}
    (look,) = (await Reader(Scripted(STREAM_LIST={"total": 1, "streams": [stream(config=config)]})).streams()).looks
    origins = {"S": ("of.origin",)}
    assert (look.subjects or origins.get(look.origin or "", ())) == subjects


@pytest.mark.parametrize("config", [{"sources": [{"name": "A"}]}, {"subject_transform": {"src": "a", "dest": "b"}}, {}])
async def test_a_stream_with_sources_or_a_transform_holds_other_subjects_than_its_own(config: dict[str, Any]) -> None:
    reader = Reader(Scripted(STREAM_LIST={"total": 1, "streams": [stream(config={"subjects": ["a"], **config})]}))
    retention = (await reader.streams()).looks[0].retention
    assert retention is not None and retention.mixed is bool(config)


@pytest.mark.parametrize(
    ("changes", "fact", "value"),
    [
        ({"durable_name": None}, "durable", False),
        ({"max_ack_pending": -1}, "max_ack_pending", None),
        ({"max_ack_pending": None}, "max_ack_pending", None),
        ({"max_ack_pending": 7}, "max_ack_pending", 7),
        ({"ack_wait": 1_500_000_000}, "ack_wait", 1.5),
        ({"ack_wait": None}, "ack_wait", 30.0),
        ({"ack_wait": 10**9, "backoff": [10**9, 5 * 10**9]}, "ack_wait", 5.0),
        ({"ack_wait": 10**9, "backoff": [10**9, 5 * 10**9]}, "backoff", (1.0, 5.0)),
        ({"backoff": [10**9] * 40 + [9 * 10**9, 10**9]}, "backoff", (*[1.0] * 14, 9.0)),
        ({"deliver_subject": "to.me"}, "push", True),
        ({"filter_subject": "s.a"}, "filters", ("s.a",)),
        ({"filter_subjects": ["s.a", "s.b"]}, "filters", ("s.a", "s.b")),
        ({"ack_policy": "all"}, "ack_policy", "all"),
        ({"priority_groups": ["A"]}, "priority_groups", True),
        ({}, "priority_groups", False),
        ({"rate_limit_bps": 8000}, "rate_limited", True),
        ({"rate_limit_bps": 2**64 - 1}, "rate_limited", True),
        ({}, "rate_limited", False),
        ({"replay_policy": "original"}, "original_replay", True),
        ({"replay_policy": "instant"}, "original_replay", False),
        *(({"sample_freq": text}, "sampled", True) for text in ("100", "100%", "1", "05%")),
        *(({"sample_freq": text}, "sampled", False) for text in ("", "%", "0", "00%", "-1", "often")),
        ({"metadata": {"_nats.ver": "2.15.1", "owner": "me"}}, "metadata", ()),
        (
            {"metadata": {"io.nats.monitor.x": "2", "backpressure.y": "1", "backpressure": "3"}},
            "metadata",
            (("backpressure.y", "1"), ("io.nats.monitor.x", "2")),
        ),
    ],
)
async def test_the_config_is_read(changes: dict[str, Any], fact: str, value: Any) -> None:
    reading, _ = await read(consumer(**{f"config__{k}": v for k, v in changes.items()}))
    assert getattr(reading.samples[0].config, fact) == value


MANY = {f"backpressure.{n:03}": "1" for n in range(70)}


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        (MANY, sorted(MANY.items())[:64]),
        ({"backpressure.a": "x" * 1024, "backpressure.b": "x" * 1025}, [("backpressure.a", "x" * 1024)]),
        ({"backpressure." + "k" * 1024: "1", "backpressure.c": "2"}, [("backpressure.c", "2")]),
    ],
    ids=["keys", "a value", "a key"],
)
async def test_metadata_beyond_its_bounds_is_left_out_and_counted(metadata: Any, kept: list[tuple[str, str]]) -> None:
    reading, reader = await read(consumer(config__metadata=metadata))
    assert reading.samples[0].config.metadata == tuple(kept)
    assert reader.counted == ["metadata_left_out"]


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, True),
        ({"config__deliver_subject": "to.me"}, False),
        ({"config__deliver_subject": "to.me", "push_bound": True}, True),
    ],
    ids=["pull", "push without a subscriber", "push with one"],
)
async def test_a_push_consumer_shows_whether_it_has_a_subscriber(changes: dict[str, Any], bound: bool) -> None:
    reading, _ = await read(consumer(**changes))
    assert reading.samples[0].bound is bound


@pytest.mark.parametrize(
    ("config", "state", "fill"),
    [
        ({}, {}, None),
        ({"max_msgs": -1, "max_bytes": 0}, {}, None),
        ({"max_msgs": 40}, {}, 0.25),
        ({"max_msgs": 40, "max_bytes": 200}, {}, 0.5),
        ({"max_msgs": 10, "discard": "new"}, {}, 1.0),
        ({"max_bytes": 90}, {}, 1.0),
        ({"max_msgs_per_subject": 5}, {"num_subjects": 2}, None),
    ],
    ids=["no limits", "limits that are none", "messages", "the larger share", "full", "over", "per subject is none"],
)
async def test_how_full_a_stream_is(config: dict[str, Any], state: Any, fill: float | None) -> None:
    reader = Reader(Scripted(CONSUMER_LIST=page(), STREAM_INFO=stream(config=config, **state)))
    assert (await reader.consumers("S")).look.fill == fill


@pytest.mark.parametrize(
    ("state", "ts", "age"),
    [
        ({"first_ts": "2026-01-01T00:00:00Z"}, TS, 60.5),
        ({"first_ts": "2026-01-01T00:00:00Z"}, None, None),
        ({"first_ts": "0001-01-01T00:00:00Z", "messages": 0}, TS, None),
        ({"first_ts": "2026-01-01T00:00:00Z", "messages": 0}, TS, None),
        ({"first_ts": "2026-01-01T00:02:00Z"}, TS, 0.0),
        ({}, TS, None),
    ],
    ids=["by the server's clock", "which 2.9 does not send", "empty", "emptied", "from the future", "not sent"],
)
async def test_how_old_the_first_message_is(state: Any, ts: str | None, age: float | None) -> None:
    reply = stream(**state) | ({"ts": ts} if ts else {})
    assert (await Reader(Scripted(CONSUMER_LIST=page(), STREAM_INFO=reply)).consumers("S")).look.oldest_age == age
    listed = await Reader(Scripted(STREAM_LIST={"total": 1, "streams": [reply]})).streams()
    assert listed.looks[0].oldest_age == age
