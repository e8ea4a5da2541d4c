"""The catalogue as Prometheus reads it: names, values, bounds, and what is not known left out."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from nats_backpressure import __version__
from nats_backpressure.adapters.nats import gateway_reports
from nats_backpressure.adapters.prometheus import collector
from nats_backpressure.adapters.prometheus.collector import StateCollector
from nats_backpressure.adapters.prometheus.counters import Counters
from nats_backpressure.adapters.prometheus.definitions import COUNTERS, DROPPED
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model import Admission, Alert, Member, Reading, StreamLook
from nats_backpressure.core.subject.inputs import LoadRecord, PublishEvent, RemoveKey, WriteRecord
from nats_backpressure.core.subject.state import Record, SubjectState, with_members
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, ConsumerKey, Diagnosis, EventType, Status
from nats_backpressure.queries.lookup import SubjectLookup
from nats_backpressure.runtime.effects import VERBS
from nats_backpressure.runtime.view import ServiceView

NOW = Now(1000.0, 1_767_225_600.0)
P = "router_backpressure_"


@pytest.fixture(autouse=True)
def created_as_before() -> Iterator[None]:
    yield
    prometheus_client.enable_created_metrics()


class Clock:
    def now(self) -> Now:
        return NOW


class StubBook(ServiceView):
    def __init__(self) -> None:
        self.states: dict[str, SubjectState] = {}

    settings = Settings()  # type: ignore[assignment]
    wildcards: Sequence[str] = ()  # type: ignore[assignment]
    looks: Mapping[str, StreamLook] = {}  # type: ignore[assignment]
    rules = ActivePolicies((), Guard(), trust_metadata=False)  # type: ignore[assignment]
    swept_at = NOW.mono  # type: ignore[assignment]

    @property
    def subjects(self) -> Mapping[str, SubjectState]:
        return self.states

    def interval(self, subject: str) -> float:
        return 0.1

    def next_reading(self, subject: str) -> float:
        return NOW.mono

    def time_in(self, subject: str, now: Now) -> Mapping[str, float]:
        return {"inactive": 60.0, "active": 1.5}


def member(consumer: str = "c", age: float = 0.5, **reading: Any) -> Member:
    key = ConsumerKey("S", consumer)
    facts = {"pending": 5, "inflight": 2, "latency": None, "drain": None, **reading}
    at = Now(NOW.mono - age, NOW.wall - age)
    found = Reading(key=key, at=at, **facts)  # type: ignore[arg-type]
    return Member(key, Policy(), status=Status.ACTIVE, reading=found, proof=at.mono, pressure=1.5)


def state(subject: str, *members: Member, **record: Any) -> SubjectState:
    facts = {
        "epoch": "e",
        "seq": 1,
        "status": Status.ACTIVE,
        "admission": Admission(Action.REJECT, None, 0.0, 30),
        **record,
    }
    state = SubjectState(subject, Policy(), NOW.mono, record=Record(subject=subject, **facts), revision=1)
    return with_members(state, {m.key: m for m in members})


class World:
    def __init__(self, max_subjects: int = 1000) -> None:
        self.book, self.metrics = StubBook(), Counters(max_subjects)
        self.metrics.expose(StateCollector(self.book, SubjectLookup(self.book).answer, self.metrics, Clock()))

    def watch(self, *states: SubjectState) -> None:
        self.book.states.update({s.subject: s for s in states})

    def text(self) -> str:
        return self.metrics.page().decode()

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """label values (in alphabetical order of the label) -> value, of every series of a name"""
        families = list(text_string_to_metric_families(self.text()))
        samples = [s for f in families for s in f.samples if s.name == name]
        found = {tuple(value for _, value in sorted(s.labels.items())): s.value for s in samples}
        assert len(found) == len(samples), "one series twice"
        return found

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        """Those of its series that are above 0."""
        return {labels: value for labels, value in self.values(name).items() if value}


@pytest.fixture
def world() -> World:
    return World()


def everything(world: World) -> None:
    firing = Alert("long-queue", "critical", "pending_above: 5000", "firing", NOW.wall)
    stuck = member(p50=1.0, p95=2.0, p99=3.0, drain=4.0, diagnosis=Diagnosis.NOBODY_PULLING)
    world.watch(state("a.b", stuck, alerts=(firing,)))
    world.book.looks = {"S": StreamLook("S", "c", 1, 9, 9, fill=0.25), "T": StreamLook("T", "c", 1, 9, 9)}
    world.metrics.event("a.b", "backpressure_active")
    world.metrics.event("a.b", "recovery")
    world.metrics.transition("a.b", "inactive", "active")
    world.metrics.decision("a.b", "gateway", "reject", 0.0001)
    world.metrics.decision("a.b", "gateway", "continue", 0.0001, would="reject")
    world.metrics.dropped("reply_subject", 3)
    world.metrics.api_request("consumer_list", "ok", 0.01)
    world.metrics.rebuilt("answer")
    world.metrics.observed(0.01)


def test_the_catalogue_is_the_contracts(world: World) -> None:
    everything(world)
    names = {s.name for f in text_string_to_metric_families(world.text()) for s in f.samples}
    assert names == {
        *(P + n for n in (
            "events_total", "recovery_total", "would_total", "stream_fill", "diagnosis", "alerts",
            "status", "pressure", "admit_ratio", "pending_messages",
            "inflight_messages", "latency_seconds", "drain_seconds", "decisions_total", "sample_age_seconds",
            "transitions_total", "time_in_status_seconds_total", "api_requests_total", "dropped_total",
            "connection_rebuilds_total", "build_info",
        )),
        *(P + h + "_duration_seconds" + s for h in ("decision", "observe") for s in ("_bucket", "_count", "_sum")),
        "router_intake_backpressure_active", "router_jetstream_pending_messages",
        "router_intake_processing_latency_p95", "router_intake_inflight_messages",
    }  # fmt: skip


def test_every_family_says_what_it_is_and_is_named_as_prometheus_wants_it(world: World) -> None:
    everything(world)
    for family in text_string_to_metric_families(world.text()):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation.endswith(".") and len(family.documentation) > 15
        assert family.type in ("counter", "gauge", "histogram")
        assert "milliseconds" not in family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") is (family.type == "counter")
            assert not sample.name.endswith(("_created", "_info_info"))
        what_it_means, _, what_to_do = re.sub(r"[:;] ", ". ", family.documentation).partition(". ")
        assert what_it_means and (what_to_do or family.name == P + "build_info")


def test_what_the_service_tells_is_counted(world: World) -> None:
    everything(world)
    assert world.counted(P + "events_total") == {("backpressure_active", "a.b"): 1, ("recovery", "a.b"): 1}
    assert world.counted(P + "recovery_total") == {("a.b",): 1}
    assert world.counted(P + "transitions_total") == {("inactive", "a.b", "active"): 1}
    assert world.values(P + "decisions_total")[("reject", "gateway", "a.b")] == 1
    assert world.counted(P + "decision_duration_seconds_count") == {(): 2}
    assert world.counted(P + "dropped_total") == {("reply_subject",): 3}
    assert world.counted(P + "api_requests_total") == {("consumer_list", "ok"): 1}
    assert world.counted(P + "connection_rebuilds_total") == {("answer",): 1}
    assert world.counted(P + "observe_duration_seconds_sum") == {(): 0.01}


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
    "nobody ever read": state("s", replace(member(), proof=None, reading=None, status=Status.UNKNOWN)),
    "no consumer": state("s"),
}


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_unknown_is_never_calm(world: World, unknown: SubjectState) -> None:
    """Also while the loss itself cannot be stored, because the server is away."""
    world.watch(unknown)
    assert world.values(P + "status") == {("s",): -1}
    assert world.values(P + "pressure") == {}


def test_admission_follows_what_a_gateway_is_told_now(world: World) -> None:
    world.watch(state("stale", member(age=9.0)), state("opening", member(age=12.0)), state("open", member(age=500.0)))
    assert world.values(P + "admit_ratio") == {("stale",): 0, ("opening",): 0.5, ("open",): 1}


def test_what_is_not_known_has_no_series(world: World) -> None:
    world.watch(state("s", member(inflight=None, drain=float("inf"), p95=float("nan"))))
    for name in ("inflight_messages", "drain_seconds", "latency_seconds"):
        assert world.values(P + name) == {}
    assert world.values("router_intake_processing_latency_p95") == {}
    assert world.values(P + "pending_messages") == {("c", "S", "s"): 5}


def test_beyond_the_bound_the_rest_is_one(world: World) -> None:
    world = World(max_subjects=2)
    world.watch(*(state(f"s{n}", member(f"c{n}", age=float(n), pending=n)) for n in range(5)))
    assert world.values(P + "pending_messages") == {
        ("c0", "S", "s0"): 0, ("c1", "S", "s1"): 1, ("_other", "_other", "_other"): 2 + 3 + 4,
    }  # fmt: skip
    assert world.values(P + "sample_age_seconds") == {("s0",): 0, ("s1",): 1, ("_other",): 4}
    assert world.values(P + "time_in_status_seconds_total")["active", "_other"] == 4.5
    assert world.values("router_jetstream_pending_messages")["_other", "_other"] == 9
    for n in range(5):
        world.metrics.event(f"s{n}", "recovery")
        world.metrics.transition(f"s{n}", "active", "inactive")
        world.metrics.decision(f"s{n}", "gateway", "continue", 0.001)
    assert world.counted(P + "recovery_total") == {("s0",): 1, ("s1",): 1, ("_other",): 3}
    assert world.counted(P + "events_total") == {
        ("recovery", "s0"): 1,
        ("recovery", "s1"): 1,
        ("recovery", "_other"): 3,
    }
    assert world.values(P + "decisions_total")["continue", "gateway", "_other"] == 3
    assert world.values(P + "transitions_total")["active", "_other", "inactive"] == 3


def test_the_worst_of_the_rest_stands_for_it() -> None:
    world = World(max_subjects=0)
    calm = {"status": Status.INACTIVE, "admission": Admission()}
    world.watch(state("a", member(), **calm), state("b", member()), state("c", member(), **calm))
    assert world.values(P + "status") == {("_other",): 2}
    assert world.values(P + "admit_ratio") == {("_other",): 0}
    assert world.values("router_intake_backpressure_active") == {("_other",): 1}


def test_a_subject_of_many_consumers_is_bounded_too() -> None:
    world = World(max_subjects=2)
    world.watch(state("s", *(member(f"c{n:02}", pending=1) for n in range(20))))
    found = world.values(P + "pending_messages")
    assert len(found) == 9 and found["_other", "_other", "s"] == 12
    world.watch(state("s", *(member(f"d{n:02}", pending=1) for n in range(8))))
    assert ("d00", "S", "s") in world.values(P + "pending_messages"), "those that are gone make room"


def test_any_subject_is_a_label(world: World) -> None:
    for subject in ('quote"d', "back\\slash", "größe.→", "orders.*.>", "a b"):
        world.watch(state(subject, member()))
        assert world.values(P + "status")[subject,] == 2


def test_it_can_be_scraped_while_subjects_come_and_go(world: World) -> None:
    stop, failed = threading.Event(), list[BaseException]()

    def scrape() -> None:
        try:
            while not stop.is_set():
                world.text()
        except BaseException as error:  # told below
            failed.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    for n in range(2000):
        world.watch(state(f"s{n % 50}", member()))
        world.book.states.pop(f"s{(n + 25) % 50}", None)
        world.metrics.decision(f"s{n}", "gateway", "continue", 0.001)
    stop.set()
    thread.join()
    assert not failed


def test_a_diagnosis_an_alert_and_a_full_stream_are_shown_under_their_names(world: World) -> None:
    everything(world)
    assert world.values(P + "diagnosis") == {("nobody_pulling", "a.b"): 1.0}
    assert world.values(P + "alerts") == {("long-queue", "firing", "a.b"): 1.0}
    assert world.values(P + "stream_fill") == {("S",): 0.25}


def test_what_a_dry_run_would_have_answered_is_counted_apart(world: World) -> None:
    everything(world)
    assert world.counted(P + "would_total") == {("reject", "gateway", "a.b"): 1.0}
    assert world.values(P + "decisions_total")[("continue", "gateway", "a.b")] == 1.0


def test_the_first_step_of_every_counter_is_seen(world: World) -> None:
    """What is known of the labels is there with 0 before anything was counted."""
    world.watch(state("a.b", member()), state("c.d", replace(member("d"), policy=Policy(mode="observe"))))
    for subject in ("a.b", "c.d"):
        assert {key[0] for key in world.values(P + "events_total") if key[1] == subject} == set(EventType)
        assert world.values(P + "recovery_total")[subject,] == 0
        made = {key[:2] for key in world.values(P + "decisions_total") if key[2] == subject}
        assert made == set(product(Action, ("gateway", "consumer")))
        moves = {key[::2] for key in world.values(P + "transitions_total") if key[1] == subject}
        assert moves == set(permutations(("inactive", "warning", "active"), 2))
    would = {key[2] for key in world.values(P + "would_total")}
    assert would == {"c.d"}, "of an enforced policy it says nothing"
    requests = product(("STREAM.LIST", "STREAM.INFO", "CONSUMER.LIST", "CONSUMER.INFO"), ("ok", "error", "unavailable"))
    assert set(world.values(P + "api_requests_total")) == set(requests)
    assert set(world.values(P + "connection_rebuilds_total")) == {("observe",), ("answer",)}
    assert {name for (name,) in world.values(P + "dropped_total")} == set(DROPPED)
    for name in COUNTERS:
        assert not world.counted(P + name + "_total")


def test_every_kind_that_is_dropped_anywhere_is_known() -> None:
    """A new one belongs in `definitions.DROPPED`."""
    told = re.compile(r"(?:_count|dropped|_note)\((.*)")
    found = {gateway_reports.MALFORMED, gateway_reports.TOO_MANY}
    for path in Path(collector.__file__).parents[2].rglob("*.py"):
        if path.parent.name in ("client", "demo", "cli"):
            continue
        for given in told.findall(path.read_text()):
            for name in re.findall(r'"([a-z][^"]*|[{][^"]+)"', given):
                for each in (LoadRecord, WriteRecord, PublishEvent, RemoveKey):
                    found.add(name.replace("{VERBS[type(effect)]}", VERBS[each]))
    assert found == set(DROPPED)


def test_those_beyond_the_bound_begin_at_0_too() -> None:
    world = World(max_subjects=1)
    world.watch(state("a", member()), state("b", member()))
    assert set(world.values(P + "recovery_total")) == {("a",), ("_other",)}


def c_gateway(page: str) -> str:
    """What the router's gateway makes of a page (beamline-c-gateway 990e5e5, backpressure_client.c): in the first 8
    KiB the first place where the name stands, the first blank behind it, and `atoi` from there."""
    text = page[: 8192 - 1 - len("HTTP/1.1 200 OK\r\ndate: Wed, 25 Nov 2026 21:00:00 GMT\r\n\r\n")]
    if (found := text.find("router_intake_backpressure_active")) < 0:
        return "inactive"
    if (blank := text.find(" ", found)) < 0:
        return "inactive"
    number = re.match(r"[+-]?\d+", text[blank:].lstrip(" \t"))
    if number and int(number.group()) == 1:
        return "active"
    others = ("router_jetstream_pending_messages", "router_intake_processing_latency_p95")
    return "warning" if any(name in text for name in others) else "inactive"


@pytest.mark.parametrize("calm", [0, 1, 700], ids=["alone", "beside a calm one", "beside hundreds"])
@pytest.mark.parametrize("p95", [None, 8000.0])
def test_the_routers_c_gateway_reads_what_is_so(calm: int, p95: float | None) -> None:
    world = World()
    quiet = {"status": Status.INACTIVE, "admission": Admission()}
    world.watch(*(state(f"s.{n:03}", member(), **quiet) for n in range(calm)), state("z", member(p95=p95), **quiet))
    # A warning is what it says wherever it sees the router's other metrics and none is active.
    assert c_gateway(world.text()) == ("warning" if calm < 100 else "inactive")
    world.watch(state("z", member(p95=p95)))
    assert c_gateway(world.text()) == "active"
    assert world.values("router_intake_backpressure_active")["z",] == 1


def test_the_routers_own_metrics_come_first_and_no_help_looks_like_a_value(world: World) -> None:
    assert "# router_intake" not in world.text(), "nothing is watched yet"
    everything(world)
    families = [line.split()[2] for line in world.text().splitlines() if line.startswith("# TYPE")]
    assert families[:4] == [
        "router_intake_backpressure_active",
        "router_jetstream_pending_messages",
        "router_intake_processing_latency_p95",
        "router_intake_inflight_messages",
    ]
    helps = [line.split(" ", 3)[3] for line in world.text().splitlines() if line.startswith("# HELP")]
    assert len(helps) == len(families) and all(text[0].isalpha() for text in helps)
