"""Which requests are valid, and the error for one that cannot be read."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.protocol.requests import (
    AliasRequest,
    BadRequest,
    ConsumerRequest,
    EventsRequest,
    GatewayRequest,
    HistoryRequest,
    ListRequest,
    NoRequest,
    parse,
)
from nats_backpressure.protocol.values import EventType

KINDS = (GatewayRequest, ConsumerRequest, ListRequest, AliasRequest, EventsRequest, HistoryRequest, NoRequest)
MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param(b"", GatewayRequest(), id="nothing"),
        pytest.param(b"{}", GatewayRequest(), id="an empty object"),
        pytest.param(b'{"attempt": null, "priority": null}', GatewayRequest(), id="null means default"),
        pytest.param(b' {"attempt": 1000}\n', GatewayRequest(attempt=1000), id="the last attempt there is"),
        pytest.param(
            b'{"priority": "critical", "later": [1]}', GatewayRequest(priority="critical"), id="unknown fields"
        ),
        pytest.param(b'{"attempt": 2.0}', GatewayRequest(attempt=2), id="a whole float"),
        pytest.param(b'{"max_messages": 10000}', ConsumerRequest(10_000), id="the most messages"),
        pytest.param(b'{"stream": "S", "consumer": null}', ConsumerRequest(stream="S"), id="a stream"),
        pytest.param(b'{"offset": 5, "limit": 1000}', ListRequest(5, 1000), id="a page"),
        pytest.param(b'{"anything": 1}', NoRequest(), id="nothing to ask"),
        pytest.param(b'{"type": null, "since": null}', EventsRequest(), id="the events of a day"),
        pytest.param(b'{"type": "recovery", "limit": 1}', EventsRequest(EventType.RECOVERY, limit=1), id="one type"),
        pytest.param(b'{"since": "2026-01-01T00:00:00.000Z"}', EventsRequest(since=MIDNIGHT), id="since"),
        pytest.param(b'{"until": "2026-01-01T02:00:00+02:00"}', EventsRequest(until=MIDNIGHT), id="another zone"),
        pytest.param(b'{"limit": 1000}', HistoryRequest(1000), id="the most transitions"),
    ],
)
def test_a_request_is_read(payload: bytes, expected: object) -> None:
    assert parse(payload, type(expected)) == expected  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("kind", "payload", "says"),
    [
        pytest.param(GatewayRequest, b"{", "not JSON", id="malformed"),
        pytest.param(GatewayRequest, b"\xff\xfe{}", "not JSON", id="not UTF-8"),
        pytest.param(GatewayRequest, b'{"x": "\xff"}', "not JSON", id="not UTF-8 within"),
        pytest.param(GatewayRequest, b"[" * 60_000, "not JSON", id="too deep"),
        pytest.param(GatewayRequest, b"[1]", "must be an object, not list", id="a list"),
        pytest.param(GatewayRequest, b"null", "must be an object", id="null itself"),
        pytest.param(GatewayRequest, b'"x"', "must be an object, not str", id="a text"),
        pytest.param(GatewayRequest, b'{"attempt": 0}', "$.attempt", id="attempt 0"),
        pytest.param(GatewayRequest, b'{"attempt": 1001}', "$.attempt", id="attempt 1001"),
        pytest.param(GatewayRequest, b'{"attempt": true}', "$.attempt", id="a boolean"),
        pytest.param(GatewayRequest, b'{"attempt": 1.5}', "$.attempt", id="a fraction"),
        pytest.param(GatewayRequest, b'{"attempt": 1e300}', "$.attempt", id="a huge whole float"),
        pytest.param(ConsumerRequest, b'{"stream": 2.0}', "$.stream", id="a whole float for a name"),
        pytest.param(GatewayRequest, b'{"attempt": 1e400}', "not JSON", id="no finite number"),
        pytest.param(GatewayRequest, b'{"attempt": NaN}', "not JSON", id="no number"),
        pytest.param(GatewayRequest, b'{"attempt": "2"}', "$.attempt", id="a number as text"),
        pytest.param(GatewayRequest, b'{"attempt": 99999999999999999999999}', "$.attempt", id="a huge number"),
        pytest.param(GatewayRequest, b'{"priority": "vip"}', "$.priority", id="an unknown priority"),
        pytest.param(ConsumerRequest, b'{"max_messages": 0}', "$.max_messages", id="no messages"),
        pytest.param(ConsumerRequest, b'{"max_messages": 10001}', "$.max_messages", id="too many messages"),
        pytest.param(ConsumerRequest, b'{"stream": 1}', "$.stream", id="a stream that is no name"),
        pytest.param(ListRequest, b'{"offset": -1}', "$.offset", id="before the first"),
        pytest.param(ListRequest, b'{"limit": 0}', "$.limit", id="a page of none"),
        pytest.param(EventsRequest, b'{"type": "storm"}', "$.type", id="no type of ours"),
        pytest.param(EventsRequest, b'{"since": "yesterday"}', "$.since", id="no moment"),
        pytest.param(EventsRequest, b'{"since": "2026-01-01T00:00:00"}', "$.since", id="a moment nowhere"),
        pytest.param(EventsRequest, b'{"until": 1767225600}', "$.until", id="a number for a moment"),
        pytest.param(EventsRequest, b'{"limit": 0}', "$.limit", id="no events"),
        pytest.param(HistoryRequest, b'{"limit": 1001}', "$.limit", id="too many transitions"),
        pytest.param(AliasRequest, b"", "subject", id="the alias without a subject"),
        pytest.param(AliasRequest, b'{"subject": ""}', "$.subject", id="an empty subject"),
    ],
)
def test_a_bad_request_is_answered_with_what_and_where(kind: type, payload: bytes, says: str) -> None:
    with pytest.raises(BadRequest) as bad:
        parse(payload, kind)
    assert says in str(bad.value)
    assert "Traceback" not in str(bad.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(
    [
        "attempt",
        "priority",
        "max_messages",
        "stream",
        "consumer",
        "offset",
        "limit",
        "subject",
        "type",
        "since",
        "until",
    ]
)


@given(st.sampled_from(KINDS), st.binary(max_size=50) | st.dictionaries(fields, values).map(json.dumps).map(str.encode))
def test_whatever_comes_in_is_read_or_refused(kind: type, payload: bytes) -> None:
    try:
        parsed = parse(payload, kind)
    except BadRequest:
        return
    assert isinstance(parsed, kind)


@pytest.mark.parametrize("field", ["unused", "held", "lost", "ahead"])
def test_no_number_of_a_question_is_too_large_to_count_with(field: str) -> None:
    with pytest.raises(BadRequest):
        parse(b'{"%b": 1%b}' % (field.encode(), b"0" * 400), ConsumerRequest)
