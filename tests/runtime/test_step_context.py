"""The context of a step: which streams decide the writer of a subject, and when others must find that it is ours."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import pytest
from msgspec.structs import replace

from nats_backpressure.config.settings import Observe
from nats_backpressure.core.model.member import Carried
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.followed_streams import FollowedStreams
from nats_backpressure.runtime.member_index import MemberIndex
from nats_backpressure.runtime.step_context import NoOtherWriters, StepContexts
from tests.fakes.clock import FakeClock

NOW = Now(100.0, 100.0)
KEY, OTHER = ConsumerKey("S", "a"), ConsumerKey("T", "b")
OURS, THEIRS = "ours", "theirs"


class Others(NoOtherWriters):
    """One that can write under its own policies, and what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], bool]] = []

    def seen_at(self, subject: str, streams: Iterable[str], any_policies: bool) -> float | None:
        self.asked.append((sorted(streams), any_policies))
        return 99.0

    def reported_at(self, mark: str, streams: Iterable[str]) -> float:
        return 98.0 if mark == THEIRS and "S" in streams else -math.inf

    def marks(self) -> frozenset[str] | None:
        return frozenset({THEIRS})

    def marks_that_lack(self, consumers: Collection[ConsumerKey]) -> frozenset[str]:
        return frozenset()


class World:
    """A subject with a member in the stream S."""

    def __init__(self) -> None:
        members, self.others = MemberIndex(), Others()
        members.add("s", KEY)
        policies = ActivePolicies((), Guard(), False)
        policies.mark = OURS
        streams = FollowedStreams(members, FakeClock(), Observe())
        self.contexts = StepContexts(policies, streams, members, Observe(), "w")
        self.contexts.others = self.others


STATE = SubjectState("s", Policy(), unread_since=0.0)
RECORD = Record("s", "e", policy_mark=THEIRS, latched=((OTHER, ("pending",)),), carried=((OTHER, Carried()),))


@pytest.mark.parametrize(
    ("record", "streams"),
    [
        pytest.param(None, ["S"], id="those of its members, while nothing is stored"),
        pytest.param(Record("s", "e"), ["S"], id="those of its members, while the record names none"),
        pytest.param(RECORD, ["T", "T"], id="those that the record names, which all replicas know alike"),
    ],
)
def test_the_writer_is_found_by_streams(record: Record | None, streams: list[str]) -> None:
    world = World()
    context = world.contexts.of(replace(STATE, record=record), 1.0, None, NOW)
    assert world.others.asked[0][0] == streams and context.writer_seen_at == 99.0


@pytest.mark.parametrize(
    ("state", "any_policies"),
    [
        pytest.param(replace(STATE, record=RECORD), True, id="others judged it, and nothing proves it here"),
        pytest.param(replace(STATE, record=replace(RECORD, policy_mark=OURS)), False, id="our policies judged it"),
    ],
)
def test_a_subject_that_nothing_proves_may_be_written_under_other_policies(
    state: SubjectState, any_policies: bool
) -> None:
    world = World()
    world.contexts.of(state, 1.0, None, NOW)
    assert world.others.asked[0][1] is any_policies


def test_what_is_stored_is_proved_by_those_with_the_policies_that_judged_it() -> None:
    contexts = World().contexts
    assert contexts.reported_at(STATE) == -math.inf
    assert contexts.reported_at(replace(STATE, record=Record("s", "e", policy_mark=THEIRS))) == 98.0
    assert contexts.reported_at(replace(STATE, record=Record("s", "e", policy_mark=OURS))) == -math.inf


def test_a_record_whose_judges_are_gone_is_to_be_marked_while_others_run() -> None:
    contexts = World().contexts

    def is_to_be_marked(mark: str) -> bool:
        return contexts.is_to_be_marked(replace(STATE, record=Record("s", "e", policy_mark=mark)), 1.0, NOW)

    assert is_to_be_marked("gone") and not is_to_be_marked(OURS) and not is_to_be_marked(THEIRS)
    contexts.others = NoOtherWriters()
    assert not is_to_be_marked("gone")


def test_the_limits_follow_the_interval_and_the_heartbeat() -> None:
    contexts = World().contexts
    contexts.heartbeat = 5.0
    assert contexts.limits(1.0).interval == 5.0 and contexts.limits(20.0).stale_after == 60.0
