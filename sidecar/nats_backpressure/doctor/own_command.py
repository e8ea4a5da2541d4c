"""own_command: a command of ours that a finding advises, as it must be typed for this installation."""

from __future__ import annotations

from nats_backpressure.config.settings import Settings


def own_command(settings: Settings, words: str) -> str:
    """`words` with the options without which the command would be about another installation, or find none."""
    nats = settings.nats
    options = (
        ("--name", settings.name if settings.name != Settings().name else None),
        ("--js-domain", nats.js_domain),
        ("--js-api-prefix", nats.js_api_prefix),
    )
    return " ".join(["nats-backpressure", words, *(f"{option} '{value}'" for option, value in options if value)])
