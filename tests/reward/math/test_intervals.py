"""Inequalities and intervals as sets of reals: what is a straight line, and whose set it is."""

import pytest

from polaris_jax.reward import answers_match

EQUAL = [
    ("|x|+1<3", "(-2,2)"),
    ("2|x|>4", r"x<-2 \text{ or } x>2"),
    ("5-|x-1|>3", "(-1,3)"),
    (r"|2x-1| \geq 3", r"(-\infty,-1]\cup[2,\infty)"),
    ("3x-1<5", "x<2"),
    ("0<f(x)<1", "(0,1)"),
    ("2<x<3", "x<3 \\text{ and } x>2"),
    (r"x\in\mathbb{Z}, x>3", r"x>3, x\in\mathbb{Z}"),
    (r"k\pi, k\in\mathbb{Z}", r"k\pi"),
]
DIFFERENT = [
    ("2|x|>4", "x>2"),
    ("|x|+1<3", "x<2"),
    (r"\lfloor x\rfloor>3", "x>3"),
    (r"\sqrt{x^2}>2", "x>2"),
    ("|x|+x>4", "x>2"),
    (r"\max(x,0)>3", r"\max(x,1)>3"),
    ("x>5", "2y>10"),
    ("x>5", "-y<-5"),
    ("x>5", "f(x)>5"),
    ("x<3, y>2", r"\mathbb{R}"),
    (r"x>3, x\in\mathbb{Z}", "x>3"),
    (r"x\in\mathbb{Z}, 1<x<5", "(1,5)"),
    (r"\{x \mid x>3, x\in\mathbb{Z}\}", "x>3"),
    (r"\{x \in \mathbb{Z} : x>3\}", "x>3"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_one_set(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_two_sets(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
