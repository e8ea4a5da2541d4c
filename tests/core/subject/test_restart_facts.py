"""What is stored for a restart: when it is worth a write, what is stored, and how a new process uses it."""

from __future__ import annotations

from typing import Any

import pytest

from nats_backpressure.core.model.member import NOTHING_CARRIED, Carried, Latch, Latches, Member
from nats_backpressure.core.model.reading import Account, Reading
from nats_backpressure.core.signals.incarnations import mark
from nats_backpressure.core.subject.record import CARRIED_LIMIT, Loss, Record
from nats_backpressure.core.subject.restart_facts import (
    ACCOUNT_EVERY,
    CARRY_EVERY,
    carried_of,
    carried_write_due,
    facts_to_store,
    new_member,
    with_latches_of,
    with_released_latches_stored,
    with_reported_losses,
)
from nats_backpressure.core.subject.state import SubjectState, with_members
from nats_backpressure.policy.schema import PendingRule, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, Status

KEY = ConsumerKey("S", "c")
NOW = Now(1000.0, 1000.0)
FOLLOWING = Policy(pending=PendingRule(10, 100, 1000, overload_seconds=5))


BORN, TOLD_LATER, ANOTHER = (
    mark(f"2026-11-27T20:26:{seconds}Z", "then") for seconds in ("13.999964145", "14.000073047", "15.2")
)
"""Marks of one consumer before and after the restart of an old server, and of one that was created again."""


def account(pending: int, given: int = 0, kind: int = BORN) -> Account:
    return Account(kind, 0, given, pending, 0, 0)


def member(policy: Policy = FOLLOWING, account: Account | None = None, **reading: Any) -> Member:
    measured = Reading(KEY, NOW, 0, 0, 0.0, None, **reading)
    return Member(KEY, policy, reading=measured, proof=NOW.mono, status=Status.INACTIVE, account=account)


DRAINING = member(lasting_diagnosis=Diagnosis.DRAINING)


def state(one: Member, stored: Carried = NOTHING_CARRIED, ago: float = CARRY_EVERY, **record: Any) -> SubjectState:
    entries = () if stored == NOTHING_CARRIED else ((KEY, stored),)
    kept = Record("s", "e", carried=entries, **record)
    return with_members(SubjectState("s", Policy(), 0.0, record=kept, written_at=NOW.mono - ago), {KEY: one})


@pytest.mark.parametrize(
    ("subject", "due"),
    [
        pytest.param(state(member()), False, id="nothing changed"),
        pytest.param(state(DRAINING), True, id="another diagnosis after half a minute"),
        pytest.param(state(DRAINING, ago=CARRY_EVERY - 1), False, id="but not before"),
        pytest.param(state(DRAINING, unknown=True), False, id="nor while it is unknown"),
        pytest.param(state(member(account=account(100)), ago=ACCOUNT_EVERY), True, id="a backlog that grew"),
        pytest.param(state(member(account=account(100)), ago=1.0), False, id="not within two seconds"),
        pytest.param(state(member(account=account(10)), ago=ACCOUNT_EVERY), False, id="a handful is no backlog"),
        pytest.param(
            state(member(account=account(110)), Carried(account=account(100)), ACCOUNT_EVERY),
            False,
            id="a backlog that grew a little",
        ),
        pytest.param(
            state(member(account=account(100, given=90)), Carried(account=account(100)), ACCOUNT_EVERY),
            True,
            id="a backlog of other messages",
        ),
        pytest.param(
            state(member(account=account(100, kind=ANOTHER)), Carried(account=account(100)), ACCOUNT_EVERY),
            True,
            id="another account",
        ),
        pytest.param(
            state(member(account=account(100, kind=TOLD_LATER)), Carried(account=account(100)), ACCOUNT_EVERY),
            False,
            id="the account of one that lived through a restart of an old server",
        ),
        pytest.param(state(member(handed_back=1), ago=ACCOUNT_EVERY), True, id="a message that was handed back"),
        pytest.param(
            state(member(handed_back=1, made=ANOTHER), Carried(made=BORN, delivered=900, handed_back=5), ACCOUNT_EVERY),
            True,
            id="one of a consumer that was created again",
        ),
        pytest.param(
            state(member(handed_back=1, made=TOLD_LATER), Carried(made=BORN, handed_back=1), ACCOUNT_EVERY),
            False,
            id="one that is stored by one that lived through a restart of an old server",
        ),
        pytest.param(
            state(member(handed_back=1), Carried(handed_back=1), ACCOUNT_EVERY), False, id="one that is stored"
        ),
        pytest.param(state(member(capacity=50.0)), True, id="a first capacity"),
        pytest.param(state(member(capacity=50.0), Carried(capacity=45.0)), False, id="nearly the same capacity"),
        pytest.param(state(member(capacity=50.0), Carried(capacity=30.0)), True, id="another capacity"),
        pytest.param(state(member(Policy(), capacity=50.0)), False, id="a capacity that moves no mark"),
        pytest.param(state(Member(KEY, Policy())), False, id="a member that was never read"),
        pytest.param(SubjectState("s", Policy(), 0.0), False, id="no record yet"),
    ],
)
def test_what_is_worth_a_write_by_itself(subject: SubjectState, due: bool) -> None:
    assert carried_write_due(subject, NOW) is due


def test_the_number_of_stored_consumers_is_bounded_latched_ones_first_then_by_backlog() -> None:
    keys = [ConsumerKey("S", f"c{n:03}") for n in range(CARRIED_LIMIT + 2)]
    members = {
        key: Member(key, Policy(), reading=Reading(key, NOW, n, 0, 0.0, None), account=account(n))
        for n, key in enumerate(keys)
    }
    full = with_members(SubjectState("s", Policy(), 0.0, record=Record("s", "e")), members)
    stored = [key for key, _ in facts_to_store(full, frozenset({keys[0]}), ())]
    assert len(stored) == CARRIED_LIMIT
    assert stored[:2] == [keys[0], keys[-1]]


def test_a_loaded_diagnosis_stays_until_there_is_another() -> None:
    before = Carried(diagnosis=Diagnosis.DRAINING, diagnosed_for=7.0)
    assert (carried_of(member(), before).diagnosis, carried_of(member(), before).diagnosed_for) == ("draining", 7.0)
    another = carried_of(member(lasting_diagnosis=Diagnosis.IDLE, diagnosed_for=1.0), before)
    assert (another.diagnosis, another.diagnosed_for) == ("idle", 1.0)


@pytest.mark.parametrize(("made", "kept"), [(BORN, True), (TOLD_LATER, True), (ANOTHER, False)])
def test_what_was_loaded_stays_for_the_same_consumer_only(made: int, kept: bool) -> None:
    before = Carried(diagnosis=Diagnosis.DRAINING, made=BORN)
    assert (carried_of(member(made=made), before).diagnosis is Diagnosis.DRAINING) is kept


def test_a_loss_that_is_reported_now_is_stored_with_its_account() -> None:
    facts = carried_of(member(account=account(5)), loss=Loss(KEY, 30, account(6)))
    assert (facts.lost, facts.account) == (30, account(6))


def test_what_the_record_reports_as_lost_is_not_reported_again() -> None:
    joined = new_member(KEY, Policy(), {KEY: Carried(lost=12, causes=("data_loss",))}, NOW)
    assert (joined.lost, joined.lost_reported, joined.unreported) == (12, 12, 0)
    assert joined.causes == frozenset({"data_loss"})
    read = with_reported_losses(member(), Carried(lost=12), NOW)
    assert (read.lost, read.lost_reported, read.lost_reported_at) == (0, 12, NOW.mono)
    assert with_reported_losses(read, None, NOW) is read


def test_stored_latches_give_a_member_its_status_back_and_unknown_names_are_ignored() -> None:
    restored = with_latches_of(
        Member(KEY, Policy()), ("pending", "inflight", "of_a_newer_version"), Carried(), Now(1.0, 1.0)
    )
    assert restored.status is Status.ACTIVE
    assert restored.latches.names == ("pending", "inflight")
    assert Member(KEY, Policy()).latches == Latches()


@pytest.mark.parametrize(("stored", "remembered"), [((), None), (("pending",), 7.0)])
def test_a_latch_released_during_a_write_still_remembers_its_hold_after_it(
    stored: tuple[str, ...], remembered: float | None
) -> None:
    """If the next write is lost, the latch is set again: its hold goes on from there, not from the start."""
    member = Member(KEY, Policy(), Latches(pending=Latch(False, 7.0), inflight=Latch(True, 8.0)))
    after = with_released_latches_stored(member, stored).latches
    assert after.pending == Latch(False, remembered)
    assert after.inflight == Latch(True, 8.0)
