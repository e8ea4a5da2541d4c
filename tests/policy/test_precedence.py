"""Layers: which entry counts, what is inherited, and that a look-up takes the same time for any number of patterns."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry, policy_document
from nats_backpressure.policy.precedence import Layers
from nats_backpressure.policy.schema import Guard, InflightRule, Override, PendingRule, Policy, in_force
from nats_backpressure.protocol.patterns import covers, specificity
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from tests.support.policies import SIGNALS, entries, entry

R1 = ConsumerKey("S", "r1")
AUDIT = ConsumerKey("S", "audit")
PATTERNS = ("a.b", "a.*", "*.b", "a.>", ">", "*.*", "*.>", "a.*.c", "a.b.*", "a.*.>", "*")
SUBJECTS = ("a", "a.b", "a.c", "a.b.c", "z.b", "z.y.x", *PATTERNS)
ANY = st.lists(entries(*PATTERNS), max_size=6)


def closest(layer: Sequence[PolicyEntry], subject: str, consumer: str | None) -> PolicyEntry | None:
    """The rule as the product page has it, without an index."""
    fitting = [
        (specificity(pattern), i)
        for i, one in enumerate(layer)
        for pattern in one.subjects
        if covers(pattern, subject) and one.applies(consumer)
    ]
    return layer[min(fitting)[1]] if fitting else None


def test_marks_merge_one_by_one_through_the_layers() -> None:
    layers = Layers(
        [entry(">", pending={"warn": 20, "overload": 500}, retry_after_seconds=7)],
        [entry("a.*", pending={"overload": 800})],
    )
    effective = layers.effective("a.b", R1, entry("x", mode="observe"))
    assert effective.policy == Policy(mode="observe", pending=PendingRule(20, 100, 800), retry_after_seconds=7)
    given_by = {name: layer for name, layer in effective.sources.items() if layer != "default"}
    assert given_by == {
        "mode": "consumer",
        "pending.warn": "file",
        "pending.overload": "bucket",
        "retry_after_seconds": "file",
    }
    assert layers.effective("z", R1).policy.mode == "enforce"


def test_the_most_specific_pattern_of_a_layer_counts_alone() -> None:
    layers = Layers(
        [entry(">", retry_after_seconds=1), entry("a.*", max_retry_attempts=9), entry("a.b", mode="observe")]
    )
    assert layers.effective("a.b").policy == Policy(mode="observe")
    assert layers.effective("a.c").policy == Policy(max_retry_attempts=9)
    assert layers.effective("a.>").policy == Policy(retry_after_seconds=1)


def test_consumers_an_entry_is_not_for_take_the_next_specific_one() -> None:
    layers = Layers([entry("a.*", retry_after_seconds=1), entry("a.b", consumers=["r*"], retry_after_seconds=2)])
    seen = {key: layers.effective("a.b", key).policy.retry_after_seconds for key in (R1, AUDIT, None)}
    assert seen == {R1: 2, AUDIT: 1, None: 1}


@pytest.mark.parametrize(
    ("closer", "further"),
    [
        ("a.b.c", "a.b.*"),
        ("a.b.*", "a.b.>"),
        ("a.b.*", "a.*.c"),
        ("a.b.>", "a.*.c"),
        ("a.*.>", "*.b.c"),
        ("*.b.c", ">"),
    ],
)
def test_token_by_token_a_literal_goes_before_a_star_before_the_rest(closer: str, further: str) -> None:
    for order in ((closer, further), (further, closer)):
        layers = Layers([entry(pattern, retry_after_seconds=1 + (pattern == closer)) for pattern in order])
        assert layers.effective("a.b.c").policy.retry_after_seconds == 2


@given(
    st.lists(st.tuples(st.sampled_from(PATTERNS), st.sampled_from(["*", "r*", "audit"])), unique=True, max_size=20),
    st.sampled_from(SUBJECTS),
    st.sampled_from([R1, AUDIT, None]),
)
def test_the_index_finds_what_the_rule_says(
    claims: list[tuple[str, str]], subject: str, key: ConsumerKey | None
) -> None:
    layer = [entry(p, consumers=[c], retry_after_seconds=i) for i, (p, c) in enumerate(claims, 1)]
    expected = closest(layer, subject, key and key.consumer)
    effective = Layers(layer).effective(subject, key)
    assert effective.policy.retry_after_seconds == (dict(expected.fields)["retry_after_seconds"] if expected else 30)


@given(ANY, ANY, entries("a"))
def test_whatever_is_merged_warn_is_at_most_critical_at_most_overload(
    file: list[PolicyEntry], bucket: list[PolicyEntry], own: PolicyEntry
) -> None:
    for subject in SUBJECTS:
        effective = Layers(file, bucket).effective(subject, R1, own)
        written = policy_document(effective.policy)
        for signal in SIGNALS:
            marks = written[signal]
            assert marks["warn"] <= marks["critical"] <= marks["overload"]


@given(ANY, ANY)
def test_a_field_comes_from_the_strongest_layer_that_gives_it(
    file: list[PolicyEntry], bucket: list[PolicyEntry]
) -> None:
    effective = Layers(file, bucket).effective("a.b", R1)
    for signal in SIGNALS:
        # Overload is never moved by the order of marks, so it shows the merge alone.
        name = f"{signal}.overload"
        alone = {
            "file": Layers(file).effective("a.b", R1),
            "bucket": Layers((), bucket).effective("a.b", R1),
        }
        giver = next((layer for layer in ("bucket", "file") if alone[layer].sources[name] == layer), "default")
        assert effective.sources[name] == giver
        if giver != "default":
            assert getattr(effective.policy, signal).overload == getattr(alone[giver].policy, signal).overload


FOLLOWING = {"pending": {"overload_seconds": 30, "min": 100, "max": 5000}, "inflight": {"overload_ratio": 0.5}}
STATIC = {"pending": {"overload": 800}, "inflight": {"overload": 300}}
OVER = [
    pytest.param({}, PendingRule(10, 100, 1000, 30, 100, 5000), InflightRule(50, 200, 500, 0.5), id="nothing given"),
    pytest.param(STATIC, PendingRule(10, 100, 800), InflightRule(50, 200, 300), id="a plain mark switches it off"),
    pytest.param(
        {"pending": {"overload_seconds": None}, "inflight": {"overload_ratio": None}},
        PendingRule(10, 100, 1000),
        InflightRule(50, 200, 500),
        id="null switches it off, bounds and all",
    ),
    pytest.param(
        {"pending": {"overload_seconds": 9}},
        PendingRule(10, 100, 1000, 9),
        InflightRule(50, 200, 500, 0.5),
        id="other seconds bring their own bounds",
    ),
    pytest.param(
        {"pending": {"overload": 2000, "overload_seconds": 9, "max": 4000}, "inflight": {"overload": 9}},
        PendingRule(10, 100, 2000, 9, None, 4000),
        InflightRule(9, 9, 9),
        id="both at once is the dynamic mark and what holds until then",
    ),
    pytest.param(
        {"pending": {"warn": 5}},
        PendingRule(5, 100, 1000, 30, 100, 5000),
        InflightRule(50, 200, 500, 0.5),
        id="another mark leaves it alone",
    ),
]


@pytest.mark.parametrize(("fields", "pending", "inflight"), OVER)
def test_one_layer_decides_how_an_overload_mark_is_computed(
    fields: dict, pending: PendingRule, inflight: InflightRule
) -> None:
    effective = Layers([entry(">", **FOLLOWING)], [entry("a", **fields)]).effective("a")
    assert (effective.policy.pending, effective.policy.inflight) == (pending, inflight)
    sets_max = effective.policy.pending.max != 5000
    assert effective.sources["pending.max"] == ("bucket" if sets_max else "file")


def test_a_dynamic_mark_over_a_static_one_keeps_it_until_the_rate_is_known() -> None:
    effective = Layers([entry(">", **STATIC)], [entry("a", **FOLLOWING)]).effective("a")
    assert effective.policy.pending == PendingRule(10, 100, 800, 30, 100, 5000)
    assert (effective.sources["pending.overload"], effective.sources["pending.overload_seconds"]) == ("file", "bucket")


def test_a_list_is_replaced_whole() -> None:
    one, other = ({"name": name, "when": {"status": "active"}} for name in ("one", "other"))
    layers = Layers([entry(">", alerts=[one, other])], [entry("a", alerts=[other]), entry("b", alerts=[])])
    named = {subject: [alert.name for alert in layers.effective(subject).policy.alerts] for subject in "abc"}
    assert named == {"a": ["other"], "b": [], "c": ["one", "other"]}


@pytest.mark.parametrize(
    "guard", [Guard(allow_bucket=False), Guard(max_pending_overload=10)], ids=["no bucket", "beyond the guard"]
)
def test_what_the_guard_does_not_let_through_is_not_in_force(guard: Guard) -> None:
    bucket = [entry("a", mode="observe", pending={"warn": 1, "critical": 5, "overload": 50})]
    assert Layers((), bucket).effective("a").policy.mode == "observe"
    assert Layers((), bucket, guard).effective("a").policy == Policy()


def test_thousands_of_consumers_under_one_policy_share_one_object() -> None:
    layers = Layers([entry(">", retry_after_seconds=9)])
    effective = [layers.effective(f"a.{i}", ConsumerKey("S", f"c{i}")) for i in range(1000)]
    assert len({id(one) for one in effective}) == 1


def test_what_replaced_layers_resulted_in_is_not_kept() -> None:
    class Word(str):
        """A text that shows whether it still exists."""

    def merged() -> weakref.ref[Word]:
        word = Word("observe")
        assert Layers([PolicyEntry((">",), fields=(("mode", word),))]).effective("a").policy.mode == "observe"
        return weakref.ref(word)

    word = merged()
    assert word() is None


def test_a_look_up_among_ten_thousand_patterns_looks_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = [entry(f"a.{i}.*", retry_after_seconds=2) for i in range(5000)]
    layers = Layers([*wild, *(entry(f"a.{i}.b", retry_after_seconds=3) for i in range(5000)), entry(">")])
    looks = 0
    applies = PolicyEntry.applies

    def counted(one: PolicyEntry, consumer: str | None) -> bool:
        nonlocal looks
        looks += 1
        return applies(one, consumer)

    monkeypatch.setattr(PolicyEntry, "applies", counted)
    assert layers.effective("a.77.b", R1).policy.retry_after_seconds == 3
    assert layers.effective("a.77.c", R1).policy.retry_after_seconds == 2
    assert layers.effective("z", R1).policy == Policy()
    assert looks == 3


OVERRIDES = st.dictionaries(
    st.sampled_from(PATTERNS),
    st.builds(Override, st.sampled_from(["open", "reject"]), st.integers(0, 6).map(float)),
    max_size=8,
)

FEW = st.lists(entries(*PATTERNS), max_size=2)


@given(FEW, FEW, OVERRIDES, st.sampled_from(SUBJECTS), st.sampled_from([None, R1, AUDIT]))
def test_the_most_specific_override_that_is_not_over_is_in_force_whatever_the_policies_say(
    file: list[PolicyEntry],
    bucket: list[PolicyEntry],
    overrides: dict[str, Override],
    subject: str,
    key: ConsumerKey | None,
) -> None:
    entries_ = [OverrideEntry(pattern, one) for pattern, one in overrides.items()]
    with_, without = Layers(file, bucket, overrides=entries_), Layers(file, bucket)
    effective, bare = with_.effective(subject, key), without.effective(subject, key)
    for at in range(-1, 8):
        covering = [(specificity(p), one) for p, one in overrides.items() if covers(p, subject) and at < one.until]
        expected = min(covering, key=lambda pair: pair[0])[1] if covering else None
        assert in_force(effective.policy, Now(0.0, float(at))) == expected
    assert policy_document(effective.policy) == policy_document(bare.policy), "an override changes no field of a policy"
    shown = {"override": "bucket"} if effective.policy.override else {}
    assert effective.sources == bare.sources | shown
