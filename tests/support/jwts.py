"""Keys and JWTs as NATS has them, and a server's configuration that trusts them: an operator, and accounts of his."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]

OPERATOR, ACCOUNT, USER = nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER
UNLIMITED = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1}


def pair(prefix: int, n: int) -> nkeys.KeyPair:
    """A key pair that is the same in every run."""
    return nkeys.from_seed(nkeys.encode_seed(bytes([n]) * 32, prefix))


def public(keys: nkeys.KeyPair) -> str:
    return str(keys.public_key.decode())


def token(claims: dict[str, Any], signer: nkeys.KeyPair) -> str:
    """A JWT as NATS signs them."""

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")

    body = {"iat": int(time.time()), "iss": public(signer)} | claims
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    head = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body)}"
    return f"{head}.{base64.urlsafe_b64encode(signer.sign(head.encode())).decode().rstrip('=')}"


OWNER, TEAM, SYSTEM = pair(OPERATOR, 2), pair(ACCOUNT, 3), pair(ACCOUNT, 5)  # without a system account no JetStream


def trusting(**limits: Any) -> str:
    """The configuration of a server with the account TEAM, which has these limits besides."""
    own = token({"sub": public(OWNER), "name": "O", "nats": {"version": 2, "type": "operator"}}, OWNER)

    def account(keys: nkeys.KeyPair, more: dict[str, Any]) -> str:
        about = {"version": 2, "type": "account", "limits": UNLIMITED | more}
        return f"{public(keys)}: {token({'sub': public(keys), 'name': 'A', 'nats': about}, OWNER)}"

    accounts = f"{account(TEAM, limits)}\n{account(SYSTEM, {})}"
    return f"operator: {own}\nsystem_account: {public(SYSTEM)}\nresolver: MEMORY\nresolver_preload: {{\n{accounts}\n}}"


def credentials_of_team(file: Path, **claims: Any) -> str:
    """Write credentials of a user of TEAM with these claims, such as `exp`; returns the path."""
    user = pair(USER, 4)
    about = {"version": 2, "type": "user", "subs": -1, "data": -1, "payload": -1}
    mine = token({"sub": public(user), "name": "U", "nats": about} | claims, TEAM)
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{mine}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return str(file)
