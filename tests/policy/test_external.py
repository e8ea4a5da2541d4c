"""Policies from the bucket and from metadata: which are accepted, how others are rejected, and that the guard holds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.policy.external import (
    LARGEST_VALUE,
    MONITOR_KEYS,
    check_bucket_entry,
    parse_metadata,
    read_bucket_value,
    validate_document,
)
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry
from nats_backpressure.policy.precedence import Layers
from nats_backpressure.policy.schema import Guard, Override, PendingRule, Policy
from nats_backpressure.policy.validation import FieldProblem, Problems
from nats_backpressure.protocol.values import ConsumerKey
from tests.support.policies import entry

FILE = Layers([entry("a.>", pending={"warn": 20, "critical": 300, "overload": 5000})])
FREE = Guard()
PUT_AT = 1_795_442_100.0
BOUND = Guard(min_pending_overload=100, max_pending_overload=10_000)
OUTSTANDING, UNPROCESSED = MONITOR_KEYS
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def parsed_value(key: str, value: bytes, guard: Guard = FREE, problems: Problems | None = None) -> Any:
    """The entry under a key of the bucket, or the problems with it."""
    problems = Problems() if problems is None else problems
    read = read_bucket_value(key, value, PUT_AT, problems)
    if read is not None:
        check_bucket_entry(read, FILE, guard, problems)
    return problems.listed() or read


def put(document: object, key: str = "a.b", guard: Guard = FREE) -> PolicyEntry | tuple[FieldProblem, ...]:
    result: PolicyEntry | tuple[FieldProblem, ...] = parsed_value(key, msgspec.json.encode(document), guard)
    return result


def lines(parsed: PolicyEntry | tuple[FieldProblem, ...] | None) -> list[str]:
    assert isinstance(parsed, tuple), parsed
    return [problem.line for problem in parsed]


def test_a_key_is_a_subject_or_a_pattern_and_its_value_a_policy() -> None:
    parsed = put({"pending": {"overload": 800}, "consumers": ["r*"], "mode": "observe"}, "a.=2A.=3E")
    assert parsed == PolicyEntry(("a.*.>",), ("r*",), (("pending.overload", 800), ("mode", "observe")))


TEN_MINUTES = {"action": "open", "until": "2026-11-23T14:05:00.000Z"}


def overriding(document: object, key: str = "=override.a.=2A", guard: Guard = FREE) -> Any:
    value = document if isinstance(document, bytes) else msgspec.json.encode(document)
    return parsed_value(key, value, guard)


def test_an_override_stands_for_a_pattern_under_a_key_of_its_own() -> None:
    assert overriding(TEN_MINUTES) == OverrideEntry("a.*", Override("open", 1_795_442_700.0), 600.0)
    assert overriding(TEN_MINUTES, "=override.=3E").pattern == ">"
    assert overriding({"action": "reject", "until": "2020-01-01T00:00:00Z"}).override.action == "reject", "it is over"


@pytest.mark.parametrize(
    ("document", "key", "expected"),
    [
        pytest.param(b"{", "=override.a", "is not JSON", id="no JSON"),
        pytest.param(b"null", "=override.a", "must be a mapping, not null", id="nothing"),
        pytest.param(b" " * LARGEST_VALUE + b"{}", "=override.a", "is larger than 1,024 bytes", id="too much"),
        pytest.param({"action": "open"}, "=override.a", "until: is missing", id="without an end"),
        pytest.param(
            {"action": "auto", "until": "2026-11-23T14:05:00Z"},
            "=override.a",
            "action: must be one of open, reject, not `auto`",
            id="another action",
        ),
        pytest.param(TEN_MINUTES | {"why": "x"}, "=override.a", "why: unknown key", id="an unknown key"),
        pytest.param(TEN_MINUTES | {"until": 1_795_442_700}, "=override.a", "until: must be text", id="a number"),
        pytest.param(
            TEN_MINUTES | {"until": "tomorrow"}, "=override.a", "until: must be a time in UTC, as 2026-", id="words"
        ),
        pytest.param(
            TEN_MINUTES | {"until": "2026-11-23T14:05:00+01:00"},
            "=override.a",
            "until: must be a time in UTC, as 2026-",
            id="another zone",
        ),
        pytest.param(
            TEN_MINUTES | {"until": "2026-12-01T13:55:00Z"},
            "=override.a",
            "until: must be at most 7 days ahead, is 8.0 days; give a shorter time, then renew it",
            id="too long",
        ),
        pytest.param(
            TEN_MINUTES, "=override.a..b", "the key is not an encoded subject or pattern: tail has", id="no key"
        ),
        pytest.param(TEN_MINUTES, "=override.a.*", "the key is not an encoded subject", id="a key not encoded"),
        pytest.param(TEN_MINUTES, "=override.", "the key is not an encoded subject", id="for nothing"),
    ],
)
def test_a_bad_override_is_refused_like_a_policy(document: object, key: str, expected: str) -> None:
    (line,) = lines(overriding(document, key))
    assert line.startswith(expected)


def test_the_clock_of_who_put_an_override_may_be_ahead() -> None:
    assert overriding(TEN_MINUTES | {"until": "2026-11-30T14:54:00Z"}).override.action == "open"


def test_where_the_bucket_is_switched_off_it_overrides_nothing() -> None:
    assert "allow_bucket" in lines(overriding(TEN_MINUTES, guard=Guard(allow_bucket=False)))[0]
    entry_ = OverrideEntry(">", Override("open", 1e10))
    assert not Layers(guard=Guard(allow_bucket=False), overrides=[entry_]).effective("a").policy.override


REFUSED = {
    "a key nobody encodes": ("a.*", b"{}", ": the key is not an encoded subject"),
    "a key that is no subject": (
        "a.=3E.b",
        b"{}",
        "the key is the encoded form of `a.>.b`, which may have `>` as its last",
    ),
    "the heartbeat's key": ("=heartbeat", b"{}", "the key is not an encoded subject"),
    "no JSON": ("a.b", b"{", "is not JSON"),
    "nothing": ("a.b", b"", "is not JSON"),
    "no text": ("a.b", b'"\xff"', "is not JSON"),
    "a tower": ("a.b", b"[" * 60_000, "is not JSON"),
    "too much": ("a.b", b" " * LARGEST_VALUE + b"{}", "is larger than 65,536 bytes"),
    "a list": ("a.b", b"[]", "must be a mapping, not a list"),
    "a misspelt key": ("a.b", b'{"pendng": {}}', "pendng: unknown key"),
    "subjects of its own": ("a.b", b'{"subjects": ["a.b"]}', "subjects: must not be here: the key says"),
    "marks upside down": (
        "a.b",
        b'{"pending": {"warn": 9, "critical": 5}}',
        "pending.warn: must not be above critical",
    ),
    "above what the file says": (
        "a.b",
        b'{"pending": {"critical": 6000}}',
        "pending.critical: must not be above overload, which is 5,000 (inherited)",
    ),
    "above what the file says elsewhere": (
        "z",
        b'{"pending": {"warn": 150}}',
        "pending.warn: must not be above critical",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_key_or_value_is_refused_with_its_path_and_rule(case: str) -> None:
    key, value, expected = REFUSED[case]
    (line,) = lines(parsed_value(key, value))
    assert line.startswith(expected.removeprefix(": "))


def test_a_mark_is_held_against_the_file_not_the_default() -> None:
    assert isinstance(put({"pending": {"critical": 4000}}), PolicyEntry)


OF_BATCH = {"consumers": ["batch"], "pending": {"warn": 8000}}


@pytest.mark.parametrize(
    ("file", "document", "refused"),
    [
        pytest.param(["batch"], OF_BATCH, False, id="its own marks"),
        pytest.param(["other"], OF_BATCH, True, id="the marks of another one"),
        pytest.param(["bat*"], OF_BATCH, False, id="the marks of a pattern"),
        pytest.param(["batch"], OF_BATCH | {"consumers": ["batch", "other"]}, True, id="one of two"),
        pytest.param(["bat*"], OF_BATCH | {"consumers": ["bat*"]}, False, id="the same pattern"),
        pytest.param(["batch"], {"pending": {"warn": 8000}}, True, id="all consumers"),
    ],
)
def test_a_mark_is_held_against_what_the_consumers_of_the_policy_inherit(
    file: list[str], document: dict[str, Any], refused: bool
) -> None:
    below = Layers([entry("jobs", consumers=file, pending={"warn": 5000, "critical": 20_000, "overload": 50_000})])
    problems = Problems()
    read = read_bucket_value("jobs", msgspec.json.encode(document), PUT_AT, problems)
    assert read is not None
    check_bucket_entry(read, below, FREE, problems)
    assert bool(problems) == refused


def test_every_mistake_of_a_value_is_reported() -> None:
    parsed = put({"mode": "x", "subjects": [], "alerts": [{"name": "x", "when": {}}], "pending": {"max": 3}})
    assert {line.split(":")[0] for line in lines(parsed)} == {"mode", "subjects", "alerts[0].when", "pending.max"}


GUARDED = [
    pytest.param({"overload": 99}, ["pending.overload"], id="below the least"),
    pytest.param({"overload": 100}, [], id="at the least"),
    pytest.param({"overload": 10_000}, [], id="at the most"),
    pytest.param({"overload": 10_001}, ["pending.overload"], id="above the most"),
    pytest.param({"overload_seconds": 30}, ["pending.min", "pending.max"], id="a dynamic mark without bounds"),
    pytest.param({"overload_seconds": 30, "min": 100}, ["pending.max"], id="one bound is not both"),
    pytest.param({"overload_seconds": 30, "min": 100, "max": 10_000}, [], id="a dynamic mark within bounds"),
    pytest.param({"overload_seconds": 30, "min": 9, "max": 20_000}, ["pending.min", "pending.max"], id="wider bounds"),
    pytest.param(
        {"overload": 1, "warn": 1, "critical": 1, "overload_seconds": 30, "min": 100, "max": 10_000},
        ["pending.overload"],
        id="what holds until the rate is known counts too",
    ),
    pytest.param({"overload_seconds": None}, [], id="what the file says statically is its own word"),
    pytest.param({"warn": 0.1}, [], id="the lower marks are free"),
]


@pytest.mark.parametrize(("pending", "paths"), GUARDED)
def test_the_guard_bounds_every_overload_mark_the_bucket_can_lead_to(pending: dict[str, Any], paths: list[str]) -> None:
    # Lower marks are given along, so that nothing but the guard can object.
    document = {"pending": {"warn": 0.5, "critical": 0.5} | pending}
    parsed = put(document, guard=BOUND)
    assert [p.path for p in parsed] == paths if isinstance(parsed, tuple) else not paths


def test_the_guard_can_switch_the_bucket_off() -> None:
    assert lines(put({}, guard=Guard(allow_bucket=False))) == [
        "policies in the bucket are switched off: the settings file has `policy_guard.allow_bucket: false`"
    ]


def test_the_rule_of_the_guard_is_named() -> None:
    (line,) = lines(put({"pending": {"overload": 50_000}}, guard=BOUND))
    assert line == "pending.overload: must be at most 10,000 (policy_guard.max_pending_overload), is 50,000"


def own(guard: Guard = FREE, **metadata: str) -> PolicyEntry | tuple[FieldProblem, ...] | None:
    return parse_metadata(tuple((f"backpressure.{key}", text) for key, text in metadata.items()), FILE, guard)


def test_metadata_is_a_policy_field_by_field() -> None:
    parsed = own(
        **{"pending.overload": "800", "retry_after_seconds": "7", "mode": "observe", "count_backfill": "false"},
        **{"recovery_threshold": "0.25", "backoff_strategy": '"linear"', "pending.overload_seconds": "null"},
    )
    assert isinstance(parsed, PolicyEntry)
    assert dict(parsed.fields) == {
        "pending.overload": 800,
        "retry_after_seconds": 7,
        "mode": "observe",
        "count_backfill": False,
        "recovery_threshold": 0.25,
        "backoff_strategy": "linear",
        "pending.overload_seconds": None,
    }
    assert FILE.effective("a.b", ConsumerKey("S", "c"), parsed).sources["mode"] == "consumer"


def test_the_marks_of_the_nats_command_are_overload_marks_and_lower_ones_give_way() -> None:
    parsed = parse_metadata(
        ((OUTSTANDING, "40"), (UNPROCESSED, "200"), ("io.nats.monitor.enabled", "true")), FILE, FREE
    )
    assert isinstance(parsed, PolicyEntry)
    policy = FILE.effective("a.b", None, parsed).policy
    assert policy.pending == PendingRule(20, 200, 200)
    assert (policy.inflight.warn, policy.inflight.critical, policy.inflight.overload) == (40, 40, 40)


def test_our_own_key_replaces_that_of_the_nats_command() -> None:
    parsed = parse_metadata(((UNPROCESSED, "200"), ("backpressure.pending.overload", "300")), FILE, FREE)
    assert isinstance(parsed, PolicyEntry) and parsed.fields == (("pending.overload", 300),)
    (line,) = lines(parse_metadata(((UNPROCESSED, "200"), ("backpressure.pending.overload", "3")), FILE, BOUND))
    assert line.startswith("backpressure.pending.overload: must be at least 100")


@pytest.mark.parametrize(
    "metadata",
    [(), (("team", "x"),), ((UNPROCESSED, "0"), (OUTSTANDING, "-1")), (("backpressured", "1"),)],
    ids=["none", "somebody else's", "switched off", "a longer word"],
)
def test_metadata_that_says_nothing_of_us_is_no_policy(metadata: tuple[tuple[str, str], ...]) -> None:
    assert parse_metadata(metadata, FILE, BOUND) is None


WRONG = {
    "a key nobody knows": ("backpressure.pendng.warn", "1", "backpressure.pendng: unknown key"),
    "a mark nobody knows": ("backpressure.pending.wran", "1", "backpressure.pending.wran: unknown key"),
    "subjects": ("backpressure.subjects", "a", "backpressure.subjects: unknown key"),
    "no field": ("backpressure.", "1", "backpressure.: unknown key"),
    "too deep": ("backpressure.pending.overload.x", "1", "backpressure.pending.overload.x: unknown key"),
    "a field of a field": ("backpressure.mode.x", "1", "backpressure.mode: must be one of"),
    "text for a number": ("backpressure.pending.warn", "many", "backpressure.pending.warn: must be a number, not text"),
    "endless": ("backpressure.alone_factor", "1e999", "backpressure.alone_factor: must be a number, not text"),
    "a list for a list": ("backpressure.alerts", "[]", "backpressure.alerts: must be a list, not text"),
    "an override": ("backpressure.override", "open", "backpressure.override: must not be set by a consumer"),
    "half an override": (
        "backpressure.override.action",
        "open",
        "backpressure.override.action: must not be set by a consumer",
    ),
    "a bound alone": ("backpressure.pending.max", "5", "backpressure.pending.max: may be given only together with"),
    "marks that are none": (UNPROCESSED, "many", f"{UNPROCESSED}: must be a whole number"),
    "marks that are half": (OUTSTANDING, "1.5", f"{OUTSTANDING}: must be a whole number"),
    "marks beyond counting": (UNPROCESSED, "9" * 40, f"{UNPROCESSED}: must be at most 1,000,000,000,000,000"),
    "beyond the guard": (
        "backpressure.pending.overload",
        "20000",
        "backpressure.pending.overload: must be at most 10,000",
    ),
    "beyond the guard by the nats command": (UNPROCESSED, "50", f"{UNPROCESSED}: must be at least 100"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_metadata_is_refused_with_the_key_as_its_path(case: str) -> None:
    key, text, expected = WRONG[case]
    (line,) = lines(parse_metadata(((key, text),), FILE, BOUND))
    assert line.startswith(expected)


def test_metadata_is_held_against_what_its_subjects_inherit() -> None:
    metadata = (("backpressure.pending.critical", "2000"),)
    assert isinstance(parse_metadata(metadata, FILE, FREE, ["a.b"]), PolicyEntry)
    (line,) = lines(parse_metadata(metadata, FILE, FREE, ["a.b", "z"]))
    assert line.startswith("backpressure.pending.critical: must not be above overload, which is 1,000 (inherited)")


def test_without_subjects_a_mark_too_high_is_lowered() -> None:
    parsed = parse_metadata((("backpressure.pending.critical", "2000"),), FILE, FREE)
    assert isinstance(parsed, PolicyEntry)
    assert FILE.effective("z", None, parsed).policy.pending == PendingRule(10, 1000, 1000)


def test_metadata_marks_upside_down_are_refused() -> None:
    assert lines(own(**{"pending.critical": "5", "pending.warn": "9"})) == [
        "backpressure.pending.warn: must not be above critical, 9 is above 5"
    ]


@given(st.binary(max_size=60) | JSON.map(msgspec.json.encode))
def test_no_value_in_the_bucket_stops_the_reader(value: bytes) -> None:
    parsed = parsed_value("a.b", value, BOUND)
    assert parsed == () or isinstance(parsed, PolicyEntry | tuple)
    assert parsed != ()


FIELDS = [f"backpressure.{name}" for name in Policy.__struct_fields__]
KEYS = st.sampled_from([*FIELDS, *MONITOR_KEYS]) | st.text(max_size=12).map("backpressure.{}".format)


@given(st.dictionaries(KEYS, st.text(max_size=12) | JSON.map(lambda v: msgspec.json.encode(v).decode())))
def test_no_metadata_stops_the_reader(metadata: dict[str, str]) -> None:
    parsed = parse_metadata(tuple(metadata.items()), FILE, BOUND, ["a.b"])
    assert parsed is None or isinstance(parsed, PolicyEntry) or all(isinstance(p, FieldProblem) for p in parsed)
    assert parsed != ()


@pytest.mark.parametrize(
    ("document", "guard", "paths"),
    [
        ({"pending": {"overload": 6000}}, Guard(), []),
        ({"pending": {"overload": 6000}}, Guard(max_pending_overload=5000), ["pending.overload"]),
        ({"pending": {"overload": 6000}, "subjects": ["a"]}, Guard(max_pending_overload=5000), []),
        ({"pending": {"overload": -1}}, Guard(max_pending_overload=5000), ["pending.overload"]),
        ({}, Guard(allow_bucket=False), [""]),
    ],
)
def test_a_document_is_valid_where_the_guard_allows_it_in_the_bucket(
    document: dict[str, Any], guard: Guard, paths: list[str]
) -> None:
    problems, effective = validate_document(document, guard)
    assert [problem.path for problem in problems] == paths and (effective is None) is bool(paths)
