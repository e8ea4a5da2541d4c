"""To which subjects a reply may be sent, and how one that is too large is cut."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from nats_backpressure.protocol.messages import Problem
from nats_backpressure.protocol.policies import ConsumerPolicy, EffectivePolicy, PolicyValidation
from nats_backpressure.protocol.reply_limits import LARGEST_REPLY, MARGIN, fitted, reply_allowed

INBOXES = {
    "an inbox": "_INBOX.abc.1",
    "a private inbox": "_INBOX_alice.abc",
    "a service import": "_R_.abc.def",
    "an inbox behind a gateway": "_GR_.cluster.server._INBOX.abc",
    "a service import behind a gateway": "_GR_.c.s._R_.abc",
    "a prefix of the settings": "replies.gateway.1",
    "a prefix with a dot": "other.1",
    "a prefix behind a gateway": "_GR_.c.s.replies.gateway.1",
}
ELSEWHERE = {
    "nowhere": "",
    "JetStream's API": "$JS.API.STREAM.DELETE.X",
    "behind a gateway": "_GR_.c.s.$JS.API.STREAM.DELETE.X",
    "behind two gateways": "_GR_.c.s._GR_.c.s._INBOX.x",
    "a gateway alone": "_GR_.c.s",
    "a gateway cut short": "_GR_._INBOX.x",
    "a gateway's tokens missing": "_GR_..s._INBOX.x",
    "a gateway's token a wildcard": "_GR_.*.s._INBOX.x",
    "an ack": "$JS.ACK.S.C.1.1.1.1.0",
    "a bucket": "$KV.backpressure_state.x",
    "an event of ours": "backpressure.v1.event.recovery.x",
    "a user's subject": "orders.new",
    "the word alone": "_INBOX",
    "a longer word": "_INBOXES.x",
    "another case": "_inbox.x",
    "inside": "a._INBOX.x",
    "a wildcard": "_INBOX.*",
    "all": "_INBOX.>",
    "a token missing": "_INBOX..x",
    "a dot behind": "_INBOX.x.",
    "a space": "_INBOX.a b",
    "a line's end": "_INBOX.a\r\nPUB $JS.API.STREAM.DELETE.X 0",
    "a null byte": "_INBOX.\0",
    "part of a prefix's token": "replies.gateways.1",
    "part of a prefix": "replies.1",
    "an empty prefix must not mean all": "x.y",
}
PREFIXES = ["replies.gateway", "other.", ""]


@pytest.mark.parametrize("reply", INBOXES.values(), ids=INBOXES.keys())
def test_an_inbox_is_answered(reply: str) -> None:
    assert reply_allowed(reply, PREFIXES)


@pytest.mark.parametrize("reply", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_nothing_else_is(reply: str) -> None:
    assert not reply_allowed(reply, PREFIXES)


@given(st.text(alphabet="_INBOXRG.*> $JS\n", max_size=30))
def test_whatever_is_allowed_begins_like_an_inbox_and_is_a_plain_subject(reply: str) -> None:
    if reply_allowed(reply):
        tokens = reply.split(".")
        first = tokens[3] if tokens[0] == "_GR_" else tokens[0]
        assert first in ("_INBOX", "_R_") or first.startswith("_INBOX_")
        assert not {"", "*", ">"} & set(tokens) and "\n" not in reply and " " not in reply


class Item(Struct):
    subject: str
    consumers: tuple[str, ...] = ()


class Page(Struct):
    total: int
    offset: int
    next_offset: int | None
    subjects: tuple[Item, ...]


@given(
    st.lists(st.integers(0, 9000), max_size=30),
    st.integers(0, 5),
    st.integers(MARGIN + 200, 60_000),
)
def test_a_page_holds_all_that_fit_and_says_where_to_go_on(sizes: list[int], offset: int, max_payload: int) -> None:
    items = tuple(Item("x" * size) for size in sizes)
    page = Page(offset + len(items), offset, None, items)
    body = fitted(page, max_payload)
    limit = max(max_payload - MARGIN, max_payload // 2)
    assert body is not None and len(body) <= limit
    document = msgspec.json.decode(body, type=Page)
    kept = len(document.subjects)
    assert document.subjects == items[:kept]
    if kept == len(items):
        assert document.next_offset is None
    else:
        assert len(msgspec.json.encode(items[: kept + 1])) > limit - 300, "the next one would not have fitted"
        on = offset + max(1, kept)
        assert document.next_offset == (on if on < page.total else None)


@pytest.mark.parametrize(
    "page",
    [
        EffectivePolicy("s", (), {}, {}, (ConsumerPolicy("S", "c" * 100, {}, {}),) * 100),
        PolicyValidation(False, (Problem("p", "m" * 100),) * 100, None),
    ],
)
def test_an_answer_with_a_long_list_is_shortened_and_says_so(page: Struct) -> None:
    body = fitted(page, 8192)
    assert body is not None and len(body) <= 4096
    assert json.loads(body)["truncated"] is True
    assert fitted(page, LARGEST_REPLY) == msgspec.json.encode(page)


class Cut(Struct):
    events: tuple[Item, ...]
    truncated: bool = False


@given(st.lists(st.integers(0, 9000), max_size=30), st.integers(MARGIN + 200, 60_000))
def test_a_list_that_says_so_is_cut_at_the_last_whole_element(sizes: list[int], max_payload: int) -> None:
    items = tuple(Item("x" * size) for size in sizes)
    body = fitted(Cut(items), max_payload)
    limit = max(max_payload - MARGIN, max_payload // 2)
    assert body is not None and len(body) <= limit
    document = msgspec.json.decode(body, type=Cut)
    kept = len(document.events)
    assert document.events == items[:kept] and document.truncated == (kept < len(items))
    if kept < len(items):
        assert len(msgspec.json.encode(Cut(items[: kept + 1], True))) > limit - 2, "the next one would have fitted"


def test_what_was_cut_before_stays_so() -> None:
    assert json.loads(fitted(Cut((Item("s"),), truncated=True), 8192) or b"")["truncated"] is True


def test_a_status_is_shown_with_fewer_consumers() -> None:
    body = fitted(Item("s", ("c" * 100,) * 100), 8192)
    assert body is not None and 0 < len(json.loads(body)["consumers"]) < 100


def test_what_cannot_be_shortened_is_nothing() -> None:
    assert fitted({"subject": "x" * 10_000}, 8192) is None
    assert fitted(Item("x" * 10_000, ("c",)), 8192) is None


def test_no_reply_is_larger_than_a_megabyte_whatever_the_server_takes() -> None:
    page = Page(2000, 0, None, tuple(Item("x" * 1000) for _ in range(2000)))
    body = fitted(page, 64 * 1024 * 1024)
    assert body is not None and LARGEST_REPLY - 3 * MARGIN < len(body) <= LARGEST_REPLY - MARGIN
