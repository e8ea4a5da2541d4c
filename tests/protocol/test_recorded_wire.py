"""What replicas of schema 1 store and send, as it was recorded: every later build of schema 1 must go on reading it.

The files are bytes of a real run (an overload, two replicas); only the chunks in `readings.json` were encoded by
themselves, to be short. Do not change them; add a file for what is new.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nats_backpressure.core.subject.stored_state import newer_record, record_of
from nats_backpressure.policy.schema import Override
from nats_backpressure.protocol.between_replicas import Grants, Presence, SharedGrant, read
from nats_backpressure.protocol.decoding import read_message
from nats_backpressure.protocol.messages import Heartbeat, State
from nats_backpressure.protocol.values import Action, ConsumerKey, Diagnosis, EventType, Status
from nats_backpressure.queries.event_cache import parse_event
from nats_backpressure.recording.broadcast_receiver import BroadcastReceiver
from nats_backpressure.recording.hint_messages import decode_hints
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading
from tests.fakes.clock import FakeClock, settled
from tests.support.background import meanwhile

RECORDED = Path(__file__).parent / "recorded_wire"
SUBJECT = "beamline.router.v1.decide"


def recorded(name: str) -> bytes:
    return (RECORDED / name).read_bytes()


def changed(name: str, **fields: Any) -> bytes:
    """What another build may make of a recorded message."""
    return msgspec.json.encode(msgspec.json.decode(recorded(name)) | fields)


def test_every_file_is_read_by_a_test() -> None:
    source = Path(__file__).read_text()
    assert all(f'"{path.name}"' in source for path in RECORDED.iterdir())


@pytest.mark.parametrize("later", [{}, {"added": {"later": [1]}}], ids=["as recorded", "with a field of a later build"])
def test_a_state_is_read_by_replicas_and_by_clients(later: dict[str, Any]) -> None:
    parsed = record_of(changed("state.json", **later))
    assert parsed is not None
    record, nonce = parsed
    assert (record.subject, record.status, record.seq, nonce[:6]) == (SUBJECT, Status.ACTIVE, 1, "pod-0.")
    assert (record.admission.action, record.admission.retry_after) == (Action.REJECT, 30)
    assert record.latched == ((ConsumerKey("ROUTER", "router"), ("pending", "inflight")),)
    assert [event.type for event in record.unsent] == [EventType.ACTIVE]
    assert record.policy_mark == "ff66e46ec23e"
    state = read_message(changed("state.json", **later), State)
    assert state is not None
    assert (state.status, state.action, state.admit_ratio, state.incident) == ("active", "reject", 0, record.incident)


@pytest.mark.parametrize("later", [{}, {"added": {"later": [1]}}], ids=["as recorded", "with a field of a later build"])
def test_a_state_with_an_override_alerts_and_facts_of_consumers_is_read(later: dict[str, Any]) -> None:
    inner = msgspec.json.decode(recorded("state-overridden.json"))["record"]
    inner["override"] |= later
    inner["alerts"] = [alert | later for alert in inner["alerts"]]
    inner["carried"] = [[key, facts | later] for key, facts in inner["carried"]]
    parsed = record_of(changed("state-overridden.json", record=inner | later))
    assert parsed is not None
    record = parsed[0]
    assert record.override == Override("open", 1_795_738_591.362)
    assert [(alert.name, alert.state, round(alert.held, 3)) for alert in record.alerts] == [
        ("backpressure_active", "pending", 1.022),
        ("deep", "pending", 1.022),
    ]
    assert dict(record.carried)[ConsumerKey("ROUTER", "router")].diagnosis is Diagnosis.POISON
    assert (record.totals.active, record.recoveries.began, record.diagnosis) == (1, record.since, Diagnosis.POISON)
    state = read_message(changed("state-overridden.json", **later), State)
    assert state is not None and state.override is not None
    assert (state.action, state.override.action, state.consumers[0].latched) == (
        "continue",
        "open",
        ("pending", "inflight", "drain"),
    )


def test_hints_are_read() -> None:
    hints = decode_hints(recorded("hints.json"))
    assert hints is not None and hints.names == ("router",)
    assert [acks[2] for acks in hints.hints[0].acks] == [1, 21, 39, 28]
    line = msgspec.json.decode(recorded("hints.json"))["hints"][0]
    assert decode_hints(changed("hints.json", hints=[line | {"added": 1}], added=2)) == hints
    assert decode_hints(changed("hints.json", schema=2)) is None, "another schema counts as silence"


def test_events_are_read() -> None:
    lines = recorded("events.json").splitlines()
    cached = [parse_event(line) for line in lines]
    assert [(event.type, event.seq) for event in cached if event] == [
        ("backpressure_active", 1),
        ("recovery", 2),
        ("recovery", 3),
    ]
    for line in lines:
        event = msgspec.json.decode(line)
        metrics = event["metrics"] | {"latency_source": "guessed", "added": 1}
        newer = event | {"diagnosis": "haunted", "reasons": ["age"], "metrics": metrics, "added": {"later": 1}}
        later = parse_event(msgspec.json.encode(newer))
        assert later is not None
        shown = later.event()
        assert (shown.id, shown.diagnosis, shown.reasons) == (event["id"], None, ("age",))
        assert shown.metrics.latency_source is None


def test_a_record_with_a_field_of_a_later_build_is_read() -> None:
    inner = msgspec.json.decode(recorded("state.json"))["record"]
    assert record_of(changed("state.json", record=inner | {"added": 1})) == record_of(recorded("state.json"))


def test_a_record_of_a_build_without_policy_marks_is_read() -> None:
    inner = msgspec.json.decode(recorded("state.json"))["record"]
    del inner["policy_mark"]
    parsed = record_of(changed("state.json", record=inner))
    assert parsed is not None and parsed[0].policy_mark == ""


def test_a_state_of_a_higher_schema_is_nobodys_to_write() -> None:
    assert record_of(changed("state.json", schema=2)) is None
    newer = newer_record(changed("state.json", schema=2), SUBJECT)
    assert newer is not None and (newer.status, newer.seq) == (Status.ACTIVE, 1)


@pytest.mark.parametrize(("name", "leaving"), [("heartbeat.json", False), ("heartbeat-leaving.json", True)])
def test_a_heartbeat_is_read(name: str, leaving: bool) -> None:
    for value in (recorded(name), changed(name, added=1), changed(name, schema=2)):
        heartbeat = read_message(value, Heartbeat)
        assert heartbeat is not None
        assert (heartbeat.instance, heartbeat.leaving) == ("pod-1" if leaving else "pod-0", leaving)
        assert (heartbeat.subjects, heartbeat.heartbeat_ms, heartbeat.stale_after_ms) == (1, 2000, 1000)


@pytest.mark.parametrize(("name", "leaving"), [("presence.json", False), ("presence-leaving.json", True)])
def test_presence_is_read(name: str, leaving: bool) -> None:
    presence = read(recorded(name), Presence)
    instance, id_ = ("pod-1", "bdb917cdcec2bc70") if leaving else ("pod-0", "ce3caac0fb0502d2")
    assert presence == Presence(1, id_, instance, "ff66e46ec23e", True, leaving)
    assert read(changed(name, added={"later": 1}), Presence) == presence
    assert read(changed(name, schema=2), Presence) is None, "another schema counts as silence"


def test_grants_are_read() -> None:
    grants = read(recorded("grants.json"), Grants)
    assert grants is not None and grants.id == "ce3caac0fb0502d2"
    assert grants.grants[0] == SharedGrant("ROUTER", "router", 100, "_INBOX.9kTqbS7fVvTJ0Wm4mVhX2D")
    assert [grant.n for grant in grants.grants] == [100, 67]
    later = [one | {"added": 1} for one in msgspec.json.decode(recorded("grants.json"))["grants"]]
    assert read(changed("grants.json", grants=later, added=2), Grants) == grants
    assert read(changed("grants.json", schema=2), Grants) is None


def as_recorded(chunk: str) -> bytes:
    return chunk.encode()


def as_of_a_later_build(chunk: str) -> bytes:
    """With fields and a kind of lines that today's build does not know, where a chunk has whole lines."""
    header, *lines = chunk.split("\n")
    header = msgspec.json.encode(msgspec.json.decode(header) | {"added": {"later": 1}}).decode()
    if '"more":true' in header or '"part"' in header:
        return "\n".join((header, *lines)).encode()
    changed_lines = [msgspec.json.encode(msgspec.json.decode(line) | {"added": 1}).decode() for line in lines if line]
    return "\n".join((header, '{"t":"later","n":[1]}', *changed_lines, '{"t":"later"}', "")).encode()


TOPICS = {"stream": "reading.ROUTER", "streams": "reading.=streams", "chunks": "reading.S"}


async def received(which: str, change: Callable[[str], bytes]) -> list[Any]:
    """What a replica of today's build receives of recorded readings."""
    shown: list[Any] = []
    receiver = BroadcastReceiver(FakeClock(), "me", lambda received: shown.append(received.shown), pytest.fail)
    chunks = msgspec.json.decode(recorded("readings.json"))[which]
    async with meanwhile(receiver.run()):
        receiver.add_report(msgspec.json.decode(chunks[0].split("\n")[0])["sender"], 0.5)
        for chunk in chunks:
            receiver.receive(TOPICS[which], change(chunk))
            await settled()
    return shown


BUILDS = pytest.mark.parametrize("change", [as_recorded, as_of_a_later_build])


@BUILDS
async def test_readings_of_a_stream_are_read(change: Callable[[str], bytes]) -> None:
    readings: list[ConsumersReading] = await received("stream", change)
    assert len(readings) == 17 and all(reading.complete for reading in readings)
    assert readings[0].look.subjects == ("beamline.router.v1.>",)
    assert [sample.pending for sample in readings[0].samples] == [32, 48, 48]
    assert [sample.pending for sample in readings[14].samples] == [41, 62], "one was deleted"
    assert readings[16].samples[0].key == ConsumerKey("ROUTER", "router-0")
    assert readings[16].samples[0].config.max_ack_pending == 1000


@BUILDS
async def test_lists_of_streams_are_read(change: Callable[[str], bytes]) -> None:
    lists: list[StreamsReading] = await received("streams", change)
    names = {"KV_backpressure_policy", "KV_backpressure_state", "BACKPRESSURE_EVENTS", "ROUTER", "OTHER"}
    assert {look.name for look in lists[0].looks} == names and lists[0].complete
    assert [(each.partial, each.complete) for each in lists[1:]] == [(True, False), *[(False, True)] * 3]
    assert [look.last_seq for each in lists[1:] for look in each.looks if look.name == "ROUTER"] == [9, 10, 11, 12]


@BUILDS
async def test_chunks_a_consumer_read_alone_and_a_reading_of_a_part_are_read(change: Callable[[str], bytes]) -> None:
    whole, alone, part = await received("chunks", change)
    assert (whole.missing, whole.malformed, whole.complete) == (("gone-1", "gone-2"), ("bad",), False)
    assert [sample.config.filters for sample in whole.samples] == [("a.b", "a.c")] * 3
    assert whole.look.retention.policy == "workqueue"
    assert (alone.pending, alone.inflight, alone.since_ack, alone.paused) == (9, 2, 0.5, True)
    assert part.partial and part.missing == ("c0",) and [sample.pending for sample in part.samples] == [7]
