"""Commands name the watched subjects that a policy or an override governs, and those it does not."""

from __future__ import annotations

from nats.aio.client import Client

from tests.cli.policy_commands import bucket
from tests.support.command import Command
from tests.support.router import CONSUMER
from tests.support.sidecar import Sidecar, Wire


async def test_a_change_that_governs_nothing_needs_force(
    command: Command, no_rejections: None, nc: Client, orders: Sidecar
) -> None:
    """D4"""
    output = await command.failed("override", "ordres.created", "open", "--for", "1m")
    assert output == (
        "Error: ordres.created: nothing was changed, because it covers none of the 3 watched subjects: "
        "orders.created, orders.paid, orders.shipped (did you mean orders.created?). Use --force to change it anyway\n"
    )
    assert "covers none" in await command.failed("policy", "set", "no.such.subject", "-", data="{mode: observe}")
    assert await bucket(nc, "=override.ordres.created") is None and await bucket(nc, "no.such.subject") is None
    output = await command.good("policy", "set", "no.such.subject", "-", "--force", data="{mode: observe}")
    assert output == "no.such.subject: stored as revision 1; governs 0 of 3 watched subjects\n"
    await command.good("policy", "rm", "no.such.subject")  # what exists under this very name is no typo
    output = await command.failed("policy", "set", "orders.*", "-", data="{mode: observe, consumers: [audit]}")
    assert "orders.created (the policy names none of its consumers), orders.paid" in output


async def test_an_open_override_names_a_watched_pattern_that_may_still_reject(
    command: Command, no_rejections: None, nc: Client, orders: Sidecar, wire: Wire
) -> None:
    audit = CONSUMER.evolve(durable_name="audit", filter_subject="orders.>")
    await nc.jetstream().add_consumer("ORDERS", audit)
    await wire.status("orders.=3E", status="inactive")
    ran = await command("override", "orders.paid", "open", "--for", "1m")
    assert ran.exit_code == 0 and ran.stderr == (
        "orders.> is watched too, covers orders.paid and is not overridden:"
        " when it rejects, orders.paid is rejected too\n"
    )
