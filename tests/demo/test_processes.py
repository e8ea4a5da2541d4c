"""The sidecar of the demo gets settings that it accepts, for every mode."""

from __future__ import annotations

import json

import pytest

from nats_backpressure.config.settings import parse_settings
from nats_backpressure.demo.processes import free_port, sidecar_settings
from nats_backpressure.demo.scenario import SUBJECT, Mode, Scenario


@pytest.mark.parametrize("mode", ["none", "polling", "binary", "adaptive"])
def test_the_settings_of_every_mode_are_valid(mode: Mode) -> None:
    text = json.dumps(sidecar_settings(Scenario(mode=mode), 8080)).encode()
    settings = parse_settings(text, {}, "demo")
    (policy,) = settings.policies
    assert policy.subjects == (SUBJECT,) and settings.http.port == 8080


def test_a_policy_of_the_scenario_replaces_the_marks() -> None:
    (policy,) = sidecar_settings(Scenario(policy={"retry_after_seconds": 3}), 8080)["policies"]
    assert policy == {"subjects": [SUBJECT], "retry_after_seconds": 3}


def test_a_free_port_can_be_bound() -> None:
    assert 0 < free_port() < 65_536
