"""Checks of the server and the login: connection, environment, version, JetStream, rights, JWT and clocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from nats_backpressure.core.watch_filter import WatchEntry, is_stream_watched
from nats_backpressure.doctor import unseen
from nats_backpressure.doctor.api_prefix import question
from nats_backpressure.doctor.facts import Facts, Right
from nats_backpressure.doctor.findings import EXIT_CODES, Finding, Level, error, warning
from nats_backpressure.doctor.right_costs import NOTHING, cost_of
from nats_backpressure.doctor.text import moment, names
from nats_backpressure.protocol.subjects import Names

OLDEST: Final = (2, 9)
"""The oldest server version that the tests run on."""
WITH_TIME: Final = (2, 10)
"""From this version on replies have the time of the server."""
JWT_SOON: Final = 7 * 86_400.0
"""Seconds before the end of a JWT from which on it is a warning."""
UNKNOWN: Final = "the subjects of their consumers become unknown, and no gateway is held back for them"
PERMISSIONS: Final = "`nats-backpressure permissions --role sidecar --config FILE`"
ALLOW_ALL: Final = f"allow what {PERMISSIONS} prints"
CLOCKS_APART: Final = 2.0
"""Seconds that two clocks may differ; a reply takes some time too."""


def connection(facts: Facts) -> Iterator[Finding]:
    """Whether a server can be reached and accepts the login."""
    server = facts.server
    where = f"{', '.join(server.urls)} (login: {server.login})"
    if server.failure is not None:
        yield error(f"cannot connect to {where}: {server.failure.error}", NOTHING, server.failure.remedy)
    else:
        yield Finding("ok", f"{where}, answers in {1000 * server.round_trip:.1f} ms")


def environment(facts: Facts) -> Iterator[Finding]:
    """Whether variables of the environment replace what the file says about NATS."""
    if facts.replaced_by:
        yield warning(
            f"the environment replaces what the file has under `nats`: {names(facts.replaced_by)}",
            "it may talk to another server, or with another login, than the file says",
            f"unset {' '.join(facts.replaced_by)}, or take the same out of the file",
        )


def version(facts: Facts) -> Iterator[Finding]:
    """Whether the server is new enough."""
    match = re.match(r"v?(\d+)\.(\d+)", facts.server.version)
    if match is None:
        return
    number = int(match[1]), int(match[2])
    if number < OLDEST:
        yield error(
            f"the server has version {facts.server.version}; none before 2.9 was tried",
            "requests that it does not know fail",
            "update the server, to 2.10 or later",
        )
    elif number < WITH_TIME and facts.server.has_jetstream:
        yield warning(
            f"the server has version {facts.server.version}, whose replies have no time",
            "after a start a stall counts from then on only, and the age of what waits is not known",
            "update the server, to 2.10 or later",
        )
    else:
        yield Finding("ok", f"the server has version {facts.server.version}")


def jwt(facts: Facts) -> Iterator[Finding]:
    """Whether the JWT of the login ends soon."""
    if (end := facts.jwt_expires_at) is None or end - facts.wall > JWT_SOON:
        return
    remedy = f"put a new one into {facts.settings.nats.credentials_file}: it is read again for each connection"
    if end <= facts.wall:
        yield error(f"the JWT of the login expired at {moment(end)}", NOTHING, remedy)
    else:
        cost = "from then on the server closes the connections, and statuses become unknown"
        yield warning(f"the JWT of the login expires at {moment(end)}", cost, remedy)


def clock(facts: Facts) -> Iterator[Finding]:
    """Whether our clock and the server's show the same time."""
    ahead = facts.clock_ahead
    if ahead is not None and abs(ahead) > CLOCKS_APART:
        yield warning(
            f"the server's clock is {abs(ahead):,.1f} s {'ahead of' if ahead > 0 else 'behind'} the clock here",
            "times in the log differ from those in events, which are the server's; TLS and JWTs go by both clocks",
            "synchronize both machines (NTP): `chronyc tracking` or `timedatectl` shows which one is wrong",
        )


def jetstream(facts: Facts) -> Iterator[Finding]:
    """Whether JetStream answers."""
    if facts.unlisted is not None:
        yield error(f"JetStream cannot be read: {facts.unlisted.error}", NOTHING, facts.unlisted.remedy)
    watch = [WatchEntry(entry.stream, entry.consumers) for entry in facts.settings.watch]
    ours = Names(facts.settings.name).ours
    if missing := [name for name in unseen.unlisted(facts) if is_stream_watched(name, watch, ours)]:
        remedy = "start the servers that have them: `nats server report jetstream` shows which are away"
        yield error(f"the list of streams lacks {names(missing)}", UNKNOWN, remedy)
    for stream, failure in facts.unread.items():
        yield error(f"the consumers of {stream} cannot be read: {failure.error}", UNKNOWN, failure.remedy)


def rights(facts: Facts) -> Iterator[Finding]:
    """Whether the server lets the sidecar publish and subscribe to all that it uses."""
    wrong_api = list(_wrong_api(facts))
    yield from wrong_api
    by_cost: dict[tuple[Level, str], list[Right]] = {}
    for right in facts.rights:
        if not right.allowed and not (wrong_api and _of_api(facts, right)):
            by_cost.setdefault(cost_of(right, facts), []).append(right)
    for (level, cost), denied in sorted(by_cost.items(), key=lambda each: -EXIT_CODES[each[0][0]]):
        yield Finding(level, f"the server denies {_shown(denied)}", cost, _allowing(denied))


def _of_api(facts: Facts, right: Right) -> bool:
    return right.kind == "publish" and right.subject.startswith(f"{facts.settings.nats.api_prefix}.")


def _wrong_api(facts: Facts) -> Iterator[Finding]:
    """Where nothing is allowed under the prefix that the settings chose, it is rather the prefix that is wrong."""
    of_api = [right for right in facts.rights if _of_api(facts, right)]
    nats, domain = facts.settings.nats, facts.server.domain
    own = bool(domain) and domain == nats.js_domain
    first = "" if own else question(nats, (right.subject for right in of_api), domain)
    if first and not any(right.allowed for right in of_api):
        yield error(
            f"the server denies to publish all {len(of_api)} subjects of JetStream under "
            f"{facts.settings.nats.api_prefix}",
            NOTHING,
            f"{first}{ALLOW_ALL}",
        )


def _shown(denied: list[Right]) -> str:
    return names(f"to {right.kind} {right.subject}" for right in denied)


def _allowing(denied: list[Right]) -> str:
    """What to add to the permissions of the user, as a server's configuration spells it."""
    lists = []
    for kind in ("publish", "subscribe"):
        subjects = [f'"{right.subject}"' for right in denied if right.kind == kind]
        lists += [f"{kind}: [{', '.join(subjects)}]"] if subjects else []
    return f"allow {', '.join(lists)}; {PERMISSIONS} prints all"
