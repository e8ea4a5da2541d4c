"""What is read back from a stored state: all that we wrote, nothing that we cannot have written."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.event import SubjectAlert
from nats_backpressure.core.model.member import Carried
from nats_backpressure.core.model.reading import Account
from nats_backpressure.core.subject.record import UNSENT_LIMIT, Record, Recoveries, Totals
from nats_backpressure.core.subject.stored_state import record_of
from nats_backpressure.policy.schema import Override
from nats_backpressure.protocol.values import Action, ConsumerKey, Diagnosis, EventType, Status
from tests.simulations.stored_samples import RECORD, event, value

WHOLE = replace(
    RECORD,
    since=1_800_000_000.0,
    incident="e-1",
    reasons=("pending",),
    admission=GatewayAdmission(Action.REJECT, None, 0.0, 30),
    latched=((ConsumerKey("ORDERS", "c"), ("pending", "latency_p95")),),
    carried=(
        (
            ConsumerKey("ORDERS", "c"),
            Carried(Diagnosis.FALLING_BEHIND, 12.5, 80.0, Account(7, 100, 90, 10, 110, 100)),
        ),
    ),
    recoveries=Recoveries("e-0", 1_799_000_000.0, 1_799_000_060.0, 1, 60.0),
    totals=Totals(1, 0, 0, 1_800_000_000.0),
    diagnosis=Diagnosis.FALLING_BEHIND,
    override=Override("reject", 1_800_003_600.0),
    alerts=(SubjectAlert("deep", "critical", "pending_above: 5000", "firing", 1_800_000_000.0, 6000),),
    announced_rejections=("m1",),
)


def changed(change: dict[str, Any], record: Record = RECORD) -> bytes:
    """A stored state in which these fields of the record are others, and so are those that the state repeats."""
    state = json.loads(value(record, "n1"))
    state["record"] |= change
    return json.dumps(state | {name: change[name] for name in ("subject", "epoch", "seq") if name in change}).encode()


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        WHOLE,
        replace(RECORD, unknown=True, status=Status.WARNING),
        replace(
            RECORD,
            seq=UNSENT_LIMIT,
            unsent=tuple(event(seq, EventType.DATA_LOSS) for seq in range(1, UNSENT_LIMIT + 1)),
        ),
    ],
    ids=["little", "all of it", "unknown now", "as many events as may wait"],
)
def test_what_we_wrote_is_read_back_as_it_was(record: Record) -> None:
    assert record_of(value(record, "n1")) == (record, "n1")
    assert record_of(changed({})) == (RECORD, "n1")


def test_the_one_refused_policy_that_earlier_builds_stored_is_read() -> None:
    assert record_of(changed({"announced_rejection": "m7"})) == (replace(RECORD, announced_rejections=("m7",)), "n1")


ALERT = {"name": "a", "severity": "s", "when": "status: active", "state": "pending", "since": 1.0}
FOREIGN: dict[str, dict[str, Any]] = {
    "a time no calendar has ends the process when shown": {"since": 1e300},
    "a time before all time": {"since": -1.0},
    "an epoch that would add a header": {"epoch": "x\r\nNats-Rollup: all", "unsent": []},
    "an epoch without end": {"epoch": "e" * 65, "unsent": []},
    "a nonce without end": {"nonce": "n" * 300},
    "a sequence below nothing": {"seq": -1, "unsent": []},
    "a sequence no number holds": {"seq": 2**63 - 1},
    "a status nobody can have known": {"status": Status.UNKNOWN},
    "a status that is none": {"status": "busy"},
    "more than all": {"admission": {"admit_ratio": 1.5}},
    "a negative wait": {"admission": {"retry_after": -1}},
    "an event of another subject": {"subject": "somebody.else"},
    "an event of another epoch": {"epoch": "f"},
    "an event that is yet to come": {"seq": 0},
    "a recovery in no calendar": {"recoveries": {"began": 1e18}},
    "a novel for a reason": {"reasons": ["r" * 300]},
    "an action that is none": {"admission": {"action": "explode"}},
    "an alert that has held for longer than time": {"alerts": [ALERT | {"held": 1e300}]},
    "a break of one that lasts as long": {"alerts": [ALERT | {"over_since": 1.0, "over_for": 1e300}]},
    "more refused policies than are remembered": {"announced_rejections": ["m"] * 100},
    "a refused policy without end": {"announced_rejections": ["m" * 300]},
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_value_we_cannot_have_written_is_not_ours(change: dict[str, Any]) -> None:
    assert record_of(changed(change)) is None


@pytest.mark.parametrize("change", [{"subject": "other"}, {"epoch": "f"}, {"seq": 2}, {"record": None}, {"record": {}}])
def test_a_state_whose_record_is_another_is_not_ours(change: dict[str, Any]) -> None:
    assert record_of(json.dumps(json.loads(value(RECORD, "n1")) | change).encode()) is None


@pytest.mark.parametrize("raw", [b"", b"{}", b"null", b"\xff", b"[" * 5000, b'{"subject": "\xff"}'])
def test_what_is_no_state_at_all_is_not_ours(raw: bytes) -> None:
    assert record_of(raw) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"diagnosis": "of_tomorrow"}, {"diagnosis": None}),
        ({"override": {"action": "explode", "until": 0}}, {"override": None}),
        ({"override": {"action": "open", "until": 1e300}}, {"override": None}),
        ({"another": "field"}, {}),
    ],
)
def test_what_a_neighbouring_version_adds_costs_nothing_else(change: dict[str, Any], expected: dict[str, Any]) -> None:
    assert record_of(changed(change, WHOLE)) == (replace(WHOLE, **expected), "n1")


FACTS = {"diagnosis": "nobody_pulling", "diagnosed_for": 12.5, "capacity": 80.0, "counted": "nobody_pulling"}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (FACTS, Carried(Diagnosis.NOBODY_PULLING, 12.5, 80.0, counted=Diagnosis.NOBODY_PULLING)),
        (FACTS | {"diagnosis": "of_tomorrow", "counted": ["x"]}, Carried(None, 12.5, 80.0)),
        (FACTS | {"another": "field"}, Carried(Diagnosis.NOBODY_PULLING, 12.5, 80.0, counted=Diagnosis.NOBODY_PULLING)),
        (FACTS | {"capacity": "fast"}, None),
        (FACTS | {"capacity": -1.0}, None),
        (FACTS | {"diagnosed_for": -1.0}, None),
        (FACTS | {"history": -1}, None),
        ({}, Carried()),
    ],
    ids=["whole", "a newer diagnosis", "a newer field", "no number", "below 0", "no time", "no sequence", "nothing"],
)
def test_a_consumer_that_cannot_be_read_costs_only_itself(facts: dict[str, object], expected: Carried | None) -> None:
    stored = record_of(changed({"carried": [[["S", "c"], facts], [["S", "other"], FACTS]]}))
    assert stored is not None
    carried = dict(stored[0].carried)
    assert carried.pop(ConsumerKey("S", "other")).capacity == 80.0
    assert list(carried.values()) == ([] if expected is None else [expected])


def test_the_record_is_small_while_nothing_happens() -> None:
    record = msgspec.json.decode(value(replace(RECORD, unsent=()), "n1"))["record"]
    assert record == {"subject": RECORD.subject, "epoch": "e", "seq": 1, "status": 2, "announced": 2, "nonce": "n1"}
