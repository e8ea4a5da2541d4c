"""What `policy ls`, `override ls` and the difference of `policy set` print."""

from __future__ import annotations

import pytest
import yaml
from msgspec.structs import replace

from nats_backpressure.cli.bucket_list import changes, listed, override_row, policy_row, with_policy
from nats_backpressure.policy.snapshot import PolicyValue
from nats_backpressure.protocol.messages import Override, Status
from nats_backpressure.protocol.policies import ConsumerPolicy, EffectivePolicy
from nats_backpressure.protocol.timestamps import format_rfc3339
from nats_backpressure.protocol.values import PolicySource

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
OPEN = Override("open", SOON)
STATUSES = (
    Status("orders.paid", "active", override=OPEN),
    Status("orders.created", "inactive", override=OPEN),
    Status("x", "inactive"),
)


def test_each_policy_shows_what_it_sets_and_governs() -> None:
    rows = [policy_row(each, 3) for each in listed(BUCKET, STATUSES, None, overrides=False)]
    moment = format_rfc3339(AT)
    assert rows == [
        ("bad", "refused", moment, "4", "?"),
        ("orders.*", "retry_after_seconds 5", moment, "3", "1 of 3"),
        ("orders.paid", "mode observe; pending.overload 500", moment, "7", "1 of 3"),
    ]
    assert [each.pattern for each in listed(BUCKET, STATUSES, "orders.created", overrides=False)] == ["orders.*"]
    assert [each.governs for each in listed(BUCKET, None, "x", overrides=False)] == []


@pytest.mark.parametrize("overrides", [False, True])
def test_what_is_refused_says_nothing_of_what_it_governs(overrides: bool) -> None:
    """A sidecar that has read a good one before keeps it in force."""
    values = {("=override." if overrides else "") + "orders.paid": PolicyValue(b"{", 4, AT)}
    (entry,) = listed(values, STATUSES, None, overrides=overrides, now=AT)
    assert (entry.state, entry.governs, entry.problems) == ("refused", None, ("is not JSON",))


ALERTS = (
    b'{"alerts":[{"name":"lq","when":{"pending_above":50},"for_seconds":1},{"name":"1","when":{"status":"active"}}]}'
)


@pytest.mark.parametrize("before", [None, b"{}"])
def test_alerts_are_printed_as_a_settings_file_has_them(before: bytes | None) -> None:
    (line,) = changes(before, ALERTS)
    assert yaml.safe_load(line.partition("[")[1] + line.partition("[")[2]) == [
        {"name": "lq", "when": {"pending_above": 50}, "for_seconds": 1, "severity": "warning"},
        {"name": "1", "when": {"status": "active"}, "severity": "warning"},
    ]
    assert "None" not in line and "'when'" not in line and ".0" not in line


@pytest.mark.parametrize(
    ("key", "value", "pattern", "state", "problem"),
    [
        ("orders.paid", b'{"pendnig":{"overload":5}}', "orders.paid", "refused", "pendnig: unknown key"),
        ("orders.paid", b'{"mode":"obsrve"}', "orders.paid", "stored", "counts as observe"),
        ("orders.paid", b'{"mode":"observe","new":1}', "orders.paid", "stored", "new: unknown key"),
        ("orders.paid", b'{"pending":{"warn":-1}}', "orders.paid", "refused", "pending.warn: must be"),
        ("orders.paid", b"7", "orders.paid", "refused", "must be"),
        ("orders.=2a", b'{"mode":"observe"}', "orders.=2a", "refused", "`=2a` at byte 7"),
    ],
)
def test_a_policy_that_is_refused_or_in_force_in_part_shows_why(
    key: str, value: bytes, pattern: str, state: str, problem: str
) -> None:
    bucket = {key: PolicyValue(value, 7, AT), "orders.=2A": BUCKET["orders.=2A"]}
    wider, entry = sorted(listed(bucket, STATUSES, None, overrides=False), key=lambda each: each.revision)
    assert (entry.pattern, entry.state) == (pattern, state) and problem in " ".join(entry.problems)
    assert (entry.governs is None, policy_row(entry, 3)[1] == "refused") == ((state == "refused",) * 2)
    assert wider.governs == (("orders.paid", "orders.created") if state == "refused" else ("orders.created",))


def test_a_refused_policy_says_what_is_in_force_in_its_place() -> None:
    (entry,) = listed({"orders.paid": PolicyValue(b'{"pendnig":1}', 7, AT)}, STATUSES, None, overrides=False)
    shown = EffectivePolicy("orders.paid", ("orders.paid",), {}, {"mode": "file", "pending.warn": "default"})
    assert with_policy(entry, shown).instead == "orders.paid: the settings file, the default"
    assert with_policy(entry, shown).state == "refused"


def test_each_override_shows_its_end_and_whether_it_is_in_force() -> None:
    rows = [override_row(each, 3) for each in listed(BUCKET, STATUSES, None, overrides=True, now=AT)]
    assert [(row[0], row[1], row[2], row[3], row[5]) for row in rows] == [
        ("orders.>", "open", SOON, "in force", "2 of 3"),
        ("orders.paid", "reject", LONG_AGO, "ended", "0 of 3"),
    ]
    unknown = list(listed(BUCKET, None, "orders.paid", overrides=True, now=AT))
    assert [override_row(each, 0)[3::2] for each in unknown] == [("stored", "?"), ("ended", "?")]


@pytest.mark.parametrize(
    ("shown", "state", "governs"),
    [
        ((OPEN, OPEN), "in force", "2 of 2"),
        ((OPEN, None), "in force", "1 of 2"),
        ((None, None), "not applied", "0 of 2"),
        ((Override("reject", SOON), Override("open", LONG_AGO)), "not applied", "0 of 2"),
        ((), "stored", "0 of 0"),
    ],
    ids=["all", "one", "none", "another one", "nothing watched"],
)
def test_an_override_is_in_force_where_the_sidecar_shows_it(
    shown: tuple[Override | None, ...], state: str, governs: str
) -> None:
    """Its guard may refuse it, which only the sidecar knows."""
    statuses = [Status(f"orders.{n}", "inactive", override=each) for n, each in enumerate(shown)]
    rows = [override_row(each, len(shown)) for each in listed(BUCKET, statuses, "orders.>", overrides=True, now=AT)]
    assert rows[0][0] == "orders.>" and (rows[0][3], rows[0][5]) == (state, governs)


def effective(value: object, source: PolicySource) -> EffectivePolicy:
    return EffectivePolicy("a", ("a",), {"pending": {"overload": value}}, {"pending.overload": source})


@pytest.mark.parametrize(
    ("shown", "state"),
    [
        (effective(500, "bucket"), "in force"),
        (effective(500, "file"), "not applied"),
        (effective(1000, "bucket"), "not applied"),
        (effective(None, "default"), "not applied"),
        (
            EffectivePolicy(
                "a", ("a",), {}, {}, (ConsumerPolicy("S", "c", {"pending": {"overload": 7}}, {"mode": "consumer"}),)
            ),
            "not applied",
        ),
        (
            replace(
                effective(1000, "default"),
                consumers=(ConsumerPolicy("S", "c", {"pending": {"overload": 500}}, {"pending.overload": "bucket"}),),
            ),
            "in force",
        ),
    ],
    ids=["its value", "of the file", "of a wider one", "the default", "of metadata", "for one consumer"],
)
def test_a_policy_is_in_force_where_the_sidecar_shows_its_fields(shown: EffectivePolicy, state: str) -> None:
    values = {"orders.paid": PolicyValue(b'{"pending":{"overload":500}}', 7, AT)}
    (entry,) = listed(values, STATUSES, None, overrides=False)
    assert (entry.state, entry.governs) == ("stored", ("orders.paid",))
    judged = with_policy(entry, shown)
    assert judged.state == state and judged.governs == (("orders.paid",) if state == "in force" else ())


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
