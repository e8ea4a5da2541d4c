"""Creates the events stream and the buckets if they are missing, never changes them, and logs what is in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from msgspec import Struct

from nats_backpressure.adapters.nats import own_streams
from nats_backpressure.adapters.nats.api import ApiError, JetStreamApi
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import EventsUnavailable, Unavailable
from nats_backpressure.runtime.tasks import Once

log = structlog.get_logger()

NAME_IN_USE = 10058
SHOWN = 5
"""Streams that store our subjects, in one error."""


class Missing(Unavailable):
    """A stream that is missing, and is not ours to create."""


class Resources:
    """The events stream, the state bucket and the policy bucket; the last is optional."""

    def __init__(
        self,
        js: JetStreamApi,
        names: Names,
        replicas: int,
        max_age: float,
        manage: bool,
        remedy: Callable[[str], str] = lambda error: "it is tried again",
    ) -> None:
        """`remedy` returns what to do about an error."""
        self._remedy = remedy
        self._js, self._names, self._manage = js, names, manage
        self._events = own_streams.events_stream(names, replicas, max_age)
        self._states = own_streams.bucket(names.state_bucket, replicas)
        self._optional = own_streams.bucket(names.policy_bucket, replicas)
        """Without it only the policies of the file are in force."""
        self._logged = Once()

    async def ensure(self) -> None:
        """Create what is missing, and log once how an existing one differs. Raises Unavailable without a state bucket,
        EventsUnavailable without an events stream alone."""
        no_events, no_states = await self._problem(self._events), await self._problem(self._states)
        if no_states is None or isinstance(no_states, Missing):
            await self._ensure_optional()
        if no_states is not None:
            raise no_events or no_states  # most often for the same reason
        if no_events is not None:
            raise EventsUnavailable(str(no_events))

    async def _problem(self, wanted: dict[str, Any]) -> Unavailable | None:
        """Why it cannot be had; None where it is there."""
        try:
            await self._ensure(wanted)
        except Unavailable as error:  # the others are tried all the same: whatever is missing is logged
            return error
        return None

    async def _ensure_optional(self) -> None:
        try:
            await self._ensure(self._optional)
        except Unavailable as error:
            name = self._optional["name"]
            self._log_once(
                f"without {name} {error}",
                "resources.without",
                stream=name,
                error=str(error),
                cost="only the policies of the file are in force, and no overrides",
                hint=self._remedy(str(error)),
            )

    async def _ensure(self, wanted: dict[str, Any]) -> None:
        info = await self._js.stream(wanted["name"])
        if info is None:
            await self._create(wanted)
        elif other := own_streams.differences(wanted, info.config):
            self._log_once(
                f"{wanted['name']} {other}",
                "resources.differ",
                stream=wanted["name"],
                has=other,
                wanted={key: wanted.get(key, own_streams.DEFAULTS[key]) for key in other},
                cost="it is used as it is; where it drops or refuses what is stored there, states or events are lost",
                hint=_changing(wanted, other),
            )

    async def _create(self, wanted: dict[str, Any]) -> None:
        name = wanted["name"]
        if not self._manage:
            self._log_once(name, "resources.missing", stream=name, make_it=own_streams.command(wanted, self._names))
            raise Missing(f"stream {name} is missing and manage_resources is false")
        try:
            await self._js.api(f"STREAM.CREATE.{name}", _Created, wanted)
        except ApiError as error:
            if error.err_code == NAME_IN_USE:  # another replica was faster, with other settings
                return
            raise await self._refused(name, wanted["subjects"][0], error) from error
        log.info("resources.created", stream=name)

    async def _refused(self, name: str, subjects: str, error: ApiError) -> Unavailable:
        """Log once why a stream cannot be created. The error names the streams that have its subjects, since whoever
        reads it later finds nothing in the server's log."""
        held_by = await self._streams_with(subjects)
        problem = f"{error}: {subjects} is stored by {', '.join(held_by[:SHOWN])}" if held_by else str(error)
        facts = {"error": str(error), "subjects_held_by": held_by, "hint": self._remedy(problem)}
        self._log_once(name, "resources.refused", stream=name, **facts)
        return Unavailable(problem)

    async def _streams_with(self, subject: str) -> list[str]:
        """The streams that store some of these subjects."""
        try:
            return (await self._js.api("STREAM.NAMES", _Names, {"subject": subject})).streams or []
        except Unavailable:
            return []

    def _log_once(self, key: str, event: str, **facts: object) -> None:
        if self._logged.first(key):
            log.warning(event, **facts)


class _Created(Struct, frozen=True):
    created: str = ""


class _Names(Struct, frozen=True):
    streams: list[str] | None = None


def _changing(wanted: dict[str, Any], other: dict[str, object]) -> str:
    """What to do about the settings in which an existing stream differs."""
    has = other.get("num_replicas")
    hints = [f"set publish.replicas to {has}, or the number of copies to it"] if has else []
    hints += [f"`{command}`"] if (command := own_streams.edit(wanted, other)) else []
    hints += [f"only a new stream has another {', '.join(new)}"] if (new := own_streams.fixed(other)) else []
    return "; ".join(hints)
