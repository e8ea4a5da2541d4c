"""Why a check that found nothing wrong has not looked at all that it judges; empty where it has."""

from __future__ import annotations

from nats_backpressure.core.watch_filter import WatchEntry, is_stream_watched
from nats_backpressure.doctor.facts import Facts, OwnStream
from nats_backpressure.doctor.text import names
from nats_backpressure.protocol.subjects import Names


def version(facts: Facts) -> str:
    return "the server does not say its version"


def jwt(facts: Facts) -> str:
    return "there is no connection" if facts.server.failure is not None and facts.jwt_expires_at is None else ""


def rights(facts: Facts) -> str:
    return "" if facts.rights else "no right could be tried"


def account(facts: Facts) -> str:
    why = f": {facts.account_unread.error}" if facts.account_unread is not None else ""
    return f"the account cannot be read{why}" if facts.account is None else ""


def clock(facts: Facts) -> str:
    return "no reply of a stream shows the time of the server" if facts.clock_ahead is None else ""


def copies(facts: Facts) -> str:
    needed = (stream for stream in facts.own if stream.failure is not None or not stream.optional)
    return names(why for stream in needed if (why := _why_unread(stream)))


def state(facts: Facts) -> str:
    bucket = f"KV_{Names(facts.settings.name).state_bucket}"
    return names(why for stream in facts.own if stream.name == bucket and (why := _why_unread(stream)))


def unlisted(facts: Facts) -> list[str]:
    """The streams that the list lacks: while a node is down, those that it alone has. Ours count only where `watch`
    names them: what they store is known."""
    ours = Names(facts.settings.name).ours
    watch = [WatchEntry(entry.stream, entry.consumers) for entry in facts.settings.watch]
    others = (name for name in facts.missing if name not in facts.streams)
    return [name for name in others if name not in ours or is_stream_watched(name, watch, ours)]


def streams(facts: Facts) -> str:
    if lacking := unlisted(facts):
        return f"the list of streams lacks {names(lacking)}"
    return "" if facts.all_streams else "the list of streams could not be read whole"


def consumers(facts: Facts) -> str:
    """Of streams that the list lacks neither the subjects nor the consumers are known."""
    some = f"the consumers of {names(facts.unread)} were not all read" if facts.unread else ""
    return "; ".join(why for why in (streams(facts), some) if why)


def entries(facts: Facts) -> str:
    """What the policy bucket has, and what its entries govern."""
    bucket = f"KV_{Names(facts.settings.name).policy_bucket}"
    unread = facts.entries_unread or any(each.name == bucket and each.failure is not None for each in facts.own)
    return f"{bucket} cannot be read" if unread else consumers(facts)


def _why_unread(stream: OwnStream) -> str:
    if stream.failure is not None:
        return f"{stream.name} cannot be read"
    return "" if stream.exists else f"{stream.name} does not exist"
