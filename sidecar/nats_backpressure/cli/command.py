"""A command that asks, from its connection to its end: whatever goes wrong is one line on standard error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec
from msgspec import Struct

from nats_backpressure.cli.options import Target
from nats_backpressure.cli.output import plain
from nats_backpressure.protocol.messages import Status, StatusList
from nats_backpressure.runtime.ports import Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.api import JetStreamApi
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

PAGE = 1000
"""Subjects asked for at once."""

S = TypeVar("S", bound=Struct)


def run_command(target: Target, story: Callable[[ServiceClient], Awaitable[None]]) -> None:
    """Exits with 1 and one line where the world does not do its part, with 130 when interrupted."""
    try:
        asyncio.run(_told(target, story))
    except Unavailable as error:
        raise click.ClickException(plain(str(error))) from None
    except KeyboardInterrupt:
        sys.exit(130)


async def _told(target: Target, story: Callable[[ServiceClient], Awaitable[None]]) -> None:
    # Imported late: usage and mistakes in it are told without loading the client and the rest.
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

    line = ServiceClient(target.nats, target.names, target.timeout)
    try:
        await line.connect()
        await story(line)
    finally:
        await line.close()


def jetstream(target: Target, line: ServiceClient) -> JetStreamApi:
    from nats_backpressure.adapters.nats.api import JetStreamApi

    return JetStreamApi(line, target.nats.api_prefix)


async def statuses(line: ServiceClient) -> tuple[Status, ...]:
    """Of all watched subjects: every page of the list in one."""
    found: list[Status] = []
    offset: int | None = 0
    while offset is not None:
        page = read(await line.ask("get.status", {"offset": offset, "limit": PAGE}), StatusList)
        found += page.subjects
        offset = page.next_offset
    return tuple(found)


def read(document: bytes, kind: type[S]) -> S:
    """An answer as what it should be. Raises Unavailable."""
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise Unavailable(f"an answer that cannot be read (is the sidecar of another version?): {problem}") from None
