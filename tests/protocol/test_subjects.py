"""Subjects as tails: one form only, so that permissions on tails mean what they say."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nats_backpressure.protocol.subjects import HEARTBEAT, LONGEST_TAIL, BadTail, Names, decode, encode, is_literal

PAIRS = {
    "plain": ("beamline.router.v1.decide", "beamline.router.v1.decide"),
    "all that is kept": ("Az09-_/", "Az09-_/"),
    "a star": ("orders.*.created", "orders.=2A.created"),
    "the rest": ("orders.>", "orders.=3E"),
    "the escape itself": ("a=b", "a=3Db"),
    "what looks like an escape": ("a=2A", "a=3D2A"),
    "two bytes": ("größe", "gr=C3=B6=C3=9Fe"),
    "four bytes": ("a.😀", "a.=F0=9F=98=80"),
    "our heartbeat's key": ("=heartbeat", "=3Dheartbeat"),
    "a system subject": ("$JS.API", "=24JS.API"),
    "punctuation": ("a:b,c;d", "a=3Ab=2Cc=3Bd"),
    "a slash": ("a/b", "a/b"),
}


@pytest.mark.parametrize(("subject", "tail"), PAIRS.values(), ids=PAIRS.keys())
def test_a_subject_and_its_tail(subject: str, tail: str) -> None:
    assert encode(subject) == tail
    assert decode(tail) == subject


BAD = {
    "nothing": "",
    "a dot": ".",
    "a dot before": ".a",
    "a dot behind": "a.",
    "two dots": "a..b",
    "an encoded dot": "a=2Eb",
    "a kept letter encoded": "=65u",
    "a kept digit encoded": "=30",
    "a kept sign encoded": "a=2D",
    "an encoded slash": "a=2Fb",
    "a raw star": "*",
    "a raw star among others": "orders.*.created",
    "a raw rest": "orders.>",
    "a star inside a token": "a*b",
    "lower-case hex": "a=2a",
    "mixed-case hex": "a=c3=B6",
    "no hex": "a=ZZ",
    "a sign that int() would take": "a=+2",
    "a space that int() would take": "a= 2",
    "wide digits that int() would take": "a=２Ａ",
    "a lone escape": "=",
    "an escape at the end": "a=",
    "half an escape": "a=2",
    "an escape across a dot": "a=2.A",
    "a broken rune": "a=C3",
    "an overlong rune": "a=C0=AE",
    "a surrogate": "a=ED=A0=80",
    "a byte that is no rune": "a=FF",
    "not ASCII": "größe",
    "a space": "a b",
    "a tab": "a\tb",
    "a null byte": "a\0b",
    "a dollar": "$JS.API",
    "percent": "a%2Eb",
    "too long": "a" * (LONGEST_TAIL + 1),
    "too long when not ASCII": "ö" * LONGEST_TAIL,
}


@pytest.mark.parametrize("tail", BAD.values(), ids=BAD.keys())
def test_what_is_no_tail_says_why(tail: str) -> None:
    with pytest.raises(BadTail) as why:
        decode(tail)
    assert 10 < len(str(why.value)) <= 200


def test_the_longest_tail_is_one() -> None:
    assert decode("a" * LONGEST_TAIL) == "a" * LONGEST_TAIL
    assert len(decode(".".join("a" * 300)).split(".")) == 300


SUBJECTS = st.lists(st.text(min_size=1, max_size=8).filter(lambda t: "." not in t), min_size=1, max_size=6).map(
    ".".join
)
"""Any text that has no empty token, whatever is in it."""
TAILS = st.text(alphabet="abZ09-_/=.*>23AEFcé \n", max_size=20) | st.text(max_size=12)


@given(SUBJECTS)
@example("*")
@example(">")
@example("=2A")
def test_a_tail_decodes_to_what_was_encoded(subject: str) -> None:
    tail = encode(subject)
    assert decode(tail) == subject
    assert tail.isascii() and set(tail) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/=.")
    assert tail.count(".") == subject.count(".")


@given(SUBJECTS, SUBJECTS)
def test_no_two_subjects_share_a_tail(one: str, other: str) -> None:
    assert (encode(one) == encode(other)) is (one == other)


@given(TAILS)
@example("a=2Eb")
@example("=3D2A")
def test_there_is_one_form_only(tail: str) -> None:
    """Whatever is taken encodes to the very same bytes; whatever else is refused, and never with another error."""
    try:
        subject = decode(tail)
    except BadTail:
        return
    assert encode(subject) == tail


@pytest.mark.parametrize(
    ("subject", "literal"),
    [("a.b", True), ("a.*", False), (">", False), ("a.>", False), ("a*b.c>", True), ("*.a", False)],
)
def test_only_whole_tokens_are_wildcards(subject: str, literal: bool) -> None:
    assert is_literal(subject) is literal


def test_names_follow_from_the_installations_name() -> None:
    names = Names("site-a")
    assert names.prefix == "site-a.v1"
    assert names.events_stream == "SITE-A_EVENTS"
    assert (names.state_bucket, names.policy_bucket) == ("site-a_state", "site-a_policy")
    assert names.ours == {"SITE-A_EVENTS", "KV_site-a_state", "KV_site-a_policy"}
    assert names.event("recovery", "orders.*") == "site-a.v1.event.recovery.orders.=2A"
    assert Names().prefix == "backpressure.v1"


@given(SUBJECTS)
def test_no_subject_has_the_heartbeats_key(subject: str) -> None:
    assert encode(subject) != HEARTBEAT
    with pytest.raises(BadTail):
        decode(HEARTBEAT)
