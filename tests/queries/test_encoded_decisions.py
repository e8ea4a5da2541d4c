"""What is kept encoded answers what a new evaluation would, at most LIFE late and never after an input; no grant is
repeated."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import OPEN
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import AdmissionRule, Override, Policy
from nats_backpressure.protocol.patterns import BadTail, covers
from nats_backpressure.protocol.requests import BadRequest, ConsumerRequest, GatewayRequest, RequestRefused, parse
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.queries import decision_tally, encoded_decisions
from nats_backpressure.queries.decision_tally import DecisionTally
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.encoded_decisions import CALM_LIFE, LIFE, EncodedDecisions
from nats_backpressure.queries.encoded_replies import ConsumerDecisions, GatewayDecisions
from tests.fakes.clock import FakeClock
from tests.fakes.view import NOW, OVERLOADED, SUBJECT, WATCHING, FakeServiceView, decision_service, member, subject
from tests.queries.test_lookup import states

ASKED = ["a.b", "a.c"]
REQUESTS = [
    b"",
    b'{"attempt": 2}',
    b'{"priority": "critical"}',
    b'{"priority": "low"}',
    b'{"attempt":2, "priority":"high"}',
]
PULLS = [b"", b'{"max_messages": 1}', b'{"max_messages": 7, "stream": "S"}', b'{"max_messages": 10000}', b"{}"]
INPUTS: list[dict[str, Any]] = [
    {},
    {"pending": 5},
    {"pending": 1500},
    OVERLOADED,
    OVERLOADED | {"incident": "another"},
    OVERLOADED | {"policy": Policy(retry_after_seconds=7)},
]
PATIENT, ADAPTIVE = Policy(max_retry_attempts=9), Policy(admission=AdmissionRule("adaptive"))
OPEN_LONG = Policy(override=(Override("open", NOW.wall + 3600),))
OLD_ENOUGH = st.sampled_from([0.01, 9.98, 12.0, 14.9, 29.99, 40.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(ASKED), st.sampled_from([0, 0, 0, 1, 2, 3, 4])),
        st.tuples(st.just("ask"), st.just("a.b"), st.just(0)),
        st.tuples(st.just("pass"), st.sampled_from([LIFE, 0.3]), st.none()),
        st.tuples(st.just("input"), st.sampled_from(INPUTS), OLD_ENOUGH),
        st.tuples(st.just("forget"), st.none(), st.none()),
    ),
    min_size=10,
    max_size=40,
)


class Metrics:
    def __init__(self) -> None:
        self.counted: dict[tuple[str, str, str, str | None], int] = {}
        self.n, self.seconds = 0, 0.0

    def decisions(self, subject: str, role: str, action: str, would: str | None, n: int) -> None:
        key = subject, role, action, would
        self.counted[key] = self.counted.get(key, 0) + n

    def durations(self, n: int, seconds: float) -> None:
        self.n, self.seconds = self.n + n, self.seconds + seconds


class World:
    """The kept answers of some states, and a service that evaluates each request."""

    def __init__(self, *watched: SubjectState) -> None:
        self.view, self.clock = FakeServiceView(*watched), FakeClock(*NOW)
        self.metrics = Metrics()
        self.tally = DecisionTally(self.metrics)
        self.plain = decision_service(self.view)
        self.gateway = self._kept(GatewayDecisions, "gateway")
        self.consumer = self._kept(ConsumerDecisions, "consumer")

    def _kept(self, kind: Any, role: str) -> EncodedDecisions[Any]:
        service, clock = DecisionService(self.view, FakeClock()), self.clock
        return kind(f"p.{role}.", service, self.view, clock.now, lambda: clock.now().mono, self.tally)  # type: ignore[no-any-return]

    def put(self, state: SubjectState) -> None:
        self.view.subjects[state.subject] = state

    def forget(self, name: str) -> None:
        del self.view.subjects[name]


def ask(answers: EncodedDecisions[Any], of: str = SUBJECT, payload: bytes = b"", requester: str = "_INBOX.a") -> Any:
    role = "gateway" if isinstance(answers, GatewayDecisions) else "consumer"
    try:
        body = answers(f"p.{role}.{of}".encode(), payload, requester)
    except RequestRefused as refused:
        return refused.code
    return None if body is None else json.loads(body)


def evaluated(world: World, of: str, payload: bytes) -> Any:
    try:
        decision = world.plain.decide_gateway(of, parse(payload, GatewayRequest), world.clock.now())
    except RequestRefused as refused:
        return refused.code
    return json.loads(msgspec.json.encode(decision))


def read(name: str, age: float, incident: str | None = None, **values: Any) -> SubjectState:
    """A watched subject after a reading."""
    state = subject(member(age=age, **values), name=name)
    assert state.record is not None
    return state if incident is None else replace(state, record=replace(state.record, incident=incident))


def without_validity(answer: Any) -> Any:
    return answer if isinstance(answer, int) else {k: v for k, v in answer.items() if k != "valid_for_ms"}


@given(states(), STEPS)
def test_a_kept_answer_is_one_of_the_last_moment_and_newer_than_the_last_input(
    watched: list[SubjectState], steps: list[tuple[str, Any, Any]]
) -> None:
    world = World(*watched)
    past: dict[tuple[str, bytes], list[tuple[float, Any]]] = {}
    for what, value, more in steps:
        now = world.clock.now().mono
        if what == "pass":
            world.clock.advance(value)
        elif what in ("input", "forget"):
            name = "a.*" if more == 40.0 else "a.b"
            if what == "input":
                world.put(read(name, NOW.mono - now + more, **value))
            elif name in world.view.subjects:
                world.forget(name)
            else:  # nothing happened, and the kept answers may be repeated
                continue
            for asked, _ in list(past):
                past.update({key: [] for key in past if key[0] == asked and covers(name, asked)})
        else:
            payload = REQUESTS[more]
            key, new = (value, payload), evaluated(world, value, payload)
            recent = past.setdefault(key, [])
            recent.append((now, new))
            kept = ask(world.gateway, value, payload)
            assert without_validity(kept) in [without_validity(one) for at, one in recent if now - at < LIFE]
            if isinstance(kept, dict) and isinstance(new, dict) and new["freshness"] == kept["freshness"]:
                assert kept["valid_for_ms"] <= new["valid_for_ms"]


@given(states(), STEPS)
def test_grants_are_those_of_a_new_evaluation(watched: list[SubjectState], steps: list[tuple[str, Any, Any]]) -> None:
    world = World(*watched)
    for n, (what, value, more) in enumerate(steps):
        if what == "pass":
            world.clock.advance(0.3 if value > LIFE else LIFE)  # less would repeat what age alone has changed since
        elif what == "input":
            world.put(subject(member(inflight=100 * n, ack_rate=50.0), name="a.b"))
        elif what == "ask":
            payload, requester = PULLS[more], f"_INBOX.{n % 3}"
            request = parse(payload, ConsumerRequest)
            try:
                decision = world.plain.decide_consumer(value, request, requester, world.clock.now())
                expected = json.loads(msgspec.json.encode(decision))
            except RequestRefused as refused:
                expected = refused.code
            assert ask(world.consumer, value, payload, requester) == expected


@pytest.mark.parametrize("role", ["gateway", "consumer"])
def test_an_input_is_seen_at_once(role: str) -> None:
    world = World(subject(member()))
    answers = world.gateway if role == "gateway" else world.consumer
    assert ask(answers)["status"] == "inactive"
    world.put(subject(member(**OVERLOADED)))
    assert ask(answers)["status"] == "active"
    world.put(subject(member(), name="*.router.>"))
    assert len(ask(answers)["matched"]) == 2
    world.forget(SUBJECT)
    assert ask(answers)["matched"] == ["*.router.>"]
    world.put(subject(member()))
    assert len(ask(answers)["matched"]) == 2


def shedding(ratio: float) -> SubjectState:
    return replace(subject(member(policy=ADAPTIVE), policy=ADAPTIVE), shedding=replace(OPEN, ratio=ratio))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (read(SUBJECT, 0.01), read(SUBJECT, 0.0)),
        (read(SUBJECT, 0.01), read(SUBJECT, 12.0)),
        (read(SUBJECT, 0.01), read(SUBJECT, 0.01, pending=5)),
        (read(SUBJECT, 0.01, pending=1500), read(SUBJECT, 0.01, **OVERLOADED)),
        (read(SUBJECT, 0.01, **OVERLOADED), read(SUBJECT, 0.01, "another", **OVERLOADED)),
        (read(SUBJECT, 0.01), subject(member(policy=PATIENT), policy=PATIENT)),
        (shedding(0.5), shedding(0.4)),
    ],
    ids=["sampled_at", "freshness", "pressure", "status", "incident", "policy", "admit_ratio"],
)
def test_whatever_an_input_changes_is_shown_at_once(before: SubjectState, after: SubjectState) -> None:
    world = World(before)
    world.view.next = NOW.mono  # the validity is the shortest one
    first = ask(world.gateway)
    world.put(after)
    assert ask(world.gateway) == evaluated(world, SUBJECT, b"") != first


@pytest.mark.parametrize("role", ["gateway", "consumer"])
@pytest.mark.parametrize("left", [0.02, CALM_LIFE - 0.01, CALM_LIFE + 0.01])
def test_age_makes_an_answer_stale_at_its_moment(left: float, role: str) -> None:
    world = World(subject(member(age=10 - left)))
    answers: EncodedDecisions[Any] = world.gateway if role == "gateway" else world.consumer
    assert ask(answers)["freshness"] == "known"
    world.clock.advance(left - 0.01)
    assert ask(answers)["freshness"] == "known"
    world.clock.advance(0.01)
    assert ask(answers)["freshness"] == "stale"


@pytest.mark.parametrize(
    ("state", "life"),
    [
        (subject(member()), CALM_LIFE),
        (subject(member(**OVERLOADED)), CALM_LIFE),
        (subject(member(age=12.0)), LIFE),
        (subject(member(age=12.0, **OVERLOADED)), LIFE),
        (subject(member(age=40.0)), LIFE),
        (subject(member(policy=OPEN_LONG), policy=OPEN_LONG), LIFE),
    ],
    ids=["inactive", "active", "stale", "stale and active", "unknown", "an override"],
)
def test_only_what_nothing_but_an_input_changes_is_repeated_for_long(state: SubjectState, life: float) -> None:
    world = World(state)
    evaluated_at: list[list[Any]] = []
    for seconds in (0.0, life - 0.001, 0.001, life - 0.001, 0.001):
        world.clock.advance(seconds)
        ask(world.gateway)
        evaluated_at += [entry.answers for entry in world.gateway._entries.values()]
    first, repeated, second, again, third = evaluated_at
    assert repeated is first is not second and again is second is not third


def test_how_long_an_answer_is_valid_is_computed_after_a_life() -> None:
    world = World(subject(member()))
    world.view.next = NOW.mono + 9
    assert ask(world.gateway)["valid_for_ms"] == 5000
    world.view.next = NOW.mono + 1
    world.clock.advance(LIFE)
    assert ask(world.gateway)["valid_for_ms"] == 900


def test_an_override_ends_a_life_late_at_most() -> None:
    shut = Policy(override=(Override("reject", NOW.wall + 0.01),))
    world = World(subject(member(policy=shut), policy=shut))
    assert ask(world.gateway)["action"] == "reject"
    world.clock.advance(LIFE)
    assert ask(world.gateway)["action"] == "continue"


def test_an_answer_is_no_longer_valid_than_until_the_next_reading() -> None:
    world = World(subject(member()))
    world.view.next = NOW.mono + 0.3
    assert ask(world.gateway)["valid_for_ms"] == 250
    world.clock.advance(0.04)
    assert ask(world.gateway)["valid_for_ms"] == 250
    world.clock.advance(0.2)
    assert ask(world.gateway)["valid_for_ms"] == 100


def test_a_grant_is_made_for_each_request() -> None:
    world = World(subject(member(inflight=450)))
    pulls = [ask(world.consumer, payload=b'{"max_messages": 20}')["pull"]["max_messages"] for _ in range(4)]
    assert pulls == [20, 20, 10, 0]


def test_each_wait_is_drawn_for_its_request() -> None:
    world = World(subject(member(inflight=500, ack_rate=2.0)))
    waits = {ask(world.consumer)["pull"]["wait_ms"] for _ in range(10)}
    assert len(waits) > 5 and all(50 <= wait <= 1000 for wait in waits)


def test_decisions_are_counted_for_the_watched_subject_that_decides() -> None:
    observed = subject(member(policy=WATCHING, **OVERLOADED), name="o.*", policy=WATCHING)
    world = World(subject(member(**OVERLOADED)), observed)
    for _ in range(3):
        ask(world.gateway)
    ask(world.gateway, "o.1")
    ask(world.consumer, "o.2")
    ask(world.gateway, "nobody")
    world.tally.pass_on()
    world.tally.pass_on()
    assert world.metrics.counted == {
        (SUBJECT, "gateway", "reject", None): 3,
        ("o.*", "gateway", "continue", "reject"): 1,
        ("o.*", "consumer", "continue", "continue"): 1,
    }
    assert (world.metrics.n, world.gateway.answered, world.consumer.answered) == (5, 4, 1)


def test_a_decision_of_the_ordinary_way_is_counted_with_its_own_duration() -> None:
    world = World()
    world.tally.decision("a", "gateway", "reject", 0.5, None)
    assert (world.metrics.n, world.metrics.seconds) == (1, 0.5)
    world.tally.pass_on()
    assert world.metrics.counted == {("a", "gateway", "reject", None): 1} and world.metrics.n == 1


def test_nothing_is_lost_when_the_counts_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_tally, "MOST_COUNTS", 2)
    world = World(*(subject(member(), name=f"s{n}") for n in range(5)))
    for n in range(40):
        ask(world.gateway, f"s{n * 7 % 5}")
        ask(world.consumer, f"s{n * 3 % 5}")
    world.tally.pass_on()
    counted = Counter[tuple[str, str]]()
    for (name, role, _, _), number in world.metrics.counted.items():
        counted[name, role] += number
    assert counted == {(f"s{n}", role): 8 for n in range(5) for role in ("gateway", "consumer")}


@pytest.mark.parametrize("bound", ["MOST_ENTRIES", "MOST_BYTES"])
@pytest.mark.parametrize("role", ["gateway", "consumer"])
def test_the_oldest_entries_are_dropped(role: str, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 3 if bound == "MOST_ENTRIES" else 3200 if role == "gateway" else 6600
    monkeypatch.setattr(encoded_decisions, bound, most)
    world = World(*(subject(member(), name=f"s{n}") for n in range(9)))
    answers: EncodedDecisions[Any] = world.gateway if role == "gateway" else world.consumer
    for n in range(9):
        ask(answers, f"s{n}")
    assert list(answers._entries) == [f"p.{role}.s{n}".encode() for n in (6, 7, 8)]
    world.clock.advance(CALM_LIFE)
    ask(answers, "s6")
    ask(answers, "s1")
    assert list(answers._entries) == [f"p.{role}.s{n}".encode() for n in (8, 6, 1)]
    assert answers._size == sum(entry.size for entry in answers._entries.values()) <= 6600


def test_all_texts_of_a_consumer_s_reply_are_counted() -> None:
    world = World(subject(member(inflight=450)))
    for _ in range(4):
        ask(world.consumer, payload=b'{"max_messages": 20}')
    (entry,) = world.consumer._entries.values()
    (reply,) = entry.replies.values()
    assert len(reply.bodies) == 3
    texts = sum(len(before) + len(after) for before, after, _ in reply.bodies.values())
    assert texts <= entry.size == world.consumer._size


def test_one_subject_has_a_bounded_number_of_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_decisions, "MOST_PAYLOADS", 3)
    world = World(subject(member(**OVERLOADED)))
    for n in range(1, 9):
        payload = b'{"attempt": %d}' % n
        assert without_validity(ask(world.gateway, payload=payload)) == without_validity(
            evaluated(world, SUBJECT, payload)
        )
    (entry,) = world.gateway._entries.values()
    assert list(entry.replies) == [b'{"attempt": 7}', b'{"attempt": 8}']
    assert world.gateway._size == entry.size < 3 * 1024


def test_payloads_that_make_no_difference_have_one_text_in_common() -> None:
    world = World(subject(member()))
    asked = [b'{"attempt": %d, "priority": "%b"}' % (n, p) for n in (1, 2, 3, 4) for p in (b"normal", b"high")]
    assert len({msgspec.json.encode(ask(world.gateway, payload=payload)) for payload in asked}) == 1
    (entry,) = world.gateway._entries.values()
    assert len(entry.replies) == 8 and len(entry.shared) == 1


def test_after_a_life_the_times_are_those_of_now_and_nothing_else_is_made_again() -> None:
    world = World(subject(member()))
    world.view.next = NOW.mono + 3
    first = ask(world.gateway)
    (entry,) = world.gateway._entries.values()
    (reply,) = entry.replies.values()
    world.clock.advance(1.0)
    world.put(subject(member(age=-0.9)))
    second = ask(world.gateway)
    assert (first["sampled_at"], second["sampled_at"]) == ("2025-12-31T23:59:59.990Z", "2026-01-01T00:00:00.900Z")
    assert (first["valid_for_ms"], second["valid_for_ms"]) == (2950, 1950)
    (entry,) = world.gateway._entries.values()
    assert entry.replies == {b"": reply}


@pytest.mark.parametrize(
    "name", ["orders.987654321", "0", 'a."sampled_at":null,"valid_for_ms":0', 'a."wait_ms":0,', "a\\", 'a"b.\u00e9']
)
def test_no_name_of_a_subject_spoils_a_reply(name: str) -> None:
    world = World(subject(member(inflight=500), name=name))
    tail = encode(name).encode()
    gateway, consumer = (
        world.gateway(b"p.gateway." + tail, b"", "_INBOX.a"),
        world.consumer(b"p.consumer." + tail, b"", "_INBOX.a"),
    )
    assert gateway is not None and consumer is not None
    assert without_validity(json.loads(gateway)) == without_validity(evaluated(world, name, b""))
    pull = world.plain.decide_consumer(name, ConsumerRequest(), "_INBOX.a", world.clock.now())
    assert json.loads(consumer) == json.loads(msgspec.json.encode(pull))


def test_what_is_large_is_left_to_the_ordinary_way_and_granted_nothing() -> None:
    names = [f"{'x' * 200}.{'*.' * n}>" for n in range(1, 60)]
    world = World(subject(member(inflight=450)), *(subject(member(), name=name) for name in names))
    deep = "x" * 200 + ".a" * 70
    assert ask(world.gateway, deep) is None and ask(world.consumer, deep) is None
    assert ask(world.consumer, payload=b'{"max_messages": 50' + b" " * 1024 + b"}") is None
    assert ask(world.consumer, payload=b'{"max_messages": 50}')["pull"]["max_messages"] == 50


def test_a_preview_is_left_to_the_ordinary_way_and_not_counted() -> None:
    world = World(subject(member()))
    for kept in (world.gateway, world.consumer):
        assert ask(kept, payload=b'{"preview": true}') is None
    world.tally.pass_on()
    assert not world.metrics.counted


def test_mistakes_are_left_to_the_ordinary_way() -> None:
    world = World(subject(member()))
    with pytest.raises(BadTail):
        world.gateway(b"p.gateway.a..b", b"", "_INBOX.a")
    with pytest.raises(BadRequest):
        world.consumer(f"p.consumer.{SUBJECT}".encode(), b"[]", "_INBOX.a")
    assert ask(world.consumer, payload=b'{"stream": "X"}') == 404
    world.tally.pass_on()
    assert world.metrics.counted == {}


def test_a_reply_names_the_subject_that_is_watched_now() -> None:
    world = World(read("a.*", 0.01, pending=5))
    assert ask(world.gateway, "a.b")["matched"] == ["a.*"]
    world.forget("a.*")
    world.put(read("a.>", 0.01, pending=5))
    assert ask(world.gateway, "a.b")["matched"] == ["a.>"]
