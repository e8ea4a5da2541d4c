"""What a sample, a hint or an absence means for the subjects of a consumer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import ConsumerConfig, Sample
from nats_backpressure.core.subject.membership import GONE_AFTER, ReadState
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.intake import Intake, log_and_count
from nats_backpressure.runtime.observations import Nak, Terminated
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.fakes.clock import FakeClock
from tests.fakes.observer import FakeJetStream

KEY = ConsumerKey("S", "a")
ALL = (WatchEntry("*"),)


class World:
    """An intake with one stream that is read on demand; `reported` is what it reported."""

    def __init__(self, *watch: WatchEntry, chosen: Callable[[str], bool] = lambda subject: True) -> None:
        self.clock = FakeClock()
        self.js = FakeJetStream(self.clock)
        self.js.add_stream("S", ("orders", "bills"))
        self.js.add_consumer(KEY, ConsumerConfig(filters=("orders",)))
        self.reported: list[tuple[str, str, Any]] = []
        policies = ActivePolicies((), Guard(), True)
        self.registry = SubjectRegistry(Settings(), self.clock, policies, "w", lambda effects: None)
        self.intake = Intake(
            self.registry,
            self.clock,
            watch or ALL,
            (),
            lambda what, key, why: self.reported.append((what, key.consumer, why)),
            chosen,
        )
        self.stream = FollowedStream(self.js.look("S"), self.clock.now().mono)

    def read(self, key: ConsumerKey = KEY, **parts: Any) -> tuple[str, ...]:
        """Take in a sample of a consumer, with these parts of it changed."""
        self.stream.look = self.js.look("S")
        members_of = self.registry.members.of_stream("S").get(key, ())
        return self.intake.sample(self.stream, replace(self.js.sample(key), **parts), members_of)

    def configure(self, **config: Any) -> None:
        self.js.of(KEY).config = ConsumerConfig(**config)

    def settle(self, shown: ReadState) -> frozenset[ConsumerKey]:
        return self.intake.remove_uncounted_members(self.stream, shown).unread

    def members(self, subject: str) -> set[ConsumerKey]:
        state = self.registry.subjects.get(subject)
        return set(state.members) if state else set()


class TestSamples:
    @pytest.mark.parametrize("created", ["2026-11-27T20:26:13.9Z", "2026-11-27T20:26:13.9001Z"])
    def test_what_samples_have_in_common_is_remembered_once(self, created: str) -> None:
        """Also where a restarted server before 2.12 tells another creation from now on."""
        world = World()

        def config() -> ConsumerConfig:
            return ConsumerConfig(filters=("orders",), max_ack_pending=7)

        def last() -> Sample:
            sample = world.intake._trackers[KEY].last
            assert sample is not None
            return sample

        world.read(config=config(), created="2026-11-27T20:26:13.9Z")
        first = last()
        for _ in range(2):
            world.read(config=config(), created=f"{created}")
        assert last() is not first
        assert (last().key, last().config) == (first.key, first.config)
        assert last().key is first.key and last().config is first.config and last().created is first.created

    def test_a_configuration_that_changed_is_that_of_the_newest_sample(self) -> None:
        world = World()
        world.read(config=ConsumerConfig(filters=("orders",), max_ack_pending=7))
        world.read(config=ConsumerConfig(filters=("orders",), max_ack_pending=8))
        sample = world.intake._trackers[KEY].last
        assert sample is not None and sample.config.max_ack_pending == 8

    def test_a_consumer_becomes_a_member_of_the_subjects_it_takes(self) -> None:
        world = World()
        world.js.publish("S", "orders", 7)
        assert world.read() == ("orders",)
        reading = world.registry.subjects["orders"].members[KEY].reading
        assert reading is not None and reading.pending == 7 and not world.members("bills")

    def test_another_filter_makes_it_a_member_of_another_subject(self) -> None:
        world = World()
        world.read()
        world.configure(filters=("bills",))
        under = world.read()
        world.settle(ReadState({KEY: under}))
        assert (world.members("orders"), world.members("bills")) == (set(), {KEY})
        assert world.reported == [("consumer.out", "a", "orders")]

    def test_one_that_acknowledges_nothing_does_not_count(self) -> None:
        world = World()
        world.configure(filters=("orders",), ack_policy="none")
        assert world.read() == () and not world.reported and not world.registry.subjects

    def test_one_that_cannot_be_watched_is_reported_once(self) -> None:
        world = World()
        world.configure(filters=("x" * 10_000,))
        assert world.read() == world.read() == ()
        assert [what for what, _, _ in world.reported] == ["consumer.not_watched"]
        assert not world.registry.subjects

    def test_one_that_the_watch_does_not_name_does_not_count(self) -> None:
        world = World(WatchEntry("S", ("other",)))
        assert world.read() == () and not world.registry.subjects

    def test_only_chosen_subjects_count(self) -> None:
        world = World(chosen=lambda subject: subject == "bills")
        world.configure(filters=("orders", "bills"))
        assert world.read() == ("bills",) and list(world.registry.subjects) == ["bills"]

    def test_an_impossible_sample_is_set_aside_and_its_consumer_stays(self) -> None:
        world = World()
        world.read()
        assert world.read(pending=99) == ("orders",)
        assert world.reported == [("sample.set_aside", "a", "more pending than the stream ever held")]
        reading = world.registry.subjects["orders"].members[KEY].reading
        assert reading is not None and reading.pending == 0

    def test_metadata_is_a_policy_of_its_own_and_a_bad_one_is_reported(self) -> None:
        world = World()
        world.configure(filters=("orders",), metadata=(("backpressure.mode", "observe"),))
        world.read()
        assert world.registry.subjects["orders"].members[KEY].policy.mode == "observe"
        world.configure(filters=("orders",), metadata=(("backpressure.pending.warn", "many"),))
        world.read()
        assert [what for what, _, _ in world.reported] == ["policy.rejected"]
        assert world.registry.subjects["orders"].members[KEY].policy.mode == "observe"  # the last good one


class TestAbsences:
    def test_one_that_is_absent_twice_is_gone(self) -> None:
        world = World()
        world.read()
        nobody = ReadState({}, complete=True)
        world.settle(nobody)
        assert world.members("orders") == {KEY}
        world.clock.advance(GONE_AFTER)
        world.settle(nobody)
        assert world.members("orders") == set() and world.reported == [("consumer.gone", "a", "")]

    def test_one_that_comes_back_in_between_is_not(self) -> None:
        world = World()
        world.read()
        nobody = ReadState({}, complete=True)
        world.settle(nobody)
        world.settle(ReadState({KEY: world.read()}, complete=True))
        world.clock.advance(GONE_AFTER)
        world.settle(nobody)
        assert world.members("orders") == {KEY} and not world.reported

    def test_one_that_could_not_be_read_stays_and_is_to_be_asked_about(self) -> None:
        world = World()
        world.read()
        for _ in range(3):
            assert world.settle(ReadState({}, unread=("a",), complete=True)) == {KEY}
            world.clock.advance(GONE_AFTER)
        assert world.members("orders") == {KEY}

    def test_without_a_complete_list_nobody_is_gone(self) -> None:
        world = World()
        world.read()
        for _ in range(3):
            assert world.settle(ReadState({})) == {KEY}
            world.clock.advance(GONE_AFTER)
        assert world.members("orders") == {KEY}


class TestHints:
    def test_a_terminated_message_is_counted_for_a_consumer_that_is_read(self) -> None:
        world = World()
        world.read()
        world.intake.hint(Terminated(KEY), world.clock.now())
        for _ in range(3):
            world.clock.advance(1.0)
            world.read()
        reading = world.registry.subjects["orders"].members[KEY].reading
        assert reading is not None and reading.diagnosis is Diagnosis.POISON

    def test_of_one_that_is_not_read_it_changes_nothing(self) -> None:
        world = World()
        world.intake.hint(Nak(KEY), world.clock.now())
        assert not world.registry.subjects


def test_the_service_logs_each_report_and_counts_those_that_need_a_look() -> None:
    counted: list[str] = []
    report = log_and_count(counted.append)
    with capture_logs() as logged:
        report("consumer.not_watched", KEY, "it acknowledges nothing")
        report("policy.rejected", KEY, (("mode", "no"),))
        report("sample.set_aside", KEY, "impossible")
        report("consumer.out", KEY, "orders")
        report("consumer.gone", KEY, "")
    assert counted == ["consumer_not_watched", "policy_rejected", "sample_set_aside"]
    assert [line["log_level"] for line in logged] == ["warning", "warning", "debug", "info", "info"]
    assert all((line["stream"], line["consumer"]) == KEY for line in logged)
