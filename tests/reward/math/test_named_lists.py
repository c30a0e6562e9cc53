"""Lists whose items have names, and the same values without them."""

from __future__ import annotations

import pytest

from polaris_jax.reward import answers_match

# One name, or one with numbers, gives its values no order.
EQUAL = [
    ("45, 2", "k = 45, n = 2"),
    ("n = 2, k = 45", "k = 45, n = 2"),
    ("2, 1", "y = 1, x = 2"),  # as a point has them
    ("1, 2", "y = 1, x = 2"),
    ("1, 2", "f(1) = 1, f(2) = 2"),
    ("4, 5", "AB = 4, CD = 5"),
    ("1, 2", "|AB| = 1, |CD| = 2"),
    ("1, 2, 3", "(a, b, c) = (1, 2, 3)"),
    ("c = 3, b = 2, a = 1", "(a, b, c) = (1, 2, 3)"),
    ("2, 1", "x = 1, x = 2"),
    ("2, 1", "x_1 = 1, x_2 = 2"),
    ("x = 1, 2", "x = 2, x = 1"),
    (r"\{1, 2\}", "x_1 = 1, x_2 = 2"),
    (r"x \in \{1, 2\}", "x = 2, x = 1"),
    ("z > 3, x = 1, y = 2", "x = 1, y = 2, z > 3"),
    (r"\text{Ann} = 3, \text{Bob} = 5", r"\text{Bob} = 5, \text{Ann} = 3"),
    (r"x = 3, y = 4 \text{ or } x = 1, y = 2", r"x = 1, y = 2 \text{ or } x = 3, y = 4"),
    ("x = 3, y = 4, x = 1, y = 2", r"x = 1, y = 2 \text{ or } x = 3, y = 4"),
    (r"y = 2, x = 1 \text{ and } y = 4, x = 3", "x = 1, y = 2; x = 3, y = 4"),
    ("(1, 2), (3, 4)", r"x = 1, y = 2 \text{ or } x = 3, y = 4"),
    (r"\{(1, 2), (3, 4)\}", r"x = 1, y = 2 \text{ or } x = 3, y = 4"),
    ("x = 1, x = 3, y = 2", "y = 2, x = 3, x = 1"),
    (r"1, 2, \text{ or } 3", r"x = 1, x = 2, \text{ or } x = 3"),
    (r"x_1 = 1, x_2 = 2, \text{ or } x_3 = 3", "3, 2, 1"),
    (r"x = a, x = b \text{ or } x = c", "x = a, x = b, x = c"),
    (r"x = k\pi \text{ or } x = 2k\pi, k \in \mathbb{Z}", r"x = 2k\pi, x = k\pi, k \in \mathbb{Z}"),
]
DIFFERENT = [
    ("2, 45", "k = 45, n = 2"),
    ("10, 1", "m = 1, n = 10"),
    ("3, 2, 1", "(a, b, c) = (1, 2, 3)"),
    ("2, 1", "f(1) = 1, f(2) = 2"),
    ("5, 4", "AB = 4, CD = 5"),
    ("2, 1", "|AB| = 1, |CD| = 2"),
    ("y = 1, 2", "x = 1, y = 2"),
    ("2, x = 1", "x = 1, y = 2"),
    ("x = 1, 2", "x = 1, y = 2"),  # two values of x
    (r"\{10, 1\}", "m = 1, n = 10"),
    (r"\{1, 10\}", "m = 1, n = 10"),
    (r"x \in \{1, 2\}", "x = 1, y = 2"),
    ("y = 1, 2", "(1, 2)"),
    ("x = 1, 2", "(1, 2)"),
    (r"\text{Bob} = 3, \text{Ann} = 5", r"\text{Ann} = 3, \text{Bob} = 5"),
    (r"x = 1, y = 4 \text{ or } x = 3, y = 2", r"x = 1, y = 2 \text{ or } x = 3, y = 4"),
    ("x = 1, y = 4, x = 3, y = 2", "x = 1, y = 2, x = 3, y = 4"),
    ("(1, 4), (3, 2)", r"x = 1, y = 2 \text{ or } x = 3, y = 4"),
    (r"x = 3, y = 2 \text{ or } x = 1", r"x = 1, y = 2 \text{ or } x = 3"),
    (r"x > 3, y < 2 \text{ or } x < 1, y > 5", r"x > 3, y > 5 \text{ or } x < 1, y < 2"),
    ("q = 2, p = 5; q = 2, p = 7", "(2, 5), (2, 7)"),
    (r"x = 1 \text{ or } y = 2", "x = 1, y = 2"),
    (r"1 \text{ or } 2", "x = 1, y = 2"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_the_same_values_of_the_same_names(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_values_of_other_names(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
