"""What to do about an error of JetStream: one line for the log."""

from __future__ import annotations

import re
from typing import Final

from nats_backpressure.adapters.nats.denied_rights import ALL_RIGHTS, denial
from nats_backpressure.config.nats import Nats
from nats_backpressure.doctor.api_prefix import question
from nats_backpressure.doctor.own_stream_costs import ON_DOWN_SERVERS

BY_CODE: Final = {
    10039: "enable JetStream for this account: `jetstream: enabled` in its configuration, or limits in its JWT",
    10076: "enable JetStream on the server: `jetstream {}` in its configuration",
    10074: "set publish.replicas to 1, or run the server in a cluster",
    10005: "the cluster has too few servers for publish.replicas: add servers, or lower it",
    10023: "the server or the account has too little memory or disk left: raise the limits of JetStream",
    10047: "the server or the account has no storage left for JetStream: raise its limits, or remove streams",
    10028: "the server or the account has no memory left for JetStream: raise its limits, or remove streams",
    10002: "the account has no storage left: raise its limits, or remove streams",
    10026: "the account or stream may have no more consumers: raise its max_consumers, or remove some",
    10027: "the account may have no more streams: raise its max_streams, or remove some",
    10077: "the stream is full: raise its max_bytes, or free some",
    10054: "the stream takes no message of this size: raise its max_msg_size",
    10065: "take the subjects out of the stream that `error` names, or give this installation another `name`",
    10059: "the stream is missing: the line of the stage `events stream` or `state bucket` says why it is not created",
    10118: ON_DOWN_SERVERS,
    10109: "the stream is sealed: it must be removed, it is then created again",
    10008: "JetStream has no leader at this moment: look at `nats server report jetstream`",
}
"""By the server's error code, which ends the text of an error."""
CODE: Final = re.compile(r"\(\d+, (\d+)\)|\d+ \((\d+)\)")
BOTH_ACCOUNTS: Final = "`nats-backpressure permissions --config FILE` prints both accounts"
TRIED: Final = "it is tried again; look at the server's log if it stays so"


def remedy(nats: Nats, error: str) -> str:
    """What an operator can do about an error."""
    if (denied := denial(error)) is not None:
        first = question(nats, [denied.subject])
        return f"{first}allow it to {denied.kind} {_all_like(denied.subject)}; {ALL_RIGHTS}"
    if known := remedy_of_code(error):
        return known
    if "no responders" in error:
        return _nobody_answers(nats, error)
    if nats.js_api_prefix and error.startswith(f"{nats.api_prefix}.$KV."):
        return f"import the buckets of that account too, not its API alone: {BOTH_ACCOUNTS}"
    if "in time" in error:
        return (
            "the server is slow, those that have the stream are down (`nats server report jetstream` shows which), "
            "or it may not reply to us (a line `rights.missing` then names our inbox)"
        )
    if "manage_resources" in error:
        return "run the command of the line `resources.missing`, or set publish.manage_resources to true"
    return TRIED


def remedy_of_code(error: str) -> str:
    """What the code at the end of an error calls for; empty for one without, or one that is not known."""
    match = CODE.search(error)
    return BY_CODE.get(int(match[1] or match[2]), "") if match else ""


def _all_like(subject: str) -> str:
    """The right that is needed for this subject and all like it: each stream's consumers, each event, each key of a
    bucket."""
    subject = re.sub(r"(\.CONSUMER\.LIST)\.[^.]+$", r"\1.*", subject)
    subject = re.sub(r"^([^.]+\.v1\.event)\..+$", r"\1.>", subject)
    return re.sub(r"(\$KV\.[^.]+)\..+$", r"\1.>", subject)


def _nobody_answers(nats: Nats, error: str) -> str:
    if not error.startswith(nats.api_prefix):
        return "the stream or bucket of this subject is missing, on a server that is down, or has other subjects"
    if nats.js_domain:
        return f"no JetStream of the domain `{nats.js_domain}` can be reached: correct or remove nats.js_domain"
    if nats.js_api_prefix:
        return (
            f"nobody answers under `{nats.js_api_prefix}`: correct nats.js_api_prefix, or the imports: {BOTH_ACCOUNTS}"
        )
    return (
        "enable JetStream on the server (`jetstream {}`) and for this account; if it runs elsewhere, set nats.js_domain"
    )
