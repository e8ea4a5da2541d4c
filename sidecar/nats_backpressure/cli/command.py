"""What querying commands share: run connected with one-line errors, read all statuses, decode replies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec
from msgspec import Struct

from nats_backpressure.cli.options import Target
from nats_backpressure.cli.output import printable
from nats_backpressure.protocol.decoding import decode_message
from nats_backpressure.protocol.messages import Status, StatusList
from nats_backpressure.runtime.ports import Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.api import JetStreamApi
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

NOT_WATCHED = "404"
"""The code of the service's answer about a subject that it does not watch."""
LISTED = ": `nats-backpressure status` lists what is watched"
PAGE_SIZE = 1000
"""Subjects in one request for statuses."""

S = TypeVar("S", bound=Struct)


def run_command(target: Target, body: Callable[[ServiceClient], Awaitable[None]]) -> None:
    """Run `body` with a connected client. Exits with 1 and one line where NATS or the service does not answer, with
    130 when interrupted."""
    try:
        asyncio.run(_run_connected(target, body))
    except Unavailable as error:
        raise click.ClickException(printable(str(error))) from None
    except KeyboardInterrupt:
        sys.exit(130)


async def _run_connected(target: Target, body: Callable[[ServiceClient], Awaitable[None]]) -> None:
    # Imported late: help and usage errors are printed without loading the NATS client.
    from nats_backpressure.adapters.nats.cli_client import ServiceClient, ServiceError

    service = ServiceClient(target.nats, target.names, target.timeout)
    try:
        await service.connect()
        await body(service)
    except Unavailable as error:
        hint = LISTED if isinstance(error, ServiceError) and error.code == NOT_WATCHED else ""
        raise Unavailable(service.with_missing_rights(f"{error}{hint}")) from None
    finally:
        await service.close()


def jetstream_api(target: Target, service: ServiceClient) -> JetStreamApi:
    from nats_backpressure.adapters.nats.api import JetStreamApi

    return JetStreamApi(service, target.nats.api_prefix)


async def all_statuses(service: ServiceClient) -> tuple[Status, ...]:
    """The statuses of all watched subjects, read page by page."""
    statuses: list[Status] = []
    offset: int | None = 0
    while offset is not None:
        body = {"offset": offset, "limit": PAGE_SIZE}
        page = decode_reply(await service.query("get.status", body), StatusList)
        statuses += page.subjects
        offset = page.next_offset
    return tuple(statuses)


def decode_reply(document: bytes, kind: type[S]) -> S:
    """Raises Unavailable for a reply that is not of this kind."""
    try:
        return decode_message(document, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise Unavailable(f"the reply cannot be read (is the sidecar of another version?): {problem}") from None
