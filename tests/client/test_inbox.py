"""A connection whose inbox the server denies gets no replies: the client's warnings name the option that is missing."""

from __future__ import annotations

import logging

import nats
import pytest

from nats_backpressure.client import BackpressureClient
from tests.client.test_watch_rights import users
from tests.conftest import StartServer
from tests.support.sidecar import SUBJECT

ASKED = "backpressure.v1.decide.gateway.>"


@pytest.mark.parametrize("prefix", ["_INBOX", "_INBOX_gateway"])
async def test_a_denied_inbox_is_named_in_the_warning(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    server = await start_server(users())
    silent = await nats.connect(server.url, user="all", password="all")
    await silent.subscribe(ASKED)
    await silent.flush()
    nc = await nats.connect(server.url, user="gateway", password="gateway", inbox_prefix=prefix)
    with caplog.at_level(logging.WARNING, logger="nats_backpressure"):
        async with BackpressureClient(nc) as client:
            assert (await client.decide(SUBJECT, timeout=2.0)).failed_open == "timeout"
    (warning,) = [record.message for record in caplog.records if "does not answer" in record.message]
    assert ("inbox_prefix" in warning) == (prefix == "_INBOX")
    await nc.close()
    await silent.close()
