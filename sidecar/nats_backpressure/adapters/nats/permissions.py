"""The rights that each kind of program needs on a NATS server, generated from the subjects that the code uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec import Struct

from nats_backpressure.adapters.nats.api import PLAIN
from nats_backpressure.adapters.nats.denied_rights import without_domain
from nats_backpressure.adapters.nats.hint_subscriptions import ANY_STREAM, WAKING, counted
from nats_backpressure.protocol import reports
from nats_backpressure.protocol.endpoints import ENDPOINTS
from nats_backpressure.protocol.inboxes import SHARED, inbox_of
from nats_backpressure.protocol.subjects import Names

SERVICE_VERBS: Final = ("PING", "INFO", "STATS")
"""What the framework of NATS services answers on `$SRV`."""
SERVICE_IMPORTS: Final = "_R_"
"""What the reply subjects of requests from other accounts begin with."""


class Permissions(Struct, frozen=True):
    """The subjects that one user may publish and subscribe to; everything else is denied."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    inbox_prefix: str
    """What its connections set as the prefix of their inboxes."""


class Installation(Struct, frozen=True):
    """What the subjects depend on."""

    names: Names = Names()
    api: str = PLAIN
    """The prefix of the JetStream API."""
    inbox: str = inbox_of("sidecar")
    """The prefix of the sidecar's own inboxes."""
    asking: str | None = None
    """The prefix of the inboxes of all other roles, in place of one for each."""
    reply_prefixes: tuple[str, ...] = ()
    creates: bool = True
    """Whether the sidecar creates its streams (`publish.manage_resources`)."""
    alias: str | None = None
    """The subject of `service.status_alias`."""
    stream: str = "ROUTER"
    consumer: str = "router"
    """The consumer that pulls from that stream, and asks before."""
    subject: str = "beamline.router.v1.decide"
    """What gateways publish into that stream."""

    def inbox_of(self, role: str) -> str:
        """The prefix of the inboxes of a role that asks the sidecar."""
        return self.asking or inbox_of(role)

    @property
    def asked_from(self) -> tuple[str, ...]:
        """What the reply subjects of requests begin with."""
        own = (self.inbox_of(role) for role in ROLES if role != "sidecar")
        return tuple(dict.fromkeys((SHARED, *own, SERVICE_IMPORTS, *self.reply_prefixes)))

    @property
    def imported(self) -> bool:
        """Whether JetStream is that of another account, which this one imports."""
        return self.api != PLAIN and without_domain(f"{self.api}.INFO") == f"{self.api}.INFO"

    @property
    def kv(self) -> str:
        """The prefix of a write to a bucket."""
        return "" if self.api == PLAIN else f"{self.api}."


def sidecar(about: Installation) -> Permissions:
    """Reads all streams and consumers, has its own streams, answers requests. It cannot read a watched message."""
    names, api = about.names, about.api
    own = sorted(names.ours)
    followed = (names.events_stream, f"KV_{names.state_bucket}")
    return Permissions(
        (
            *(f"{api}.{each}" for each in ("INFO", "STREAM.LIST", "STREAM.NAMES", "STREAM.INFO.*")),
            *(f"{api}.{each}" for each in ("CONSUMER.LIST.*", "CONSUMER.INFO.*.*")),
            *(f"{api}.STREAM.CREATE.{stream}" for stream in own if about.creates),
            *(f"{api}.STREAM.MSG.GET.{stream}" for stream in own),
            *(f"{api}.CONSUMER.{verb}.{stream}.*" for verb in ("CREATE", "MSG.NEXT") for stream in own),
            *(f"{api}.CONSUMER.DELETE.{stream}.*" for stream in followed),
            f"{api}.DIRECT.GET.{names.events_stream}",
            f"{about.kv}$KV.{names.state_bucket}.>",
            f"{names.prefix}.event.>",
            f"{names.internal}.>",
            *(f"{prefix}.>" for prefix in about.asked_from),
        ),
        (
            f"{about.inbox}.>",
            *(f"{names.prefix}.{endpoint.subject}" for endpoint in ENDPOINTS),
            reports.everywhere(names.prefix),
            *([about.alias] if about.alias else []),
            *_service(names, SERVICE_VERBS),
            f"{names.internal}.>",
            *WAKING,
            *counted(ANY_STREAM),
        ),
        about.inbox,
    )


def gateway(about: Installation) -> Permissions:
    """Publishes requests of callers, asks or watches. It creates no consumer: one could deliver into any stream."""
    names, inbox = about.names, about.inbox_of("gateway")
    bucket = f"KV_{names.state_bucket}"
    return Permissions(
        (
            about.subject,
            f"{names.prefix}.decide.gateway.>",
            f"{names.prefix}.report.gateway.>",
            f"{about.api}.DIRECT.GET.{bucket}",
            f"{about.api}.STREAM.MSG.GET.{bucket}",
            *([about.alias] if about.alias else []),
        ),
        (f"{inbox}.>", f"$KV.{names.state_bucket}.>", f"{names.prefix}.event.>"),
        inbox,
    )


def consumer(about: Installation) -> Permissions:
    """Asks before each pull, pulls from one consumer, and acknowledges."""
    place, inbox = f"{about.stream}.{about.consumer}", about.inbox_of("consumer")
    return Permissions(
        (
            f"{about.names.prefix}.decide.consumer.>",
            f"{about.api}.CONSUMER.INFO.{place}",
            f"{about.api}.CONSUMER.MSG.NEXT.{place}",
            f"$JS.ACK.{place}.>",
        ),
        (f"{inbox}.>",),
        inbox,
    )


def operator(about: Installation) -> Permissions:
    """Runs the commands: reads everything of the sidecar, changes policies and overrides, records."""
    names, api, inbox = about.names, about.api, about.inbox_of("operator")
    read = (f"KV_{names.policy_bucket}", names.events_stream)
    return Permissions(
        (
            *(f"{names.prefix}.{each}" for each in ("get.>", "validate.policy", "decide.>", "forget.>")),
            *_service(names, SERVICE_VERBS),
            f"{about.kv}$KV.{names.policy_bucket}.>",
            *(f"{api}.{each}.{stream}" for each in ("STREAM.INFO", "STREAM.MSG.GET") for stream in read),
            *(f"{api}.CONSUMER.{verb}.{stream}.*" for verb in ("CREATE", "MSG.NEXT") for stream in read),
        ),
        (f"{inbox}.>", f"{names.prefix}.event.>", f"{names.internal}.>"),
        inbox,
    )


def _service(names: Names, verbs: Iterable[str]) -> Iterator[str]:
    for verb in verbs:
        yield from (f"$SRV.{verb}", f"$SRV.{verb}.{names.name}", f"$SRV.{verb}.{names.name}.*")


ROLES: Final[dict[str, Callable[[Installation], Permissions]]] = {
    "sidecar": sidecar,
    "gateway": gateway,
    "consumer": consumer,
    "operator": operator,
}


def permissions(role: str, about: Installation) -> Permissions:
    """The rights of a role. With a JetStream domain in both forms: the server of the domain itself maps its subjects
    before it checks them, others do not."""
    rights = ROLES[role](about)
    publish = dict.fromkeys(each for subject in rights.publish for each in (subject, without_domain(subject)))
    return Permissions(tuple(publish), rights.subscribe, rights.inbox_prefix)
