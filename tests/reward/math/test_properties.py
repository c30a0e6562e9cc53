"""Generated expressions equal themselves and their rewrites, and no perturbed one.

Rewrites keep the value by algebra and are built here, so no other program decides what is equal.
"""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.reward import answers_match

LEAVES = [
    *map(str, range(1, 13)),
    r"\frac{2}{3}",
    r"\frac{7}{4}",
    r"\pi",
    r"\sqrt{2}",
    "x",
    "y",
    "a",
    "n",
]
SHAPES = (
    r"({0}+{1})", r"({0}-{1})", r"{0}\cdot {1}", r"\frac{{{0}}}{{{1}+13}}", r"({0})^{{2}}",
    r"\sqrt{{({0})^2+1}}", r"\ln(({0})^2+2)", r"\sin({0})", r"|{0}|", r"({0}+{1})^3",
)  # fmt: skip


def generated(source: random.Random, depth: int) -> str:
    if depth == 0:
        return source.choice(LEAVES)
    shape = source.choice(SHAPES)
    return shape.format(generated(source, depth - 1), generated(source, source.randrange(depth)))


def rewrites(text: str) -> list[str]:
    """The same value, written otherwise."""
    return [
        f"({text})+0",
        rf"1\cdot({text})",
        rf"\frac{{2({text})}}{{2}}",
        f"-(-({text}))",
        rf"({text})+\frac{{1}}{{3}}-\frac{{2}}{{6}}",
        text.replace(r"\cdot", r"\times"),
    ]


def verdicts(pairs: list[tuple[str, str]]) -> list[bool]:
    return [answers_match(*pair) for pair in pairs]


def test_five_thousand_expressions_equal_themselves() -> None:
    source = random.Random(0)
    texts = [generated(source, 1 + index % 3) for index in range(5000)]
    spaced = [(text.replace("+", " + ").replace(r"\frac", r"\dfrac"), text) for text in texts]
    found = verdicts(spaced)
    assert [pair for pair, equal in zip(spaced, found, strict=True) if not equal] == []


def test_rewrites_are_equal_both_ways_and_perturbed_ones_are_not() -> None:
    source = random.Random(1)
    equal: list[tuple[str, str]] = []
    unequal: list[tuple[str, str]] = []
    for index in range(400):
        text = generated(source, 1 + index % 3)
        rewrite = source.choice(rewrites(text))
        wrong = source.choice([f"({text})+\\frac{{1}}{{1000}}", f"2({text})+15", f"({text})+x^7"])
        equal += [(text, rewrite), (rewrite, text)]
        unequal += [(text, wrong), (wrong, text)]
    found = verdicts(equal + unequal)
    wrong_verdicts = [
        (pair, verdict)
        for pair, verdict in zip(equal + unequal, found, strict=True)
        if verdict != (pair in set(equal))
    ]
    assert wrong_verdicts == []


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(-999, 999), st.integers(1, 99), st.integers(2, 9))
def test_fractions_in_any_form(top: int, bottom: int, factor: int) -> None:
    plain = rf"\frac{{{top}}}{{{bottom}}}"
    for form in (f"{top}/{bottom}", rf"\frac{{{top * factor}}}{{{bottom * factor}}}", f"{plain}."):
        assert answers_match(form, plain)
        assert answers_match(plain, form)
    assert not answers_match(f"{top + 1}/{bottom}", plain)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_order_counts_in_tuples_alone(items: list[int], source: random.Random) -> None:
    shuffled = list(items)
    source.shuffle(shuffled)
    ours, theirs = ", ".join(map(str, shuffled)), ",".join(map(str, items))
    assert answers_match(ours, theirs)
    assert answers_match(rf"\{{{ours}\}}", rf"\{{{theirs}\}}")
    assert answers_match(f"({ours})", f"({theirs})") == (items == shuffled)
    assert not answers_match(f"{ours}, 51", theirs)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_graded_without_an_error(answer: str, gold: str) -> None:
    assert answers_match(answer, gold) in (True, False)
