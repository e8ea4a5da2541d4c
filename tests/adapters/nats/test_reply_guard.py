"""The guard remembers requesters, and decides as the rule it remembers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.adapters.nats import reply_guard
from nats_backpressure.adapters.nats.reply_guard import LONGEST, ReplyGuard
from nats_backpressure.protocol.reply_limits import reply_allowed
from tests.protocol.test_reply_limits import ELSEWHERE, INBOXES, PREFIXES

TOKENS = ["_INBOX", "_INBOX_a", "_R_", "_GR_", "a", "b", "1", "x-y", "*", ">", "", "\0", "replies", "gateway", "ü"]
SUBJECTS = st.one_of(
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=6).map(".".join),
    st.sampled_from([*INBOXES.values(), *ELSEWHERE.values()]),
)


@given(st.lists(SUBJECTS, max_size=30), st.lists(st.sampled_from([*PREFIXES, "a", "a.b", "_INBOX"]), max_size=3))
def test_what_is_remembered_changes_no_decision(replies: list[str], prefixes: list[str]) -> None:
    guard = ReplyGuard(prefixes)
    for reply in [*replies, *replies]:
        allowed = reply_allowed(reply, prefixes)
        assert guard.allows(reply) is allowed
        assert guard.requester(reply.encode()) == (reply.rpartition(".")[0] if allowed else None)


@pytest.mark.parametrize("reply", [b"_INBOX.\xff", b"_INBOX.\xed\xa0\x80.a", b"\xff._INBOX.a"])
def test_bytes_that_are_not_text_are_no_inbox(reply: bytes) -> None:
    assert ReplyGuard().requester(reply) is None
    assert not ReplyGuard().allows("_INBOX.\ud800")


def test_the_oldest_requesters_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_guard, "REQUESTERS", 3)
    guard = ReplyGuard()
    for n in range(9):
        guard.requester(f"_INBOX.c{n}.1".encode())
    assert list(guard._requesters) == [b"_INBOX.c6", b"_INBOX.c7", b"_INBOX.c8"]


def test_a_long_prefix_is_not_remembered() -> None:
    guard = ReplyGuard()
    assert guard.allows("_INBOX." + "x" * LONGEST + ".1")
    assert not guard._requesters
