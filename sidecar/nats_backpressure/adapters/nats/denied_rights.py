"""DeniedRights: what the server does not let one client publish and subscribe to, until it lets it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct
from nats.protocol import command

from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.tasks import Bounded

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.patched_client import PatchedClient

DENIED_FOR = 5.0
"""Seconds for which what was denied is not published again: the server logs each try."""
REMEMBERED = 1000
"""Subjects that may not be published to; the oldest is dropped first, and then tried again."""
ALL_RIGHTS: Final = "`nats-backpressure permissions --role sidecar --config FILE` prints all that it needs"
VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)


class Denied(Unavailable):
    """The server does not allow a message; the text is the server's own."""


class Denial(Struct, frozen=True):
    """One subject that the server refuses."""

    kind: Literal["publish", "subscribe"]
    subject: str


def denial(text: str) -> Denial | None:
    """What an error of the server refuses; None for another error."""
    if (match := VIOLATION.search(text)) is None:
        return None
    return Denial("publish" if match[1].lower() == "publish" else "subscribe", match[2])


def without_domain(subject: str) -> str:
    """A subject as the server of a JetStream domain checks it: it maps `$JS.<domain>.API.>` first."""
    tokens = subject.split(".", 3)
    if len(tokens) < 4 or tokens[0] != "$JS" or tokens[2] != "API":
        return subject
    return tokens[3] if tokens[3].startswith("$KV.") else f"$JS.API.{tokens[3]}"


class DeniedRights:
    """Of one client. A refused subscription is asked for again on the same client, so that what works goes on."""

    def __init__(self, client: PatchedClient) -> None:
        self._client = client
        self._publish: Bounded[str, tuple[float, str]] = Bounded(REMEMBERED)
        """By subject: the time of the loop until which nothing is sent there, and the server's text."""
        self._subscriptions: dict[int, str] = {}
        """The subject of each refused subscription."""
        self._refused_again: set[int] = set()

    @property
    def subscriptions(self) -> dict[int, str]:
        """The refused subscriptions that are still wanted, by their id."""
        wanted = self._client._subs
        return {sid: subject for sid, subject in self._subscriptions.items() if sid in wanted}

    def add(self, what: Denial, text: str) -> None:
        """The server has refused this."""
        if what.kind == "publish":
            subject = without_domain(what.subject)
            self._publish[subject] = asyncio.get_running_loop().time() + DENIED_FOR, text
            self._client.requests.end_denied(lambda sent_to: without_domain(sent_to) == subject, Denied(text))
            return
        refused = [sid for sid, subscription in self._client._subs.items() if subscription.subject == what.subject]
        self._subscriptions = self.subscriptions | dict.fromkeys(refused, what.subject)
        self._refused_again.update(refused)

    @property
    def texts(self) -> list[str]:
        """The server's texts about subjects that may not be published to."""
        return [text for _, text in self._publish.values()]

    def denies(self, subject: str) -> Denied | None:
        """The error with which a subject was refused a moment ago; None where a message may be sent there."""
        if not self._publish or (denied := self._publish.get(subject := without_domain(subject))) is None:
            return None
        until, text = denied
        if asyncio.get_running_loop().time() < until:
            return Denied(text)
        del self._publish[subject]
        return None

    async def subscribe_again(self) -> None:
        """Try every refused subscription again; returns when the server has answered."""
        tried, self._refused_again = self.subscriptions, set()
        for sid, subject in tried.items():
            queue = self._client._subs[sid].queue
            await self._client._send_command(command.sub_cmd(subject, queue, sid))
        await self._client._flush_pending(force_flush=True)
        await self._client.flush()
        self._subscriptions = {
            sid: subject
            for sid, subject in self._subscriptions.items()
            if sid not in tried or sid in self._refused_again
        }
