"""Values compared at 50 digits and at random points; decimals beside exact values."""

from __future__ import annotations

import math

import pytest

from polaris_jax.reward import answers_match

EQUAL = [
    (r"\sqrt{3+2\sqrt2}-1-\sqrt2", "0"),
    (r"\sqrt{3+2\sqrt2}-1", r"\sqrt2"),
    ("e^{-100}", r"\frac{1}{e^{100}}"),
    (r"10^{-60}\pi", r"\frac{\pi}{10^{60}}"),
    (r"e^{-100}(\sqrt{3+2\sqrt2}-1-\sqrt2)", "0"),
    ("(x+1)^2-x^2-2x-1", "0"),
    ("xe^{-200}", r"\frac{x}{e^{200}}"),
    (r"\sin(\pi)", "0"),
]
DIFFERENT = [
    ("e^{-100}", "0"),
    ("e^{-100}", "e^{-101}"),
    ("e^{-100}", "-e^{-100}"),
    (r"\pi^{-100}", "0"),
    (r"\pi\cdot 10^{-50}", "0"),
    (r"\pi\cdot 10^{-9000}", "0"),
    (r"\pi", r"\pi+10^{-30}"),
    ("xe^{-200}", "xe^{-201}"),
    (r"10^{-80}x", "0"),
    (r"e^{-100}", r"\sqrt{3+2\sqrt2}-1-\sqrt2"),
    ("y=10^{-60}x", r"y=2\cdot10^{-60}x"),
    (r"\frac{5}{\infty}", "0"),
    (r"\frac{-5}{\infty}", r"\frac{1}{\infty}"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_one_value(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_two_values(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)


PRINTS = [
    (repr(2 * 3**0.5), r"2\sqrt3"),
    (repr(13 / 6), r"\frac{13}{6}"),
    *(
        (repr(a * math.sqrt(b) / 7), rf"\frac{{{a}\sqrt{{{b}}}}}{{7}}")
        for a in (3, 59)
        for b in (2, 7)
    ),
    *((repr(100 * a / 13), rf"\frac{{{100 * a}}}{{13}}") for a in (1, 8, 57)),
]
OFF = [
    ("3.464101615137760", r"2\sqrt3"),
    ("3.4641016151377500", r"2\sqrt3"),
    ("2.16666666666668", r"\frac{13}{6}"),
    ("3.0000000000000004", "3"),
    ("0.300000000001", "0.3"),
]


@pytest.mark.parametrize(("answer", "gold"), PRINTS)
def test_a_whole_print_stands_for_its_value(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert not answers_match(answer, gold, preset="strict")


@pytest.mark.parametrize(("answer", "gold"), OFF)
def test_a_print_that_is_off_does_not(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
