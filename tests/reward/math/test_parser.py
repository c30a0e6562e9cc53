"""What TeX leaves open is read either way, and what TeX refuses is not read."""

import pytest

from polaris_jax.reward import answers_match

EQUAL = [
    ("15", "5!!"),
    ("48", "6!!"),
    (r"\ln 2/3", r"\frac{\ln 2}{3}"),
    (r"\ln 2/3", r"\ln\frac23"),
    (r"\sin 30^\circ/2", r"\frac14"),
    (r"\frac{(a+b)h}{2}", r"\frac{h(a+b)}{2}"),
    ("A(1,2)", "(1,2)"),
    ("A(1,2), B(3,4)", "(1,2), (3,4)"),
    (r"\text{minus five}", "-5"),
    (r"\text{negative }5", "-5"),
    ("2<x<3", "x<3, x>2"),
    ("x<2, x>3", r"x<2 \text{ or } x>3"),
    (r"\{x \mid x = 1, x = 2\}", "1, 2"),
    (r"\{x \mid 5\}", r"\left\{x\,|\,5\right\}"),  # as signs
]
DIFFERENT = [
    ("720", "5!!"),
    (r"\ln 2/3", r"\ln 2"),
    (r"\ln 2/3", r"\ln 6"),
    ("2^3^2", "64"),
    ("2^3^2", "512"),
    ("f(2x)", "2f(x)"),
    ("A(1,2)", "B(1,2)"),
    ("A(1,2)", "(2,1)"),
    (r"\text{minus five}", "5"),
    ("2<x<3", r"x<3 \text{ or } x>2"),
    (r"\{x \mid 5\}", "5"),
    (r"\{x \mid 1, 2\}", "1, 2"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_a_reading_that_agrees(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_no_reading_agrees(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
