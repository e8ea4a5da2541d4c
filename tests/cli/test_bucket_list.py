"""What `policy ls`, `override ls` and the difference of `policy set` print."""

from __future__ import annotations

import pytest

from nats_backpressure.cli.bucket_list import changes, listed, override_row, policy_row
from nats_backpressure.policy.active import PolicyValue
from nats_backpressure.protocol.messages import Status
from nats_backpressure.protocol.timestamps import format_rfc3339

AT = 1_900_000_000.0
"""The time at the server; that of this machine is another."""
SOON, LONG_AGO = format_rfc3339(AT + 600), format_rfc3339(AT - 600)
BUCKET = {
    "orders.paid": PolicyValue(b'{"mode":"observe","pending":{"overload":500}}', 7, AT),
    "orders.=2A": PolicyValue(b'{"retry_after_seconds":5}', 3, AT),
    "bad": PolicyValue(b"[", 4, AT),
    "=override.orders.=3E": PolicyValue(b'{"action":"open","until":"%s"}' % SOON.encode(), 9, AT),
    "=override.orders.paid": PolicyValue(b'{"action":"reject","until":"%s"}' % LONG_AGO.encode(), 8, AT),
}
STATUSES = (Status("orders.paid", "active"), Status("orders.created", "inactive"), Status("x", "inactive"))


def test_each_policy_shows_what_it_sets_and_governs() -> None:
    rows = [policy_row(each, 3) for each in listed(BUCKET, STATUSES, None, overrides=False)]
    moment = format_rfc3339(AT)
    assert rows == [
        ("bad", "cannot be read", moment, "4", "0 of 3"),
        ("orders.*", "retry_after_seconds 5", moment, "3", "1 of 3"),
        ("orders.paid", "mode observe; pending.overload 500", moment, "7", "1 of 3"),
    ]
    assert [each.pattern for each in listed(BUCKET, STATUSES, "orders.created", overrides=False)] == ["orders.*"]
    assert [each.governs for each in listed(BUCKET, None, "x", overrides=False)] == []


def test_each_override_shows_its_end_and_whether_it_is_in_force() -> None:
    rows = [override_row(each, 3) for each in listed(BUCKET, STATUSES, None, overrides=True, now=AT)]
    assert [(row[0], row[1], row[2], row[3], row[5]) for row in rows] == [
        ("orders.>", "open", SOON, "in force", "2 of 3"),
        ("orders.paid", "reject", LONG_AGO, "ended", "1 of 3"),
    ]
    unknown = list(listed(BUCKET, None, "orders.paid", overrides=True, now=AT))
    assert [override_row(each, 0)[5] for each in unknown] == ["?", "?"]


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (b'{"mode":"observe"}', b'{"mode":"observe"}', []),
        (b'{"mode":"observe"}', b'{"mode":"enforce"}', ["mode: observe -> enforce"]),
        (
            b'{"pending":{"warn":5}}',
            b'{"consumers":["a","b"],"pending":{"overload":9}}',
            ["pending.warn: 5 -> (inherited)", "consumers: (inherited) -> a, b", "pending.overload: (inherited) -> 9"],
        ),
        (None, b'{"mode":"observe"}', ["mode observe"]),
        (b"[", b'{"mode":"observe"}', ["mode: (inherited) -> observe"]),
    ],
    ids=["the same", "a field", "fields come and go", "new", "over something unreadable"],
)
def test_a_change_is_shown_field_by_field(before: bytes | None, after: bytes, lines: list[str]) -> None:
    assert changes(before, after) == lines
