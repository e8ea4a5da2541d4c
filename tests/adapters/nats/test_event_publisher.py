"""Events on a real server: stored exactly once, whatever other programs publish and whatever replies are lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats import event_publisher
from nats_backpressure.adapters.nats.api import ApiError, JetStreamApi, Message
from nats_backpressure.adapters.nats.api_types import PubAck
from nats_backpressure.adapters.nats.event_publisher import JetStreamEventPublisher
from nats_backpressure.adapters.nats.resources import Resources
from nats_backpressure.policy.schema import Rejection
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.protocol.values import EventType, Status
from nats_backpressure.runtime.ports import PublishConflict, Unavailable, Unpublishable
from tests.simulations.stored_samples import NAMES, SUBJECT, event, publisher_of, real
from tests.support.sidecar import eventually

ACTIVE = f"backpressure.v1.event.backpressure_active.{encode(SUBJECT)}"


async def count(nc: Client) -> int:
    return (await nc.jetstream().stream_info(NAMES.events_stream)).state.messages


async def test_an_event_carries_its_id_and_cloudevents_headers(nc: Client) -> None:
    async with real(nc) as (_, _, publisher):
        await publisher.publish(event(1))
        message = await nc.jetstream().get_last_msg(NAMES.events_stream, ACTIVE)
        headers = message.headers or {}
        body = json.loads(message.data or b"")
        assert headers["Nats-Msg-Id"] == headers["ce-id"] == body["id"] == "orders.=2A.created:e:1"
        assert (headers["ce-source"], headers["ce-type"]) == (
            "/backpressure",
            "backpressure.v1.backpressure_active",
        )
        assert (headers["ce-specversion"], headers["ce-subject"]) == ("1.0", "orders.=2A.created")
        assert headers["ce-time"] == body["timestamp"] == "2027-01-15T08:00:00.000Z"
        assert (body["from"], body["to"]) == ("inactive", "active")


async def test_a_copy_of_a_dead_process_that_lands_in_between_is_our_own(nc: Client) -> None:
    async with real(nc) as (requests, _, publisher):
        dead = publisher_of(requests)
        requests.meanwhile = lambda: dead.publish(event(1))
        await publisher.publish(event(1))
        assert await count(nc) == 1


async def test_of_two_that_send_the_same_event_one_is_stored(nc: Client) -> None:
    async with real(nc) as (requests, _, _):
        for seq in range(1, 6):
            await asyncio.gather(*(publisher_of(requests, f"replica-{n}").publish(event(seq)) for n in range(4)))
        assert await count(nc) == 5


async def test_an_event_whose_ack_is_lost_each_time_is_published_once(nc: Client) -> None:
    async with real(nc) as (requests, _, publisher):
        for seq in range(1, 5):
            requests.lose = 1
            with pytest.raises(Unavailable):
                await publisher.publish(event(seq))
            await publisher.publish(event(seq))
        assert await count(nc) == 4


async def test_a_late_copy_is_refused_after_the_duplicate_window(nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(name=NAMES.events_stream, subjects=["backpressure.v1.event.>"], duplicate_window=0.1)
    async with real(nc) as (requests, _, publisher):
        await publisher.publish(event(1))
        await publisher.publish(event(2))
        subject, payload, headers = requests.written[0]

        async def refused() -> Any:
            """The reply after the window in which the server knows the id: only the expected sequence refuses now."""
            reply = json.loads((await nc.request(subject, payload, timeout=5, headers=headers)).data)
            return None if reply.get("duplicate") else reply

        reply = await eventually(refused, "the end of the duplicate window")
        assert reply["error"]["err_code"] in (10071, 10164)
        assert await count(nc) == 2


async def test_an_id_the_server_knows_without_the_event_is_a_conflict(nc: Client) -> None:
    async with real(nc) as (requests, _, publisher):
        await publisher.publish(event(4))
        await nc.jetstream().purge_stream(NAMES.events_stream)
        with pytest.raises(PublishConflict) as conflict:
            await publisher_of(requests).publish(event(4))
        assert conflict.value.seq == 3  # a new epoch numbers it 4: never back


async def test_a_stream_that_went_is_unavailable_and_numbers_go_on_in_the_next(nc: Client) -> None:
    async with real(nc) as (requests, _, publisher):
        await publisher.publish(event(1))
        await nc.jetstream().delete_stream(NAMES.events_stream)
        with pytest.raises(Unavailable):
            await publisher.publish(event(2))
        await Resources(JetStreamApi(requests), NAMES, 1, 604_800, True).ensure()
        await publisher.publish(event(2))
        last = await publisher.last(SUBJECT)
        assert last is not None and last.seq == 2 and await count(nc) == 1


@pytest.mark.parametrize("junk", [b"", b"hello", b"\xff", b"[]", b'{"id": "x", "seq": 99999}', b'{"seq": -1}'])
@pytest.mark.parametrize("kind", ["junk", "backpressure_active"])
async def test_messages_of_other_programs_change_nothing(nc: Client, junk: bytes, kind: str) -> None:
    async with real(nc) as (_, _, publisher):
        await publisher.publish(event(1))
        await publisher.publish(event(2, EventType.WARNING, to=Status.WARNING))
        await nc.jetstream().publish(f"backpressure.v1.event.{kind}.{encode(SUBJECT)}", junk)
        last = await publisher.last(SUBJECT)
        assert last is not None and (last.seq, last.status) == (2, Status.WARNING)
        await publisher.publish(event(1))
        await publisher.publish(event(3))
        assert await count(nc) == 4


async def test_our_own_event_is_found_far_behind_the_newest(nc: Client) -> None:
    async with real(nc) as (requests, _, publisher):
        for seq in range(1, 4):
            await publisher.publish(event(seq))
            for n in range(40):
                await nc.publish(f"backpressure.v1.event.recovery.other.{n}", b"{}")
        for seq in range(1, 4):
            await publisher_of(requests).publish(event(seq))
        with pytest.raises(PublishConflict):
            await publisher_of(requests).publish(event(2, epoch="f"))


async def test_a_refusal_is_logged_once(nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(name=NAMES.events_stream, subjects=["backpressure.v1.event.>"], max_msg_size=10)
    async with real(nc) as (_, _, publisher):
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await publisher.publish(event(1))
        assert [line["event"] for line in logs] == ["event.refused"]


@pytest.mark.parametrize("code", [10008, 10158])
async def test_a_transient_error_of_a_cluster_is_not_logged(nc: Client, code: int) -> None:
    async with real(nc) as (requests, _, publisher):
        requests.refuse = code
        with capture_logs() as logs, pytest.raises(Unavailable):
            await publisher.publish(event(1))
        assert logs == []
        await publisher.publish(event(1))
        assert await count(nc) == 1


async def test_after_a_certain_refusal_a_duplicate_is_not_taken_for_ours(nc: Client) -> None:
    async with real(nc) as (requests, _, publisher):
        await publisher_of(requests).publish(event(1))
        await nc.jetstream().purge_stream(NAMES.events_stream)
        requests.refuse = 10158
        with pytest.raises(Unavailable):
            await publisher.publish(event(1))
        with pytest.raises(PublishConflict):
            await publisher.publish(event(1))


TOO_LARGE = {
    "reasons": {"reasons": ("r" * 70_000,)},
    "mistakes": {"errors": tuple((f"path {n}" + "\x00" * 1000, "m" * 1000) for n in range(60))},
}


@pytest.mark.parametrize("parts", TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_an_event_beyond_the_cap_is_cut_to_fit(nc: Client, parts: dict[str, Any]) -> None:
    async with real(nc) as (requests, _, publisher):
        await publisher.publish(msgspec.structs.replace(event(1), **parts))
        (_, payload, _) = requests.written[0]
        body = json.loads(payload)
        assert len(payload) < 16_384 and body["id"] == event(1).id
        if "errors" in parts:
            assert len(body["errors"]) == 11 and body["errors"][-1]["message"] == "and 50 more problems"
            assert body["reasons"] == ["pending"]
        await publisher.publish(msgspec.structs.replace(event(1), **parts))
        assert await count(nc) == 1


async def test_an_event_that_fits_nowhere_is_called_so(nc: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_publisher, "LARGEST_EVENT", 100)
    async with real(nc) as (requests, _, publisher):
        with pytest.raises(Unpublishable, match="100 bytes"):
            await publisher.publish(event(1))
        assert requests.written == []


async def test_where_the_stream_takes_less_it_is_cut_too(nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(name=NAMES.events_stream, subjects=["backpressure.v1.event.>"], max_msg_size=4096)
    async with real(nc) as (_, _, publisher):
        many = tuple((f"pending.{n}", "must be at most 5") for n in range(200))
        await publisher.publish(msgspec.structs.replace(event(1), errors=many))
        assert await count(nc) == 1


class _PublishedMeanwhile:
    """The newest messages of a stream, to which another event is added before a request of this number."""

    def __init__(self, before: int) -> None:
        self.before, self.requests = before, 0
        self.stored = [self.message(1, "backpressure_warning", "warning")]

    def message(self, seq: int, kind: str, to: str) -> Message:
        body = {"id": f"{encode(SUBJECT)}:e:{seq}", "seq": seq, "epoch": "e", "to": to, "incident": "e-1"}
        return Message(f"backpressure.v1.event.{kind}.{encode(SUBJECT)}", seq, json.dumps(body).encode(), {})

    async def last(self, stream: str, subject: str) -> Message | None:
        self.requests += 1
        if self.requests == self.before:
            self.stored.append(self.message(2, "backpressure_active", "active"))
        pattern = subject.split(".")
        matching = [one for one in self.stored if pattern[3] in ("*", one.subject.split(".")[3])]
        return matching[-1] if matching else None


class _FailsLater(_PublishedMeanwhile):
    """One event, and a stream that answers with an error from the n-th request on."""

    def __init__(self, before: int, error: Unavailable) -> None:
        super().__init__(99)
        self._answers, self._error = before - 1, error

    async def last(self, stream: str, subject: str) -> Message | None:
        self._answers -= 1
        if self._answers < 0:
            raise self._error
        return await super().last(stream, subject)


def publisher_on(js: _PublishedMeanwhile) -> JetStreamEventPublisher:
    return JetStreamEventPublisher(js, NAMES, lambda event: pytest.fail("nothing is published"))  # type: ignore[arg-type]  # of the API only `last` is used


@pytest.mark.parametrize("before", range(1, 9))
async def test_the_status_and_the_seq_of_the_last_event_are_of_one_moment(before: int) -> None:
    js = _PublishedMeanwhile(before)
    last = await publisher_on(js).last(SUBJECT)
    assert last is not None
    assert (last.seq, last.status) in [(1, Status.WARNING), (2, Status.ACTIVE)]


async def test_without_a_stream_there_was_no_event(nc: Client) -> None:
    async with real(nc) as (_, _, publisher):
        await nc.jetstream().delete_stream(NAMES.events_stream)
        assert await publisher.last(SUBJECT) is None


@pytest.mark.parametrize("before", range(1, 9))
async def test_a_stream_that_is_deleted_while_its_last_event_is_read_has_none(before: int) -> None:
    gone = ApiError(404, 10059, "stream not found")
    assert await publisher_on(_FailsLater(before, gone)).last(SUBJECT) is None


@pytest.mark.parametrize("before", range(1, 9))
@pytest.mark.parametrize(
    "error",
    [
        Unavailable("$JS.API.STREAM.MSG.GET.BACKPRESSURE_EVENTS: no reply in time"),
        Unavailable('Permissions Violation for Publish to "$JS.API.STREAM.MSG.GET.BACKPRESSURE_EVENTS"'),
        ApiError(503, 10008, "JetStream system temporarily unavailable"),
        ApiError(500, 10118, "stream is offline"),
        ApiError(503, 10039, "JetStream not enabled for account"),
        ApiError(404, 10014, "consumer not found"),
    ],
    ids=str,
)
async def test_a_stream_that_gives_no_answer_is_none_without_events(before: int, error: Unavailable) -> None:
    with pytest.raises(Unavailable) as raised:
        await publisher_on(_FailsLater(before, error)).last(SUBJECT)
    assert raised.value is error


class _Overtaken:
    """The API as a publisher sees it; before the n-th request another one publishes."""

    def __init__(self, js: JetStreamApi, n: int, other: Callable[[], Awaitable[None]]) -> None:
        self._js, self._left, self._other = js, n, other

    async def _turn(self) -> None:
        self._left -= 1
        if self._left == 0:
            await self._other()

    async def last(self, stream: str, subject: str) -> Message | None:
        await self._turn()
        return await self._js.last(stream, subject)

    async def next(self, stream: str, subject: str, place: int) -> Message | None:
        await self._turn()
        return await self._js.next(stream, subject, place)

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> PubAck:
        await self._turn()
        return await self._js.publish(subject, payload, headers)


@pytest.mark.parametrize("revision", [7, 8], ids=["the same", "a later one"])
@pytest.mark.parametrize("before", ["nothing", "ours", "foreign"])
async def test_a_rejection_that_another_replica_publishes_at_any_moment_is_stored_once(
    nc: Client, before: str, revision: int
) -> None:
    """Under a key that is not watched: no state numbers these."""
    refusals = {n: Rejection(f"created:{n}", (("pending.warn", "must not be above critical"),)) for n in (6, 7, 8)}
    async with real(nc) as (connection, _, publisher):
        for n in range(1, 8):
            key = f"n{n}.>"
            subject = NAMES.event(EventType.POLICY_REJECTED.value, key)
            if before == "ours":
                await publisher.publish_rejection(key, refusals[6], 1_800_000_000.0)
            elif before == "foreign":
                await nc.jetstream().publish(subject, b"{}")

            async def other(key: str = key) -> None:
                await publisher.publish_rejection(key, refusals[revision], 1_800_000_001.0)

            js = _Overtaken(JetStreamApi(connection), n, other)
            mine = JetStreamEventPublisher(js, NAMES, publisher._render)  # type: ignore[arg-type]
            with suppress(Unavailable):
                await mine.publish_rejection(key, refusals[7], 1_800_000_002.0)
            await mine.publish_rejection(key, refusals[7], 1_800_000_003.0)
            marks = await _marks(nc, subject)
            assert "created:7" in marks or revision == 8
            assert len(set(marks)) == len(marks), f"overtaken before request {n}: {marks}"


async def _marks(nc: Client, subject: str) -> list[str]:
    """The refused policies that are published there."""
    marks, place, js = [], 1, nc.jetstream()
    with suppress(NotFoundError):
        while True:
            message = await js.get_msg(NAMES.events_stream, place, subject=subject, next=True)
            place = (message.seq or 0) + 1
            marks.append(json.loads(message.data or b"").get("policy_revision", ""))
    return marks


class _CountedRequests:
    """The API as a publisher sees it, with what it asked for."""

    def __init__(self, js: JetStreamApi) -> None:
        self._js, self.asked = js, list[str]()

    async def last(self, stream: str, subject: str) -> Message | None:
        self.asked.append(subject)
        return await self._js.last(stream, subject)

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> PubAck:
        return await self._js.publish(subject, payload, headers)


@pytest.mark.parametrize(
    ("before", "requests"),
    [((), 1), ((EventType.ACTIVE,), 1), ((EventType.ACTIVE, EventType.RECOVERY), 2)],
    ids=["the first event", "the same type as the last", "another type than the last"],
)
async def test_what_the_last_event_shows_is_not_asked_for_again(
    nc: Client, before: tuple[EventType, ...], requests: int
) -> None:
    async with real(nc) as (connection, _, publisher):
        for seq, kind in enumerate(before, 1):
            await publisher.publish(event(seq, kind))
        js = _CountedRequests(JetStreamApi(connection))
        mine = JetStreamEventPublisher(js, NAMES, publisher._render)  # type: ignore[arg-type]  # of the API these two are used
        await mine.publish(event(len(before) + 1))
        assert len(js.asked) == requests and await count(nc) == len(before) + 1
