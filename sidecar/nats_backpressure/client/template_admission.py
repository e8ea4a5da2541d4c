"""admit_template: decides about a request whose subject is filled in with the values of its path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nats_backpressure.client.admission import Admission
from nats_backpressure.client.client import BackpressureClient
from nats_backpressure.client.subject_template import filled_in, pattern_of, template_names
from nats_backpressure.protocol.values import Priority


def admit_template(
    client: BackpressureClient, template: str, parameters: Mapping[str, Any], priority: Priority, route: str
) -> Admission:
    """As `client.admit`. The caller chooses the values, so one that makes no subject must not be a way around: then
    the strictest watched state decides that any value could lead to. Logged once for each route."""
    if (subject := filled_in(template, parameters)) is not None:
        return client.admit(subject, priority)
    pattern = pattern_of(template, parameters)
    if missing := sorted(set(template_names(template)) - set(parameters)):
        text = f"the path has no {{{missing[0][:200]}}}, which the subject {template[:200]!r} names (correct it)"
    else:
        text = f"{dict(parameters)!r:.200} makes no subject of {template[:200]!r}"
    text = f"route {route[:200]}: {text}: the strictest watched state that overlaps {pattern[:200]} decides"
    client.stats.count("bad_subject", pattern)
    client.logger.warn("bad_template" if missing else "bad_value", route[:200], text)
    return client.admit_overlapping(pattern, priority)
