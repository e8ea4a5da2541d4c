"""Asks whether the settings name the JetStream that is meant, before anything else, where its subjects are denied."""

from __future__ import annotations

from collections.abc import Iterable

from nats_backpressure.config.nats import Nats


def question(nats: Nats, denied: Iterable[str], servers_domain: str = "") -> str:
    """Empty where no denied subject has a prefix that the settings chose. A server checks the subjects of its own
    domain without it: so a denied one with a domain is of another domain, as behind a leaf node, or of none.
    """
    if nats.js_domain is None and nats.js_api_prefix is None:
        return ""
    if not any(subject.startswith(f"{nats.api_prefix}.") for subject in denied):
        return ""
    if nats.js_domain is None:
        return f"first: is nats.js_api_prefix `{nats.js_api_prefix}` right? if not, correct it; if it is, "
    has = f" (the server has `{servers_domain}`)" if servers_domain not in ("", nats.js_domain) else ""
    return f"first: is nats.js_domain `{nats.js_domain}` right{has}? if not, correct or remove it; if it is, "
