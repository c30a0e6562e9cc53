"""Values with a plus-minus are all their values."""

from __future__ import annotations

import pytest

from polaris_jax.reward import answers_match
from polaris_jax.reward.math.plus_minus import MAX_SIGNS

EQUAL = [
    (r"2+\sqrt3, 2-\sqrt3", r"2\pm\sqrt3"),
    ("1+i, 1-i, -1+i, -1-i", r"\pm1\pm i"),
    ("1+i, 1-i, -1+i, -1-i", r"x = \pm1\pm i"),
    ("(2,3), (2,-3), (-2,3), (-2,-3)", r"(\pm2, \pm3)"),
    (r"\pm\sqrt{2+\sqrt3}, \pm\sqrt{2-\sqrt3}", r"\pm\sqrt{2\pm\sqrt3}"),
    (r"\frac{\pm1\pm i}{\sqrt2}", r"\pm\frac{\sqrt2}{2}\pm\frac{\sqrt2}{2}i"),
    (r"1,-1,2,-2", r"\pm1, \pm2"),
    ("1-i, -1+i", r"\pm1\mp i"),
    ("(2,-3), (-2,3)", r"(\pm2, \mp3)"),
    (r"x=1,y=-1 \text{ or } x=-1,y=1", r"x=\pm1, y=\mp1"),
]
DIFFERENT = [
    ("1+i, -1-i", r"\pm1\pm i"),
    ("(2,3), (-2,-3)", r"(\pm2, \pm3)"),
    ("1+i, -1-i", r"\pm1\mp i"),
    (r"\pm1\pm i", r"\pm1\mp i"),
    (r"x=1,y=1 \text{ or } x=-1,y=-1", r"x=\pm1, y=\mp1"),
    ("0", r"\pm1" * (MAX_SIGNS + 1)),
    (r"\pm1\mp1" * 30, r"\pm1" * 60),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_all_values(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_other_values(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)


def test_more_signs_than_we_settle_are_equal_sign_by_sign() -> None:
    many = r"\pm 1" * (MAX_SIGNS + 1)
    assert answers_match(many.replace(" ", ""), many)
