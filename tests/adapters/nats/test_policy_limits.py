"""A policy bucket that holds more than is read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nats_backpressure.adapters.nats import policy_limits
from nats_backpressure.adapters.nats.api import Message
from nats_backpressure.adapters.nats.policy_limits import BucketReading
from nats_backpressure.policy.active import NO_ROOM, ActivePolicies
from nats_backpressure.policy.external import LARGEST_OVERRIDE, LARGEST_VALUE
from nats_backpressure.policy.schema import Guard
from nats_backpressure.policy.snapshot import PolicySnapshot, PolicyValue

AT = 1_767_225_600.0
OPEN = b'{"action": "open", "until": "2026-01-01T01:00:00Z"}'


class Installation:
    """A bucket, and the policies of a sidecar that follows it."""

    def __init__(self) -> None:
        self.bucket: dict[str, Message] = {}
        self.active = ActivePolicies((), Guard(), trust_metadata=False)
        self.counted: frozenset[str] = frozenset()
        self.ignored: str | None = None
        self.errors: list[tuple[str, str]] = []
        self._seq = 0

    def put(self, key: str, value: Any) -> None:
        """As the newest write."""
        self._seq += 1
        self.bucket.pop(key, None)
        data = value if isinstance(value, bytes) else msgspec.json.encode(value)
        self.bucket[key] = Message(key, self._seq, data, {}, AT)

    def read(self) -> dict[str, PolicyValue]:
        reading = BucketReading(self.counted)
        for key, message in self.bucket.items():
            reading.add(key, message)
        values = reading.values()
        refused = self.active.set_bucket(PolicySnapshot("b", values))
        self.errors = [error for each in refused for error in each.rejection.errors]
        self.counted, self.ignored = frozenset(values), reading.ignored
        return values

    def overload(self, subject: str) -> float:
        return self.active.effective(subject).policy.pending.overload


@pytest.fixture(params=["MOST_KEYS", "MOST_BYTES"])
def full(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """The policies `a` to `d` are in force, and there is room for no other."""
    installation = Installation()
    for n, key in enumerate("abcd"):
        installation.put(key, marks(2000 + n))
    monkeypatch.setattr(policy_limits, request.param, 4 if request.param == "MOST_KEYS" else 4 * len(marks(2000)))
    assert set(installation.read()) == set("abcd") and installation.ignored is None
    return installation


def marks(overload: int) -> bytes:
    return b'{"pending":{"overload":%d}}' % overload


def test_one_more_policy_is_ignored_and_named(full: Installation) -> None:
    full.put("e", marks(3000))
    assert set(full.read()) == set("abcd") and full.ignored == "e"


@pytest.mark.parametrize("key", "abcd")
def test_a_policy_in_force_can_be_changed(full: Installation, key: str) -> None:
    full.put("e", marks(3000))
    full.put(key, marks(4000))
    full.read()
    assert full.overload(key) == 4000 and full.ignored == "e"


def test_an_override_counts_before_and_after_a_start(full: Installation) -> None:
    full.put("=override.=3E", OPEN)
    full.read()
    assert full.active.effective("x").policy.override
    full.counted = frozenset()
    full.read()
    assert full.active.effective("x").policy.override and full.overload("a") == 2000


def test_what_was_deleted_makes_room(full: Installation) -> None:
    full.put("e", marks(3000))
    full.read()
    del full.bucket["b"]
    assert set(full.read()) == set("acde") and full.ignored is None and full.overload("e") == 3000


def test_the_last_good_policy_stays_where_its_new_value_does_not_fit_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installation = Installation()
    for key in "ab":
        installation.put(key, marks(2000))
    monkeypatch.setattr(policy_limits, "MOST_BYTES", 2 * len(marks(2000)))
    installation.read()
    installation.put("a", marks(4000) + b" ")
    installation.read()
    assert installation.overload("a") == 2000 and installation.errors == [("", NO_ROOM)]
    installation.read()
    assert installation.overload("a") == 2000 and installation.errors == [], "it is said once"
    del installation.bucket["b"]
    installation.read()
    assert installation.overload("a") == 4000


def test_a_value_that_does_not_fit_leaves_room_for_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_limits, "MOST_BYTES", 100)
    installation = Installation()
    installation.put("large", b"x" * 101)
    installation.put("small", marks(2000))
    assert set(installation.read()) == {"small"} and installation.ignored == "large"


def test_of_too_many_overrides_the_newest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_limits, "MOST_OVERRIDES", 2)
    installation = Installation()
    for key in "abc":
        installation.put(f"=override.{key}", OPEN)
    assert set(installation.read()) == {"=override.b", "=override.c"} and installation.ignored == "=override.a"


@pytest.mark.parametrize(("key", "largest"), [("a", LARGEST_VALUE), ("=override.a", LARGEST_OVERRIDE)])
def test_a_value_that_is_too_large_for_its_kind_is_refused_and_not_kept(key: str, largest: int) -> None:
    installation = Installation()
    installation.put(key, b"x" * (largest + 1))
    assert installation.read()[key].value is policy_limits.TOO_LARGE
    assert installation.errors == [("", f"is larger than {largest:,} bytes")]
