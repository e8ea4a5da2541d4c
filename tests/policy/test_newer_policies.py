"""A policy that a newer version wrote: what this one knows of it is in force, and what it does not know is named."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.parse import flat_fields, parse_entry
from nats_backpressure.policy.refusals import IGNORED, RefusedPolicy
from nats_backpressure.policy.schema import Guard, Policy
from nats_backpressure.policy.snapshot import PolicySnapshot, PolicyValue
from nats_backpressure.protocol.values import ConsumerKey

NOW = 1_767_225_600.0
KNOWN: dict[str, Any] = {
    "pending": {"warn": 5, "critical": 50, "overload": 500},
    "inflight": {"overload": 400},
    "latency_p95": {"overload": 4000},
    "drain_seconds": {"overload": 9},
    "admission": {"mode": "adaptive"},
    "retry_after_seconds": 7,
    "alerts": [{"name": "long", "when": {"pending_above": 5000}, "severity": "page"}],
}
GROUPS = [name for name in Policy.__struct_fields__ if isinstance(getattr(Policy(), name), msgspec.Struct)]
WORDS = [
    name
    for name, value in flat_fields({name: getattr(Policy(), name) for name in Policy.__struct_fields__})
    if isinstance(value, str)
]
"""Fields that have a word of a closed list."""


def put(document: Any, active: ActivePolicies | None = None, revision: int = 1) -> tuple[Policy, list[RefusedPolicy]]:
    """The policy that results from a value of the bucket, and what is reported about it."""
    active = active or ActivePolicies((), Guard(), trust_metadata=True)
    value = PolicyValue(msgspec.json.encode(document), revision, NOW)
    refusals = active.set_bucket(PolicySnapshot("b", {"a": value}))
    return active.effective("a").policy, refusals


def changed(path: str, value: Any) -> dict[str, Any]:
    """KNOWN with one more field."""
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(KNOWN))
    head, _, leaf = path.partition(".")
    if leaf:
        document.setdefault(head, {})[leaf] = value
    else:
        document[head] = value
    return document


def without(path: str) -> Policy:
    """What results from KNOWN without a field."""
    document = changed(path, None)
    head, _, leaf = path.partition(".")
    (document[head] if leaf else document).pop(leaf or head)
    return put(document)[0]


@pytest.mark.parametrize("path", ["new", *(f"{group}.new" for group in GROUPS)])
def test_a_field_that_is_not_known_is_named_and_all_others_are_in_force(path: str) -> None:
    policy, (refusal,) = put(changed(path, {"deep": [1, {"deeper": "x" * 1000}]}))
    assert policy == put(KNOWN)[0] != Policy()
    assert refusal.in_force and refusal.rejection.errors == ((path, f"unknown key; {IGNORED}"),)


@pytest.mark.parametrize("path", [word for word in WORDS if word != "mode"])
def test_a_word_that_is_not_known_is_named_and_all_others_are_in_force(path: str) -> None:
    policy, (refusal,) = put(changed(path, "gradual"))
    assert policy == without(path)
    ((named, message),) = refusal.rejection.errors
    assert refusal.in_force and named == path and message.endswith(f"not `gradual`; {IGNORED}")


@pytest.mark.parametrize("document", [KNOWN, {"pending": {"overload": 10}}, {}], ids=["all", "strict marks", "alone"])
def test_a_mode_that_is_not_known_refuses_nobody(document: dict[str, Any]) -> None:
    policy, (refusal,) = put(document | {"mode": "shadow"})
    assert policy == put(document | {"mode": "observe"})[0] and policy.mode == "observe"
    ((named, message),) = refusal.rejection.errors
    assert refusal.in_force and named == "mode" and "`shadow`, which counts as observe" in message


def test_every_closed_list_of_a_policy_was_tried() -> None:
    info = inspect.type_info(Policy)
    assert isinstance(info, inspect.StructType)
    groups = {field.name: field.type for field in info.fields if isinstance(field.type, inspect.StructType)}
    fields = [("", info), *groups.items()]
    words = {f"{group}.{f.name}".lstrip(".") for group, i in fields for f in i.fields if is_closed_list(f.type)}
    assert words == set(WORDS) and set(groups) == set(GROUPS)


def is_closed_list(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.LiteralType | inspect.EnumType)


@pytest.mark.parametrize(
    ("alert", "path"),
    [
        pytest.param({"name": "new", "when": {"diagnosis": "haunted"}}, "alerts[1].when.diagnosis", id="a diagnosis"),
        pytest.param({"name": "new", "when": {"age_above": 5}}, "alerts[1].when.age_above", id="a condition"),
    ],
)
def test_an_alert_that_cannot_be_evaluated_is_left_out(alert: Any, path: str) -> None:
    policy, (refusal,) = put(KNOWN | {"alerts": [*KNOWN["alerts"], alert]})
    assert [each.name for each in policy.alerts] == ["long"]
    assert refusal.in_force and [named for named, _ in refusal.rejection.errors] == [path]


def test_alerts_of_which_none_can_be_evaluated_leave_those_that_are_inherited() -> None:
    file, _ = parse_entry({"subjects": ["a"], "alerts": KNOWN["alerts"]})
    assert file is not None
    active = ActivePolicies((file,), Guard(), trust_metadata=False)
    new = {"name": "new", "when": {"age_above": 5}}
    assert [each.name for each in put({"hold_seconds": 3, "alerts": [new]}, active)[0].alerts] == ["long"]
    assert put({"alerts": []}, active, revision=2)[0].alerts == (), "an empty list switches them off"


def test_an_alert_with_a_field_more_is_evaluated() -> None:
    policy, (refusal,) = put({"alerts": [KNOWN["alerts"][0] | {"runbook": "x"}]})
    assert [each.name for each in policy.alerts] == ["long"]
    assert refusal.in_force and refusal.rejection.errors[0][0] == "alerts[0].runbook"


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"pendng": {"overload": 9}}, id="nothing is known: a mistyped one"),
        pytest.param({"pending": {"overload": "many"}, "new": 1}, id="a wrong value"),
        pytest.param({"mode": 3}, id="a word that is none"),
        pytest.param({"pending": {"warn": 9, "overload": 1}, "new": 1}, id="marks that contradict each other"),
    ],
)
def test_what_no_version_can_mean_is_refused_as_a_whole(document: Any) -> None:
    active = ActivePolicies((), Guard(), trust_metadata=False)
    before, _ = put(KNOWN, active)
    policy, (refusal,) = put(document, active, revision=2)
    assert policy == before and not refusal.in_force
    assert not any(IGNORED in message for _, message in refusal.rejection.errors)


def test_an_override_with_a_field_that_is_not_known_is_refused_since_it_could_apply_to_less() -> None:
    active = ActivePolicies((), Guard(), trust_metadata=False)
    value = b'{"action": "reject", "until": "2026-01-01T01:00:00Z", "consumers": ["a"]}'
    (refusal,) = active.set_bucket(PolicySnapshot("b", {"=override.a": PolicyValue(value, 1, NOW)}))
    assert not refusal.in_force and not active.effective("a").policy.override


def test_metadata_is_read_in_the_same_way() -> None:
    active, key = ActivePolicies((), Guard(), trust_metadata=True), ConsumerKey("S", "c")
    metadata = (("backpressure.new.field", "1"), ("backpressure.mode", "shadow"), ("backpressure.hold_seconds", "3"))
    applied, refusal = active.set_metadata(key, metadata, ("a",))
    assert applied and refusal is not None
    assert [path for path, _ in refusal.rejection.errors] == ["backpressure.new", "backpressure.mode"]
    policy = active.effective("a", key).policy
    assert (policy.hold_seconds, policy.mode) == (3, "observe")
    applied, refusal = active.set_metadata(key, (("backpressure.new", "1"),), ("a",))
    assert not applied and refusal is not None and active.effective("a", key).policy.hold_seconds == 3


def test_in_the_settings_file_it_is_a_mistake() -> None:
    for path in ("new", *WORDS):
        entry, problems = parse_entry(changed(path, "gradual") | {"subjects": ["a"]})
        assert entry is None and [problem.path for problem in problems] == [path]


def test_what_is_ignored_is_said_once_and_again_for_another_value() -> None:
    active = ActivePolicies((), Guard(), trust_metadata=False)
    assert len(put(KNOWN | {"new": 1}, active)[1]) == 1
    assert put(KNOWN | {"new": 1}, active)[1] == [] == active.set_file((), Guard())
    assert len(put(KNOWN | {"new": 2}, active, revision=2)[1]) == 1
    assert active.refused == 0


@pytest.mark.parametrize("value", [b"{", b'{"mode": "observe", "x": 1}'], ids=["garbage", "a policy"])
def test_the_value_of_a_key_is_not_kept(value: bytes) -> None:
    value = bytes(bytearray(value))
    active, before = ActivePolicies((), Guard(), trust_metadata=False), sys.getrefcount(value)
    active.set_bucket(PolicySnapshot("b", {"a": PolicyValue(value, 1, NOW)}))
    assert sys.getrefcount(value) == before
