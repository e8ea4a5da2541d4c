"""What is carried of consumers is read back one by one: one that cannot be read costs the others nothing."""

from __future__ import annotations

import pytest

from nats_backpressure.core.model import Carried
from nats_backpressure.core.subject.stored_state import _carried
from nats_backpressure.protocol.messages import StoredFacts
from nats_backpressure.protocol.values import Diagnosis

WHOLE = {"diagnosis": "nobody_pulling", "diagnosed_for": 12.5, "capacity": 80.0, "counted": "nobody_pulling"}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (WHOLE, Carried(Diagnosis.NOBODY_PULLING, 12.5, 80.0, counted=Diagnosis.NOBODY_PULLING)),
        (WHOLE | {"diagnosis": "of_tomorrow", "counted": ["x"]}, Carried(None, 12.5, 80.0)),
        (WHOLE | {"another": "field"}, Carried(Diagnosis.NOBODY_PULLING, 12.5, 80.0, counted=Diagnosis.NOBODY_PULLING)),
        (WHOLE | {"capacity": "fast"}, None),
        (WHOLE | {"capacity": -1.0}, None),
        (WHOLE | {"diagnosed_for": -1.0}, None),
        (WHOLE | {"history": -1}, None),
        ({}, Carried()),
    ],
    ids=["whole", "a newer diagnosis", "a newer field", "no number", "below 0", "no time", "no sequence", "nothing"],
)
def test_one_that_cannot_be_read_leaves_the_others(facts: dict[str, object], expected: Carried | None) -> None:
    other = StoredFacts("S", "other", WHOLE)
    found = dict(_carried((StoredFacts("S", "c", facts), other)))
    assert found.pop(("S", "other")).capacity == 80.0  # type: ignore[call-overload]
    assert list(found.values()) == ([] if expected is None else [expected])
