"""The connection settings are shown without secrets."""

from __future__ import annotations

import pytest

from nats_backpressure.config.nats import Nats, Secret, check_nats
from nats_backpressure.policy.validation import Problems


def test_secrets_do_not_show() -> None:
    shown = repr(
        Nats(
            ("nats://user:hidden@host:4222",),
            password=Secret("hidden"),
            token=Secret("hidden"),
            nkey_seed=Secret("hidden"),
        )
    )
    assert "hidden" not in shown
    assert "host:4222" in shown


@pytest.mark.parametrize(
    ("server", "shown"),
    [
        pytest.param("nats://host:4222", "nats://host:4222", id="nothing to hide"),
        pytest.param("nats://user:secret@host:4222", "nats://host:4222", id="user and password"),
        pytest.param("tls://token@host", "tls://host", id="token"),
        pytest.param("user:secret@host:4222", "host:4222", id="no scheme"),
        pytest.param("nats://user:se@cr/et@host", "nats://host", id="signs in the password"),
        pytest.param("user:s://ecret@host", "host", id="no scheme, one in the password"),
        pytest.param("nats://user:s://ecret@host", "nats://host", id="a scheme in the password"),
    ],
)
def test_a_server_is_shown_without_user_and_password(server: str, shown: str) -> None:
    assert Nats((server,)).shown_servers == (shown,)


@pytest.mark.parametrize(
    ("nats", "prefix"),
    [
        pytest.param(Nats(), "$JS.API", id="the plain one"),
        pytest.param(Nats(js_domain="edge"), "$JS.edge.API", id="of a domain"),
        pytest.param(Nats(js_api_prefix="acc.js.API."), "acc.js.API", id="imported under another name"),
    ],
)
def test_the_prefix_of_the_api_follows_domain_and_account(nats: Nats, prefix: str) -> None:
    assert nats.api_prefix == prefix


def test_a_domain_is_a_literal_subject() -> None:
    problems = Problems()
    check_nats(Nats(js_domain="a.*"), problems)
    assert [problem.path for problem in problems.listed()] == ["nats.js_domain"]


def test_equal_secrets_are_one() -> None:
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a") != "a"
