"""How the commas of an answer are read: thousands, decimals, and the entries of a point."""

import pytest

from polaris_jax.reward import answers_match
from polaris_jax.reward.math.spelling import readings

PARTED = [
    ("(1,200)", "1200"),
    ("(1,200,300)", "1200300"),
    ("(100,101)", "100101"),
    ("[0,100]", "100"),
    ("(0,16)", "0.16"),
    ("[0,10]", "0.1"),
    (r"\{1,234\}", "1234"),
    (r"\left(0,100\right)", "100"),
    (r"x \in [0,100]", "100"),
    (r"\langle 1,200\rangle", "1200"),
    ("0,111", "111"),
    ("0 111", "111"),
    ("P(0,100)", "100"),
]
JOINED = [
    ("1,200", "1200"),
    ("12,345,678", "12345678"),
    (r"\(1,234\)", "1234"),
    (r"\frac{1,200}{7}", r"\frac{1200}{7}"),
    (r"\sqrt[3]{1,000} + 1,000", "1010"),
    ("(1{,}200)", "1200"),
    ("0,25", "0.25"),
    ("1000,99", "1000.99"),
    ("(1,2) and 1,234", "(1,2) and 1234"),
]


@pytest.mark.parametrize(("answer", "gold"), PARTED)
def test_a_comma_in_brackets_or_behind_a_zero_parts(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), JOINED)
def test_a_comma_outside_brackets_may_join(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


def test_the_readings_of_a_text() -> None:
    assert readings("1,234") == ["1234", "1,234"]
    assert readings("0,25") == ["0,25", "0.25"]
    assert readings("(1,234)") == ["(1,234)"]
    assert readings("1,234, (1,234") == ["1234, (1,234", "1,234, (1,234"]  # one that never closes
