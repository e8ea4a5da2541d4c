"""state.c of the gateway in C decides as the Python client does, whatever is received and however long ago."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nats_backpressure.client.cached_admission import CachedAdmission
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.protocol.subjects import HEARTBEAT
from tests.examples.conftest import EXAMPLES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SUBJECT = "orders.created"
STAMP = 1_800_000_000.0
START = 1000.0
"""Our clock at the first heartbeat, whose own time is long before: it proves nothing."""


class Watched(ctypes.Structure):
    """`watched` of state.h."""

    _fields_ = (
        ("subject", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("state_at", ctypes.c_double),
        ("heartbeat", ctypes.c_void_p),
        ("proved_at", ctypes.c_double),
        ("left_at", ctypes.c_double),
    )


@pytest.fixture(scope="module")
def compiled(c_compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("c") / "state.so"
    source = EXAMPLES / "c" / "state.c"
    command = [*c_compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-lcjson", "-lm"]
    subprocess.run(command, check=True, timeout=100)
    loaded = ctypes.CDLL(str(library))
    loaded.share_now.restype = ctypes.c_double
    return loaded


class Both:
    """The Python client's copy of the bucket, and that of state.c."""

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self._c = compiled
        self._watched = Watched(subject=SUBJECT.encode(), state_at=-float("inf"), proved_at=-float("inf"))
        self._watched.left_at = float("inf")
        self._mirror = StateMirror()
        self._mirror.filter.add((">",))

    def state(self, now: float, value: dict[str, Any]) -> None:
        self._put(self._c.put_state, SUBJECT, now, value)

    def heartbeat(self, now: float, value: dict[str, Any]) -> None:
        self._put(self._c.put_heartbeat, HEARTBEAT, now, value)

    def _put(self, put: Callable[..., None], key: str, now: float, value: dict[str, Any]) -> None:
        data = msgspec.json.encode(value)
        put(ctypes.byref(self._watched), data, ctypes.c_size_t(len(data)), ctypes.c_double(now))
        self._mirror.put(key, data, now, STAMP + now)

    def shares(self, now: float) -> tuple[float, float]:
        cached, ages_at = CachedAdmission(SUBJECT), ctypes.c_double()
        self._mirror.refresh(cached, now)
        share = self._c.share_now(ctypes.byref(self._watched), ctypes.c_double(now), ctypes.byref(ages_at))
        return cached.decision.ratio, share


STATES = st.fixed_dictionaries(
    {
        "subject": st.just(SUBJECT),
        "status": st.sampled_from(["active", "active", "inactive", "unknown"]),
        "action": st.sampled_from(["reject", "continue", "throttle"]),
        "admit_ratio": st.sampled_from([0.0, 0.3, 1.0]),
        "on_unknown": st.sampled_from(["hold", "continue", "reject"]),
        "hold_seconds": st.sampled_from([0, 3, 10, 60]),
        "freshness": st.sampled_from(["known", "known", "stale", "unknown"]),
        "proof_age_ms": st.integers(0, 40_000),
        "override": st.sampled_from([None, None, {"action": "reject", "until": "2030-01-01T00:00:00.000Z"}]),
        "schema": st.sampled_from([0, 1, 2]),
    }
).map(lambda state: state | ({"mode": "observe"} if state["action"] == "continue" else {"mode": "enforce"}))
HEARTBEATS = st.fixed_dictionaries(
    {
        "schema": st.just(1),
        "instance": st.just("i"),
        "moved": st.booleans(),
        "leaving": st.sampled_from([False, False, False, True]),
        "interval_ms": st.sampled_from([100, 5000, 20_000]),
        "heartbeat_ms": st.sampled_from([200, 2000, 10_000]),
        "stale_after_ms": st.sampled_from([1000, 10_000]),
        "unknown_after_ms": st.sampled_from([2000, 30_000]),
    }
)
STEPS = st.lists(st.tuples(st.sampled_from([0.1, 1.0, 2.0, 7.0, 15.0, 40.0]), st.one_of(STATES, HEARTBEATS, st.none())))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_both_admit_the_same_share(compiled: ctypes.CDLL, steps: list[tuple[float, dict[str, Any] | None]]) -> None:
    both, now, sampled = Both(compiled), START, 0
    both.heartbeat(now, {"instance": "i", "sampled_at": rfc3339(0), "schema": 1, "heartbeat_ms": 2000})
    for wait, value in steps:
        now += wait + 0.01
        if value is not None and "moved" in value:
            sampled += value["moved"] and not value["leaving"]
            both.heartbeat(now, value | {"sampled_at": rfc3339(sampled)})
        elif value is not None:
            both.state(now, value)
        in_python, in_c = both.shares(now)
        assert in_c == pytest.approx(in_python)


def rfc3339(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat()


@pytest.mark.parametrize("value", [b"", b"{", b"7", b'{"subject": "another", "action": "reject"}'])
def test_what_is_no_state_of_the_subject_admits(compiled: ctypes.CDLL, value: bytes) -> None:
    both = Both(compiled)
    both.state(START, {"subject": SUBJECT, "status": "active", "action": "reject", "freshness": "known"})
    assert both.shares(START) == (0, 0)
    compiled.put_state(ctypes.byref(both._watched), value, ctypes.c_size_t(len(value)), ctypes.c_double(START))
    assert both.shares(START)[1] == 1
