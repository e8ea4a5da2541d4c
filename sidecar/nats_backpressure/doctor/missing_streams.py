"""A stream or bucket of ours that does not exist: whether the sidecar can create it, and what to do where it cannot."""

from __future__ import annotations

import itertools

from nats_backpressure.doctor.account_checks import has_no_room
from nats_backpressure.doctor.copy_checks import SAFE_FROM, WITH_SERVERS, cluster_of, runs_alone
from nats_backpressure.doctor.facts import Facts, OwnStream
from nats_backpressure.doctor.findings import Finding, error, note, warning
from nats_backpressure.doctor.heartbeat_check import late_after, runs_now
from nats_backpressure.doctor.own_stream_costs import cost_of_missing
from nats_backpressure.doctor.text import names
from nats_backpressure.protocol.patterns import overlap


def missing(facts: Facts, stream: OwnStream) -> Finding:
    """Nothing is wrong yet where a sidecar that starts can create it."""
    problem, make_it = f"{stream.name} does not exist", f"run: {stream.make_it}"
    if cluster_of(facts) and facts.settings.publish.replicas < SAFE_FROM:
        make_it = f"{WITH_SERVERS}, set publish.replicas to {SAFE_FROM} first, here too: {make_it}"
    obstacle = _obstacle(facts, stream, make_it)
    if obstacle is None:
        return note(problem, "none: the sidecar creates it when it starts", f"start the sidecar; or {make_it}")
    make = warning if stream.optional else error
    return make(f"{problem}{obstacle[0]}", cost_of_missing(facts, [stream]), obstacle[1])


def _obstacle(facts: Facts, stream: OwnStream, make_it: str) -> tuple[str, str] | None:
    """Why no sidecar creates it, and what to do about that; None where one that starts does."""
    publish = facts.settings.publish
    if holders := _holders(facts, stream):
        why = f", and cannot be created: {names(stream.subjects)} is stored by {names(holders)}"
        edit = f"nats stream edit {holders[0]} --subjects ..."
        return why, f"take the subject out of that stream: {edit}; or give this installation another `name`"
    if has_no_room(facts):
        return ", and cannot be created", "see `account`"
    if not publish.manage_resources:
        return "", make_it
    if _denied(facts, stream):
        return ", and this login may not create it", f"see `rights`; or {make_it}"
    if runs_alone(facts) and publish.replicas > 1:
        return "", "set publish.replicas to 1 (see `copies`): the sidecar then creates it"
    if runs_now(facts):
        running = sorted(itertools.chain.from_iterable(facts.replicas.values()))
        shown = f"runs: {names(running)}" if running else f"has run within {late_after(facts):g} s"
        return (
            f", though a sidecar that creates it {shown}",
            f"its log says why: `resources.refused`, `stage.failing`; or {make_it}",
        )
    return None


def _holders(facts: Facts, stream: OwnStream) -> list[str]:
    """The streams that have some of its subjects: the server lets no two have the same."""
    others = ((name, patterns) for name, patterns in facts.stored.items() if name != stream.name)
    return [name for name, has in others if any(overlap(one, other) for one in has for other in stream.subjects)]


def _denied(facts: Facts, stream: OwnStream) -> bool:
    end = f".STREAM.CREATE.{stream.name}"
    return any(not right.allowed and right.subject.endswith(end) for right in facts.rights)
