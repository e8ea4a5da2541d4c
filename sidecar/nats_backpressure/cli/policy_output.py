"""Prints what `policy` and `override` have in common: the list of a kind of entry, and what a change did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from msgspec import to_builtins
from msgspec.structs import replace

from nats_backpressure.cli.bucket_list import (
    NOT_APPLIED,
    OVERRIDE_LIST,
    POLICY_LIST,
    REFUSED,
    Listed,
    listed,
    override_row,
    policy_row,
    with_policy,
)
from nats_backpressure.cli.command import all_statuses, decode_reply
from nats_backpressure.cli.governed_subjects import GovernedSubjects
from nats_backpressure.cli.options import Target
from nats_backpressure.cli.output import print_json, print_note, print_table
from nats_backpressure.cli.policy_bucket import read_bucket, refusal, server_time
from nats_backpressure.doctor.text import names
from nats_backpressure.protocol.messages import Status
from nats_backpressure.protocol.patterns import covers
from nats_backpressure.protocol.policies import EffectivePolicy
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.runtime.ports import Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient


MOST_TOLD = 20
"""Entries that are refused, or ignored in part, of which a list says why; further ones are counted."""
MOST_ASKED = 200
"""Policies of which one list asks whether they are in force, by a request each; the others are `stored`."""


async def print_listed(
    target: Target, service: ServiceClient, pattern: str | None, as_json: bool, *, overrides: bool = False
) -> None:
    """Print the policies, or the overrides, of the bucket."""
    bucket = await read_bucket(target, service)
    now = await server_time(target, service) if overrides else 0.0
    try:
        statuses = await all_statuses(service)
    except Unavailable as error:
        statuses = None
        print_note(f"it is not known which subjects these govern: {error}")
    entries = list(listed(bucket, statuses, pattern, overrides=overrides, now=now))
    if not overrides:
        entries = [
            await _asked(service, each, statuses or ()) if i < MOST_ASKED else each for i, each in enumerate(entries)
        ]
    _print_problems(entries)
    if refused := [each.pattern for each in entries if each.state == NOT_APPLIED]:
        print_note(
            f"not applied, though stored: {names(refused)}. A sidecar refuses them (`nats-backpressure events --type "
            "policy_rejected` has why), or they are less than a second old"
        )
    if as_json:
        print_json({"overrides" if overrides else "policies": entries})
    elif not entries:
        print_note(f"the bucket has no {'override' if overrides else 'policy'}" + (" of these" if pattern else ""))
    elif overrides:
        print_table(OVERRIDE_LIST, [override_row(each, len(statuses or ())) for each in entries])
    else:
        print_table(POLICY_LIST, [policy_row(each, len(statuses or ())) for each in entries])


def _print_problems(entries: Sequence[Listed]) -> None:
    """What is wrong with entries, and what is in force in their place."""
    told = [each for each in entries if each.problems]
    for each in told[:MOST_TOLD]:
        state = f" {each.state}:" if each.state in (REFUSED, NOT_APPLIED) else ""
        instead = f". In force instead for {each.instead}" if each.instead else ""
        print_note(f"{each.pattern}:{state} {'; '.join(each.problems)}{instead}")
    if len(told) > MOST_TOLD:
        print_note(f"{len(told) - MOST_TOLD:,} more are refused or ignored in part: `-o json` has all")


async def _asked(service: ServiceClient, entry: Listed, statuses: Sequence[Status]) -> Listed:
    """With the state that the policy in force for one of its subjects shows."""
    covered = (each.subject for each in statuses if entry.state == REFUSED and covers(entry.pattern, each.subject))
    subject = entry.governs[0] if entry.governs else next(covered, None)
    if subject is None:
        return entry
    try:
        document = await service.query(f"get.policy.{encode(subject)}")
        shown = with_policy(entry, decode_reply(document, EffectivePolicy))
        if shown.state == NOT_APPLIED:
            return replace(shown, problems=await refusal(service, entry.value))
        return shown
    except Unavailable:
        return entry


def print_change(
    pattern: str,
    what: str,
    subjects: GovernedSubjects | None,
    as_json: bool,
    verb: str = "governs",
    **facts: object,
) -> None:
    """Print what a change did, and what its entry governs; `facts` are for the JSON document."""
    if as_json:
        print_json({"pattern": pattern, "result": what, **facts, "subjects": to_builtins(subjects)})
    else:
        click.echo(f"{pattern}: {what}" + (f"; {subjects.sentence(verb)}" if subjects else ""))
