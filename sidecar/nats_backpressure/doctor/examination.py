"""Runs the checks on the facts, in the order in which problems cause each other; all of them, or those for a start."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from msgspec import Struct

from nats_backpressure.doctor import server_checks, storage_checks, unseen, watch_checks
from nats_backpressure.doctor.facts import Facts
from nats_backpressure.doctor.findings import Checked, Finding, unknown, warning

MOST: Final = 20
"""Findings of one check; at more, the last one says so."""


class Check(Struct, frozen=True):
    """One check: its name, the function, and what is right where it finds nothing."""

    name: str
    find: Callable[[Facts], Iterable[Finding]]
    fine: str = ""
    at_start: bool = False
    """Whether a sidecar that starts runs it too: it needs few requests, and no log line of its own says the same."""
    needs: str = ""
    """What must have been read: `connection`, or `jetstream`."""
    unseen: Callable[[Facts], str] = lambda facts: ""
    """Why it has not looked at everything; then nothing found is not `ok`."""


CHECKS: Final = (
    Check("connection", server_checks.connection),
    Check("environment", server_checks.environment, "the file and the environment agree"),
    Check("version", server_checks.version, "", at_start=True, needs="connection", unseen=unseen.version),
    Check("jwt", server_checks.jwt, "the login does not end within a week", at_start=True, unseen=unseen.jwt),
    Check(
        "rights",
        server_checks.rights,
        "the server allows all that the sidecar uses",
        needs="connection",
        unseen=unseen.rights,
    ),
    Check("jetstream", server_checks.jetstream, "JetStream answers", needs="connection"),
    Check("clock", server_checks.clock, "the clocks agree", at_start=True, needs="jetstream", unseen=unseen.clock),
    Check("resources", storage_checks.resources, "our stream and buckets are as they should be", needs="jetstream"),
    Check(
        "copies",
        storage_checks.copies,
        "their copies fit the cluster",
        at_start=True,
        needs="jetstream",
        unseen=unseen.copies,
    ),
    Check(
        "state",
        storage_checks.state,
        "the state bucket may be written and has room",
        needs="jetstream",
        unseen=unseen.state,
    ),
    Check("requests", storage_checks.requests, "no stream stores our requests", needs="jetstream"),
    Check(
        "watch",
        watch_checks.watch,
        "there is nothing to watch yet",
        at_start=True,
        needs="jetstream",
        unseen=unseen.consumers,
    ),
    Check(
        "policies",
        watch_checks.policies,
        "each policy is in force somewhere",
        at_start=True,
        needs="jetstream",
        unseen=unseen.entries,
    ),
    Check(
        "overrides", watch_checks.overrides, "none is in force", at_start=True, needs="jetstream", unseen=unseen.entries
    ),
    Check(
        "sampling",
        watch_checks.sampling,
        "all watched consumers publish ack metrics",
        needs="jetstream",
        unseen=unseen.consumers,
    ),
    Check(
        "installations",
        watch_checks.installations,
        "no other one watches these",
        at_start=True,
        needs="jetstream",
        unseen=unseen.consumers,
    ),
)


def examine(facts: Facts, checks: Iterable[Check] = CHECKS) -> list[Checked]:
    """The findings of all checks whose facts could be read, with one that is
    `ok` or `unknown` for each check that found nothing."""
    possible = {""}
    if facts.server.failure is None:
        possible.add("connection")
        if facts.unlisted is None:
            possible.add("jetstream")
    findings: list[Checked] = []
    for check in checks:
        if check.needs in possible:
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
