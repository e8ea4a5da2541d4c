"""Each error of JetStream has a line that says what to do."""

from __future__ import annotations

import nats
import pytest
from nats.js.api import StorageType
from nats.js.errors import APIError

from nats_backpressure.adapters.nats.remedies import TRIED, remedy
from nats_backpressure.config.nats import Nats
from tests.conftest import StartServer

NOBODY = "$JS.API.STREAM.INFO.S: nats: no responders available for request"
ROWS = [
    pytest.param(Nats(), NOBODY, "enable JetStream", id="no JetStream"),
    pytest.param(Nats(js_domain="hub"), NOBODY.replace("$JS.", "$JS.hub."), "the domain `hub`", id="wrong domain"),
    pytest.param(Nats(js_api_prefix="X.API"), NOBODY.replace("$JS", "X"), "under `X.API`", id="wrong prefix"),
    pytest.param(
        Nats(js_api_prefix="X.API"), "X.API.$KV.b.k: no reply in time", "import the buckets", id="buckets not imported"
    ),
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
    pytest.param(
        Nats(js_domain="hubb"),
        'Permissions Violation for Publish to "$JS.hubb.API.STREAM.LIST"',
        "first: is nats.js_domain `hubb` right? if not, correct or remove it; if it is, allow it to publish $JS.hubb",
        id="a domain that has no rights",
    ),
    pytest.param(
        Nats(js_api_prefix="X.API"),
        'Permissions Violation for Publish to "X.API.STREAM.LIST"',
        "first: is nats.js_api_prefix `X.API` right? if not, correct it; if it is, allow it to publish X.API",
        id="a prefix that has no rights",
    ),
    pytest.param(Nats(), "JetStream not enabled for account (503, 10039)", "for this account", id="error of an API"),
    pytest.param(Nats(), "503 (10076): not enabled", "on the server", id="error of a reading"),
    pytest.param(Nats(), "$JS.API.STREAM.LIST: no reply in time", "the server is slow", id="no reply"),
    pytest.param(Nats(), "stream S is missing and manage_resources is false", "resources.missing", id="not created"),
    pytest.param(Nats(), "stream not found (404, 10059)", "the stage `events stream`", id="no stream"),
    pytest.param(Nats(), "anything else (400, 1)", TRIED, id="unknown"),
]


LIMITS = {
    "streams": ("max_streams: 1", "no more streams"),
    "consumers": ("max_consumers: 1", "no more consumers"),
    "storage": ("max_file: 1000000", "the account has no storage left"),
    "memory": ("max_memory: 1000000", "the account has no memory left"),
}


@pytest.mark.parametrize(("limit", "hint"), LIMITS.values(), ids=LIMITS)
async def test_a_limit_of_the_account_has_the_remedy_for_what_the_server_says(
    start_server: StartServer, limit: str, hint: str
) -> None:
    server = await start_server(f"accounts {{ A {{ jetstream: {{{limit}}}, users: [{{user: u, password: p}}] }} }}")
    storage = StorageType.MEMORY if "memory" in limit else StorageType.FILE
    async with await nats.connect(server.url, user="u", password="p") as nc:
        js = nc.jetstream()

        async def reach() -> None:
            for n in range(2):
                await js.add_stream(name=f"S{n}", subjects=[f"s{n}"], max_bytes=600_000, storage=storage)
            for n in range(2):
                await js.add_consumer("S0", name=f"c{n}", durable_name=f"c{n}")

        with pytest.raises(APIError) as raised:
            await reach()
    error = raised.value
    assert hint in remedy(Nats(), f"{error.description} ({error.code}, {error.err_code})"), error


@pytest.mark.parametrize(("settings", "error", "hint"), ROWS)
def test_an_error_has_its_remedy(settings: Nats, error: str, hint: str) -> None:
    assert hint in remedy(settings, error)
