"""States of versions before schema 1 are read once, and written again in the new form."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.stored_state import record_of
from nats_backpressure.policy.schema import Override
from nats_backpressure.protocol.values import Status
from tests.core.subject.test_stored_state import WHOLE
from tests.simulations.stored_samples import value

STORED: dict[str, Any] = {
    "subject": "orders.*.created",
    "status": "active",
    "since": "2027-01-15T08:00:00.000Z",
    "incident": "e-1",
    "pressure": None,
    "reasons": ["pending"],
    "diagnosis": "falling_behind",
    "admit_ratio": 0.0,
    "mode": "enforce",
    "override": None,
    "consumers": [],
    "freshness": "known",
    "proof_age_ms": None,
    "action": "reject",
    "would": None,
    "retry_after_seconds": 30,
    "max_retry_attempts": 3,
    "backoff_strategy": "exponential",
    "on_unknown": "hold",
    "hold_seconds": 10,
    "epoch": "e",
    "seq": 1,
    "nonce": "w.1",
    "known_status": "active",
    "told": "active",
    "since_unix": 1800000000.0,
    "lost_listed": False,
    "rejected": "m1",
    "latches": [{"stream": "ORDERS", "consumer": "c", "latched": ["pending", "latency_p95"]}],
    "carried": [
        {
            "stream": "ORDERS",
            "consumer": "c",
            "facts": {
                "diagnosis": "falling_behind",
                "diagnosed_for": 12.5,
                "capacity": 80.0,
                "account": {"kind": 7, "place": 100, "given": 90, "pending": 10, "last": 110, "settled": 100},
            },
        }
    ],
    "recoveries": {
        "incident": "e-0",
        "began": 1799000000.0,
        "ended": 1799000060.0,
        "total": 1,
        "total_seconds": 60.0,
    },
    "unsent": [
        {
            "id": "orders.=2A.created:e:1",
            "type": "backpressure_active",
            "subject": "orders.*.created",
            "at": 1800000000.0,
            "epoch": "e",
            "seq": 1,
            "incident": "e-1",
            "was": 0,
            "now": 2,
            "reasons": ["pending"],
            "pressure": 1.5,
            "reading": None,
            "marks": None,
            "retry_after": 30,
            "admit_ratio": 0.0,
            "lost": None,
            "diagnosis": None,
            "override": None,
            "alert": None,
            "errors": [],
            "policy_revision": "",
        }
    ],
    "alerts": [
        {
            "name": "deep",
            "severity": "critical",
            "when": "pending_above: 5000",
            "state": "firing",
            "since": 1800000000.0,
            "value": 6000,
        }
    ],
    "totals": {"active": 1, "warning": 0, "recovery": 0, "last": 1800000000.0},
}
"""As such a version wrote it, without the parts that nobody reads back."""


def read(**change: Any) -> Record:
    stored = record_of(msgspec.json.encode(STORED | change))
    assert stored is not None and stored[1] == "w.1"
    return stored[0]


def test_all_of_it_is_read_and_the_next_write_is_in_the_new_form() -> None:
    assert read() == replace(WHOLE, override=None)
    again = value(read(), "w.2")
    assert record_of(again) == (read(), "w.2")
    assert msgspec.json.decode(again)["schema"] == 1


def test_an_override_has_its_end_as_text() -> None:
    assert read(override={"action": "open", "until": "2027-01-15T08:00:00.000Z"}).override == Override("open", 1.8e9)
    for until in ("2027-01-15T08:00:00", "soon", None, "9999-12-31T00:00:00.000Z"):
        assert read(override={"action": "open", "until": until}).override is None


def test_an_unknown_subject_keeps_its_last_known_status() -> None:
    record = read(status="unknown", known_status="warning", lost_listed=None)
    assert (record.status, record.unknown, record.unknown_announced) == (Status.WARNING, True, True)
    assert not read(status="unknown", lost_listed=False).unknown_announced


@pytest.mark.parametrize(
    "change",
    [{"known_status": "busy"}, {"known_status": 1}, {"since_unix": 1e300}, {"latches": [1]}],
)
def test_what_such_a_version_cannot_have_written_is_not_ours(change: dict[str, Any]) -> None:
    assert record_of(msgspec.json.encode(STORED | change)) is None
