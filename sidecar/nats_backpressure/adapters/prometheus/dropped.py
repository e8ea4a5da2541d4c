"""What `dropped_total` counts, by its label `what`: what each means, and what to do."""

from __future__ import annotations

DROPPED: dict[str, tuple[str, str]] = {
    "advisory_malformed": (
        "An advisory or ack metric that cannot be read; it is left out.",
        "If it rises: who publishes below `$JS.EVENT`? Deny it.",
    ),
    "consumer_info_malformed": (
        "The server's answer about a consumer or stream cannot be read; it is tried again.",
        "If it rises: report it with the server's version.",
    ),
    "consumer_not_watched": (
        "A consumer that cannot be watched: too many subjects, or too long ones.",
        "`consumer.not_watched` in the log has the reason. Give it fewer filters, or take it out of `watch`.",
    ),
    "event_conflict": (
        "Another writer published an event of this number first; it gets another one.",
        "With several replicas: nothing. With one: who else publishes to `NAME.v1.event.>`?",
    ),
    "event_malformed": (
        "A message in the event stream is not ours; it is left out.",
        "Find out who publishes to `NAME.v1.event.>`, and deny it.",
    ),
    "event_unpublishable": (
        "An event can never be published, and is lost for those who wait for it; the state is right.",
        "Raise the limits of the event stream; `event.dropped` in the log names the limit.",
    ),
    "forget_retry": (
        "The key of a subject that is gone could not be removed; it is tried again.",
        "As for `write_retry`.",
    ),
    "heartbeat": (
        "A heartbeat could not be written; it is tried again. Without one for 14 s clients open.",
        "See NatsBackpressureStateUnwritable.",
    ),
    "judged_otherwise": (
        "This replica would judge a subject otherwise than the one that writes it.",
        "Normal for a minute after a start, and during an update. If it lasts, see NatsBackpressurePoliciesDiffer.",
    ),
    "load_retry": (
        "A stored state could not be read; it is tried again, and the subject is unknown until then.",
        "As for `write_retry`.",
    ),
    "metadata_left_out": (
        "A consumer's metadata has more or longer policy fields than are read.",
        "Use the policy bucket for it.",
    ),
    "name_unusable": (
        "A stream or consumer has a name that cannot be used in a subject; it is not watched.",
        "Rename it.",
    ),
    "nats_error": (
        "The NATS client reported an error.",
        "`nats.error` in the log has it. If it rises: check the network and the load.",
    ),
    "permission_denied": (
        "The server refused a subject.",
        "`rights.missing` in the log has all of them: [rights](#rights).",
    ),
    "policy_beyond_limit": (
        "The policy bucket holds more keys or more bytes than are read; the rest has no effect.",
        "Use patterns instead of single subjects, and remove what is no policy.",
    ),
    "policy_rejected": (
        "A policy was refused; the last good one stays until a restart. The subject `_file` is the settings file.",
        "See NatsBackpressurePolicyRefused.",
    ),
    "publish_retry": (
        "An event could not be published; it is tried again.",
        "If it goes on: NatsBackpressureEventsUnsent.",
    ),
    "reading_unsent": (
        "A reading was not sent to the other replicas, for too much waits; they read the stream themselves.",
        "If it rises: is the connection slow, or the CPU too small?",
    ),
    "reading_unusable": (
        "A reading of another replica cannot be used; the stream is read here.",
        "Normal after a reconnect. If it rises: are the versions the same?",
    ),
    "recording": (
        "A recording is not complete.",
        "Check the disk; `recording.ended` or `recording.partial` in the log has the reason.",
    ),
    "replica_message_unread": (
        "A message between replicas cannot be read.",
        "Are the versions the same? Who else may publish to `NAME.v1.internal.>`?",
    ),
    "replica_message_unsent": (
        "A message to the other replicas could not be sent.",
        "Normal without a connection. If it rises with one: the right to `NAME.v1.internal.>`.",
    ),
    "reply_subject": (
        "A request wants its reply at a subject that is no inbox; it gets none.",
        "A client of yours with an own inbox prefix: `service.reply_prefixes`. Otherwise find out who sends it.",
    ),
    "report_malformed": (
        "A gateway's report cannot be read; it is left out.",
        "Correct the gateway; see docs/protocol.md.",
    ),
    "report_too_many": (
        "Gateways send more than 1,000 reports a second; the rest is left out.",
        "One report per gateway and second is enough.",
    ),
    "request_failed": (
        "A request was answered with 500, by a bug.",
        "Report it with the traceback of `request.failed`.",
    ),
    "sample_set_aside": (
        "A sample contradicts the one before; it waits for a second one that agrees.",
        "Nothing: that is how restarts of a node look. If it goes on, look at that consumer's node.",
    ),
    "slow_consumer": (
        "Messages to the sidecar came faster than it reads; the server or client dropped some.",
        "Only hints are lost. If it goes on: is the CPU throttled?",
    ),
    "state_conflict": (
        "Another writer changed a state first; it is read again.",
        "With several replicas: nothing. With one: who else writes the state bucket?",
    ),
    "state_malformed": (
        "A key of the state bucket is not ours; it is ignored, or written over.",
        "Find out who writes the bucket, and deny it.",
    ),
    "state_newer": (
        "A newer version stores a subject; this one does not change it.",
        "Update this replica. After a rollback: wait for `observe.unknown_after_seconds`.",
    ),
    "sweep_unavailable": (
        "A list of streams or consumers could not be read; it is tried again.",
        "If it goes on: NatsBackpressureApiErrors.",
    ),
    "undecodable_message": (
        "A message on the connection could not be read at all.",
        "If it rises: report it with the server's version.",
    ),
    "write_retry": (
        "A state could not be written; it is tried again, and answers are stale meanwhile.",
        "If it goes on: NatsBackpressureStateUnwritable.",
    ),
}
