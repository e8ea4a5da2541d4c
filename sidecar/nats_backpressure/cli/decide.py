"""`decide`: prints the decision that a gateway, or a consumer before its pull, would get now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nats_backpressure.cli.command import decode_reply, run_command
from nats_backpressure.cli.options import Target, connection_flags, json_option, parse_subject
from nats_backpressure.cli.output import Row, format_cell, print_json, print_table
from nats_backpressure.protocol.messages import Decision
from nats_backpressure.protocol.subjects import encode

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

PRIORITIES = ("low", "normal", "high", "critical")


@click.group(short_help="Request a decision now.")
def decide() -> None:
    """Print the decision that a gateway or a consumer would get now. It is not counted, and reserves nothing."""


@decide.command()
@click.argument("subject", type=parse_subject)
@click.option(
    "--attempt",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How often this request was tried, including now; sets the retry delay.",
)
@click.option(
    "--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True, help="Priority of the message."
)
@json_option("Print the reply as one JSON document.")
@connection_flags
def gateway(target: Target, subject: str, attempt: int, priority: str, as_json: bool) -> None:
    """Request whether to admit a message for SUBJECT."""
    _print_decision(target, "gateway", subject, {"attempt": attempt, "priority": priority}, as_json)


@decide.command()
@click.argument("subject", type=parse_subject)
@click.option(
    "--max-messages",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="How many messages the consumer wants at most.",
)
@click.option("--stream", help="Only for the consumers of this stream.")
@click.option("--consumer", help="Only for this consumer.")
@json_option("Print the reply as one JSON document.")
@connection_flags
def consumer(
    target: Target, subject: str, max_messages: int, stream: str | None, consumer: str | None, as_json: bool
) -> None:
    """Request how many messages of SUBJECT to pull. Nothing is reserved: a worker may be granted the same messages."""
    body = {"max_messages": max_messages, "stream": stream, "consumer": consumer}
    _print_decision(target, "consumer", subject, body, as_json)


def _print_decision(target: Target, role: str, subject: str, body: dict[str, Any], as_json: bool) -> None:
    async def query(service: ServiceClient) -> None:
        document = await service.query(f"decide.{role}.{encode(subject)}", body | {"preview": True})
        if as_json:
            print_json(document)
        else:
            print_table(("subject", subject), _decision_rows(decode_reply(document, Decision)))

    run_command(target, query)


def _decision_rows(decision: Decision) -> list[Row]:
    facts: dict[str, str] = {
        "action": decision.action + (f" ({decision.would} if it were enforced)" if decision.would else ""),
        "status": decision.status,
        "why": ", ".join(decision.reasons) or "-",
        "pressure": format_cell(decision.pressure),
    }
    if decision.pull is not None:
        facts["pull"] = format_cell(decision.pull.max_messages)
        if not decision.pull.max_messages:
            facts["ask again"] = f"after {decision.pull.wait_ms} ms"
    else:
        facts["admit ratio"] = format_cell(decision.admit_ratio)
        facts["retry after"] = f"{decision.retry_after_seconds} s"
        facts["retry delay"] = "-" if decision.retry_delay_ms is None else f"{decision.retry_delay_ms:,} ms"
        facts["valid for"] = f"{decision.valid_for_ms:,} ms"
    return list((facts | {"freshness": decision.freshness, "incident": decision.incident or "-"}).items())
