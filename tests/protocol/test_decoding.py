"""A message of a newer version is read as far as this version knows it; a broken one is not read."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from nats_backpressure.protocol import values
from nats_backpressure.protocol.decoding import decode_message, read_message
from nats_backpressure.protocol.messages import Decision, Event, Metrics, State
from nats_backpressure.protocol.policies import EffectivePolicy
from nats_backpressure.protocol.strictness import STRICTNESS

DECISION: dict[str, Any] = {"subject": "s", "role": "gateway", "status": "active", "action": "reject", "admit_ratio": 0}
STATE: dict[str, Any] = {"subject": "s", "status": "active", "action": "reject", "record": {"nonce": "n"}}


@pytest.mark.parametrize(
    ("field", "newer", "read"),
    [
        ("status", "melting", "unknown"),
        ("action", "explode", "continue"),
        ("freshness", "foggy", "unknown"),
        ("would", "explode", None),
        ("backoff_strategy", "chaotic", "constant"),
        ("another", "field", None),
    ],
)
def test_an_unknown_value_is_read_as_the_most_harmless(field: str, newer: str, read: str | None) -> None:
    decision = decode_message(msgspec.json.encode(DECISION | {field: newer}), Decision)
    assert getattr(decision, field, None) == read
    assert (decision.subject, decision.admit_ratio) == ("s", 0.0)


def test_what_is_nested_is_read_like_that_too() -> None:
    newer = {"on_unknown": "think", "mode": "dream", "diagnosis": "bored", "levels": {"drain": "high"}}
    consumer = {"stream": "S", "consumer": "c", "status": "melting", "latched": [], "diagnosis": "bored"}
    consumers = [consumer | {"metrics": {"latency_source": "guessed"}, "freshness": "known"}]
    state = decode_message(msgspec.json.encode(STATE | newer | {"consumers": consumers}), State)
    assert (state.on_unknown, state.mode, state.diagnosis, state.levels.drain) == ("hold", "enforce", None, "normal")
    assert (state.consumers[0].status, state.consumers[0].metrics) == ("unknown", Metrics())
    assert msgspec.json.decode(state.record) == {"nonce": "n"}


@pytest.mark.parametrize(
    "document",
    [
        *(b"", b"{}", b"null", b"\xff", b"[" * 5000, b'{"subject": "\xff"}'),
        *(msgspec.json.encode(DECISION | change) for change in ({"admit_ratio": 1.5}, {"role": "x"}, {"status": 1})),
        msgspec.json.encode(DECISION | {"status": "melting", "retry_after_seconds": -1}),
    ],
)
def test_what_is_broken_is_not_read(document: bytes) -> None:
    assert read_message(document, Decision) is None


def test_an_unknown_value_in_a_mapping_costs_no_more_than_itself() -> None:
    document = {"subject": "s", "matched": ["s"], "policy": {}, "sources": {"mode": "file", "override": "override"}}
    policy = decode_message(msgspec.json.encode(document), EffectivePolicy)
    assert policy.sources == {"mode": "file"}


def test_an_event_of_an_unknown_type_is_not_read() -> None:
    assert read_message(msgspec.json.encode({"type": "backpressure_gone"}), Event) is None


@pytest.mark.parametrize("name", ["Action", "Freshness", "MarkLevel", "EventType", "Diagnosis"])
def test_each_list_of_values_is_there_once(name: str) -> None:
    assert [str(each) for each in getattr(values, name)] == list(get_args(getattr(values, f"{name}Name")))


def test_statuses_are_ordered_alike_by_name_and_by_value() -> None:
    assert {status.word: int(status) for status in values.Status} == values.SEVERITY
    assert set(get_args(values.StatusName)) == values.SEVERITY.keys()
    assert list(STRICTNESS) == list(get_args(values.ActionName))
