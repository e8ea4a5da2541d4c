"""The metrics of the subjects: current values, bounded, and no series for an unknown value."""

from __future__ import annotations

import re
import threading

import pytest
from msgspec.structs import replace

from nats_backpressure import __version__
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.values import Status
from tests.simulations.metrics_page import P, World, everything, member, state


def test_a_subject_as_it_is_known(world: World) -> None:
    world.watch(state("a.b", member(p50=100.0, p95=2000.0, p99=3000.0, drain=4.0)))
    expected = {"status": 2, "pressure": 1.5, "admit_ratio": 0, "drain_seconds": 4, "sample_age_seconds": 0.5}
    assert {name: world.values(P + name)["a.b",] for name in expected} == expected
    assert world.values(P + "latency_seconds") == {("p50", "a.b"): 0.1, ("p95", "a.b"): 2.0, ("p99", "a.b"): 3.0}
    assert world.values(P + "pending_messages") == {("c", "S", "a.b"): 5}
    assert world.values(P + "inflight_messages") == {("c", "S", "a.b"): 2}
    assert world.values(P + "time_in_status_seconds_total") == {("inactive", "a.b"): 60, ("active", "a.b"): 1.5}
    assert world.values(P + "build_info") == {(__version__,): 1}


def test_the_routers_own_names_keep_working(world: World) -> None:
    world.watch(state("a.b", member(p95=2000.0)), state("c.d", member(), status=Status.WARNING))
    assert world.values("router_intake_backpressure_active") == {("a.b",): 1, ("c.d",): 0}
    assert world.values("router_jetstream_pending_messages") == {("c", "a.b"): 5, ("c", "c.d"): 5}
    assert world.values("router_intake_processing_latency_p95") == {("a.b",): 2000}
    assert world.values("router_intake_inflight_messages") == {("a.b",): 2, ("c.d",): 2}


UNKNOWN = {
    "nothing stored": replace(state("s", member()), record=None),
    "marked unknown": state("s", member(), unknown=True),
    "no proof for a minute": state("s", member(age=60.0)),
    "never read": state("s", replace(member(), proof=None, reading=None, status=Status.UNKNOWN)),
    "no consumer": state("s"),
}


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_unknown_is_never_calm(world: World, unknown: SubjectState) -> None:
    """Also while the loss itself cannot be stored, because the server is away."""
    world.watch(unknown)
    assert world.values(P + "status") == {("s",): -1}
    assert world.values(P + "pressure") == {}


def test_the_admit_ratio_is_the_one_a_gateway_gets_now(world: World) -> None:
    world.watch(state("stale", member(age=9.0)), state("opening", member(age=12.0)), state("open", member(age=500.0)))
    assert world.values(P + "admit_ratio") == {("stale",): 0, ("opening",): 0.5, ("open",): 1}


def test_an_unknown_value_has_no_series(world: World) -> None:
    world.watch(state("s", member(inflight=None, drain=float("inf"), p95=float("nan"))))
    for name in ("inflight_messages", "drain_seconds", "latency_seconds"):
        assert world.values(P + name) == {}
    assert world.values("router_intake_processing_latency_p95") == {}
    assert world.values(P + "pending_messages") == {("c", "S", "s"): 5}


def test_the_worst_of_the_rest_stands_for_it() -> None:
    world = World(max_subjects=0)
    calm = {"status": Status.INACTIVE, "admission": GatewayAdmission()}
    world.watch(state("a", member(), **calm), state("b", member()), state("c", member(), **calm))
    assert world.values(P + "status") == {("_other",): 2}
    assert world.values(P + "admit_ratio") == {("_other",): 0}
    assert world.values("router_intake_backpressure_active") == {("_other",): 1}


def test_a_subject_of_many_consumers_is_bounded_too() -> None:
    world = World(max_subjects=2)
    world.watch(state("s", *(member(f"c{n:02}", pending=1) for n in range(20))))
    series = world.values(P + "pending_messages")
    assert len(series) == 9 and series["_other", "_other", "s"] == 12
    world.watch(state("s", *(member(f"d{n:02}", pending=1) for n in range(8))))
    assert ("d00", "S", "s") in world.values(P + "pending_messages"), "those that are gone make room"


def test_it_can_be_scraped_while_subjects_come_and_go(world: World) -> None:
    stop, failed = threading.Event(), list[BaseException]()

    def scrape() -> None:
        try:
            while not stop.is_set():
                world.text()
        except BaseException as error:  # asserted below
            failed.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    for n in range(2000):
        world.watch(state(f"s{n % 50}", member()))
        world.view.states.pop(f"s{(n + 25) % 50}", None)
        world.decision(f"s{n}", "gateway", "continue", 0.001)
    stop.set()
    thread.join()
    assert not failed


def test_a_diagnosis_an_alert_and_a_full_stream_are_shown_under_their_names(world: World) -> None:
    everything(world)
    assert world.values(P + "diagnosis") == {("nobody_pulling", "a.b"): 1.0}
    assert world.values(P + "alerts") == {("long-queue", "firing", "a.b"): 1.0}
    assert world.values(P + "stream_fill") == {("S",): 0.25}


def c_gateway(page: str) -> str:
    """What the router's gateway makes of a page (beamline-c-gateway 990e5e5, backpressure_client.c): in the first 8
    KiB the first place where the name stands, the first blank behind it, and `atoi` from there."""
    text = page[: 8192 - 1 - len("HTTP/1.1 200 OK\r\ndate: Wed, 25 Nov 2026 21:00:00 GMT\r\n\r\n")]
    if (position := text.find("router_intake_backpressure_active")) < 0:
        return "inactive"
    if (blank := text.find(" ", position)) < 0:
        return "inactive"
    number = re.match(r"[+-]?\d+", text[blank:].lstrip(" \t"))
    if number and int(number.group()) == 1:
        return "active"
    others = ("router_jetstream_pending_messages", "router_intake_processing_latency_p95")
    return "warning" if any(name in text for name in others) else "inactive"


@pytest.mark.parametrize("calm", [0, 1, 700], ids=["alone", "beside a calm one", "beside hundreds"])
@pytest.mark.parametrize("p95", [None, 8000.0])
def test_the_routers_c_gateway_reads_the_right_status(calm: int, p95: float | None) -> None:
    world = World()
    quiet = {"status": Status.INACTIVE, "admission": GatewayAdmission()}
    world.watch(*(state(f"s.{n:03}", member(), **quiet) for n in range(calm)), state("z", member(p95=p95), **quiet))
    # A warning is what it says wherever it sees the router's other metrics and none is active.
    assert c_gateway(world.text()) == ("warning" if calm < 100 else "inactive")
    world.watch(state("z", member(p95=p95)))
    assert c_gateway(world.text()) == "active"
    assert world.values("router_intake_backpressure_active")["z",] == 1
