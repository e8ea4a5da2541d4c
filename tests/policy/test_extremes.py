"""Numbers at the edges of what a float can hold: each is refused with its path, or gives a sane answer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings, parse_settings
from nats_backpressure.core.admission.adaptive import OPEN, next_shedding
from nats_backpressure.core.admission.gateway_admission import admission_at_status, retry_delay
from nats_backpressure.core.model.member import Latches
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import latches, thresholds
from nats_backpressure.policy.parse import over_default, parse_entry
from nats_backpressure.policy.schema import AlertRule, FieldLimit, Guard, Override, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey

EDGES = [math.nan, math.inf, -math.inf, 5e-324, 2.3e-308, 1e-9, -5e-324, -0.0, -1.0, 1e16, 1e308]
FINEST = 0.0001
"""No number with a bound above 0 may be smaller: shares have four decimals."""


def numbers(kind: Any, path: str = "") -> Iterator[tuple[str, inspect.FloatType]]:
    """Every number with a fraction that a type can hold, with its dotted path."""
    match kind if isinstance(kind, inspect.Type) else inspect.type_info(kind):
        case inspect.FloatType() as shape:
            yield path, shape
        case inspect.Metadata(type=inner):
            yield from numbers(inner, path)
        case inspect.UnionType(types=types):
            for one in types:
                yield from numbers(one, path)
        case inspect.VarTupleType(item_type=item):
            yield from numbers(item, f"{path}[]")
        case inspect.StructType(fields=fields):
            for field in fields:
                yield from numbers(field.type, f"{path}.{field.name}".lstrip("."))


IN_POLICIES = {path: shape for path, shape in numbers(Policy) if not path.startswith(("override", "alerts"))}
ELSEWHERE = {
    f"{kind.__name__}.{path}": shape
    for kind in (Settings, Guard, FieldLimit, AlertRule, Override)
    for path, shape in numbers(kind)
}


@pytest.mark.parametrize("path", [*IN_POLICIES, *ELSEWHERE])
def test_every_number_has_a_bound_on_both_sides_and_none_may_be_next_to_nothing(path: str) -> None:
    shape = IN_POLICIES.get(path) or ELSEWHERE[path]
    assert shape.le is not None and shape.le <= 1e15 and shape.gt is None and shape.lt is None
    assert shape.ge == 0 or (shape.ge is not None and shape.ge >= FINEST)


def nested(path: str, value: object) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.mark.parametrize("edge", EDGES, ids=str)
@pytest.mark.parametrize("path", IN_POLICIES)
def test_a_policy_with_such_a_number_is_refused_or_answers_within_bounds(path: str, edge: float) -> None:
    entry, problems = parse_entry(nested(path, edge), need_subjects=False)
    if entry is None:
        assert problems and all(problem.path == path for problem in problems)
        return
    policy = over_default(replace(entry, fields=(*entry.fields, ("admission.mode", "adaptive")))).policy
    shedding, latched = OPEN, Latches()
    for second in range(40):
        reading = Reading(
            ConsumerKey("S", "c"),
            Now(second, second),
            10**15 if second < 20 else 0,
            600,
            1e9,
            1e15,
            capacity=100.0,
            delivered_consumer=100 * second,
            latency_evidence=True,
        )
        shedding = next_shedding(shedding, policy, [reading], None, Now(second, second))
        marks = thresholds.marks(policy, reading)
        latched = latches.next_latches(latched, reading, marks, policy)
        admission = admission_at_status(policy, latches.status(latched, policy), shedding)
        assert policy.admission.floor <= admission.admit_ratio <= 1.0
        assert math.isfinite(thresholds.pressure(reading, marks))
        assert (delay := retry_delay(policy, 1, admission.retry_after)) is None or delay >= 0
        json.dumps(msgspec.to_builtins(admission), allow_nan=False)


@pytest.mark.parametrize("edge", EDGES, ids=str)
@pytest.mark.parametrize("path", [path for path, _ in numbers(Settings) if path.startswith(("observe", "publish"))])
def test_a_setting_of_such_a_number_is_refused_with_its_path(path: str, edge: float) -> None:
    text = json.dumps(nested(path, edge)).replace("NaN", ".nan").replace("Infinity", ".inf")
    with pytest.raises(Exception, match=path) as refused:
        parse_settings(text.encode(), {}, "f")
    assert type(refused.value).__name__ == "BadSettings"
