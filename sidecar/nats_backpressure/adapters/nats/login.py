"""Describes how a connection logs in, without its secrets, and what to do where a server does not let it in."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from nats_backpressure.adapters.nats.credentials import BadCredentials, line_after, read_text
from nats_backpressure.config.nats import Nats

CLOSED = ("reset by peer", "broken pipe", "empty response", "unexpected eof", "connection lost")
"""What is left of the server's error where it closes the connection during the login."""
NO_LOGIN = "none"


class _Claims(Struct, frozen=True):
    """What is shown of a user's JWT."""

    sub: str = "?"
    name: str = ""
    exp: float = 0.0
    """Unix seconds; 0 where it does not expire."""


UNKNOWN_HOST = ("name or service not known", "name resolution", "nodename nor servname", "no address associated")
WANTS_LOGIN = "the server wants a login: set one of nats.credentials_file, nkey_seed_file, user or token_file"
REFUSES_LOGIN = "the server refuses this login: compare it with the users that the server knows; its log says why"


def describe_login(nats: Nats) -> str:
    """Which login is used, and where it comes from; never a secret."""
    if nats.credentials_file:
        return f"credentials file {nats.credentials_file}{_user_of(nats)}"
    if nats.nkey_seed_file or nats.nkey_seed:
        return f"nkey of {nats.nkey_seed_file or 'NATS_NKEY'}{_public_key(nats)}"
    if nats.user:
        return f"user {nats.user} with the password of {nats.password_file or 'NATS_PASSWORD'}"
    if nats.token or nats.token_file:
        return f"token of {nats.token_file or 'NATS_TOKEN'}"
    parts = [urlsplit(server) for server in nats.servers if "@" in server]
    if not parts:
        return NO_LOGIN
    return f"user {parts[0].username} of the server's URL" if parts[0].password else "token of the server's URL"


def login_hint(nats: Nats, error: str, server: Mapping[str, Any]) -> str:
    """What to do about an error of a connection; `server`: what the server sent about itself, if anything."""
    text = error.lower()
    if server.get("tls_verify") and not nats.tls.cert_file:
        return "the server wants a client certificate: set nats.tls.cert_file and nats.tls.key_file"
    if (expired := jwt_expiry(nats)) is not None and expired < time.time():
        return f"its JWT expired at {_moment(expired)}: put a new one into {nats.credentials_file}"
    if "offers no tls" in text:
        return "let the server offer TLS; or use a nats:// URL and no nats.tls, where the network is trusted"
    if (hint := _certificate_hint(nats, text)) is not None:
        return hint
    closed = any(part in text for part in CLOSED)
    if closed and server.get("tls_verify"):  # often all that is left of the alert that names the certificate
        renew = f"renew the certificate in {nats.tls.cert_file} if it expired"
        return f"{renew}; else see to the login: the server's log says what it refuses"
    if closed or "authorization" in text or "authentication" in text:
        if describe_login(nats) == NO_LOGIN:
            return WANTS_LOGIN
        return REFUSES_LOGIN
    if any(part in text for part in ("refused", "connect call failed", "no servers")):
        return "no NATS server listens there: check nats.servers (and NATS_URL)"
    if any(part in text for part in UNKNOWN_HOST):
        return "no host has this name here: check nats.servers (and NATS_URL), and the name service of this machine"
    files = (nats.credentials_file, nats.nkey_seed_file, nats.password_file, nats.token_file)
    if any(file and file in error for file in (*files, nats.tls.ca_file, nats.tls.cert_file, nats.tls.key_file)):
        return "correct the file that `error` names: it is read again each time"
    return "look at the server's log, and at the network between it and this machine"


def _certificate_hint(nats: Nats, text: str) -> str | None:
    """What to do about a certificate that one side does not accept. Times are compared with the clock of that side."""
    if "certificate verify failed" in text:
        if "has expired" in text:
            return "renew the certificate of the server, or that of its CA, and reload the server (SIGHUP)"
        if "not yet valid" in text:
            return "compare the clock of this machine with the time from which the server's certificate is valid"
        return "the server's certificate must be signed by a CA of nats.tls.ca_file, and for the host in nats.servers"
    if "alert" not in text or not nats.tls.cert_file:
        return None
    if "certificate expired" in text:
        return f"renew the certificate in {nats.tls.cert_file}: it is read again for each connection"
    trusted = "must be signed by a CA that the server trusts: see its log"
    if "bad certificate" in text:  # servers before 2.10 say it of one that expired, too
        return f"renew the certificate in {nats.tls.cert_file} if it expired; it {trusted}"
    if "certificate" in text or "unknown ca" in text:
        return f"the certificate in {nats.tls.cert_file} {trusted}"
    return None


def jwt_expiry(nats: Nats) -> float | None:
    """Unix seconds at which the JWT of the login ends; None without one, or where it does not end."""
    claims = _claims(nats) if nats.credentials_file else None
    return claims.exp if claims is not None and claims.exp else None


def _user_of(nats: Nats) -> str:
    claims = _claims(nats)
    if claims is None:
        return ""
    until = f", {'expired' if claims.exp < time.time() else 'valid until'} {_moment(claims.exp)}" if claims.exp else ""
    return f" (user {claims.name or '?'}, public key {claims.sub}{until})"


def _public_key(nats: Nats) -> str:
    import nkeys  # type: ignore[import-untyped]  # only where there is one: it loads a library for cryptography

    try:
        seed = read_text(nats.nkey_seed_file) if nats.nkey_seed_file else nats.nkey_seed.reveal()  # type: ignore[union-attr]
        keys = nkeys.from_seed(bytearray(seed.strip().encode()))
        return f" (public key {keys.public_key.decode()})"
    except Exception:  # nkeys and nacl raise many types; the error itself is reported when it connects
        return ""


def _claims(nats: Nats) -> _Claims | None:
    try:
        token = line_after(read_text(nats.credentials_file or ""), "BEGIN NATS USER JWT")
        body = token.split(".")[1]
        return msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=_Claims)
    except (BadCredentials, IndexError, ValueError, msgspec.MsgspecError):
        return None


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
