"""The micro service on a real server: each request gets a clear answer or none, and nothing else is affected."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request
from structlog.testing import capture_logs

from nats_backpressure import __version__
from nats_backpressure.adapters.nats.bounded_client import WAITING
from nats_backpressure.adapters.nats.direct_replies import AT_ONCE
from nats_backpressure.adapters.nats.endpoints import LARGEST_REQUEST, ServiceEndpoints
from nats_backpressure.adapters.nats.patched_client import settled
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.endpoints import ENDPOINTS
from nats_backpressure.protocol.policies import ConsumerPolicy, EffectivePolicy
from nats_backpressure.protocol.requests import ConsumerRequest, GatewayRequest, ListRequest, RequestRefused
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.dispatch import answers
from nats_backpressure.queries.event_cache import EventCache
from nats_backpressure.queries.history import CONCURRENT_READS, HistoryQueries
from nats_backpressure.runtime.stored_events import EventPage, EventQuery
from tests.conftest import StartServer
from tests.fakes.event_log import T0, FakeEventLog, encoded_event, event
from tests.fakes.view import SUBJECT, FakeServiceView, decision_service, member
from tests.fakes.view import subject as watched
from tests.support.servers import NatsServer

ALIAS = "router.status.backpressure"
STOLEN = "$JS.API.STREAM.DELETE.VICTIM"
P = "backpressure.v1"


class Clock:
    def now(self) -> Now:
        return Now(1000.0, 1_767_225_600.0)


class Counts:
    def __init__(self) -> None:
        self.what: Counter[str] = Counter()
        self.decided: list[tuple[str, str, str]] = []

    def decision(self, subject: str, role: str, action: str, seconds: float, would: str | None) -> None:
        assert seconds >= 0
        self.decided.append((subject, role, action))

    def dropped(self, what: str, n: int = 1) -> None:
        self.what[what] += n


def consumer_status(n: int) -> messages.ConsumerStatus:
    return messages.ConsumerStatus("S", f"consumer-{n}", "active", (), None, messages.Metrics(), "known")


def status(subject: str, consumers: int = 0) -> messages.Status:
    return messages.Status(
        subject=subject, status="inactive", since=None, incident=None, pressure=None, reasons=(),
        metrics=messages.Metrics(), levels=messages.Levels(), thresholds=None, diagnosis=None, admit_ratio=1.0,
        mode="enforce", override=None, consumers=tuple(consumer_status(n) for n in range(consumers)),
        consumers_total=consumers, matched=(subject,), state_keys=(), event_subjects=(), freshness="known",
        stale_reason=None, sampled_at=None,
    )  # fmt: skip


class StubDecisions(DecisionService):
    """Watches `orders.new` and a few patterns; `big` statuses are larger than any message."""

    guard = Guard()

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.listed = 3
        self.consumers = 0

    def _decision(self, role: Any, subject: str, *request: Any) -> messages.Decision:  # type: ignore[override]
        if subject == "orders.broken":
            raise RuntimeError("secret 1234")
        if subject not in ("orders.new", "orders.*"):
            raise RequestRefused(404, f"nobody watches {subject}")
        self.asked.append((role, subject, *request))
        return messages.Decision(
            subject=subject, matched=("orders.*",), role=role, status="active", action="reject", reasons=("pending",),
            pressure=1.5, retry_after_seconds=30, max_retry_attempts=3, backoff_strategy="constant",
            retry_delay_ms=30000, admit_ratio=0.0, pull=None, alert=True, would=None, freshness="known",
            sampled_at=None, valid_for_ms=500, incident=None, state_keys=(), event_subjects=(),
        )  # fmt: skip

    def decide_gateway(self, subject: str, request: GatewayRequest, now: Now) -> messages.Decision:
        return self._decision("gateway", subject, request)

    def decide_consumer(self, subject: str, request: ConsumerRequest, asker: str, now: Now) -> messages.Decision:
        return self._decision("consumer", subject, request, asker)

    def status(self, subject: str, now: Now) -> messages.Status:
        if subject != "orders.new":
            raise RequestRefused(404, f"nobody watches {subject}")
        return status(subject, self.consumers)

    def status_list(self, request: ListRequest, now: Now) -> messages.StatusList:
        end = min(request.offset + request.limit, self.listed)
        page = tuple(status(f"s.{n:05}", self.consumers) for n in range(request.offset, end))
        return messages.StatusList(self.listed, request.offset, end if end < self.listed else None, page)

    def policy(self, subject: str, now: Now) -> EffectivePolicy:
        return EffectivePolicy(subject, (), {}, {}, (ConsumerPolicy("S", "c" * 50, {}, {}),) * self.consumers)

    def alias(self, subject: str, now: Now) -> dict[str, Any]:
        if subject == "orders.broken":
            raise RuntimeError("secret 1234")
        return {"success": True, "data": {"subject": subject, "status": "unknown"}}


class SlowLog(FakeEventLog):
    """Answers once it is let."""

    def __init__(self) -> None:
        super().__init__([encoded_event(seq, T0 - 1000 * (900 - seq), subject=SUBJECT) for seq in range(1, 900)])
        self.let = asyncio.Event()
        self.let.set()
        self.arrived = asyncio.Semaphore(0)

    async def older(self, wanted: EventQuery) -> EventPage:
        self.arrived.release()
        await self.let.wait()
        return await super().older(wanted)


def past_of(stream: FakeEventLog) -> HistoryQueries:
    """Of one subject that is watched, of which nothing is in memory but what came last."""
    view = FakeServiceView(watched(member()))
    history = EventCache(T0)
    history.add(event(900, T0, subject=SUBJECT))
    return HistoryQueries(decision_service(view), view, history, stream, Clock())


class Asker:
    """A client and the sidecar's side of the same server."""

    def __init__(
        self,
        nc: Client,
        ours: Client,
        responder: ServiceEndpoints,
        decisions: StubDecisions,
        counts: Counts,
        stream: SlowLog,
    ) -> None:
        self.nc, self.ours, self.responder, self.decisions, self.counts = nc, ours, responder, decisions, counts
        self.stream = stream

    async def ask(self, subject: str, payload: bytes = b"") -> Msg:
        return await self.nc.request(subject, payload, timeout=5)

    async def error(self, subject: str, payload: bytes = b"") -> tuple[str, str]:
        """The error that comes back: its code and text; also that it is one as the contract has it."""
        reply = await self.ask(subject, payload)
        assert reply.data == b"" and reply.headers
        text = reply.headers["Nats-Service-Error"]
        assert text and len(text.encode()) <= 200 and text.isascii() and text.isprintable()
        return reply.headers["Nats-Service-Error-Code"], text

    async def answer(self, subject: str, payload: bytes = b"") -> Any:
        reply = await self.ask(subject, payload)
        assert reply.headers is None, reply.headers
        return json.loads(reply.data)

    async def lives(self) -> bool:
        return bool((await self.answer(f"{P}.decide.gateway.orders.new"))["action"] == "reject")


async def serving(server: NatsServer, nc: Client, **given: Any) -> Asker:
    decisions, counts, stream = StubDecisions(), Counts(), SlowLog()
    ours = await nats.connect(server.url, allow_reconnect=False)
    responder = ServiceEndpoints(
        answers(decisions, past_of(stream), counts, FakeServiceView()),
        decisions.alias,
        Clock(),
        Names(),
        counts.dropped,
        **given,
    )
    await responder.serve(ours)
    return Asker(nc, ours, responder, decisions, counts, stream)


@pytest.fixture
async def asker(server: NatsServer, nc: Client) -> AsyncIterator[Asker]:
    world = await serving(server, nc, alias=ALIAS)
    yield world
    await world.ours.close()


PAST = ["get.events", "get.history", "get.metrics", "get.recovery", "get.alerts"]
TAILED = ["decide.gateway", "decide.consumer", "get.status", "get.policy", *PAST]


async def test_a_decision_is_answered_and_counted_under_the_watched_subject(asker: Asker) -> None:
    reply = await asker.answer(f"{P}.decide.gateway.orders.new", b'{"attempt": 2, "priority": "high", "more": 1}')
    assert reply["action"] == "reject" and reply["retry_after_seconds"] == 30
    assert asker.decisions.asked == [("gateway", "orders.new", GatewayRequest(2, "high"))]
    assert asker.counts.decided == [("orders.*", "gateway", "reject")]


async def test_a_consumer_is_identified_by_its_inbox(asker: Asker) -> None:
    for _ in range(2):
        await asker.answer(f"{P}.decide.consumer.orders.new", b'{"max_messages": 7}')
    (_, _, request, first), (_, _, _, second) = asker.decisions.asked
    assert request == ConsumerRequest(7) and first == second and first.startswith("_INBOX.")


async def test_an_encoded_tail_is_decoded(asker: Asker) -> None:
    assert (await asker.answer(f"{P}.decide.gateway.orders.=2A"))["subject"] == "orders.*"


async def test_the_other_endpoints_answer(asker: Asker) -> None:
    assert (await asker.answer(f"{P}.get.status.orders.new"))["subject"] == "orders.new"
    listed = await asker.answer(f"{P}.get.status", b'{"offset": 1, "limit": 1}')
    assert [s["subject"] for s in listed["subjects"]] == ["s.00001"] and listed["next_offset"] == 2
    assert (await asker.answer(f"{P}.get.policy.orders.new"))["subject"] == "orders.new"
    assert (await asker.answer(f"{P}.validate.policy", b"{}"))["valid"] is True
    assert (await asker.answer(f"{P}.validate.policy", b'{"pendin": {}}'))["errors"][0]["path"] == "pendin"


BAD_TAILS = {
    "an encoded dot in lower case": "a=2eb",
    "a byte that needs no encoding": "=65u",
    "an encoded dot": "a=2Eb",
    "a raw star": "*",
    "a raw tail": "orders.>",
    "a lone escape": "a=",
    "half an escape": "a=2",
    "not ASCII": "größe",
    "not UTF-8 when decoded": "a=FF",
    "longer than any watched subject": "a" * 1025,
}


@pytest.mark.parametrize("endpoint", TAILED)
@pytest.mark.parametrize("tail", BAD_TAILS.values(), ids=BAD_TAILS.keys())
async def test_a_tail_that_is_not_canonical_is_a_400(asker: Asker, endpoint: str, tail: str) -> None:
    asker.nc._skip_subject_validation = True
    code, text = await asker.error(f"{P}.{endpoint}.{tail}")
    assert code == "400" and ("canonical" in text or "tail" in text or "=XX" in text)
    assert await asker.lives()


@pytest.mark.parametrize("endpoint", ["decide.gateway", "decide.consumer", "get.status"])
async def test_300_tokens_are_answered_clearly(asker: Asker, endpoint: str) -> None:
    code, text = await asker.error(f"{P}.{endpoint}." + ".".join("t" * 300))
    assert code == "404" and text.startswith("nobody watches t.t.t")


BAD_PAYLOADS = {
    "one byte too many": b'"' + b"x" * (LARGEST_REQUEST - 1) + b'"',
    "as large as the server takes": b"x" * 1024 * 1024,
    "not UTF-8": b'{"attempt": "\xff\xfe"}',
    "not UTF-8 in an unknown field": b'{"x": "\xff"}',
    "no JSON": b"{attempt: 1}",
    "cut off": b'{"attempt": 1',
    "two documents": b"{}{}",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deep": b"[" * 30_000 + b"]" * 30_000,
    "no number at all": b'{"attempt": NaN}',
}


@pytest.mark.parametrize(
    "endpoint", [f"{e}.orders.new" for e in TAILED] + ["get.status", "get.alerts", "validate.policy"]
)
@pytest.mark.parametrize("payload", BAD_PAYLOADS.values(), ids=BAD_PAYLOADS.keys())
async def test_a_payload_that_is_no_object_is_a_400(asker: Asker, endpoint: str, payload: bytes) -> None:
    code, _ = await asker.error(f"{P}.{endpoint}", payload)
    assert code == "400"
    assert await asker.lives()


@pytest.mark.parametrize(
    ("endpoint", "given", "field"),
    [
        ("decide.gateway.orders.new", '{"attempt": "1"}', "attempt"),
        ("decide.gateway.orders.new", '{"attempt": true}', "attempt"),
        ("decide.gateway.orders.new", '{"attempt": 1.5}', "attempt"),
        ("decide.gateway.orders.new", '{"attempt": 0}', "attempt"),
        ("decide.gateway.orders.new", '{"attempt": 1001}', "attempt"),
        ("decide.gateway.orders.new", '{"attempt": 123456789012345678901234567890}', "attempt"),
        ("decide.gateway.orders.new", '{"priority": "urgent"}', "priority"),
        ("decide.gateway.orders.new", '{"priority": 1}', "priority"),
        ("decide.consumer.orders.new", '{"max_messages": 0}', "max_messages"),
        ("decide.consumer.orders.new", '{"max_messages": 10001}', "max_messages"),
        ("decide.consumer.orders.new", '{"stream": ["S"]}', "stream"),
        ("get.status", '{"offset": -1}', "offset"),
        ("get.status", '{"limit": 0}', "limit"),
        ("get.status", '{"limit": 1001}', "limit"),
        ("get.status", '{"limit": {}}', "limit"),
        ("get.events.orders.new", '{"limit": 1001}', "limit"),
        ("get.events.orders.new", '{"type": "storm"}', "type"),
        ("get.events.orders.new", '{"since": "yesterday"}', "since"),
        ("get.events.orders.new", '{"until": 1767225600}', "until"),
        ("get.history.orders.new", '{"limit": 0}', "limit"),
        ("get.metrics.orders.new", '{"windows": ["1s"]}', "windows"),
        ("get.metrics.orders.new", '{"windows": "1m"}', "windows"),
    ],
)
async def test_a_wrong_value_is_a_400_that_names_the_field(asker: Asker, endpoint: str, given: str, field: str) -> None:
    code, text = await asker.error(f"{P}.{endpoint}", given.encode())
    assert code == "400" and field in text


async def test_null_means_default(asker: Asker) -> None:
    await asker.answer(f"{P}.decide.gateway.orders.new", b'{"attempt": null, "priority": null}')
    assert asker.decisions.asked == [("gateway", "orders.new", GatewayRequest())]


async def test_the_tail_is_checked_before_the_payload_and_the_payload_before_the_subject(asker: Asker) -> None:
    assert "canonical" in (await asker.error(f"{P}.decide.gateway.a=2Eb", b"nonsense"))[1]
    assert (await asker.error(f"{P}.decide.gateway.nobody", b"nonsense"))[0] == "400"
    assert (await asker.error(f"{P}.decide.gateway.a=2Eb", b" " * (LARGEST_REQUEST + 1)))[1].startswith("a request of")
    assert (await asker.error(f"{P}.decide.gateway.nobody"))[0] == "404"


async def test_an_exception_is_a_500_without_details(asker: Asker) -> None:
    with capture_logs() as logs:
        code, text = await asker.error(f"{P}.decide.gateway.orders.broken")
    assert code == "500" and "secret" not in text and "RuntimeError" not in text
    assert asker.counts.what == {"request_failed": 1}
    assert [(line["event"], line["error"]) for line in logs] == [("request.failed", "RuntimeError")]
    assert await asker.lives()


async def test_a_reply_after_the_connection_is_gone_is_no_failed_request(asker: Asker) -> None:
    message = Msg(asker.ours, f"{P}.get.status.orders.new", "_INBOX.a")
    endpoint = next(each for each in ENDPOINTS if each.name == "status")
    await asker.ours.close()
    with capture_logs() as logs:
        await asker.responder._handler(endpoint)(Request(message))
    assert asker.counts.what == {}
    assert [(line["event"], line["error"]) for line in logs] == [("responder.unanswered", "ConnectionClosedError")]


EVIL = [STOLEN, "$KV.backpressure_state.orders", f"{P}.event.recovery.orders", "orders.new"]


@pytest.mark.parametrize("reply", EVIL)
@pytest.mark.parametrize(
    "asked",
    [f"{P}.{e}.orders.new" for e in TAILED]
    + [f"{P}.get.status", f"{P}.validate.policy", f"{P}.decide.gateway.=bad", ALIAS]
    + ["$SRV.PING", "$SRV.INFO.backpressure", "$SRV.STATS"],
)
async def test_only_requests_with_an_inbox_are_answered(asker: Asker, asked: str, reply: str) -> None:
    js = asker.nc.jetstream()
    await js.add_stream(name="VICTIM", subjects=["victim.>"])
    replies = await asker.nc.subscribe(reply if reply != STOLEN else "$JS.EVENT.ADVISORY.STREAM.DELETED.>")
    await asker.nc.publish(asked, b'{"subject": "orders.new"}', reply=reply)
    assert await asker.lives()
    await settled(asker.nc)
    assert replies.pending_msgs == 0
    assert (await js.stream_info("VICTIM")).config.name == "VICTIM"
    assert asker.counts.what == {"reply_subject": 1}


async def test_without_a_reply_subject_nothing_happens(asker: Asker) -> None:
    for subject in (f"{P}.decide.gateway.orders.new", ALIAS, "$SRV.PING"):
        await asker.nc.publish(subject, b"")
    assert await asker.lives()
    assert asker.counts.what == {"reply_subject": 3}
    assert len(asker.decisions.asked) == 1


async def test_reply_prefixes_of_the_settings_are_answered_too(server: NatsServer, nc: Client) -> None:
    asker = await serving(server, nc, reply_prefixes=["replies.gateway"])
    replies = await nc.subscribe("replies.>")
    await settled(nc)
    for reply in ("replies.gateways.1", "replies.gateway.1"):
        await nc.publish(f"{P}.get.status.orders.new", b"", reply=reply)
    assert (await replies.next_msg(timeout=5)).subject == "replies.gateway.1"
    await asker.ours.close()


async def test_any_tool_can_discover_the_service(asker: Asker) -> None:
    for subject in ("$SRV.PING", "$SRV.PING.backpressure", "$SRV.INFO", "$SRV.STATS.backpressure"):
        reply = json.loads((await asker.ask(subject)).data)
        assert (reply["name"], reply["version"]) == ("backpressure", __version__)
    info = json.loads((await asker.ask("$SRV.INFO")).data)
    assert {(e["name"], e["subject"], e["queue_group"]) for e in info["endpoints"]} == {
        ("decide-gateway", f"{P}.decide.gateway.>", "q"),
        ("decide-consumer", f"{P}.decide.consumer.>", "q"),
        ("status", f"{P}.get.status.>", "q"),
        ("status-list", f"{P}.get.status", "q"),
        ("policy", f"{P}.get.policy.>", "q"),
        ("validate-policy", f"{P}.validate.policy", "q"),
        ("forget", f"{P}.forget.>", "q"),
        *((e.removeprefix("get."), f"{P}.{e}.>", "q") for e in PAST),
        ("alerts-list", f"{P}.get.alerts", "q"),
    }


async def test_errors_are_in_the_stats_without_details(asker: Asker) -> None:
    await asker.error(f"{P}.decide.gateway.nobody")
    await asker.error(f"{P}.decide.gateway.orders.broken")
    reply = json.loads((await asker.ask("$SRV.STATS")).data)
    (decide,) = [e for e in reply["endpoints"] if e["name"] == "decide-gateway"]
    assert (decide["num_requests"], decide["num_errors"]) == (2, 2)
    assert "secret" not in json.dumps(reply)


async def test_the_routers_own_query_is_answered(asker: Asker) -> None:
    reply = await asker.answer(ALIAS, b'{"subject": "orders.new", "x": 1}')
    assert reply == {"success": True, "data": {"subject": "orders.new", "status": "unknown"}}


BAD_QUERIES = {
    "nothing": b"",
    "no subject": b"{}",
    "an empty subject": b'{"subject": ""}',
    "a number": b'{"subject": 1}',
    "null": b'{"subject": null}',
    "a long one": b'{"subject": "' + b"x" * 1025 + b'"}',
    "no JSON": b"{",
    "not UTF-8": b"\xff",
    "too large": b" " * 200_000,
}


@pytest.mark.parametrize("payload", BAD_QUERIES.values(), ids=BAD_QUERIES.keys())
async def test_a_malformed_query_of_the_router_is_refused_in_its_format(asker: Asker, payload: bytes) -> None:
    reply = await asker.answer(ALIAS, payload)
    assert reply["success"] is False and reply["error"]["code"] == "invalid_request" and reply["error"]["message"]


async def test_an_exception_under_the_alias_has_no_details(asker: Asker) -> None:
    with capture_logs():
        reply = await asker.answer(ALIAS, b'{"subject": "orders.broken"}')
    assert reply["error"]["code"] == "internal_error" and "secret" not in reply["error"]["message"]


async def test_an_alias_that_a_stream_captures_is_dropped_and_subscribed_again(server: NatsServer, nc: Client) -> None:
    captors: list[str] = ["ROUTER"]
    asker = await serving(server, nc, alias=ALIAS, captured=lambda subject: captors)
    with pytest.raises(nats.errors.NoRespondersError):
        await asker.ask(ALIAS, b'{"subject": "a"}')
    captors.clear()
    await asyncio.gather(asker.responder.check_alias(), asker.responder.check_alias())
    await settled(asker.ours)
    assert (await asker.answer(ALIAS, b'{"subject": "a"}'))["success"]
    captors.append("ROUTER")
    await asker.responder.check_alias()
    await settled(asker.ours)
    with pytest.raises(nats.errors.NoRespondersError):
        await asker.ask(ALIAS, b'{"subject": "a"}')
    await asker.ours.close()
    await asker.responder.check_alias()


async def test_one_replica_answers_and_a_new_client_serves_again(server: NatsServer, nc: Client) -> None:
    one, two = [await serving(server, nc, alias=ALIAS) for _ in range(2)]
    for _ in range(20):
        await one.ask(f"{P}.decide.gateway.orders.new")
    assert len(one.decisions.asked) + len(two.decisions.asked) == 20
    await two.ours.close()
    await one.ours.close()
    again = await nats.connect(server.url)
    await one.responder.serve(again)
    assert await one.lives() and (await one.answer(ALIAS, b'{"subject": "a"}'))["success"]
    await again.close()


async def test_a_list_is_cut_at_the_last_whole_status_and_has_the_next_offset(start_server: StartServer) -> None:
    server = await start_server("max_payload: 20KB")
    nc = await nats.connect(server.url)
    asker = await serving(server, nc)
    asker.decisions.listed, asker.decisions.consumers = 100, 1
    seen, offset = [], 0
    while offset is not None:
        reply = await asker.ask(f"{P}.get.status", json.dumps({"offset": offset, "limit": 1000}).encode())
        assert len(reply.data) <= 16 * 1024
        document = json.loads(reply.data)
        seen += [s["subject"] for s in document["subjects"]]
        offset = document["next_offset"]
    assert seen == [f"s.{n:05}" for n in range(100)]
    await nc.close()
    await asker.ours.close()


async def test_no_reply_is_larger_than_max_payload(start_server: StartServer) -> None:
    server = await start_server("max_payload: 20KB")
    nc = await nats.connect(server.url)
    asker = await serving(server, nc)
    asker.decisions.consumers = 1000
    reply = await asker.answer(f"{P}.get.status.orders.new")
    assert 0 < len(reply["consumers"]) < 1000 == reply["consumers_total"]
    reply = await asker.answer(f"{P}.get.policy.orders.new")
    assert reply["truncated"] and 0 < len(reply["consumers"]) < 1000
    reply = await asker.answer(f"{P}.get.status")
    assert len(reply["subjects"]) == 1 and reply["next_offset"] == 1
    assert await asker.lives()
    await nc.close()
    await asker.ours.close()


async def test_a_flood_is_bounded_and_other_requests_are_answered(server: NatsServer, nc: Client) -> None:
    dropped = Counter[str]()

    async def on_error(error: Exception) -> None:
        dropped[type(error).__name__] += 1

    decisions, counts = StubDecisions(), Counts()
    ours = await nats.connect(server.url, error_cb=on_error)
    stream = SlowLog()
    responder = ServiceEndpoints(
        answers(decisions, past_of(stream), counts, FakeServiceView()),
        decisions.alias,
        Clock(),
        Names(),
        counts.dropped,
    )
    await responder.serve(ours)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.ensure_future(turn())
    flood = 5 * WAITING
    inbox = nc.new_inbox()
    for _ in range(flood):
        await nc.publish(f"{P}.decide.gateway.orders.new", b"", reply=inbox)
    await settled(nc)
    await settled(ours)
    asker = Asker(nc, ours, responder, decisions, counts, stream)
    assert await asker.lives()
    answered, lost = len(decisions.asked) - 1, dropped["SlowConsumerError"]
    assert answered + lost == flood and answered >= WAITING
    assert turns > answered / AT_ONCE
    turning.cancel()
    await ours.close()


async def test_requests_that_have_arrived_are_answered_before_it_stops(asker: Asker) -> None:
    inbox = asker.nc.new_inbox()
    answers = await asker.nc.subscribe(inbox)
    for _ in range(500):
        await asker.nc.publish(f"{P}.decide.gateway.orders.new", b"", reply=inbox)
    await settled(asker.nc)
    await asker.responder.stop(5.0)
    await settled(asker.nc)
    assert answers.pending_msgs == 500
    with pytest.raises(nats.errors.NoRespondersError):
        await asker.ask(f"{P}.decide.gateway.orders.new")
    await asker.responder.serve(asker.ours)
    with pytest.raises(nats.errors.NoRespondersError):
        await asker.ask(f"{P}.decide.gateway.orders.new")


async def test_stop_returns_in_time_when_the_server_does_not_answer(asker: Asker, server: NatsServer) -> None:
    server.pause()
    began = asyncio.get_running_loop().time()
    await asker.responder.stop(0.3)
    assert asyncio.get_running_loop().time() - began < 5
    server.resume()


async def test_stop_without_a_connection_returns(asker: Asker) -> None:
    await asker.ours.close()
    await asker.responder.stop(1.0)


EVENTS = f"{P}.get.events.{SUBJECT}"
OLDER = b'{"since": "2025-12-31T00:00:00Z", "limit": 1000}'


async def test_queries_of_history_are_answered(asker: Asker) -> None:
    reply = await asker.answer(EVENTS, OLDER)
    assert [e["seq"] for e in reply["events"]] == list(range(900, 0, -1))
    assert (reply["truncated"], reply["matched"]) == (False, [SUBJECT])
    reply = await asker.answer(f"{P}.get.history.{SUBJECT}", b'{"limit": 1}')
    assert reply["transitions"] == [
        {"from": "inactive", "to": "active", "at": "2026-01-01T00:00:00.000Z", "reasons": ["pending"], "held_ms": None}
    ]
    assert (await asker.answer(f"{P}.get.recovery.{SUBJECT}"))["recovered"] is False
    assert (await asker.answer(f"{P}.get.alerts.{SUBJECT}"))["alerts"] == []
    assert (await asker.answer(f"{P}.get.alerts"))["alerts"] == []
    assert (await asker.answer(f"{P}.get.metrics.{SUBJECT}", b'{"windows": ["2h"]}'))["windows"].keys() == {"2h"}


@pytest.mark.parametrize("endpoint", PAST)
async def test_an_unwatched_subject_has_no_history(asker: Asker, endpoint: str) -> None:
    assert (await asker.error(f"{P}.{endpoint}.nobody"))[0] == "404"


async def test_queries_that_read_the_stream_are_bounded_and_delay_no_other(asker: Asker) -> None:
    asker.stream.let.clear()
    waiting = [asyncio.ensure_future(asker.answer(EVENTS, OLDER)) for _ in range(CONCURRENT_READS)]
    for _ in waiting:
        await asker.stream.arrived.acquire()
    assert (await asker.error(EVENTS, OLDER))[0] == "429"
    assert (await asker.error(f"{P}.get.history.{SUBJECT}"))[0] == "429"
    recent = await asker.answer(EVENTS, b'{"since": "2026-01-01T00:00:00Z"}')
    assert [e["seq"] for e in recent["events"]] == [900]
    assert await asker.lives()
    asker.stream.let.set()
    assert {len(result["events"]) for result in await asyncio.gather(*waiting)} == {900}
    assert len((await asker.answer(EVENTS, OLDER))["events"]) == 900


async def test_a_query_that_reads_the_stream_is_answered_before_it_stops(asker: Asker) -> None:
    asker.stream.let.clear()
    waiting = asyncio.ensure_future(asker.answer(EVENTS, OLDER))
    await asker.stream.arrived.acquire()
    stopping = asyncio.ensure_future(asker.responder.stop(5.0))
    assert not (await asyncio.wait({stopping}, timeout=0.3))[0]
    asker.stream.let.set()
    await stopping
    assert len((await waiting)["events"]) == 900


async def test_a_client_that_disconnects_during_a_query_does_no_harm(asker: Asker) -> None:
    asker.stream.let.clear()
    inbox = asker.nc.new_inbox()
    await asker.nc.publish(EVENTS, OLDER, reply=inbox)
    await asker.stream.arrived.acquire()
    await asker.ours.close()
    asker.stream.let.set()
    await asker.responder.stop(1.0)


async def test_events_are_cut_below_max_payload(start_server: StartServer) -> None:
    server = await start_server("max_payload: 16KB")
    nc = await nats.connect(server.url)
    asker = await serving(server, nc)
    reply = await asker.answer(EVENTS, OLDER)
    assert reply["truncated"] is True and 5 < len(reply["events"]) < 900
    assert [e["seq"] for e in reply["events"]] == list(range(900, 900 - len(reply["events"]), -1))
    assert await asker.lives()
    await nc.close()
    await asker.ours.close()
