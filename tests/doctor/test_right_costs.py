"""Each right that the sidecar needs has a cost of its own while it is denied, and is an error where that is one."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.adapters.nats.permissions import Installation, sidecar
from nats_backpressure.config.settings import Publish, Serving, Settings
from nats_backpressure.doctor.examination import examine
from nats_backpressure.doctor.facts import Facts, Right
from nats_backpressure.doctor.findings import exit_code
from tests.doctor.worlds import FINE, OWN

PREFIXES, ALIAS = ("_INBOX_team",), "my.status"
NEEDED = sidecar(Installation(reply_prefixes=PREFIXES, alias=ALIAS))
RIGHTS = [*(("publish", each) for each in NEEDED.publish), *(("subscribe", each) for each in NEEDED.subscribe)]
SERVING = Settings(service=Serving(status_alias=ALIAS, reply_prefixes=PREFIXES))
ERRORS = {
    ("publish", "$JS.API.STREAM.LIST"),
    ("publish", "$JS.API.STREAM.INFO.*"),
    ("publish", "$JS.API.CONSUMER.LIST.*"),
    ("publish", "$JS.API.CONSUMER.INFO.*.*"),
    ("publish", "$JS.API.STREAM.MSG.GET.BACKPRESSURE_EVENTS"),
    ("publish", "$JS.API.STREAM.MSG.GET.KV_backpressure_state"),
    ("publish", "$KV.backpressure_state.>"),
    ("publish", "backpressure.v1.event.>"),
    ("publish", "_INBOX.>"),
    ("publish", "_INBOX_team.>"),
    ("subscribe", "_INBOX_sidecar.>"),
    ("subscribe", "backpressure.v1.decide.gateway.>"),
    ("subscribe", "backpressure.v1.decide.consumer.>"),
    ("subscribe", "backpressure.v1.get.status"),
    ("subscribe", "backpressure.v1.get.status.>"),
    ("subscribe", "backpressure.v1.get.policy.>"),
    ("subscribe", "backpressure.v1.validate.policy"),
    ("subscribe", ALIAS),
}
CREATING = [subject for _, subject in RIGHTS if ".STREAM.CREATE." in subject]


def without(kind: str, subject: str, facts: Facts) -> Facts:
    return replace(facts, rights=(Right(kind, subject, False),))


@pytest.mark.parametrize(("kind", "subject"), RIGHTS)
def test_a_denied_right_says_what_it_costs_and_which_line_gives_it(kind: str, subject: str) -> None:
    findings = examine(without(kind, subject, replace(FINE, settings=SERVING)))
    (found,) = [each for each in findings if each.level != "ok"]
    assert found.check == "rights" and found.problem == f"the server denies to {kind} {subject}"
    assert found.remedy.startswith(f'allow {kind}: ["{subject}"]')
    assert found.cost and found.cost != "what needs this does not work"
    assert (found.level == "error") == ((kind, subject) in ERRORS), found


@pytest.mark.parametrize("prefix", ["$JS.hub.API", "team.js"])
def test_the_costs_are_the_same_under_another_prefix_of_the_api(prefix: str) -> None:
    nats = replace(SERVING.nats, **({"js_domain": "hub"} if "hub" in prefix else {"js_api_prefix": prefix}))
    facts = replace(FINE, settings=replace(SERVING, nats=nats))
    for subject in sidecar(Installation(api=prefix)).publish:
        (found,) = [each for each in examine(without("publish", subject, facts)) if each.level != "ok"]
        assert found.cost != "what needs this does not work", subject


@pytest.mark.parametrize("manages", [True, False])
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("n", range(3))
def test_the_right_to_create_is_an_error_where_only_the_sidecar_could_create(
    n: int, exists: bool, manages: bool
) -> None:
    own = (*OWN[:n], replace(OWN[n], exists=exists), *OWN[n + 1 :])
    facts = replace(FINE, own=own, settings=Settings(publish=Publish(manage_resources=manages)))
    findings = examine(without("publish", f"$JS.API.STREAM.CREATE.{OWN[n].name}", facts))
    wrong = exit_code(findings)
    (right,) = [each for each in findings if each.check == "rights"]
    assert wrong == (0 if exists else 1 if OWN[n].optional else 2)
    assert (right.level == "note") == (exists or not manages)
    if not exists and manages:
        (missing,) = [each for each in findings if each.check == "resources"]
        assert "this login may not create it" in missing.problem and "start the sidecar" not in missing.remedy


def test_a_fresh_installation_with_all_rights_exits_with_0() -> None:
    rights = tuple(Right(kind, subject, True) for kind, subject in RIGHTS)
    facts = replace(FINE, own=tuple(replace(each, exists=False) for each in OWN), rights=rights)
    findings = examine(facts)
    assert exit_code(findings) == 0
    assert [each.level for each in findings if each.check == "resources"] == ["note"] * 3


def test_more_copies_than_servers_are_not_created_by_a_start() -> None:
    own = tuple(replace(each, exists=False) for each in OWN)
    findings = examine(replace(FINE, own=own, settings=Settings(publish=Publish(replicas=3))))
    missing = [each for each in findings if each.check == "resources"]
    assert exit_code(findings) == 2 and len(missing) == 3
    assert all("set publish.replicas to 1" in each.remedy for each in missing)
