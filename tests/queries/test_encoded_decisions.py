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

from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import Override, Policy
from nats_backpressure.protocol.patterns import BadTail, covers
from nats_backpressure.protocol.requests import BadRequest, ConsumerRequest, GatewayRequest, RequestRefused, parse
from nats_backpressure.queries import decision_tally, encoded_decisions
from nats_backpressure.queries.decision_tally import DecisionTally
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.encoded_decisions import LIFE, ConsumerDecisions, EncodedDecisions, GatewayDecisions
from tests.fakes.clock import FakeClock
from tests.fakes.view import NOW, OVERLOADED, SUBJECT, WATCHING, FakeServiceView, decision_service, member, subject
from tests.queries.test_lookup import states

ASKED = ["a.b", "a.c"]
REQUESTS = [b"", b'{"attempt": 2}', b'{"priority": "critical"}', b'{"priority": "low"}']
PULLS = [b"", b'{"max_messages": 1}', b'{"max_messages": 7, "stream": "S"}', b'{"max_messages": 10000}']
OLD_ENOUGH = st.sampled_from([0.01, 9.98, 12.0, 14.9, 29.99, 40.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(ASKED), st.sampled_from([0, 0, 0, 1, 2, 3])),
        st.tuples(st.just("ask"), st.just("a.b"), st.just(0)),
        st.tuples(st.just("pass"), st.sampled_from([LIFE, 0.3]), st.none()),
        st.tuples(st.just("input"), st.sampled_from([{}, {"pending": 1500}, OVERLOADED]), OLD_ENOUGH),
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
                world.put(subject(member(age=NOW.mono - now + more, **value), name=name))
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


def test_what_age_changes_is_seen_after_a_life() -> None:
    world = World(subject(member(age=9.98)))
    assert ask(world.gateway)["freshness"] == "known"
    world.clock.advance(0.03)
    assert ask(world.gateway)["freshness"] == "known"
    world.clock.advance(LIFE - 0.03)
    assert ask(world.gateway)["freshness"] == "stale"


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


@pytest.mark.parametrize("bound", ["MOST_ANSWERS", "MOST_BYTES"])
def test_the_oldest_answers_are_dropped(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_decisions, bound, 3 if bound == "MOST_ANSWERS" else 1800)
    world = World(*(subject(member(), name=f"s{n}") for n in range(9)))
    for n in range(9):
        ask(world.gateway, f"s{n}")
    kept = [key.decode() for key, _ in world.gateway._entries]
    assert kept == ["p.gateway.s6", "p.gateway.s7", "p.gateway.s8"]
    assert world.gateway._size == sum(entry.size for entry in world.gateway._entries.values())


def test_what_is_large_is_left_to_the_ordinary_way_and_granted_nothing() -> None:
    names = [f"{'x' * 200}.{'*.' * n}>" for n in range(1, 60)]
    world = World(subject(member(inflight=450)), *(subject(member(), name=name) for name in names))
    deep = "x" * 200 + ".a" * 70
    assert ask(world.gateway, deep) is None and ask(world.consumer, deep) is None
    assert ask(world.consumer, payload=b'{"max_messages": 50' + b" " * 1024 + b"}") is None
    assert ask(world.consumer, payload=b'{"max_messages": 50}')["pull"]["max_messages"] == 50


def test_mistakes_are_left_to_the_ordinary_way() -> None:
    world = World(subject(member()))
    with pytest.raises(BadTail):
        world.gateway(b"p.gateway.a..b", b"", "_INBOX.a")
    with pytest.raises(BadRequest):
        world.consumer(f"p.consumer.{SUBJECT}".encode(), b"[]", "_INBOX.a")
    assert ask(world.consumer, payload=b'{"stream": "X"}') == 404
    world.tally.pass_on()
    assert world.metrics.counted == {}
