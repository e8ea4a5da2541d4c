"""Checks of the JetStream account: whether its limits leave room for what the sidecar stores and creates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nats_backpressure.doctor.facts import Account, Facts
from nats_backpressure.doctor.findings import Finding, error, warning
from nats_backpressure.doctor.own_stream_costs import cost_of_missing, missing_of
from nats_backpressure.doctor.text import count, names

FULL: Final = (
    "changes of a status are neither stored nor published: a refusal that is stored stays, and gateways that watch "
    "admit a new overload"
)
NO_CONSUMER: Final = "a replica without a consumer there reads what others store by one request each, and late"
NEEDED: Final = 65_536
"""Bytes of storage below which the next states and events soon find no room."""
NEARLY: Final = 0.8
"""The share of a limit from which on it is a warning."""
RAISE: Final = (
    "raise the limits of the account (`jetstream` in the server's configuration, or `nsc edit account`), or "
    "delete what nobody needs: `nats stream report` shows the sizes"
)


def account(facts: Facts) -> Iterator[Finding]:
    """What the account holds beside its limits: storage, memory, streams, consumers."""
    if (has := facts.account) is None:
        return
    found = [*_bytes(has), *_streams(facts, has), *_consumers(facts, has)]
    yield from found or [Finding("ok", _shown(has))]


def _bytes(has: Account) -> Iterator[Finding]:
    held = f"the account holds {has.storage:,} of {has.max_storage:,} bytes of storage"
    if 0 <= has.max_storage < has.storage + NEEDED:
        yield error(held, FULL, RAISE)
    elif has.max_storage >= 0 and has.storage >= NEARLY * has.max_storage:
        yield warning(held, f"once it is full, {FULL}", RAISE)
    if has.max_memory > 0 and has.memory >= NEARLY * has.max_memory:
        held = f"the account holds {has.memory:,} of {has.max_memory:,} bytes of memory"
        yield warning(held, "once it is full, streams in memory take no message; ours are on disk", RAISE)


def _streams(facts: Facts, has: Account) -> Iterator[Finding]:
    if has_no_room(facts):
        absent = missing_of(facts)
        missing = [each.name for each in absent]
        held = f"the account has {has.streams:,} of {has.max_streams:,} streams"
        make = warning if all(each.optional for each in absent) else error
        yield make(f"{held}, and {names(missing)} {_are(missing)} missing", cost_of_missing(facts, absent), RAISE)


def has_no_room(facts: Facts) -> bool:
    """Whether the account may not have all of our streams that are missing."""
    missing, has = len(missing_of(facts)), facts.account
    return has is not None and missing > 0 and 0 <= has.max_streams < has.streams + missing


def _are(missing: list[str]) -> str:
    return "is" if len(missing) == 1 else "are"


def _consumers(facts: Facts, has: Account) -> Iterator[Finding]:
    """The server counts this limit for each stream."""
    taken = [each for each in facts.own if each.exists and 0 <= has.max_consumers <= each.consumers]
    if taken:
        yield warning(
            f"{names(each.name for each in taken)}: the account allows {count(has.max_consumers, 'consumer')} of a "
            "stream, and no other has room",
            NO_CONSUMER,
            f"{RAISE}; who reads there: nats consumer ls {taken[0].name}",
        )


def _shown(has: Account) -> str:
    parts = (
        ("bytes of storage", has.storage, has.max_storage),
        ("bytes of memory", has.memory, has.max_memory),
        ("streams", has.streams, has.max_streams),
    )
    limited = [f"{used:,} of {most:,} {what}" for what, used, most in parts if most >= 0]
    limited += [f"{has.max_consumers:,} consumers of each stream"] if has.max_consumers >= 0 else []
    return ", ".join(limited) or "the account has no limits"
