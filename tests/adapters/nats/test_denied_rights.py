"""What a real server denies: it is done without, asked for again on the same client, and named in full."""

from __future__ import annotations

import nats
import pytest
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats.denial_log import AGAIN, SHOWN, TOGETHER, DenialLog, pattern
from nats_backpressure.config.nats import Nats
from nats_backpressure.runtime.ports import Unavailable
from tests.conftest import StartServer
from tests.support.connected import connected, options, receives, up
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


def users(publish: str = "", subscribe: str = "") -> str:
    rights = f'publish: {{allow: ">", deny: [{publish}]}}, subscribe: {{allow: ">", deny: [{subscribe}]}}'
    return (
        f'authorization {{users: [{{user: "us", password: "p", permissions: {{{rights}}}}}, '
        '{user: "it", password: "p"}]}'
    )


def violations(server: NatsServer) -> int:
    return server.log.count("Violation")


async def test_a_subscription_that_is_denied_does_not_cost_the_connection(start_server: StartServer) -> None:
    server = await start_server(users(subscribe='"$JS.EVENT.>"'))
    it = await nats.connect(server.url, user="it", password="p")
    async with connected(options(server, user="us", password="p"), denied_again=0.05) as (connection, listener):
        await up(connection)
        client = connection.client

        async def take(message: object) -> None:
            listener.received.append(b"advisory")

        await client.subscribe("$JS.EVENT.ADVISORY.API.LIMIT_REACHED", cb=take)

        async def tried_again() -> bool:
            return listener.counted["permission_denied"] >= 3

        await eventually(tried_again, "the subscription to be tried again")
        await receives(listener, lambda: it.publish("news", b"goes on"), b"goes on")
        assert connection.epoch == 1 and listener.rebuilds == 0
        server.reload(users())
        await receives(listener, lambda: it.publish("$JS.EVENT.ADVISORY.API.LIMIT_REACHED", b""), b"advisory")
        assert connection.epoch == 1 and not client.rights.subscriptions
    await it.close()


async def test_a_connection_is_not_lost_because_of_what_is_denied(start_server: StartServer) -> None:
    server = await start_server(users(subscribe='"b"'))
    with capture_logs() as lines:
        async with connected(options(server, user="us", password="p")) as (connection, listener):
            await up(connection)
            await connection.client.subscribe("b")

            async def denied() -> bool:
                return listener.counted["permission_denied"] > 0

            await eventually(denied, "the subscription to be denied")
            await server.restart()
            await up(connection, 2)
    reasons = [line["because"] for line in lines if line["event"] == "nats.lost"]
    assert reasons and not any("Violation" in reason for reason in reasons)


async def test_a_request_that_is_denied_fails_at_once_in_the_words_of_the_server(start_server: StartServer) -> None:
    server = await start_server(users(publish='"$JS.API.STREAM.INFO.Orders"'))
    async with connected(options(server, user="us", password="p")) as (connection, _):
        await up(connection)
        text = 'Permissions Violation for Publish to "$JS.API.STREAM.INFO.Orders"'
        for _ in range(3):
            with pytest.raises(Unavailable) as error:
                await connection.request("$JS.API.STREAM.INFO.Orders", b"", 60.0)
            assert str(error.value) == text
        assert violations(server) == 1, "the server logs each try"
        assert not connection.client.write_at_once("$JS.API.STREAM.INFO.Orders", b"")
        assert (await connection.request("$JS.API.STREAM.NAMES", b"", 5.0)).data


async def test_a_request_to_a_domain_is_denied_under_the_plain_subject(start_server: StartServer) -> None:
    server = await start_server(users(publish='"$JS.API.STREAM.INFO.*"'))
    server.config = users(publish='"$JS.API.STREAM.INFO.*"').replace(
        "authorization", "jetstream: {domain: hub}\nauthorization"
    )
    await server.restart()
    async with connected(options(server, user="us", password="p")) as (connection, _):
        await up(connection)
        for _ in range(2):
            with pytest.raises(Unavailable, match=r'Publish to "\$JS\.API\.STREAM\.INFO\.S"'):
                await connection.request("$JS.hub.API.STREAM.INFO.S", b"", 60.0)
        assert violations(server) == 1


async def test_all_missing_rights_are_one_line(start_server: StartServer) -> None:
    server = await start_server(users(publish='"a.>"', subscribe='"b.>"'))
    with capture_logs() as lines:
        async with connected(options(server, user="us", password="p")) as (connection, _):
            await up(connection)
            for name in ("a.One", "a.Two"):
                await connection.client.publish(name, b"")
            await connection.client.subscribe("b.Three")

            async def logged() -> bool:
                return any(line["event"] == "rights.missing" for line in lines)

            await eventually(logged, "the line")
    (line,) = [line for line in lines if line["event"] == "rights.missing"]
    assert (line["publish"], line["subscribe"]) == (["a.One", "a.Two"], ["b.Three"])


def test_missing_rights_are_logged_again_when_there_are_others_and_while_they_last() -> None:
    denials = DenialLog("c", Nats())
    with capture_logs() as lines:

        def deny(subject: str, now: float) -> None:
            denials.add(f'Permissions Violation for Publish to "{subject}"', now)
            for each in (now, now + TOGETHER, now + 2 * TOGETHER):
                denials.report(each)

        deny("a", 0.0)
        deny("a", 10.0)
        deny("B", 20.0)
        assert [line["publish"] for line in lines] == [["a"], ["B", "a"]]
        deny("a", 20.0 + AGAIN)
        denials.report(30.0 + AGAIN)
        assert [line["publish"] for line in lines[2:]] == [["a"]]
        denials.report(60.0 + 3 * AGAIN)
        assert len(lines) == 3, "nothing is denied any more"


def test_a_line_is_bounded() -> None:
    denials = DenialLog("c", Nats())
    with capture_logs() as lines:
        for n in range(3 * SHOWN):
            denials.add(f'permissions violation for subscription to "s.{n}"', 0.0)
        denials.report(TOGETHER)
    assert (len(lines[0]["subscribe"]), lines[0]["not_shown"]) == (SHOWN, 2 * SHOWN)


def test_what_is_no_denial_is_left_alone() -> None:
    denials = DenialLog("c", Nats())
    denials.add("slow consumer", 0.0)
    with capture_logs() as lines:
        denials.report(60.0)
    assert not lines


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        ("_INBOX.abc.1", "_INBOX.>"),
        ("_INBOX_team.abc.1", "_INBOX_team.>"),
        ("$JS.API.CONSUMER.CREATE.S.0123456789abcdef", "$JS.API.CONSUMER.CREATE.S.*"),
        ("$KV.backpressure_state.orders.created", "$KV.backpressure_state.>"),
        ("backpressure.v1.event.recovery.orders", "backpressure.v1.event.>"),
        ("backpressure.v1.internal.presence", "backpressure.v1.internal.>"),
        ("orders.created", "orders.created"),
    ],
)
def test_a_subject_is_shown_as_one_would_allow_it(subject: str, shown: str) -> None:
    assert pattern(subject) == shown
