"""Runs the checks on the facts, in the order in which problems cause each other; all of them, or those for a start."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from msgspec import Struct

from nats_backpressure.doctor import (
    account_checks,
    copy_checks,
    heartbeat_check,
    server_checks,
    storage_checks,
    unseen,
    watch_checks,
)
from nats_backpressure.doctor.facts import Facts
from nats_backpressure.doctor.findings import Checked, Finding, unknown, warning

MOST: Final = 20
"""Findings of one check; at more, the last one says so."""
LOGGED: Final = "no: `{}` in the log has it"
"""Why a start leaves a check out: a line of its own says the same, when it happens."""


class Check(Struct, frozen=True):
    """One check: its name, the function, and what is right where it finds nothing."""

    name: str
    find: Callable[[Facts], Iterable[Finding]]
    fine: str = ""
    needs: str = ""
    """What must have been read: `connection`, or `jetstream`."""
    unseen: Callable[[Facts], str] = lambda facts: ""
    """Why it has not looked at everything; then nothing found is not `ok`."""
    not_at_start: str = ""
    """Why a sidecar that starts does not run it; empty where it does."""


CHECKS: Final = (
    Check("connection", server_checks.connection, not_at_start=LOGGED.format("nats.unreachable")),
    Check(
        "environment",
        server_checks.environment,
        "the file and the environment agree",
        not_at_start=LOGGED.format("started"),
    ),
    Check("version", server_checks.version, "", "connection", unseen.version),
    Check("jwt", server_checks.jwt, "the login does not end within a week", "", unseen.jwt),
    Check(
        "rights",
        server_checks.rights,
        "the server allows all that the sidecar uses",
        "connection",
        unseen.rights,
        f"{LOGGED.format('rights.missing')}; trials would fill the server's log, and reach those who wait for events",
    ),
    Check(
        "jetstream",
        server_checks.jetstream,
        "JetStream answers",
        "connection",
        not_at_start=LOGGED.format("stage.failing"),
    ),
    Check("account", account_checks.account, "", "jetstream", unseen.account),
    Check("clock", server_checks.clock, "the clocks agree", "jetstream", unseen.clock),
    Check(
        "resources",
        storage_checks.resources,
        "our stream and buckets are as they should be",
        "jetstream",
        not_at_start=LOGGED.format("resources.differ"),
    ),
    Check("copies", copy_checks.copies, "their copies fit the cluster", "jetstream", unseen.copies),
    Check("state", storage_checks.state, "the state bucket may be written and has room", "jetstream", unseen.state),
    Check(
        "heartbeat",
        heartbeat_check.heartbeat,
        "",
        "jetstream",
        unseen.state,
        "no: it is the sidecar that makes these",
    ),
    Check(
        "requests",
        storage_checks.requests,
        "no stream stores our requests",
        "jetstream",
        unseen.streams,
        not_at_start=LOGGED.format("subject.captured"),
    ),
    Check("watch", watch_checks.watch, "there is nothing to watch yet", "jetstream", unseen.consumers),
    Check("policies", watch_checks.policies, "each policy is in force somewhere", "jetstream", unseen.entries),
    Check("overrides", watch_checks.overrides, "none is in force", "jetstream", unseen.entries),
    Check(
        "sampling",
        watch_checks.sampling,
        "all watched consumers publish ack metrics",
        "jetstream",
        unseen.consumers,
        "no: it may be as wanted, and only what is wrong is logged",
    ),
    Check("installations", watch_checks.installations, "no other one watches these", "jetstream", unseen.consumers),
)


def possible(facts: Facts, checks: Iterable[Check] = CHECKS) -> list[Check]:
    """The checks whose facts could be read."""
    read = {""}
    if facts.server.failure is None:
        read.add("connection")
        if facts.unlisted is None:
            read.add("jetstream")
    return [check for check in checks if check.needs in read]


def examine(facts: Facts, checks: Iterable[Check] = CHECKS) -> list[Checked]:
    """The findings of all checks whose facts could be read, with one that is
    `ok` or `unknown` for each check that found nothing."""
    findings: list[Checked] = []
    for check in possible(facts, checks):
        of_check = _bounded(check.find(facts)) or [_nothing_found(check, facts)]
        findings += [Checked(check.name, each.level, each.problem, each.cost, each.remedy) for each in of_check]
    return findings


def _nothing_found(check: Check, facts: Facts) -> Finding:
    why = check.unseen(facts)
    return unknown(why) if why else Finding("ok", check.fine)


def _bounded(findings: Iterable[Finding]) -> list[Finding]:
    bounded = list(islice(findings, MOST + 1))
    if len(bounded) > MOST:
        bounded[MOST] = warning(f"there are more than {MOST} of these", "see above", "end these first")
    return bounded
