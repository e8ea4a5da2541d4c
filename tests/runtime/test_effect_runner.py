"""Each effect is tried until its outcome is certain, and the outcome is fed back as an input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Observe
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.subject.inputs import (
    Effect,
    EventConflict,
    EventDropped,
    EventSent,
    Input,
    KeyRemoved,
    LoadRecord,
    PublishEvent,
    RecordCreated,
    RecordLoaded,
    RemoveKey,
    WriteConflict,
    WriteDone,
    WriteFailing,
    WriteRecord,
)
from nats_backpressure.core.subject.record import Record, Writing
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard, Policy
from nats_backpressure.protocol.values import Status
from nats_backpressure.runtime.effect_attempt import EffectAttempt
from nats_backpressure.runtime.effect_runner import ARRIVES_WITHIN, AT_ONCE, LAST_RETRY, EffectRunner
from nats_backpressure.runtime.followed_streams import FollowedStreams
from nats_backpressure.runtime.member_index import MemberIndex
from nats_backpressure.runtime.step_context import StepContexts
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.fakes.clock import FakeClock, settled
from tests.fakes.stores import FakeEventPublisher, FakeStateStore
from tests.simulations import stored_samples
from tests.simulations.stored_samples import SUBJECT, event

RECORD = Record(SUBJECT, "e", 1, Status.INACTIVE, Status.INACTIVE, since=0.0)


class Counts:
    """Whatever was counted, by name."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []

    def dropped(self, what: str, n: int = 1) -> None:
        self.all.append((what,))

    def event(self, subject: str, type: str) -> None:
        self.all.append(("event", type))

    def transition(self, subject: str, was: str, now: str) -> None:
        self.all.append((was, now))

    def observed(self, seconds: float) -> None: ...
    def received(self, stream: str) -> None: ...
    def reloaded(self, outcome: str) -> None: ...


class World:
    """A runner on fakes; `fed` is what a registry with one subject got back."""

    def __init__(self) -> None:
        self.clock, self.counts = FakeClock(), Counts()
        self.store, self.publisher = FakeStateStore(), FakeEventPublisher()
        self.subjects: dict[str, SubjectState] = {}
        members, policies = MemberIndex(), ActivePolicies((), Guard(), False)
        self.streams = FollowedStreams(members, self.clock, Observe())
        self.contexts = StepContexts(policies, self.streams, members, Observe(), "w")
        self.publishes(event(1))
        self.fed: list[Input] = []
        self.published: list[bytes] = []
        self.on_published = self.published.append
        attempt = EffectAttempt(
            self.store,
            self.publisher,
            self.clock,
            lambda state, writing, view, now: stored_samples.value(writing.record, writing.nonce),
            self.counts,
        )
        self.runner = EffectRunner(attempt, self.clock, self.counts)

    def publishes(self, one: SubjectEvent | None) -> None:
        """The subject publishes this event, or none any more; it writes with the nonce `n`."""
        publishing, writing = None if one is None else one.id, Writing(RECORD, 0, "n")
        state = SubjectState(SUBJECT, Policy(), 0.0, record=RECORD, revision=1, publishing=publishing, writing=writing)
        self.subjects[SUBJECT] = state

    def feed(self, subject: str, input_: Input) -> None:
        self.fed.append(input_)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[EffectRunner]:
        async with asyncio.TaskGroup() as tasks:
            self.runner.start(cast("SubjectRegistry", self), tasks)
            yield self.runner
            await self.runner.abandon()

    async def perform(self, *effects: Effect, seconds: float = 60.0) -> list[Input]:
        """Perform them; what was fed back within `seconds`."""
        async with self.running() as runner:
            runner.perform(effects)
            await self.clock.run(seconds)
        return self.fed


def failing(*answers: bool) -> Any:
    """A fault that strikes as often as it is true here, and then never again."""
    left = list(answers)
    return lambda: left.pop(0) if left else False


async def test_after_it_was_abandoned_nothing_begins() -> None:
    """A report of a gateway comes until the connection is closed."""
    world = World()
    async with world.running() as runner:
        pass
    runner.perform([LoadRecord(SUBJECT)])
    await world.clock.run(1.0)
    assert world.fed == []


class TestLoading:
    async def test_where_nothing_is_stored_a_new_record_begins(self) -> None:
        (fed,) = await World().perform(LoadRecord(SUBJECT))
        assert isinstance(fed, RecordCreated) and fed.epoch and (fed.revision, fed.seq) == (0, 0)

    async def test_a_new_record_goes_on_where_the_events_stream_left_off(self) -> None:
        world = World()
        await world.publisher.publish(event(3))
        (fed,) = await world.perform(LoadRecord(SUBJECT))
        assert isinstance(fed, RecordCreated) and fed.epoch != "e"
        assert (fed.seq, fed.status, fed.incident, fed.lost) == (3, Status.ACTIVE, "e-1", False)

    async def test_what_is_stored_is_loaded_with_its_revision(self) -> None:
        world = World()
        revision = await world.store.write(SUBJECT, stored_samples.value(RECORD, "n"), 0, "n")
        (fed,) = await world.perform(LoadRecord(SUBJECT))
        assert isinstance(fed, RecordLoaded) and (fed.record.subject, fed.revision) == (SUBJECT, revision)


class TestWriting:
    async def test_a_write_gives_the_new_revision(self) -> None:
        world = World()
        assert await world.perform(WriteRecord(SUBJECT, Writing(RECORD, 0, "n"))) == [WriteDone("n", 1)]

    async def test_a_changed_status_is_counted(self) -> None:
        world = World()
        active = Record(SUBJECT, "e", 1, Status.ACTIVE, Status.ACTIVE, since=0.0)
        await world.perform(WriteRecord(SUBJECT, Writing(active, 0, "n")))
        assert world.counts.all == [("inactive", "active")]

    async def test_while_a_write_fails_the_subject_knows_and_it_is_retried(self) -> None:
        world = World()
        world.store.faults.before = failing(True, True)
        fed = await world.perform(WriteRecord(SUBJECT, Writing(RECORD, 0, "n")))
        assert fed == [WriteFailing("n"), WriteFailing("n"), WriteDone("n", 1)]
        assert world.counts.all == [("write_retry",)] * 2

    async def test_a_write_whose_reply_was_lost_is_our_own(self) -> None:
        world = World()
        world.store.faults.after = failing(True)
        fed = await world.perform(WriteRecord(SUBJECT, Writing(RECORD, 0, "n")))
        assert fed == [WriteFailing("n"), WriteDone("n", 1)]

    async def test_a_conflict_is_fed_back_and_not_retried(self) -> None:
        world = World()
        await world.store.write(SUBJECT, stored_samples.value(RECORD, "other"), 0, "other")
        assert await world.perform(WriteRecord(SUBJECT, Writing(RECORD, 0, "n"))) == [WriteConflict("n")]
        assert world.counts.all == [("state_conflict",)]

    async def test_a_subject_that_is_gone_is_not_written(self) -> None:
        world = World()
        assert await world.perform(WriteRecord("gone", Writing(RECORD, 0, "n"))) == [] and not world.store.values

    async def test_what_was_given_up_for_another_record_is_not_written(self) -> None:
        world = World()
        assert await world.perform(WriteRecord(SUBJECT, Writing(RECORD, 0, "before"))) == [] and not world.store.values

    async def test_nothing_is_written_or_published_until_what_is_stored_was_read_on_this_connection(self) -> None:
        world = World()
        world.store.is_current = False
        async with world.running() as runner:
            runner.perform([WriteRecord(SUBJECT, Writing(RECORD, 0, "n")), PublishEvent(SUBJECT, event(1))])
            await world.clock.run(3.0)
            assert not world.store.values and not world.publisher.events
            world.store.is_current = True
            await world.clock.run(5.0)
            assert world.store.values and world.publisher.events

    async def test_no_event_of_a_record_in_doubt_is_published(self) -> None:
        world = World()
        world.subjects[SUBJECT] = replace(world.subjects[SUBJECT], doubted=True)
        assert await world.perform(PublishEvent(SUBJECT, event(1)), seconds=3.0) == [] and not world.publisher.events


class TestPublishing:
    async def test_a_published_event_is_fed_back_and_counted(self) -> None:
        world = World()
        assert await world.perform(PublishEvent(SUBJECT, event(1))) == [EventSent(event(1).id)]
        assert world.counts.all == [("event", "backpressure_active")]
        assert world.published == [await world.publisher.publish(event(1))]

    async def test_a_conflict_has_the_newest_seq_and_a_new_epoch(self) -> None:
        world = World()
        await world.publisher.publish(event(5, epoch="f"))
        world.publishes(event(2))
        (fed,) = await world.perform(PublishEvent(SUBJECT, event(2)))
        assert isinstance(fed, EventConflict) and (fed.id, fed.seq) == (event(2).id, 5) and fed.epoch not in "ef"

    async def test_an_event_that_has_another_number_meanwhile_is_not_published_any_more(self) -> None:
        world = World()
        world.publisher.faults.before = lambda: True
        async with world.running() as runner:
            runner.perform([PublishEvent(SUBJECT, event(1))])
            await world.clock.run(1.0)
            world.publishes(event(7, epoch="f"))
            world.publisher.faults.before = lambda: False
            await world.clock.run(10.0)
        assert world.fed == [] and world.publisher.events == []

    async def test_an_event_that_can_never_be_published_is_dropped_and_logged(self) -> None:
        world = World()
        world.publisher.impossible = lambda subject, kind: True
        with capture_logs() as logged:
            (fed,) = await world.perform(PublishEvent(SUBJECT, event(1)))
        assert isinstance(fed, EventDropped) and fed.id == event(1).id and not world.published
        assert [(line["event"], line["log_level"]) for line in logged] == [("event.dropped", "error")]


class TestRemoving:
    @pytest.mark.parametrize("expected", [1, 7], ids=["ours", "written by another"])
    async def test_the_key_is_not_ours_any_more_either_way(self, expected: int) -> None:
        world = World()
        await world.store.write(SUBJECT, b"{}", 0, "n")
        world.subjects[SUBJECT] = SubjectState(SUBJECT, Policy(), 0.0, record=RECORD, removing=True)
        assert await world.perform(RemoveKey(SUBJECT, expected)) == [KeyRemoved(expected != 1)]
        assert (SUBJECT in world.store.values) is (expected != 1)

    async def test_what_was_never_stored_leaves_no_mark_of_a_deletion(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = World()
        monkeypatch.setattr(world.store, "remove", lambda *args: pytest.fail("deleted"))
        world.subjects[SUBJECT] = SubjectState(SUBJECT, Policy(), 0.0, record=RECORD, removing=True)
        assert await world.perform(RemoveKey(SUBJECT, 0)) == [KeyRemoved()]

    async def test_a_subject_that_is_needed_again_keeps_its_key(self) -> None:
        world = World()
        await world.store.write(SUBJECT, b"{}", 0, "n")
        assert await world.perform(RemoveKey(SUBJECT, 1)) == [] and SUBJECT in world.store.values


class TestOutages:
    async def test_an_outage_of_an_hour_is_few_tries(self) -> None:
        world = World()
        world.store.faults.before = lambda: True
        async with world.running() as runner:
            with capture_logs() as logged:
                runner.perform([LoadRecord(SUBJECT)])
                await world.clock.run(3600)
            world.store.faults.before = lambda: False
            await world.clock.run(LAST_RETRY)
        assert {(line["event"], line["log_level"]) for line in logged} == {("effect.failed", "debug")}
        assert 3600 / LAST_RETRY < len(logged) < 2 * 3600 / LAST_RETRY
        assert len(world.fed) == 1

    async def test_what_failed_is_tried_again_at_once_where_a_connection_is_made(self) -> None:
        world, failing = World(), True
        world.store.faults.before = lambda: failing
        async with world.running() as runner:
            runner.perform([LoadRecord(f"s{n}") for n in range(20)])
            await world.clock.run(60)
            failing = False
            runner.retry_now()
            await settled()
            assert len(world.fed) == 20

    async def test_only_so_many_are_tried_at_a_time(self) -> None:
        world = World()
        tried = 0

        async def hang(subject: str) -> None:
            nonlocal tried
            tried += 1
            await world.clock.sleep(10)

        world.store.load = hang  # type: ignore[method-assign,assignment]
        async with world.running() as runner:
            runner.perform([LoadRecord(f"s{n}") for n in range(AT_ONCE + 10)])
            await settled()
            assert tried == AT_ONCE
            await world.clock.run(10)
            assert tried == AT_ONCE + 10

    async def test_writes_that_hang_delay_no_publish_and_no_load(self) -> None:
        world = World()

        async def hang(*given: object) -> int:
            await world.clock.sleep(1e6)
            return 0

        world.store.write = hang  # type: ignore[method-assign,assignment]
        async with world.running() as runner:
            writing = Writing(RECORD, 1, "n")
            runner.perform([WriteRecord(SUBJECT, writing)] * (AT_ONCE + 1))
            runner.perform([PublishEvent(SUBJECT, event(1)), LoadRecord("other")])
            await settled()
        assert {type(fed) for fed in world.fed} == {EventSent, RecordCreated}

    async def test_what_does_not_end_in_time_is_left_and_then_cancelled(self) -> None:
        world = World()
        world.store.faults.before = lambda: True
        async with world.running() as runner:
            runner.perform([LoadRecord(SUBJECT)])
            began = world.clock.now().mono
            await world.clock.finish(runner.finish(2.0))
            assert world.clock.now().mono == began + 2.0 and world.fed == []

    async def test_to_finish_nothing_takes_no_time(self) -> None:
        world = World()
        async with world.running() as runner:
            await runner.finish(2.0)
        assert world.clock.now() == FakeClock().now()


EFFECTS = {
    "load": LoadRecord(SUBJECT),
    "write": WriteRecord(SUBJECT, Writing(RECORD, 0, "n")),
    "publish": PublishEvent(SUBJECT, event(1)),
    "remove": RemoveKey(SUBJECT, 1),
}


@pytest.mark.parametrize("effect", EFFECTS)
async def test_while_anything_but_an_event_fails_for_long_it_is_known_that_it_does_not_write(effect: str) -> None:
    world = World()
    world.subjects[SUBJECT] = replace(world.subjects[SUBJECT], removing=True)
    failing = True
    world.store.faults.before = world.publisher.faults.before = lambda: failing
    async with world.running() as runner:
        runner.perform([EFFECTS[effect]])
        await world.clock.run(ARRIVES_WITHIN - 0.1)
        assert runner.writes, "one that fails for a moment is none"
        await world.clock.run(0.2)
        assert runner.writes == (effect == "publish")
        failing = False
        await world.clock.run(10.0)
        assert runner.writes


async def test_while_a_write_hangs_it_is_known_and_those_that_wait_for_their_turn_count_from_then() -> None:
    world = World()

    async def hang(*given: object) -> int:
        await world.clock.sleep(ARRIVES_WITHIN - 0.1)
        return 1

    world.store.write = hang  # type: ignore[method-assign,assignment]
    async with world.running() as runner:
        runner.perform([EFFECTS["write"]] * (2 * AT_ONCE))
        for _ in range(2):
            await world.clock.run(ARRIVES_WITHIN - 0.1)
            assert runner.writes
        world.store.write = lambda *given: world.clock.sleep(1e6)  # type: ignore[method-assign,assignment]
        runner.perform([EFFECTS["write"]])
        await world.clock.run(ARRIVES_WITHIN)
        assert not runner.writes
