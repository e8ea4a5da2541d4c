"""`decide`: what a gateway, or a consumer before its pull, would be told now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nats_backpressure.cli.command import read, run_command
from nats_backpressure.cli.options import Target, asks, subject
from nats_backpressure.cli.output import Row, cell, grid, print_json
from nats_backpressure.protocol.messages import Decision
from nats_backpressure.protocol.subjects import encode

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

PRIORITIES = ("low", "normal", "high", "critical")


@click.group()
def decide() -> None:
    """Ask for a decision, as a gateway or as a consumer."""


@decide.command()
@click.argument("subject", type=subject)
@click.option("--attempt", type=click.IntRange(1, 1000), default=1, show_default=True, help="Which try this is.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the Decision as one JSON document.")
@asks
def gateway(target: Target, subject: str, attempt: int, priority: str, as_json: bool) -> None:
    """Whether to let a message for SUBJECT in."""
    _decide(target, "gateway", subject, {"attempt": attempt, "priority": priority}, as_json)


@decide.command()
@click.argument("subject", type=subject)
@click.option("--max-messages", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Wanted at most.")
@click.option("--stream", help="Only for this stream's consumers.")
@click.option("--consumer", help="Only for this consumer.")
@click.option("--json", "as_json", is_flag=True, help="Print the Decision as one JSON document.")
@asks
def consumer(
    target: Target, subject: str, max_messages: int, stream: str | None, consumer: str | None, as_json: bool
) -> None:
    """How many messages of SUBJECT to pull. What is granted counts as taken for a second, as for any asker."""
    about = {"max_messages": max_messages, "stream": stream, "consumer": consumer}
    _decide(target, "consumer", subject, about, as_json)


def _decide(target: Target, role: str, subject: str, about: dict[str, Any], as_json: bool) -> None:
    async def story(line: ServiceClient) -> None:
        document = await line.ask(f"decide.{role}.{encode(subject)}", about)
        if as_json:
            print_json(document)
        else:
            grid(("subject", subject), _rows(read(document, Decision)))

    run_command(target, story)


def _rows(found: Decision) -> list[Row]:
    facts: dict[str, str] = {
        "action": found.action + (f" ({found.would}, were it enforced)" if found.would else ""),
        "status": found.status,
        "why": ", ".join(found.reasons) or "-",
        "pressure": cell(found.pressure),
    }
    if found.pull is not None:
        facts["pull"] = cell(found.pull.max_messages)
        if not found.pull.max_messages:
            facts["ask again"] = f"after {found.pull.wait_ms} ms"
    else:
        facts["admit ratio"] = cell(found.admit_ratio)
        facts["retry after"] = f"{found.retry_after_seconds} s"
        facts["retry delay"] = "-" if found.retry_delay_ms is None else f"{found.retry_delay_ms:,} ms"
        facts["valid for"] = f"{found.valid_for_ms:,} ms"
    return list((facts | {"freshness": found.freshness, "incident": found.incident or "-"}).items())
