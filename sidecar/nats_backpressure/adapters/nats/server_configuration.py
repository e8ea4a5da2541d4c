"""The users of an installation as nats-server reads them; with their account, where JetStream is another one's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nats_backpressure.adapters.nats.api import PLAIN
from nats_backpressure.adapters.nats.permissions import ROLES, Installation, Permissions, permissions

SEVERAL_REPLIES: Final = ("CONSUMER.MSG.NEXT.", "DIRECT.GET.")
"""Requests of JetStream with more than one reply."""
OWNER: Final = "JETSTREAM"
"""The account that has JetStream."""
USERS: Final = "BACKPRESSURE"
"""The account of our users."""


def server_configuration(about: Installation, roles: Iterable[str] = tuple(ROLES)) -> str:
    """The users of these roles; passwords come from the environment of the server."""
    rights = {role: permissions(role, about) for role in roles}
    users = "\n".join(_user(role, each) for role, each in rights.items())
    if not about.imported:
        return f"authorization {{\n  users: [\n{users}\n  ]\n}}\n"
    services = _services(about, rights.values())
    received = dict.fromkeys(subject for each in rights.values() for subject in each.subscribe)
    streams = [subject for subject in received if subject.startswith(("$JS.EVENT.", "$KV."))]
    exports = [*map(_export, services), *(f'{{stream: "{each}", accounts: [{USERS}]}}' for each in streams)]
    imports = [_import(*each) for each in services.items()]
    imports += [f'{{stream: {{account: {OWNER}, subject: "{each}"}}}}' for each in streams]
    return (
        f"accounts {{\n"
        f"  # The account that has the watched streams: add its users and limits here, or these exports there.\n"
        f"  {OWNER} {{\n    jetstream: enabled\n{_listed('exports', exports)}\n  }}\n"
        f"  {USERS} {{\n{_listed('imports', imports)}\n    users: [\n{users}\n    ]\n  }}\n}}\n"
    )


def _services(about: Installation, rights: Iterable[Permissions]) -> dict[str, str]:
    """What is published to JetStream: under which subject of the other account, and under which here."""
    stored = (about.subject, f"{about.names.prefix}.event.>")
    services = {}
    for subject in (each for one in rights for each in one.publish):
        tail = subject.removeprefix(f"{about.api}.")
        if tail != subject:
            services[tail if tail.startswith("$KV.") else f"{PLAIN}.{tail}"] = subject
        elif subject.startswith("$JS.ACK.") or subject in stored:
            services[subject] = subject
    return services


def _export(subject: str) -> str:
    several = subject.removeprefix(f"{PLAIN}.").startswith(SEVERAL_REPLIES)
    return f'{{service: "{subject}", {"response_type: stream, " if several else ""}accounts: [{USERS}]}}'


def _import(subject: str, here: str) -> str:
    renamed = f', to: "{here}"' if here != subject else ""
    return f'{{service: {{account: {OWNER}, subject: "{subject}"}}{renamed}}}'


def _listed(kind: str, entries: Iterable[str]) -> str:
    return "\n".join((f"    {kind}: [", *(f"      {each}" for each in entries), "    ]"))


def _user(role: str, rights: Permissions) -> str:
    lists = "\n".join(_list(kind, getattr(rights, kind)) for kind in ("publish", "subscribe"))
    what = (ROLES[role].__doc__ or "").strip()
    return (
        f"    # {what}\n    # Inbox prefix: {rights.inbox_prefix}\n"
        f"    {{\n      user: {role}, password: $BACKPRESSURE_{role.upper()}_PASSWORD\n"
        f"      permissions: {{\n{lists}\n      }}\n    }}"
    )


def _list(kind: str, subjects: Iterable[str]) -> str:
    lines = "\n".join(f'          "{subject}"' for subject in subjects)
    return f"        {kind}: [\n{lines}\n        ]"
