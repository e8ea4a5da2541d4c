"""The login that a line names: where it comes from, whose it is, never a secret; and what to do where it fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nkeys
import pytest

from nats_backpressure.adapters.nats.login import describe_login, login_hint
from nats_backpressure.config.nats import Nats, Secret, Tls
from tests.support.jwts import ACCOUNT, USER, pair, public, token

LOGINS = [
    pytest.param({}, "none", id="none"),
    pytest.param({"user": "u", "password": "HIDDEN"}, "user u with the password of NATS_PASSWORD", id="password"),
    pytest.param({"user": "u", "password_file": "/p"}, "user u with the password of /p", id="password file"),
    pytest.param({"token": "HIDDEN"}, "token of NATS_TOKEN", id="token"),
    pytest.param({"token_file": "/t"}, "token of /t", id="token file"),
    pytest.param({"servers": ("nats://u:HIDDEN@h",)}, "user u of the server's URL", id="user in the URL"),
    pytest.param({"servers": ("nats://HIDDEN@h",)}, "token of the server's URL", id="token in the URL"),
    pytest.param({"nkey_seed_file": "/missing"}, "nkey of /missing", id="nkey file that is missing"),
    pytest.param({"credentials_file": "/missing"}, "credentials file /missing", id="credentials that are missing"),
]


def settings(fields: dict[str, Any]) -> Nats:
    return Nats(**{name: Secret(each) if name in ("password", "token") else each for name, each in fields.items()})


@pytest.mark.parametrize(("fields", "shown"), LOGINS)
def test_a_login_is_named_without_its_secret(fields: dict[str, Any], shown: str) -> None:
    assert describe_login(settings(fields)) == shown


def test_an_nkey_is_named_by_its_public_key(tmp_path: Path) -> None:
    keys, file = pair(USER, 1), tmp_path / "user.nk"
    file.write_text(keys.seed.decode() + "\n")
    for nats in (Nats(nkey_seed_file=str(file)), Nats(nkey_seed=Secret(keys.seed.decode()))):
        text = describe_login(nats)
        assert public(keys) in text and keys.seed.decode() not in text


def creds(path: Path, **claims: Any) -> Nats:
    keys = pair(USER, 1)
    text = token({"sub": public(keys), "name": "us", **claims}, pair(ACCOUNT, 2))
    seed = nkeys.encode_seed(bytes(32), USER).decode()
    path.write_text(f"-----BEGIN NATS USER JWT-----\n{text}\n-----BEGIN USER NKEY SEED-----\n{seed}\n")
    return Nats(credentials_file=str(path))


def test_credentials_are_named_with_their_user_and_when_they_expire(tmp_path: Path) -> None:
    path = tmp_path / "user.creds"
    assert describe_login(creds(path)).endswith(f"(user us, public key {public(pair(USER, 1))})")
    assert "valid until 2" in describe_login(creds(path, exp=int(time.time()) + 60))
    expired = creds(path, exp=1_700_000_000)
    assert describe_login(expired).endswith(", expired 2023-11-14T22:13:20Z)")
    assert login_hint(expired, "Authorization Violation", {}).startswith("its JWT expired at 2023-11-14T22:13:20Z")


OWN, VERIFIES = Nats(tls=Tls(cert_file="c", key_file="k")), {"tls_verify": True}
"""With a client certificate, of a server that wants one."""


@pytest.mark.parametrize(
    ("nats", "error", "server", "hint"),
    [
        (Nats(), "Authorization Violation", {}, "wants a login"),
        (Nats(token=Secret("t")), "Authorization Violation", {}, "refuses this login"),
        (Nats(nkey_seed_file="/x"), "[Errno 104] Connection reset by peer", {}, "refuses this login"),
        (Nats(), "[Errno 32] Broken pipe", {"tls_verify": True}, "a client certificate"),
        (
            Nats(tls=Tls(cert_file="c", key_file="k")),
            "Connection reset by peer",
            {"tls_verify": True},
            "certificate in c if it exp",
        ),
        (Nats(), "the server offers no TLS, which", {}, "let the server offer TLS"),
        (Nats(), "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", {}, "signed by a CA"),
        (Nats(), "certificate verify failed: certificate has expired (_ssl.c:1)", {}, "renew the certificate of the s"),
        (Nats(), "certificate verify failed: certificate is not yet valid (_ssl.c:1)", {}, "compare the clock"),
        (OWN, "[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert certificate expired", VERIFIES, "renew the c"),
        (
            OWN,
            "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca",
            VERIFIES,
            "signed by a CA that the server trusts",
        ),
        (OWN, "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate", VERIFIES, "certificate in c if it exp"),
        (Nats(), "[Errno 111] Connection refused", {}, "no NATS server listens"),
        (Nats(), "Connect call failed ('127.0.0.1', 4222)", {}, "no NATS server listens"),
        (Nats(), "[Errno -2] Name or service not known", {}, "no host has this name"),
        (Nats(), "[Errno -3] Temporary failure in name resolution", {}, "no host has this name"),
        (Nats(nkey_seed_file="/x/seed"), "/x/seed: the file is empty", {}, "correct the file"),
        (Nats(), "something else", {}, "look at the server's log"),
    ],
)
def test_each_kind_of_error_has_a_line_that_helps(nats: Nats, error: str, server: dict[str, Any], hint: str) -> None:
    assert hint in login_hint(nats, error, server)
