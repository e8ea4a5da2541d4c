"""Replies about policies: the one in force for a subject, and whether a policy is valid."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from nats_backpressure.protocol.messages import Problem, Subject
from nats_backpressure.protocol.values import PolicySource

PolicyDocument = Annotated[dict[str, Any], Meta(description="The policy, with all of its fields: docs/policy.md.")]
Sources = Annotated[dict[str, PolicySource], Meta(description="Where each field comes from, such as `pending.warn`.")]
Truncated = Annotated[bool | UnsetType, Meta(description="true: the list did not fit and was cut. Else absent.")]


class ConsumerPolicy(Struct, frozen=True):
    """The policy in force for one consumer."""

    stream: Annotated[str, Meta(description="Name of its stream.")]
    consumer: Annotated[str, Meta(description="Its name.")]
    policy: PolicyDocument
    sources: Sources


class EffectivePolicy(Struct, frozen=True):
    """The answer to `get.policy`."""

    subject: Annotated[Subject, Meta(description="The subject that was asked about.")]
    matched: Annotated[tuple[str, ...], Meta(description="The watched subjects that the request matched.")]
    policy: PolicyDocument
    sources: Sources
    consumers: Annotated[
        tuple[ConsumerPolicy, ...], Meta(description="The consumers whose policy differs from that of the subject.")
    ] = ()
    truncated: Truncated = UNSET


class PolicyValidation(Struct, frozen=True):
    """The answer to `validate.policy`."""

    valid: Annotated[
        bool,
        Meta(description="Whether it is valid over the default policy; the marks of a settings file may differ."),
    ]
    errors: Annotated[tuple[Problem, ...], Meta(description="What is wrong with it.")]
    effective: Annotated[
        dict[str, Any] | None, Meta(description="The policy over the default one. null: it is not valid.")
    ]
    truncated: Truncated = UNSET
