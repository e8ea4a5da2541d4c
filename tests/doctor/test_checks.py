"""Each check finds what is wrong in the facts, with what it costs and the line that ends it, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.config.nats import Nats
from nats_backpressure.config.settings import Publish, Serving, Settings, WatchSetting
from nats_backpressure.doctor.examination import CHECKS, MOST, examine
from nats_backpressure.doctor.facts import Account, Consumer, Facts, Failure, OtherInstallation, Right, subjects_of
from nats_backpressure.doctor.findings import exit_code
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry
from nats_backpressure.policy.refusals import RefusedPolicy
from nats_backpressure.policy.schema import Override, Rejection
from nats_backpressure.protocol.values import ConsumerKey
from tests.doctor.worlds import CONSUMERS, FINE, NOW, OWN, SERVER
from tests.support.advised import check_commands

FAILED = Failure("503 (10039): JetStream not enabled for account", "enable JetStream")
EDIT = "nats stream edit BACKPRESSURE_EVENTS --max-msgs=-1"
FEW = tuple(replace(each, differs={"num_replicas": (3, 1)}, replicas=1) for each in OWN)
THREE = Settings(publish=Publish(replicas=3))
EPHEMERAL = Consumer(ConsumerKey("ORDERS", "ui"), (), "ephemeral", False)


def override(pattern: str, action: str = "reject", until: float = NOW + 60) -> OverrideEntry:
    return OverrideEntry(pattern, Override(action, until))  # type: ignore[arg-type]


def watching(*entries: WatchSetting) -> Settings:
    return Settings(watch=entries)


def own(n: int, **changes: Any) -> Any:
    return (*OWN[:n], replace(OWN[n], **changes), *OWN[n + 1 :])


def unmade(*numbers: int) -> Any:
    """Of an installation whose sidecar has never run; its heartbeats are not what is looked at."""
    own = tuple(replace(each, exists=n not in numbers) for n, each in enumerate(OWN))
    return (own[0], replace(own[1], name="KV_other_state"), own[2]) if 1 not in numbers else own


def found(check: str, **changes: Any) -> list[tuple[str, str, str, str]]:
    """What is not as it should be in a world that is fine but for these facts."""
    findings = [each for each in examine(replace(FINE, **changes)) if each.level not in ("ok", "unknown")]
    assert all(each.check == check and each.cost and each.remedy for each in findings), findings
    for each in findings:
        check_commands(each.remedy)
    return [(each.level, each.problem, each.cost, each.remedy) for each in findings]


def test_in_a_fine_world_every_check_is_ok() -> None:
    findings = examine(FINE)
    assert [(each.check, each.level) for each in findings] == [(check.name, "ok") for check in CHECKS]
    assert all(each.problem for each in findings) and exit_code(findings) == 0
    assert findings[0].problem == "nats://nats:4222 (login: none), answers in 0.4 ms"
    assert {each.check: each.problem for each in findings}["watch"] == "watches 3 subjects of 3 consumers"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, "no policies in the settings file or the bucket"),
        ({"settings": Settings(policies=(PolicyEntry(("orders.*",)),))}, "each policy is in force somewhere"),
        ({"entries": {"orders.=2A": PolicyEntry(("orders.*",))}}, "each policy is in force somewhere"),
    ],
)
def test_policies_are_said_to_be_in_force_only_where_there_are_any(changes: Any, problem: str) -> None:
    findings = examine(replace(FINE, **changes))
    assert [(each.level, each.problem) for each in findings if each.check == "policies"] == [("ok", problem)]


@pytest.mark.parametrize(
    ("check", "changes", "level", "problem", "remedy"),
    [
        pytest.param(
            *(
                "environment",
                {"replaced_by": ("NATS_URL",)},
                "warning",
                "under `nats`: NATS_URL",
                "unset NATS_URL",
            ),
            id="the environment replaces the file",
        ),
        pytest.param(
            *("version", {"server": replace(SERVER, version="2.8.4")}, "error", "2.8.4; none before 2.9", "2.10"),
            id="a server that is too old",
        ),
        pytest.param(
            *("version", {"server": replace(SERVER, version="2.9.10")}, "warning", "replies have no time", "2.10"),
            id="a server without times",
        ),
        pytest.param(
            *("jwt", {"jwt_expires_at": NOW + 86_400}, "warning", "JWT of the login expires at 2027-", "put a new one"),
            id="a JWT that ends tomorrow",
        ),
        pytest.param(
            *("jwt", {"jwt_expires_at": NOW - 1}, "error", "JWT of the login expired at 2027-", "put a new one"),
            id="a JWT that has ended",
        ),
        pytest.param(
            *("clock", {"clock_ahead": -7.0}, "warning", "server's clock is 7.0 s behind the clock here", "NTP"),
            id="clocks apart",
        ),
        pytest.param(
            *(
                "jetstream",
                {"unread": {"ORDERS": FAILED}},
                "error",
                "the consumers of ORDERS cannot",
                "enable JetStream",
            ),
            id="a stream that cannot be read",
        ),
        pytest.param(
            "jetstream",
            {"missing": ("BILLING", "KV_other"), "all_streams": False},
            "error",
            "the list of streams lacks BILLING",
            "start the servers that have them",
            id="a watched stream whose servers are down",
        ),
        pytest.param(
            "rights",
            {"rights": (Right("publish", "$JS.API.CONSUMER.LIST.*", False),)},
            "error",
            "to publish $JS.API.CONSUMER.LIST.*",
            'allow publish: ["$JS.API.CONSUMER.LIST.*"]; `nats-backpressure permissions --role sidecar --config FILE`',
            id="a right that is needed",
        ),
        pytest.param(
            "rights",
            {"rights": (Right("subscribe", "$JS.EVENT.ADVISORY.API.LIMIT_REACHED", False),)},
            "warning",
            "to subscribe $JS.EVENT.ADVISORY.API.LIMIT_REACHED",
            'allow subscribe: ["$JS.EVENT',
            id="a right that it does without",
        ),
        pytest.param(
            *("resources", {"own": unmade(0)}, "note", "BACKPRESSURE_EVENTS does not exist"),
            "start the sidecar; or run: nats stream add",
            id="a stream that it will create",
        ),
        pytest.param(
            "resources",
            {"own": own(1, exists=False), "settings": Settings(publish=Publish(manage_resources=False))},
            "error",
            "KV_backpressure_state does not exist",
            "run: nats kv add backpressure_state",
            id="a bucket that it may not create",
        ),
        pytest.param(
            "resources",
            {"own": own(0, differs={"max_msgs": (-1, 1), "num_replicas": (3, 1)}, edit=EDIT)},
            *("error", "has other settings: max_msgs is 1, and should be -1", EDIT),
            id="a stream that drops events",
        ),
        pytest.param(
            "resources",
            {"own": own(0, differs={"max_age": (9, 5)}, edit=EDIT)},
            *("warning", "max_age is 5, and should be 9", EDIT),
            id="a stream with other settings",
        ),
        pytest.param(
            "resources",
            {"own": own(0, differs={"storage": ("file", "memory")}, fixed=("storage",))},
            *("warning", "storage is memory, and should be file"),
            "only a new stream can have these: `nats stream rm BACKPRESSURE_EVENTS`, then `nats stream add",
            id="a stream that must be made again",
        ),
        pytest.param(
            "copies",
            {"own": FEW, "settings": THREE},
            *("warning", "publish.replicas is 3, and num_replicas is 1"),
            "set publish.replicas to 1; or make the server one of a cluster",
            id="more copies are wanted than one server can have",
        ),
        pytest.param(
            "copies",
            {"own": tuple(replace(each, cluster="c", replicas=3) for each in FEW)},
            *("note", "KV_backpressure_policy: publish.replicas is 1, and num_replicas is 3"),
            "set publish.replicas to 3; or change theirs: nats stream edit BACKPRESSURE_EVENTS --replicas 1; nats",
            id="more copies than are wanted",
        ),
        pytest.param(
            "copies",
            {
                "own": tuple(replace(each, cluster="c") for each in FEW),
                "settings": THREE,
            },
            *("warning", "fewer than 3 copies, in a cluster", "shows them): nats stream edit BACKPRESSURE_EVENTS"),
            id="fewer copies than are wanted, in a cluster",
        ),
        pytest.param(
            *("resources", {"own": own(1, exists=False, failure=FAILED)}, "error", "cannot be read: 503 (10039)"),
            "enable JetStream",
            id="a bucket that cannot be read",
        ),
        pytest.param(
            *("account", {"account": Account(storage=90_000, max_storage=100_000)}, "error", "90,000 of 100,000 bytes"),
            "nsc edit account",
            id="an account whose storage is full",
        ),
        pytest.param(
            "account",
            {"account": Account(storage=8_000_000, max_storage=10_000_000)},
            *("warning", "8,000,000 of 10,000,000 bytes of storage", "nsc edit account"),
            id="an account whose storage is nearly full",
        ),
        pytest.param(
            *("account", {"account": Account(memory=9, max_memory=10)}, "warning", "9 of 10 bytes of memory"),
            "nsc edit account",
            id="an account whose memory is nearly full",
        ),
        pytest.param(
            "account",
            {"own": own(0, consumers=2), "account": Account(max_consumers=2)},
            *("warning", "BACKPRESSURE_EVENTS: the account allows 2 consumers", "nats consumer ls BACKPRESSURE_EVENTS"),
            id="an account without room for a consumer",
        ),
        pytest.param(
            "resources",
            {"own": own(1, consumers=2, max_consumers=2)},
            *("warning", "KV_backpressure_state has 2 of 2 consumers", "`nats consumer ls KV_backpressure_state`"),
            id="a bucket without room for a consumer",
        ),
        pytest.param(
            "copies",
            {"own": tuple(replace(each, cluster="c") for each in OWN)},
            "warning",
            "fewer than 3 copies, in a cluster",
            "(`nats server report jetstream` shows them): set publish.replicas to 3; nats stream edit BACKPRESSURE_EVE",
            id="one copy in a cluster",
        ),
        pytest.param(
            *(
                "copies",
                {"own": own(1, leader=False)},
                "error",
                "KV_backpressure_state has no leader",
                "nats stream info",
            ),
            id="a bucket without a leader",
        ),
        pytest.param(
            *(
                "copies",
                {"own": own(1, absent=("n2",))},
                "warning",
                "the copies at n2 do not follow",
                "start these servers",
            ),
            id="a copy that is down",
        ),
        pytest.param(
            "watch",
            {"streams": ("KV_backpressure_state",), "consumers": (), "watched": ()},
            "note",
            "watch[0].stream: there is no stream yet that `*` could match",
            "create the streams and consumers",
            id="nothing to watch yet",
        ),
        pytest.param(
            *("state", {"state_write": FAILED}, "error", "the state bucket takes no writes: 503", "enable JetStream"),
            id="an unwritable state",
        ),
        pytest.param(
            "watch",
            {"settings": watching(WatchSetting("ORDRES"), WatchSetting("*"))},
            "warning",
            "watch[0].stream: `ORDRES` matches none of 1 stream (did you mean ORDERS?)",
            "correct it",
            id="a stream that is misspelt",
        ),
        pytest.param(
            "watch",
            {"settings": watching(WatchSetting("ORDERS", ("*", "rooter-*")))},
            "warning",
            "watch[0].consumers[1]: `rooter-*` of ORDERS matches none of 3 consumers",
            "correct it",
            id="a glob that matches nothing",
        ),
        pytest.param(
            "watch",
            {"settings": watching(WatchSetting("*", ("router*", "u*"))), "consumers": (*CONSUMERS, EPHEMERAL)},
            "warning",
            "`u*` of * matches 1 consumer, none of which counts (1 ephemeral)",
            "consumers: [ui]",
            id="a glob of consumers that do not count",
        ),
        pytest.param(
            "policies",
            {"settings": Settings(policies=(PolicyEntry(("odrers.*", "orders.>")),))},
            "warning",
            "policies[0] `odrers.*` covers none of 3 watched subjects",
            "settings file",
            id="a policy of the file that is misspelt",
        ),
        pytest.param(
            "policies",
            {"settings": Settings(policies=(PolicyEntry(("orders.>",)), PolicyEntry(("orders.*",))))},
            "warning",
            "policies[0] `orders.>` covers orders.created, orders.paid, orders.shipped, where others are more specific",
            "settings file",
            id="a policy that others hide",
        ),
        pytest.param(
            "policies",
            {"entries": {"orders.=2A": PolicyEntry(("orders.*",), consumers=("none",))}},
            "warning",
            "the policy `orders.*` of the bucket covers",
            "nats-backpressure policy rm 'orders.*'",
            id="a policy of the bucket whose consumers match none",
        ),
        pytest.param(
            "policies",
            {
                "refused": (
                    RefusedPolicy("orders.paid", Rejection("m", (("pending.warn", "must not be above critical"),))),
                )
            },
            "error",
            "refused entry, orders.paid: pending.warn: must not be above critical",
            "-backpressure policy set 'orders.paid' FILE`, or remove it: `nats-backpressure policy rm 'orders.paid'`",
            id="a policy that is refused",
        ),
        pytest.param(
            "policies",
            {"refused": (RefusedPolicy("=override.orders.*", Rejection("m", (("", "is not JSON"),))),)},
            "error",
            "refused entry, =override.orders.*: is not JSON",
            "nats-backpressure override 'orders.*' auto",
            id="an override that is refused",
        ),
        pytest.param(
            "policies",
            {"refused": (RefusedPolicy("a=zz", Rejection("m", (("", "is not a subject"),))),)},
            "error",
            "refused entry, a=zz: is not a subject",
            "nats kv del backpressure_policy 'a=zz'",
            id="a key that no command writes",
        ),
        pytest.param(
            "policies",
            {"refused": (RefusedPolicy("orders.paid", Rejection("m", (("new", "is not known"),)), in_force=True),)},
            "warning",
            "the policy `orders.paid` of the bucket: new: is not known",
            "update the sidecar",
            id="a policy with a field of a newer version",
        ),
        pytest.param(
            "overrides",
            {"entries": {"a": override("orders.paid", "open")}},
            "warning",
            "the override `orders.paid` (open until 2027-01-15T08:01:00.000Z) governs orders.paid",
            "nats-backpressure override 'orders.paid' auto",
            id="an override in force",
        ),
        pytest.param(
            "overrides",
            {
                "entries": {"a": override("orders.paid", "open")},
                "settings": Settings(name="shop", nats=Nats(js_domain="hub")),
            },
            "warning",
            "governs orders.paid",
            "nats-backpressure override 'orders.paid' auto --name 'shop' --js-domain 'hub'",
            id="an override of another installation's name",
        ),
        pytest.param(
            "policies",
            {
                "refused": (RefusedPolicy("orders.paid", Rejection("m", (("", "is not JSON"),))),),
                "settings": Settings(name="shop"),
            },
            "error",
            "refused entry, orders.paid",
            "set 'orders.paid' FILE --name 'shop'`, or remove it: `nats-backpressure policy rm 'orders.paid' --n",
            id="a refused policy of another installation's name",
        ),
        pytest.param(
            *(
                "overrides",
                {"entries": {"a": override("odrers.paid")}},
                "warning",
                "covers no watched subject (did you",
            ),
            "nats-backpressure override 'odrers.paid' auto",
            id="an override that is misspelt",
        ),
        pytest.param(
            "sampling",
            {"consumers": (*(replace(each, sampled=False) for each in CONSUMERS[:2]), CONSUMERS[2])},
            "note",
            "2 watched consumers without `sample_freq`: ORDERS > router-created, ORDERS > router-paid",
            "edit ORDERS router-created --sample 100; nats consumer edit ORDERS router-paid --sample 100",
            id="a consumer without ack metrics",
        ),
        pytest.param(
            "installations",
            {"others": (OtherInstallation("team", ("orders.paid", "else")), OtherInstallation("far", ("else",)))},
            "warning",
            "the installation `team` has states of 1 subject that this one watches: orders.paid",
            "narrow `watch` of one of them",
            id="a second installation",
        ),
    ],
)
def test_what_is_wrong_is_found_alone(check: str, changes: Any, level: str, problem: str, remedy: str) -> None:
    ((has_level, has_problem, _, has_remedy),) = found(check, **changes)
    assert has_level == level and problem in has_problem and remedy in has_remedy, (has_problem, has_remedy)


API_RIGHTS = ("STREAM.LIST", "STREAM.INFO.*", "CONSUMER.LIST.*", "STREAM.CREATE.KV_backpressure_state")


@pytest.mark.parametrize("allowed", range(len(API_RIGHTS) + 1))
@pytest.mark.parametrize(
    ("nats", "domain", "asked"),
    [
        (Nats(js_domain="hubb"), "hub", "js_domain `hubb` right (the server has `hub`)?"),
        (Nats(js_domain="hub"), "", "js_domain `hub` right?"),
        (Nats(js_api_prefix="team.js"), "", "js_api_prefix `team.js` right?"),
        (Nats(js_api_prefix="team.js"), "hub", "js_api_prefix `team.js` right?"),
        (Nats(js_domain="hub"), "hub", ""),
        (Nats(), "", ""),
        (Nats(), "hub", ""),
    ],
)
def test_a_prefix_under_which_nothing_is_allowed_is_asked_for_in_one_line(
    nats: Nats, domain: str, asked: str, allowed: int
) -> None:
    api = [Right("publish", f"{nats.api_prefix}.{each}", n < allowed) for n, each in enumerate(API_RIGHTS)]
    event = Right("publish", "backpressure.v1.event.>", False)
    facts = {"settings": Settings(nats=nats), "server": replace(SERVER, domain=domain), "rights": (*api, event)}
    problems = found("rights", **facts)
    asking = [(problem, remedy) for _, problem, _, remedy in problems if remedy.startswith("first: is ")]
    if asked and not allowed:
        ((problem, remedy),) = asking
        assert problem == f"the server denies to publish all 4 subjects of JetStream under {nats.api_prefix}"
        assert remedy.startswith(f"first: is nats.{asked}") and len(problems) == 2, "and the event"
    else:
        assert not asking
        denied = " ".join(problem for _, problem, _, _ in problems)
        assert all((each.subject in denied) is not each.allowed for each in (*api, event))


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("ephemeral", "consumers: [w]"),
        ("without acks", "consumers: [w]"),
        ("it has 9 subjects, more than 8", "nats consumer edit ORDERS w --filter SUBJECT"),
        ("it has no filter, and its stream shows no subjects", "nats consumer edit ORDERS w --filter SUBJECT"),
    ],
)
def test_what_makes_a_consumer_count_is_what_keeps_it_from_counting(reason: str, remedy: str) -> None:
    consumer = Consumer(ConsumerKey("ORDERS", "w"), (), reason)
    ((_, problem, _, has),) = found(
        "watch", settings=watching(WatchSetting("ORDERS", ("w*",))), consumers=(consumer,), watched=()
    )
    assert f"(1 {reason})" in problem and has.endswith(remedy)


def test_a_bucket_that_is_watched_by_its_name_counts_without_other_streams() -> None:
    consumer = Consumer(ConsumerKey("KV_orders", "w"), ("$KV.orders.>",))
    facts = {"streams": ("KV_orders",), "consumers": (consumer,), "watched": ("$KV.orders.>",)}
    assert found("watch", settings=watching(WatchSetting("KV_orders")), **facts) == []


@pytest.mark.parametrize(
    ("quiet", "every", "problem"),
    [
        (13.0, 2, ""),
        (90.0, 20, ""),
        (14.0, 2, "no sidecar of the name backpressure has written for 14 s to KV_backpressure_state"),
        (7200.0, 20, "no sidecar of the name backpressure has written for 7,200 s to KV_backpressure_state"),
        (None, 2, "no sidecar of the name backpressure has ever written KV_backpressure_state"),
    ],
)
def test_an_installation_whose_sidecar_does_not_run_is_told(quiet: float | None, every: float, problem: str) -> None:
    settings = Settings(publish=Publish(heartbeat_seconds=every))
    problems = [(level, text) for level, text, _, _ in found("heartbeat", settings=settings, own=own(1, quiet=quiet))]
    assert problems == ([("note", problem)] if problem else [])


@pytest.mark.parametrize(
    ("quiet", "said"), [(None, ""), (7200.0, "none has written KV_backpressure_state for 7,200 s")]
)
def test_of_replicas_that_were_heard_it_is_not_said_that_none_runs(quiet: float | None, said: str) -> None:
    facts = replace(FINE, own=own(1, quiet=quiet), replicas={"m": ("r2", "r1")})
    (finding,) = [each for each in examine(facts) if each.check == "heartbeat"]
    assert finding.level == ("note" if said else "ok") and "start it" not in finding.remedy
    assert finding.problem.startswith("a sidecar runs: r1, r2; ") and said in finding.problem


def test_replicas_that_judge_by_different_policies_are_a_note() -> None:
    assert found("heartbeat", replicas={"m1": ("r1", "r3")}) == []
    ((level, problem, _, remedy),) = found("heartbeat", replicas={"m1": ("r1", "r3"), "m2": ("r2",)})
    assert (level, problem) == ("note", "replicas of the name backpressure judge by different policies: r1, r3; r2")
    assert remedy.startswith("nothing while a settings file is rolled out; else give all ")


def test_what_a_sidecar_that_has_just_stopped_would_create_is_a_note() -> None:
    """Its heartbeat is some seconds old."""
    (missing,) = [each for each in examine(replace(FINE, own=own(0, exists=False))) if each.check == "resources"]
    assert (missing.level, missing.problem) == ("note", "BACKPRESSURE_EVENTS does not exist")


def test_where_a_sidecar_may_not_be_heard_its_heartbeat_shows_that_it_runs() -> None:
    unheard = replace(FINE, rights=(Right("subscribe", "backpressure.v1.internal.>", False),))
    for quiet, level, why in (
        (3.0, "error", "though a sidecar that creates it has run within 14 s"),
        (15.0, "note", ""),
    ):
        streams = (replace(OWN[0], exists=False), replace(OWN[1], quiet=quiet), OWN[2])
        (missing,) = [each for each in examine(replace(unheard, own=streams)) if each.check == "resources"]
        assert (missing.level, why in missing.problem) == (level, True), missing


def test_more_copies_than_servers_are_an_error_before_the_streams_are_made() -> None:
    facts = replace(FINE, settings=Settings(publish=Publish(replicas=3)), own=own(0, exists=False))
    problems = [each.problem for each in examine(facts) if each.check == "copies"]
    assert problems == ["publish.replicas is 3, and there is 1 server"]


@pytest.mark.parametrize(("addresses", "level"), [(0, "warning"), (2, "note"), (3, "warning")])
@pytest.mark.parametrize(("replicas", "few"), [(1, True), (3, False)])
def test_too_few_copies_in_a_cluster_are_named_before_the_streams_are_made(
    addresses: int, level: str, replicas: int, few: bool
) -> None:
    facts = replace(
        FINE,
        server=replace(SERVER, cluster="c", addresses=addresses),
        settings=Settings(publish=Publish(replicas=replicas)),
        own=tuple(replace(each, exists=False) for each in OWN),
    )
    findings = [each for each in examine(facts) if each.check == "copies" and "in a cluster" in each.problem]
    assert [each.level for each in findings] == ([level] if few else [])
    if findings:
        assert f"publish.replicas is {replicas}, in a cluster" in findings[0].problem
        assert findings[0].remedy.startswith("if the cluster has 3 servers or more")
    remedies = [each.remedy for each in examine(facts) if each.check == "resources"]
    assert all(("set publish.replicas to 3 first" in each) == few for each in remedies) and remedies


LEAF = {"has_jetstream": False, "cluster": "", "version": "2.9.1"}


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize(
    "server",
    [LEAF, LEAF | {"cluster": "leaves", "addresses": 1}, {"cluster": "c", "addresses": 1}, {"cluster": "c"}],
    ids=["a leaf node", "a cluster of leaf nodes", "one address for all servers", "no addresses told"],
)
def test_no_number_of_servers_is_stated_where_it_is_not_known(
    server: dict[str, Any], replicas: int, exists: bool
) -> None:
    facts = replace(
        FINE,
        settings=Settings(publish=Publish(replicas=replicas)),
        server=replace(SERVER, **server),
        own=tuple(replace(each, exists=exists, cluster="hub", replicas=3) for each in OWN),
    )
    findings = [each for each in examine(facts) if each.check in ("version", "resources", "copies")]
    assert "error" not in {each.level for each in findings}
    assert exists or "the sidecar creates it when it starts" in str(findings)
    assert not any("replicas to 1" in each.remedy for each in findings)
    counts = [each.level for each in findings if "the server tells clients 1 of the addresses" in each.problem]
    assert counts == (["note"] if server == {"cluster": "c", "addresses": 1} and replicas == 3 and not exists else [])


def test_few_copies_are_judged_by_the_cluster_that_has_them() -> None:
    """Not by that of the leaf node which is connected to."""
    hub = tuple(replace(each, cluster="hub") for each in OWN)
    for server, own_streams, level in ((LEAF, hub, "warning"), (LEAF | {"cluster": "leaves"}, OWN, "ok")):
        facts = replace(FINE, server=replace(SERVER, **server), own=own_streams)
        assert [each.level for each in examine(facts) if each.check == "copies"] == [level]


LACKING: dict[str, tuple[dict[str, Any], str, str]] = {
    "its subjects are taken": (
        {"stored": {"TAKEN": ("x", "*.v1.event.a.>", "$KV.*.x.y")}},
        "is stored by TAKEN",
        "nats stream edit TAKEN --subjects ...; or give this installation another `name`",
    ),
    "the account is full": ({"account": Account(streams=3, max_streams=3)}, "cannot be created", "see `account`"),
    "a sidecar runs": (
        {"replicas": {"m": ("r2", "r1")}},
        "sidecar that creates it runs: r1, r2",
        "`resources.refused`",
    ),
}
MISSING_COSTS = ("no event is published", "no state and no event can be stored", "only the policies of the file")


@pytest.mark.parametrize("n", range(len(OWN)))
@pytest.mark.parametrize("lacking", LACKING)
def test_a_stream_that_no_sidecar_can_create_says_why_and_costs_what_is_lost(lacking: str, n: int) -> None:
    changes, why, remedy = LACKING[lacking]
    findings = examine(replace(FINE, own=own(n, exists=False), **changes))
    (missing,) = [each for each in findings if each.check == "resources"]
    assert missing.level == ("warning" if OWN[n].optional else "error")
    assert missing.problem.startswith(f"{OWN[n].name} does not exist, ") and why in missing.problem
    assert remedy in missing.remedy and "start the sidecar" not in missing.remedy
    check_commands(missing.remedy)
    costs = {each.cost for each in findings if each.check in ("resources", "account") and each.level != "ok"}
    assert len(costs) == 1 and costs.pop().startswith(MISSING_COSTS[n]), "both say the same"


def test_a_stream_beside_our_subjects_is_in_nobodys_way() -> None:
    stored = {"BESIDE": ("backpressure.v1.events.>", "backpressure.v1.event", "orders.>")}
    (level, problem, _, remedy), *_ = found("resources", own=unmade(0), stored=stored)
    assert (level, problem) == ("note", "BACKPRESSURE_EVENTS does not exist") and "start the sidecar" in remedy


@pytest.mark.parametrize(("numbers", "n"), [((0,), 0), ((1,), 1), ((2,), 2), ((0, 2), 0), ((0, 1, 2), 1)])
def test_what_missing_streams_cost_is_the_same_in_every_check(numbers: tuple[int, ...], n: int) -> None:
    few = Settings(publish=Publish(replicas=3))
    facts = replace(FINE, own=unmade(*numbers), settings=few, account=Account(streams=3, max_streams=3))
    wrong = [each for each in examine(facts) if each.check in ("copies", "account") and each.level != "unknown"]
    assert [each.check for each in wrong] == ["account", "copies"]
    assert all(each.cost.startswith(MISSING_COSTS[n]) for each in wrong)
    assert {each.level for each in wrong} == {"warning" if numbers == (2,) else "error"}


@pytest.mark.parametrize("stored", ["backpressure.v1.decide.>", "backpressure.>", "my.alias"])
def test_a_stream_that_stores_our_requests_is_an_error(stored: str) -> None:
    settings = Settings(service=Serving(status_alias="my.alias"))
    ((level, problem, _, remedy),) = found("requests", settings=settings, stored={"CAP": ("x.y", stored)})
    assert level == "error" and "the stream CAP stores requests of ours" in problem and "stream edit CAP" in remedy


def test_an_override_says_which_others_hide_it() -> None:
    entries = {
        "a": override("orders.*"),
        "b": override("orders.paid", "open"),
        "c": override("orders.*", until=NOW - 1),
    }
    first, second = found("overrides", entries=entries)
    assert "governs orders.created, orders.shipped; not orders.paid, where another is more specific" in first[1]
    assert "all requests but `critical` ones are refused" in first[2] and "an overload is not held back" in second[2]
    (hidden, *_) = found(
        "overrides",
        consumers=CONSUMERS[:1],
        watched=subjects_of(CONSUMERS[:1]),
        entries={"a": override("orders.*"), "b": override("orders.created")},
    )
    assert "is hidden by more specific ones at orders.created" in hidden[1]


@pytest.mark.parametrize(
    ("facts", "last"),
    [
        (replace(FINE, server=replace(SERVER, failure=Failure("connection refused", "start it"))), "jwt"),
        (replace(FINE, unlisted=FAILED), "jetstream"),
    ],
    ids=["no connection", "no JetStream"],
)
def test_what_could_not_be_read_is_not_checked(facts: Facts, last: str) -> None:
    findings = examine(facts)
    assert findings[-1].check == last and [each.level for each in findings].count("error") == 1
    assert exit_code(findings) == 2


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({"server": replace(SERVER, version="")}, {"version"}),
        ({"server": replace(SERVER, failure=FAILED)}, {"jwt"}),
        ({"rights": ()}, {"rights"}),
        ({"clock_ahead": None}, {"clock"}),
        ({"account": None, "account_unread": FAILED}, {"account"}),
        ({"own": own(1, exists=False)}, {"copies", "state", "heartbeat"}),
        ({"own": own(2, exists=False)}, set()),
        ({"own": own(2, exists=False, failure=FAILED)}, {"copies", "policies", "overrides"}),
        (
            {"unread": {"ORDERS": FAILED}, "consumers": (), "watched": ()},
            {"watch", "policies", "overrides", "sampling", "installations"},
        ),
        ({"others": (OtherInstallation("team", (), FAILED),)}, {"installations"}),
    ],
)
def test_what_was_not_looked_at_is_not_ok(changes: Any, unknown: set[str]) -> None:
    findings = [each for each in examine(replace(FINE, **changes)) if each.level == "unknown"]
    assert {each.check for each in findings} == unknown
    assert all(each.problem.startswith("not looked at: ") for each in findings) and exit_code(findings) == 0


def test_nothing_is_said_to_match_nothing_while_consumers_are_unread() -> None:
    settings = Settings(policies=(PolicyEntry(("odrers.*",)),), watch=(WatchSetting("ORDERS", ("nobody",)),))
    facts = replace(FINE, settings=settings, unread={"ORDERS": FAILED}, entries={"a": override("nobody.*")})
    levels = {(each.check, each.level) for each in examine(facts)}
    assert levels >= {(check, "unknown") for check in ("watch", "policies", "overrides")}
    assert "warning" not in {level for check, level in levels if check != "jetstream"}


LISTS = [
    {"all_streams": False, "missing": ("BILLING", "ORDERS")},
    {"all_streams": False},
    {"unread": {"ORDERS": FAILED}},
]


@pytest.mark.parametrize("lacking", LISTS, ids=["streams that are named", "some streams", "some consumers"])
@pytest.mark.parametrize("nothing_left", [True, False])
def test_what_a_list_lacks_is_neither_missed_nor_taken_for_right(lacking: Any, nothing_left: bool) -> None:
    """A node of the cluster is down: what it alone has is in no list, and is not gone."""
    watch = (WatchSetting("*"), WatchSetting("BILLING"), WatchSetting("*", ("router-billed",)))
    settings = Settings(
        policies=(PolicyEntry(("billing.new",)), PolicyEntry(("orders.*",))),
        watch=watch if lacking in LISTS[:2] else (WatchSetting("ORDERS", ("*", "router-billed")),),
    )
    entries = {"a": PolicyEntry(("billing.*",)), "b": override("billing.paid")}
    facts = replace(FINE, settings=settings, entries=entries, **lacking)
    if nothing_left:
        facts = replace(facts, consumers=(), watched=())
        facts = facts if lacking == LISTS[2] else replace(facts, streams=("KV_backpressure_state",))
    findings = [each for each in examine(facts) if each.check != "jetstream"]
    assert {each.level for each in findings} <= {"ok", "unknown"}, findings
    unknown = {each.check for each in findings if each.level == "unknown"}
    assert unknown >= {"watch", "policies", "overrides", "sampling", "installations"}
    assert ("requests" in unknown) is (lacking in LISTS[:2]), "subjects are of streams, whose consumers do not matter"
    assert all(each.problem.startswith("not looked at: ") for each in findings if each.level == "unknown")


def test_a_stream_that_is_named_and_there_is_judged_while_others_are_not_listed() -> None:
    settings = watching(WatchSetting("ORDERS", ("*", "rooter-*")))
    findings = examine(replace(FINE, settings=settings, all_streams=False, missing=("BILLING",)))
    assert [each.problem for each in findings if each.level == "warning"] == [
        "watch[0].consumers[1]: `rooter-*` of ORDERS matches none of 3 consumers (did you mean router-paid?)"
    ]


COSTS = ("no event is published", "no state and no event can be stored", "its policies and overrides cannot be changed")


@pytest.mark.parametrize("listed", [True, False], ids=["listed all the same", "not listed"])
@pytest.mark.parametrize("addresses", [0, 2, 3])
@pytest.mark.parametrize("n", range(len(OWN)))
def test_a_stream_of_ours_whose_servers_are_down_hides_nothing_else(n: int, addresses: int, listed: bool) -> None:
    """Its only copy was on a node that is down; what is watched is on others."""
    name = OWN[n].name
    down = tuple(replace(each, cluster="c") for each in OWN)
    down = (*down[:n], replace(OWN[n], exists=False, failure=Failure("no reply in time", "wait")), *down[n + 1 :])
    facts = replace(
        FINE,
        server=replace(SERVER, cluster="c", addresses=addresses),
        own=down,
        missing=(name,),
        streams=(*FINE.streams, name) if listed else tuple(each for each in FINE.streams if each != name),
    )
    findings = [each for each in examine(facts) if each.level != "ok"]
    (lost,) = [each for each in findings if each.check == "resources"]
    assert lost.level == "error" and lost.cost.startswith(COSTS[n])
    assert lost.remedy.startswith("its only copy, or most of its copies, are on servers that are down: start them")
    few, unread = [each for each in findings if each.check == "copies"]
    assert few.level == "warning" and unread.problem == f"not looked at: {name} cannot be read"
    hidden = {each.check for each in findings if each.level == "unknown"}
    assert hidden == {"copies"} | ({"state", "heartbeat"} if n == 1 else {"policies", "overrides"} if n == 2 else set())


def test_a_bucket_of_ours_that_is_watched_is_missed_while_it_is_down() -> None:
    settings = watching(WatchSetting("*"), WatchSetting("KV_backpressure_state"))
    facts = replace(FINE, settings=settings, streams=("ORDERS",), missing=("KV_backpressure_state",))
    assert [each.problem for each in examine(facts) if each.check == "jetstream"] == [
        "the list of streams lacks KV_backpressure_state"
    ]


def test_the_findings_of_a_check_are_bounded() -> None:
    policies = tuple(PolicyEntry((f"nobody.{n}",)) for n in range(10_000))
    findings = found("policies", settings=Settings(policies=policies))
    assert len(findings) == MOST + 1 and findings[-1][1] == f"there are more than {MOST} of these"


def test_the_login_is_named() -> None:
    settings = Settings(nats=Nats(credentials_file="/etc/team.creds"))
    ((_, _, _, remedy),) = found("jwt", settings=settings, jwt_expires_at=NOW + 1)
    assert "/etc/team.creds" in remedy


def test_a_stream_of_ours_for_which_the_account_has_no_room_is_an_error() -> None:
    facts = replace(FINE, own=own(1, exists=False), account=Account(streams=3, max_streams=3))
    (found,) = [each for each in examine(facts) if each.check == "account"]
    assert (found.level, found.problem) == (
        "error",
        "the account has 3 of 3 streams, and KV_backpressure_state is missing",
    )
    assert [each.level for each in examine(replace(facts, own=OWN)) if each.check == "account"] == ["ok"]
    facts = replace(facts, own=own(2, exists=False))
    (found,) = [each for each in examine(facts) if each.check == "account"]
    assert (found.level, found.cost) == ("warning", "only the policies of the file are in force")


def test_the_limits_of_an_account_are_shown_where_they_leave_room() -> None:
    has = Account(1_000, 1_000_000, 5, 1_000, 3, 10, 20)
    shown = [each.problem for each in examine(replace(FINE, account=has)) if each.check == "account"]
    assert shown == [
        "1,000 of 1,000,000 bytes of storage, 5 of 1,000 bytes of memory, 3 of 10 streams, 20 consumers of each stream"
    ]


@pytest.mark.parametrize("n", range(len(OWN)))
def test_a_stream_of_ours_without_room_is_an_error_and_of_the_state_bucket_two(n: int) -> None:
    limit = "it holds 8,541 of 1,000 bytes (max_bytes)"
    findings = examine(replace(FINE, own=own(n, full=limit, differs={"max_bytes": (-1, 1000)})))
    wrong = [each for each in findings if each.level != "ok"]
    assert [each.check for each in wrong] == ["resources", *(["state"] if n == 1 else [])] and exit_code(wrong) == 2
    edit = f"nats stream edit {OWN[n].name} --max-bytes=-1 --max-msgs=-1 --max-msg-size=-1"
    assert all(limit in each.problem and each.remedy == edit for each in wrong)
