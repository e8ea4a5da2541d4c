"""docs/protocol.md: each example has exactly the fields of its Struct, and values and limits are those of the code."""

from __future__ import annotations

import json
import re
from typing import Any, Literal, get_args

import msgspec
import pytest
from msgspec import Struct

from nats_backpressure.adapters.nats import endpoints
from nats_backpressure.adapters.nats.policy_limits import MOST_BYTES, MOST_KEYS
from nats_backpressure.core.watch_filter import SUBJECTS_LIMIT
from nats_backpressure.policy.external import LARGEST_VALUE
from nats_backpressure.protocol import history, messages, metrics_windows, patterns, reports, status_alias, values
from nats_backpressure.protocol.values import EventType
from nats_backpressure.queries import decisions, event_cache
from tests.docs import examples

PAGE = (examples.FILE.parent / "protocol.md").read_text()
RECORDED: dict[str, Any] = json.loads(examples.FILE.read_text())
KINDS: dict[str, type[Struct]] = {
    "decision-gateway": messages.Decision,
    "decision-consumer": messages.Decision,
    "status": messages.Status,
    "status-list": messages.StatusList,
    "state": messages.State,
    "heartbeat": messages.Heartbeat,
    "alerts": history.Alerts,
    "recovery": history.Recovered,
    "history": history.Transitions,
    "events": history.Events,
    "metrics": metrics_windows.Windows,
    "gateway-report": reports.GatewayReport,
    "status-alias": status_alias.AliasReply,
    **{f"event-{kind.value}": messages.Event for kind in EventType},
}
FIELDS = {
    "policy": {"subject", "matched", "policy", "sources", "consumers"},
    "validate-policy-valid": {"valid", "errors", "effective"},
    "validate-policy-invalid": {"valid", "errors", "effective"},
}
"""Of replies that have no Struct."""


@pytest.mark.parametrize("name", KINDS)
def test_an_example_has_exactly_the_fields_of_its_message(name: str) -> None:
    message = msgspec.json.decode(json.dumps(RECORDED[name]), type=KINDS[name])
    assert json.loads(msgspec.json.encode(message)) == RECORDED[name]


@pytest.mark.parametrize("name", FIELDS)
def test_an_example_of_a_reply_without_a_struct_has_its_fields(name: str) -> None:
    assert set(RECORDED[name]) == FIELDS[name]


def test_every_example_is_checked_and_shown() -> None:
    assert set(RECORDED) == {*KINDS, *FIELDS}
    assert all(f"<!-- generated: example {name} -->" in PAGE for name in RECORDED)


def test_the_page_shows_the_requests_of_its_validate_policy_examples() -> None:
    assert all(f"`{json.dumps(request)}`" in PAGE for request in (examples.VALID, examples.INVALID))


@pytest.mark.slow
async def test_a_run_gives_the_same_examples_with_other_values() -> None:
    assert _shape(await examples.run()) == _shape(RECORDED)


def _shape(value: Any) -> Any:
    return {name: _shape(each) for name, each in value.items()} if isinstance(value, dict) else None


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("status", values.StatusName), ("action", values.ActionName), ("diagnosis", values.DiagnosisName),
        ("freshness", values.FreshnessName), ("stale_reason", values.StaleReason), ("on_unknown", values.OnUnknown),
        ("latency_source", values.LatencySource), ("reasons", Literal["pending", "inflight", "latency_p95", "drain"]),
    ],
)  # fmt: skip
def test_the_page_explains_every_value(field: str, kind: Any) -> None:
    [row] = re.findall(rf"^\| `{field}` \| (.*) \|$", PAGE.partition("\n## Values\n")[2], re.MULTILINE)[:1]
    assert {f"`{value}`" for value in get_args(kind)} <= set(re.findall(r"`\w+`", row))


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("request", f"{endpoints.LARGEST_REQUEST // 1024} KiB"),
        ("text of an error", f"{endpoints.LONGEST_ERROR} characters"),
        ("encoded subject", f"{patterns.LONGEST_SUBJECT:,} bytes"),
        ("`windows`", f"1 to {metrics_windows.MOST_WINDOWS}, each `1m` to `24h`"),
        ("`matched`, `state_keys`, `event_subjects`", f"{decisions.MATCHED_SHOWN} listed; all count"),
        ("subjects of one consumer", f"{SUBJECTS_LIMIT} filters or stream subjects; one with more is not watched"),
        ("report", f"{reports.SIZE_LIMIT:,} bytes, 0.05 to 60 s, at most 1,000,000,000 requests"),
        ("policy in the bucket",
         f"{LARGEST_VALUE // 1024} KiB, {MOST_KEYS:,} keys, {MOST_BYTES // 2**20} MiB together"),
    ],
)  # fmt: skip
def test_the_page_states_the_limits_of_the_code(what: str, limit: str) -> None:
    assert f"| {what} | {limit} |" in PAGE


def test_the_page_states_how_many_events_a_window_counts_at_most() -> None:
    assert f"at most the newest {event_cache.PER_SUBJECT} of the subject" in PAGE
