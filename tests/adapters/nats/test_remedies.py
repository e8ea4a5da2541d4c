"""Each error of JetStream has a line that says what to do."""

from __future__ import annotations

import pytest

from nats_backpressure.adapters.nats.remedies import TRIED, remedy
from nats_backpressure.config.nats import Nats

NOBODY = "$JS.API.STREAM.INFO.S: nats: no responders available for request"
ROWS = [
    pytest.param(Nats(), NOBODY, "enable JetStream", id="no JetStream"),
    pytest.param(Nats(js_domain="hub"), NOBODY.replace("$JS.", "$JS.hub."), "the domain `hub`", id="wrong domain"),
    pytest.param(Nats(js_api_prefix="X.API"), NOBODY.replace("$JS", "X"), "under `X.API`", id="wrong prefix"),
    pytest.param(Nats(), "$KV.b.k: nats: no responders", "bucket of this subject is missing", id="no bucket"),
    pytest.param(
        Nats(), 'Permissions Violation for Publish to "$JS.API.X"', "allow it to publish $JS.API.X", id="no right"
    ),
    pytest.param(
        Nats(),
        'Permissions Violation for Publish to "$JS.API.CONSUMER.LIST.S"',
        "$JS.API.CONSUMER.LIST.*;",
        id="each stream",
    ),
    pytest.param(
        Nats(),
        'Permissions Violation for Publish to "$JS.hub.API.$KV.b.=heartbeat"',
        "$JS.hub.API.$KV.b.>;",
        id="each key",
    ),
    pytest.param(
        Nats(),
        'Permissions Violation for Publish to "team-a.v1.event.recovery.orders.=2A"',
        "allow it to publish team-a.v1.event.>;",
        id="each event",
    ),
    pytest.param(Nats(), "JetStream not enabled for account (503, 10039)", "for this account", id="error of an API"),
    pytest.param(Nats(), "503 (10076): not enabled", "on the server", id="error of a reading"),
    pytest.param(Nats(), "$JS.API.STREAM.LIST: no reply in time", "the server is slow", id="no reply"),
    pytest.param(Nats(), "stream S is missing and manage_resources is false", "resources.missing", id="not created"),
    pytest.param(Nats(), "anything else (400, 1)", TRIED, id="unknown"),
]


@pytest.mark.parametrize(("nats", "error", "hint"), ROWS)
def test_an_error_has_its_remedy(nats: Nats, error: str, hint: str) -> None:
    assert hint in remedy(nats, error)
