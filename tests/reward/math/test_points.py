"""Where two expressions are compared: near 1, and far out where one of them has a bend."""

import pytest

from polaris_jax.reward import answers_match
from polaris_jax.reward.math.normalize import tokens
from polaris_jax.reward.math.parser import parse
from polaris_jax.reward.math.points import bends, points

EQUAL = [
    ("|x-3|", "|3-x|"),
    (r"\sqrt{(x-4)^2}", "|x-4|"),
    (r"\max(x,3)", r"\frac{x+3+|x-3|}{2}"),
    (r"\lfloor x\rfloor + 1", r"\lfloor x+1 \rfloor"),
    (r"\lceil x\rceil", r"-\lfloor -x \rfloor"),
    ("|z|^2", "|z^2|"),
    (r"\sqrt{x-50}\sqrt{x+50}", r"\sqrt{x^2-2500}"),
    (r"\sqrt{1+x^2}", "(1+x^2)^{1/2}"),
]
DIFFERENT = [
    ("|x-3|", "3-x"),
    ("|x+5|", "x+5"),
    (r"\sqrt{(x-4)^2}", "4-x"),
    (r"((x-4)^2)^{1/2}", "4-x"),
    (r"\max(x,3)", "3"),
    (r"\min(x,5)", "x"),
    ("|x^2-100|", "100-x^2"),
    ("|x-5000|", "5000-x"),
    (r"\lfloor x\rfloor+1", r"\lceil x\rceil"),
    ("z^2", "|z|^2"),
    (r"z", r"\text{Re}(z)"),
    ("y=|x-3|", "y=3-x"),
    ("y=2|x-3|", "y=6-2x"),
    (r"\arcsin(\sin x)", "x"),
    (r"\sqrt[4]{(x-9)^4}", "9-x"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal_everywhere(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_equal_near_one_alone_is_not_equal(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("|x|", {"abs"}),
        (r"\sqrt{x}+\sqrt[3]{x}", {"sqrt"}),
        (r"\sqrt[4]{x}", {"root"}),
        (r"x^{3/2}", {"root"}),
        (r"\sqrt{2}x^2+\sin x", set()),
        (r"\max(x,\lfloor y\rfloor)", {"max", "floor"}),
    ],
)
def test_the_bends_of_a_tree(text: str, found: set[str]) -> None:
    assert bends(parse(tokens(text))) == found


def test_a_tree_without_bends_costs_no_more_points() -> None:
    plain, bent = parse(tokens("x^2+1")), parse(tokens("|x-5000|"))
    assert len(list(points(plain, plain))) == 6
    reached = [point.values["x"] for point in points(plain, bent)]
    assert min(reached) < -5000
    assert max(reached) > 5000
