"""Every metric: its name, its labels, and its help text with the unit and what a high value means."""

from __future__ import annotations

from nats_backpressure.adapters.prometheus.exposition import Labels

OTHER = "_other"
"""The label of all subjects beyond `metrics.max_subjects`, and of all streams beyond as many."""
CONSUMERS_PER_SUBJECT = 4
"""Times `max_subjects`: the most consumers with series of their own."""
P = "router_backpressure_"
FASTEST = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
SLOWEST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

ACTIVE = "router_intake_backpressure_active"
SUBJECT = ("subject",)
CONSUMER = ("subject", "stream", "consumer")
KNOWN = ("inactive", "warning", "active")
"""The statuses between which transitions are counted."""

COUNTERS: dict[str, tuple[str, Labels]] = {
    "events": ("Events published, by type. Rising: check the subject's status.", ("subject", "event_type")),
    "recovery": (
        "Recovery events published. Rising fast: the marks are too close to the load, or the hold is too short.",
        SUBJECT,
    ),
    "decisions": ("Decisions returned. Many rejects: the subject is overloaded.", ("subject", "role", "action")),
    "would": (
        "Actions that policies with mode `observe` would have returned. Many rejects: enforcing refuses many requests.",
        ("subject", "role", "action"),
    ),
    "transitions": ("Status changes stored. Rising fast: change the marks or the hold.", ("subject", "from", "to")),
    "api_requests": (
        "JetStream API requests. Outcomes other than ok: the server is slow, unreachable or returns errors.",
        ("op", "outcome"),
    ),
    "readings_heard": (
        "Readings received from other replicas, by stream. At rest in all of them: each replica reads for itself.",
        ("stream",),
    ),
    "dropped": ("Items refused, lost or retried. Rising: the log has the reason under a similar name.", ("what",)),
    "connection_rebuilds": (
        "NATS clients replaced after a loss. Rising: check the network, then the credentials.",
        ("connection",),
    ),
}
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "decision_duration_seconds": (
        "Seconds to compute a decision. High: too many wildcards match, or the CPU is throttled.",
        FASTEST,
    ),
    "observe_duration_seconds": (
        "Seconds until the server has returned all consumers of a stream. High: it is overloaded, or a node is down.",
        SLOWEST,
    ),
}
"""Without labels; each with its buckets."""
TIME_IN_STATUS: tuple[str, str, Labels] = (
    P + "time_in_status_seconds",
    "Seconds in each status since this process first watched the subject. Much active: add workers.",
    ("subject", "status"),
)
"""A counter that is read from the service at each scrape."""
GAUGES: dict[str, tuple[str, Labels]] = {
    # The router's own names come first on the page, since a gateway in C reads no more than its first 8 KiB.
    ACTIVE: ("Whether the subject is active. At 1, ask get.status for the reasons.", SUBJECT),
    "router_jetstream_pending_messages": (
        "Messages not yet delivered. High: consumers are too slow.",
        ("subject", "consumer"),
    ),
    "router_intake_processing_latency_p95": (
        "Milliseconds from delivery to ack, 95th percentile. High: workers are slow or hang.",
        SUBJECT,
    ),
    "router_intake_inflight_messages": (
        "Messages delivered and not acknowledged. High: workers are slow or hang.",
        SUBJECT,
    ),
    P + "status": (
        "Status: -1 unknown, 0 inactive, 1 warning, 2 active. High: ask get.status for the reasons.",
        SUBJECT,
    ),
    P + "pressure": (
        "Largest signal divided by its overload mark; 1 is at the mark. High: add workers or admit less.",
        SUBJECT,
    ),
    P + "admit_ratio": (
        "Share of requests that gateways may admit, from 0 to 1. Low: the subject is overloaded.",
        SUBJECT,
    ),
    P + "pending_messages": (
        "Messages not yet delivered. High: consumers are too few, too slow, or do not pull.",
        CONSUMER,
    ),
    P + "inflight_messages": ("Messages delivered and not acknowledged. High: workers are slow or hang.", CONSUMER),
    P + "latency_seconds": ("Seconds from delivery to ack. High: workers are slow or hang.", ("subject", "percentile")),
    P + "drain_seconds": (
        "Seconds until waiting messages are processed at the present rate. High: add workers.",
        SUBJECT,
    ),
    P + "sample_age_seconds": ("Seconds since the newest reading. High: the server is slow or unreachable.", SUBJECT),
    P + "stream_fill": (
        "Share of the stream's limits in use, from 0 to 1. Near 1: it drops or refuses messages.",
        ("stream",),
    ),
    P + "reading": (
        "Whether this replica reads the stream itself. Sum over replicas above 1: messages between them are lost.",
        ("stream",),
    ),
    P + "diagnosis": (
        "The present diagnosis of the worst consumer, at 1. What each means: docs/diagnosis.md.",
        ("subject", "diagnosis"),
    ),
    P + "alerts": (
        "The present state of each alert, at 1. Firing: its condition has held for its time.",
        ("subject", "alert", "state"),
    ),
    P + "read_stretch": (
        "How much more rarely than planned is read, as a factor: `observe.api_requests_per_second` is too small.",
        (),
    ),
    P + "build_info": ("Always 1; the label has the version.", ("version",)),
}

# Label values that are known before anything is counted: their series start at 0, so that `increase()` sees the first
# step.
DROPPED = (
    "advisory_malformed", "consumer_info_malformed", "consumer_not_watched", "event_conflict", "event_malformed",
    "event_unpublishable", "forget_retry", "heartbeat", "judged_otherwise", "load_retry", "metadata_left_out",
    "name_unusable", "nats_error", "permission_denied", "policy_beyond_limit", "policy_rejected", "publish_retry",
    "reading_unsent", "reading_unusable", "recording", "replica_message_unread", "replica_message_unsent",
    "reply_subject", "report_malformed", "report_too_many", "request_failed", "sample_set_aside", "slow_consumer",
    "state_conflict", "state_malformed", "state_newer", "sweep_unavailable", "undecodable_message", "write_retry",
)  # fmt: skip
OPS = ("STREAM.LIST", "STREAM.INFO", "CONSUMER.LIST", "CONSUMER.INFO")
OUTCOMES = ("ok", "error", "unavailable")
CONNECTIONS = ("observe", "answer")
ROLES = ("gateway", "consumer")
TRANSITIONS = tuple((before, after) for before in KNOWN for after in KNOWN if before != after)
