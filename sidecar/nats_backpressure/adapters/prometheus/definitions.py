"""Every metric: its name, its labels, and its help text with the unit and what a high value means."""

from __future__ import annotations

from nats_backpressure.adapters.prometheus.exposition import Labels, escape

OTHER = "_other"
"""The label of all subjects beyond `metrics.max_subjects`, and of all streams beyond as many."""
NAMED_OTHER = OTHER + " (its name)"
"""The label of one subject, stream or consumer of that name: no name on a NATS server has a space."""
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
    "dropped": ("Items refused, lost or retried. Rising: docs/operations.md has what each means.", ("what",)),
    "connection_rebuilds": (
        "NATS clients replaced after a loss. Rising: check the network, then the credentials.",
        ("connection",),
    ),
    "reloads": (
        "Settings files read again, by outcome. Rejected: the log has each mistake; the last good policies stay.",
        ("outcome",),
    ),
}
SUBJECT_COUNTERS = ("events", "recovery", "decisions", "would", "transitions")
"""Those whose first label is the subject."""
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "decision_duration_seconds": (
        "Seconds to compute a decision. High: too many wildcards match, or the CPU is throttled.",
        FASTEST,
    ),
    "observe_duration_seconds": (
        "Seconds until the server has returned all consumers of a stream. High: it is overloaded, or a node is down.",
        SLOWEST,
    ),
    "loop_lag_seconds": (
        "Seconds by which the event loop runs a timer late, measured once a second. High: the CPU is throttled.",
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
    P + "arrival_rate": ("Messages per second that arrive. Above the ack rate: the backlog grows.", SUBJECT),
    P + "ack_rate": ("Messages per second that are acknowledged. Below the arrival rate: the backlog grows.", SUBJECT),
    P + "overload_mark": (
        "The overload mark in force, in messages, ms (latency_p95) or seconds (drain). Change it: the policy.",
        ("subject", "signal"),
    ),
    P + "sample_age_seconds": ("Seconds since the newest reading. High: the server is slow or unreachable.", SUBJECT),
    P + "freshness": (
        "The present freshness, at 1. Not known: `reason` has why, and docs/operations.md what to do.",
        ("subject", "freshness", "reason"),
    ),
    P + "subjects": (
        "Subjects by freshness, with those beyond `max_subjects`. Many stale or unknown: see `reason`.",
        ("freshness", "reason"),
    ),
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
    P + "streams": ("Streams that are watched. Not what you expect: check `watch`.", ()),
    P + "consumers": ("Consumers that are watched. Not what you expect: check `watch`.", ()),
    P + "consumers_left_out": (
        "Consumers of watched streams that are not watched, by reason. Not what you expect: check `watch`.",
        ("reason",),
    ),
    P + "connected": ("Whether a connection to NATS is there. At 0: the log has the reason.", ("connection",)),
    P + "observing": (
        "Whether streams are read and requests answered. At 0: the log event `stage.failing` has what is missing.",
        (),
    ),
    P + "reading_age_seconds": ("Seconds since the newest reading of any stream. High: NATS does not answer.", ()),
    P + "reading_interval_seconds": (
        "The longest interval between two readings of a subject, as planned now. High: the budget is too small.",
        (),
    ),
    P + "heartbeat_age_seconds": (
        "Seconds since any replica wrote the heartbeat, or since the start. High: the state bucket takes no writes.",
        (),
    ),
    P + "write_delay_seconds": (
        "Seconds for which the oldest load or write of a state waits. High: the state bucket takes no writes.",
        (),
    ),
    P + "unsent_events": (
        "Events that are stored and not published yet. Above 0 for long: the event stream takes none.",
        (),
    ),
    P + "policies_refused": (
        "Keys of the policy bucket whose value is refused. Above 0: the log has each mistake.",
        (),
    ),
    P + "reload_successful": (
        "Whether the settings file was good when it was last read. At 0: fix it; the last good policies stay in force.",
        (),
    ),
    P + "reload_timestamp_seconds": (
        "Unix time at which the policies in force were read from the settings file. Before the change: reload.",
        (),
    ),
    P + "build_info": ("Always 1; the label has the version.", ("version",)),
}
PROCESS: dict[str, tuple[str, str, Labels]] = {
    "process_cpu_seconds_total": ("counter", "Seconds of CPU time, user and system. High: see docs/scale.md.", ()),
    "process_start_time_seconds": ("gauge", "Unix time of the start. Changes often: it crashes or is restarted.", ()),
    "process_resident_memory_bytes": ("gauge", "Memory in use. Near its limit: raise it, see docs/scale.md.", ()),
    "process_virtual_memory_bytes": ("gauge", "Address space in use. No reason to act.", ()),
    "process_open_fds": ("gauge", "Open files and sockets. Near the maximum: raise it.", ()),
    "process_max_fds": ("gauge", "The most open files and sockets. Low: raise the limit.", ()),
    "python_gc_collections_total": (
        "counter",
        "Garbage collections, by generation. Fast in the oldest: see docs/scale.md.",
        ("generation",),
    ),
    "python_gc_objects_collected_total": (
        "counter",
        "Objects freed by garbage collections. Fast: cycles of objects.",
        ("generation",),
    ),
    "python_gc_objects_uncollectable_total": (
        "counter",
        "Objects that no garbage collection can free. Rising: report it as a bug.",
        ("generation",),
    ),
}
"""Under the names that Prometheus's own client libraries use: type, help text, labels."""

# Label values that are known before anything is counted: their series start at 0, so that `increase()` sees the first
# step.
OPS = ("STREAM.LIST", "STREAM.INFO", "CONSUMER.LIST", "CONSUMER.INFO")
OUTCOMES = ("ok", "error", "unavailable")
CONNECTIONS = ("observe", "answer")
RELOADS = ("ok", "rejected")
LEFT_OUT = ("not in watch", "ephemeral", "without acks", "subjects")
"""Why consumers are left out, see `watch_filter.why_left_out`."""
FRESHNESS = (
    ("known", "none"), ("stale", "age"), ("stale", "no_quorum"),
    ("unknown", "age"), ("unknown", "unread"), ("unknown", "unstored"), ("unknown", "gone"),
)  # fmt: skip
"""Each freshness with its reasons."""
ROLES = ("gateway", "consumer")
TRANSITIONS = tuple((before, after) for before in KNOWN for after in KNOWN if before != after)


def own_label(name: str) -> str:
    """The label of one subject, stream or consumer, escaped. It is never OTHER."""
    return NAMED_OTHER if name == OTHER else escape(name)
