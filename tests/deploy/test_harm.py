"""Every harm that one of the users of deploy/nats/users.conf tries on a real server is denied."""

from __future__ import annotations

import json

import pytest

from nats_backpressure.adapters.nats.patched_client import settled
from tests.deploy.roles import API, OURS, ROLES, STREAM, login
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually

HARM = {
    "delete a consumer": (f"{API}.CONSUMER.DELETE.{STREAM}.router", ROLES),
    "create a consumer": (f"{API}.CONSUMER.CREATE.{STREAM}.x", ROLES),
    "create a durable": (f"{API}.CONSUMER.DURABLE.CREATE.{STREAM}.x", ROLES),
    "pause a consumer": (f"{API}.CONSUMER.PAUSE.{STREAM}.router", ROLES),
    "read a watched message": (f"{API}.STREAM.MSG.GET.{STREAM}", ROLES),
    "read one directly": (f"{API}.DIRECT.GET.{STREAM}", ROLES),
    "take messages": (f"{API}.CONSUMER.MSG.NEXT.{STREAM}.router", ("sidecar", "gateway", "operator")),
    "acknowledge for others": (f"$JS.ACK.{STREAM}.router.1.1.1.1.0", ("sidecar", "gateway", "operator")),
    "delete a stream": (f"{API}.STREAM.DELETE.{STREAM}", ROLES),
    "purge a stream": (f"{API}.STREAM.PURGE.{STREAM}", ROLES),
    "delete the states": (f"{API}.STREAM.DELETE.KV_backpressure_state", ROLES),
    "publish work": (SUBJECT, ("sidecar", "consumer", "operator")),
    "publish an event": (f"{OURS}.event.recovery.{SUBJECT}", ("gateway", "consumer", "operator")),
    "write a state": (f"$KV.backpressure_state.{SUBJECT}", ("gateway", "consumer", "operator")),
    "write a policy": (f"$KV.backpressure_policy.{SUBJECT}", ("sidecar", "gateway", "consumer")),
    "have states delivered elsewhere": (
        f"{API}.CONSUMER.CREATE.KV_backpressure_state.x",
        ("gateway", "consumer", "operator"),
    ),
    "the same with a filter": (
        f"{API}.CONSUMER.CREATE.KV_backpressure_state.x.$KV.backpressure_state.>",
        ROLES,
    ),
    "answer in our name": ("_INBOX.somebody.1", ("gateway", "consumer", "operator")),
    **{
        f"answer the {asked} in our name": (f"_INBOX_{asked}.a.1", ("gateway", "consumer", "operator"))
        for asked in ("gateway", "consumer", "operator")
    },
    "answer the sidecar in the server's name": ("_INBOX_sidecar.a.1", ROLES),
    "send readings": (f"{OURS}.internal.presence", ("gateway", "consumer", "operator")),
    "forge an ack metric": (f"$JS.EVENT.METRIC.CONSUMER.ACK.{STREAM}.router", ROLES),
    "forge an advisory": (f"$JS.EVENT.ADVISORY.CONSUMER.DELETED.{STREAM}.router", ROLES),
    "forget a subject": (f"{OURS}.forget.{SUBJECT}", ("sidecar", "gateway", "consumer")),
    "forge a report": (f"{OURS}.report.gateway.{SUBJECT}", ("sidecar", "consumer", "operator")),
}
LISTENING = {
    "take requests": (f"{OURS}.decide.gateway.>", ("gateway", "consumer", "operator")),
    "read work": (SUBJECT, ROLES),
    "read policies": ("$KV.backpressure_policy.>", ROLES),
    "read everything": (">", ROLES),
}


async def test_every_harm_is_denied(guarded: NatsServer) -> None:
    allowed: list[tuple[str, str]] = []
    for role in ROLES:
        errors: list[str] = []
        nc = await login(guarded, role, errors)
        for what, (subject, roles) in HARM.items():
            if role in roles:
                await nc.publish(subject, b"{}")
                await settled(nc)
                if not any(f'publish to "{subject.lower()}"' in error for error in errors):
                    allowed.append((role, what))
        for what, (subject, roles) in LISTENING.items():
            if role in roles:
                await nc.subscribe(subject)
                await settled(nc)
                if not any(f'subscription to "{subject.lower()}"' in error for error in errors):
                    allowed.append((role, what))
        await nc.close()
    assert allowed == []


async def test_an_operator_can_have_policies_copied_into_a_watched_stream(guarded: NatsServer) -> None:
    """What docs/operations.md says that no rights prevent: where this fails, that part of the page can go."""
    sidecar, operator = await login(guarded, "sidecar"), await login(guarded, "operator")
    bucket = {"name": "KV_backpressure_policy", "subjects": ["$KV.backpressure_policy.>"]}
    await sidecar.request(f"{API}.STREAM.CREATE.KV_backpressure_policy", json.dumps(bucket).encode(), timeout=5)
    config = {"durable_name": "copy", "name": "copy", "ack_policy": "none", "deliver_subject": SUBJECT}
    request = json.dumps({"stream_name": "KV_backpressure_policy", "config": config}).encode()
    made = await operator.request(f"{API}.CONSUMER.CREATE.KV_backpressure_policy.copy", request, timeout=5)
    assert json.loads(made.data)["config"]["deliver_subject"] == SUBJECT
    await operator.publish("$KV.backpressure_policy.x", b"of my choice")

    async def copied() -> bool:
        reply = await sidecar.request(f"{API}.STREAM.INFO.{STREAM}", b'{"subjects_filter": ">"}', timeout=5)
        return json.loads(reply.data)["state"].get("subjects") == {"$KV.backpressure_policy.x": 1}

    await eventually(copied, "the policy to be stored in the watched stream")
    assert "Violation" not in guarded.log
    await operator.close()
    await sidecar.close()


@pytest.mark.slow
async def test_a_foreign_reply_subject_gets_no_answer(guarded: NatsServer, replicas: list[Sidecar]) -> None:
    gateway, operator = await login(guarded, "gateway"), await login(guarded, "operator")
    for reply in (f"{API}.STREAM.DELETE.{STREAM}", SUBJECT, f"{OURS}.event.recovery.x", "$KV.backpressure_policy.x"):
        await gateway.publish(f"{OURS}.decide.gateway.{SUBJECT}", b"{}", reply=reply)
    await gateway.flush()

    async def dropped() -> bool:
        pages = [(await each.get("/metrics"))[1] for each in replicas]
        lines = [line for page in pages for line in page.splitlines() if 'what="reply_subject"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines) == 4

    await eventually(dropped, "the four requests to be dropped")
    assert (await Wire(operator).ask(f"get.status.{SUBJECT}"))["metrics"]["pending_messages"] == 0
    assert "Violation" not in guarded.log
    await gateway.close()
    await operator.close()
