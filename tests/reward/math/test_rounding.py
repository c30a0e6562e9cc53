"""A float's whole print stands for the value that it was computed from, to a few roundings."""

import math

import pytest

from polaris_jax.reward import answers_match

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
