"""The metrics are those of the contract, with complete help texts and label values."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from nats_backpressure.adapters.nats import gateway_reports, replica_channel
from nats_backpressure.adapters.prometheus import collector
from nats_backpressure.adapters.prometheus.definitions import PROCESS
from nats_backpressure.adapters.prometheus.dropped import DROPPED
from nats_backpressure.core.subject.inputs import LoadRecord, PublishEvent, RemoveKey, WriteRecord
from nats_backpressure.runtime.effect_runner import VERBS
from tests.simulations.metrics_page import P, World, everything


def test_names_types_and_labels_are_those_of_the_contract(world: World) -> None:
    everything(world)
    names = {s.name for f in text_string_to_metric_families(world.text()) for s in f.samples}
    assert names == {
        *(P + n for n in (
            "events_total", "recovery_total", "would_total", "stream_fill", "diagnosis", "alerts",
            "status", "pressure", "admit_ratio", "pending_messages",
            "inflight_messages", "latency_seconds", "drain_seconds", "decisions_total", "sample_age_seconds",
            "transitions_total", "time_in_status_seconds_total", "api_requests_total", "dropped_total",
            "connection_rebuilds_total", "build_info", "reading", "readings_heard_total", "read_stretch",
            "arrival_rate", "ack_rate", "overload_mark", "freshness", "subjects", "streams", "consumers",
            "consumers_left_out", "connected", "observing", "reading_age_seconds", "reading_interval_seconds",
            "heartbeat_age_seconds", "write_delay_seconds", "unsent_events", "policies_refused", "reloads_total",
            "reload_successful", "reload_timestamp_seconds",
        )),
        *(
            P + h + "_seconds" + s
            for h in ("decision_duration", "observe_duration", "loop_lag")
            for s in ("_bucket", "_count", "_sum")
        ),
        *PROCESS,
        "router_intake_backpressure_active", "router_jetstream_pending_messages",
        "router_intake_processing_latency_p95", "router_intake_inflight_messages",
    }  # fmt: skip


def test_every_family_has_a_help_and_a_name_by_the_rules_of_prometheus(world: World) -> None:
    everything(world)
    for family in text_string_to_metric_families(world.text()):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation.endswith(".") and len(family.documentation) > 15
        assert family.type in ("counter", "gauge", "histogram")
        assert "milliseconds" not in family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") is (family.type == "counter")
            assert not sample.name.endswith(("_created", "_info_info"))
        what_it_means, _, what_to_do = re.sub(r"[:;] ", ". ", family.documentation).partition(". ")
        assert what_it_means and (what_to_do or family.name == P + "build_info")


def test_every_kind_that_is_dropped_anywhere_is_known() -> None:
    """A new one belongs in `dropped.DROPPED`."""
    calls = re.compile(r"(?:_count|dropped|_note)\((.*)")
    reasons = {gateway_reports.MALFORMED, gateway_reports.TOO_MANY, replica_channel.UNSENT}
    for path in Path(collector.__file__).parents[2].rglob("*.py"):
        if path.parent.name in ("client", "demo", "cli"):
            continue
        for given in calls.findall(path.read_text()):
            for name in re.findall(r'"([a-z][^"]*|[{][^"]+)"', given):
                for each in (LoadRecord, WriteRecord, PublishEvent, RemoveKey):
                    reasons.add(name.replace("{VERBS[type(effect)]}", VERBS[each]))
    assert reasons == set(DROPPED)


def test_the_routers_own_metrics_come_first_and_no_help_looks_like_a_value(world: World) -> None:
    assert "# router_intake" not in world.text(), "nothing is watched yet"
    everything(world)
    families = [line.split()[2] for line in world.text().splitlines() if line.startswith("# TYPE")]
    assert families[:4] == [
        "router_intake_backpressure_active",
        "router_jetstream_pending_messages",
        "router_intake_processing_latency_p95",
        "router_intake_inflight_messages",
    ]
    helps = [line.split(" ", 3)[3] for line in world.text().splitlines() if line.startswith("# HELP")]
    assert len(helps) == len(families) and all(text[0].isalpha() for text in helps)
