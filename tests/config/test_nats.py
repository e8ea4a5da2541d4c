"""What is shown of a connection's settings: no secret."""

from __future__ import annotations

import pytest

from nats_backpressure.config.nats import Nats, Secret


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
