"""The metric catalogue: every name, its labels, and what it means when it is high."""

from __future__ import annotations

OTHER = "_other"
"""The subject under which everything beyond `metrics.max_subjects` is summed."""
CONSUMERS_PER_SUBJECT = 4
"""Times `max_subjects`: consumers with series of their own."""
P = "router_backpressure_"
FASTEST = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
SLOWEST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

ACTIVE = "router_intake_backpressure_active"
SUBJECT = ("subject",)
CONSUMER = ("subject", "stream", "consumer")
Labels = tuple[str, ...]
KNOWN = ("inactive", "warning", "active")
"""The statuses a subject moves between while it is watched."""

COUNTERS: dict[str, tuple[str, Labels]] = {
    "events": ("Events told, by type. Rising: look at the subject's status.", ("subject", "event_type")),
    "recovery": ("Recoveries told. Rising fast: the marks are too close to the load, or the hold is short.", SUBJECT),
    "decisions": ("Decisions answered. Many rejects: the subject is overloaded.", ("subject", "role", "action")),
    "would": (
        "Answers that a policy in `observe` would have given. Many rejects: think before you enforce it.",
        ("subject", "role", "action"),
    ),
    "transitions": ("Status changes stored. Rising fast: move the marks or the hold.", ("subject", "from", "to")),
    "api_requests": (
        "JetStream API requests. Outcomes other than ok: the server is slow, away or refuses.",
        ("op", "outcome"),
    ),
    "dropped": ("What was refused, lost or tried again. Rising: the log says why, by the same word.", ("what",)),
    "connection_rebuilds": ("NATS clients replaced. Rising: look at the link, then the credentials.", ("connection",)),
}
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "decision_duration_seconds": (
        "Seconds to compute a decision. High: too many wildcards match, or the CPU is throttled.",
        FASTEST,
    ),
    "observe_duration_seconds": (
        "Seconds the server takes for a list of consumers. High: it is overloaded, or a node is down.",
        SLOWEST,
    ),
}
"""Without labels; each with its buckets."""
TIME_IN_STATUS: tuple[str, str, Labels] = (
    P + "time_in_status_seconds",
    "Seconds in each status since this process knew the subject. Much active or unknown: act on it.",
    ("subject", "status"),
)
"""A counter that is read from the service at each scrape."""
GAUGES: dict[str, tuple[str, Labels]] = {
    # The router's own names come first on the page, since a gateway in C reads no more than its first 8 KiB.
    ACTIVE: ("Whether the subject is active. At 1, ask get.status for the reasons.", SUBJECT),
    "router_jetstream_pending_messages": ("Not yet delivered. High: consumers are too slow.", ("subject", "consumer")),
    "router_intake_processing_latency_p95": ("Milliseconds. High: workers are slow or hang.", SUBJECT),
    "router_intake_inflight_messages": ("Delivered, not acknowledged. High: workers are slow or hang.", SUBJECT),
    P + "status": (
        "Status: -1 unknown, 0 inactive, 1 warning, 2 active. High: ask get.status for the reasons.",
        SUBJECT,
    ),
    P + "pressure": ("Largest value over its mark; 1 is at the mark. High: add workers or admit less.", SUBJECT),
    P + "admit_ratio": ("Share of requests gateways are told to admit. Low: the subject is overloaded.", SUBJECT),
    P + "pending_messages": ("Not yet delivered. High: consumers are too few, too slow, or do not pull.", CONSUMER),
    P + "inflight_messages": ("Delivered, not acknowledged. High: workers are slow or hang.", CONSUMER),
    P + "latency_seconds": ("Delivery to acknowledgement. High: workers are slow or hang.", ("subject", "percentile")),
    P + "drain_seconds": ("Seconds until what waits is through at the present rate. High: add workers.", SUBJECT),
    P + "sample_age_seconds": ("Age of the newest proof. High: the server is slow or away, or hears us not.", SUBJECT),
    P + "stream_fill": ("Share of the stream's own limits in use. Near 1: it drops or refuses messages.", ("stream",)),
    P + "diagnosis": (
        "Diagnosis of the worst consumer, the present one at 1. See docs/diagnosis.md for each.",
        ("subject", "diagnosis"),
    ),
    P + "alerts": (
        "Alerts, each at 1 under the state it is in. Firing: its condition has held.",
        ("subject", "alert", "state"),
    ),
    P + "build_info": ("Always 1; the version is in the label.", ("version",)),
}

# What is known of label values before anything was counted: each series begins at 0, so that `increase()` has a first
# step to see.
DROPPED = (
    "advisory_malformed", "consumer_info_malformed", "consumer_not_watched", "event_conflict", "event_malformed",
    "event_unpublishable", "forget_retry", "heartbeat", "load_retry", "metadata_left_out", "name_unusable",
    "nats_error", "permission_denied", "policy_beyond_limit", "policy_rejected", "publish_retry", "recording",
    "reply_subject", "report_malformed", "report_too_many", "request_failed", "sample_set_aside", "slow_consumer",
    "state_conflict", "state_malformed", "sweep_unavailable", "undecodable_message", "write_retry",
)  # fmt: skip
OPS = ("STREAM.LIST", "STREAM.INFO", "CONSUMER.LIST", "CONSUMER.INFO")
OUTCOMES = ("ok", "error", "unavailable")
CONNECTIONS = ("observe", "answer")
ROLES = ("gateway", "consumer")
MOVES = tuple((was, now) for was in KNOWN for now in KNOWN if was != now)
