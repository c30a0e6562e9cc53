"""What equations name: a value keeps its name, and a point's entries keep their places."""

import pytest

from polaris_jax.reward import answers_match

EQUAL = [
    ("(2,1)", "y=1, x=2"),
    ("(1,2)", "x=1, y=2"),
    ("(4,3)", "x_2=3, x_1=4"),
    ("(3,2)", "m=3, k=2"),  # no order is usual for these: as they are written
    ("(x,y)=(1,2)", "(y,x)=(2,1)"),
    ("(x,y)=(1,2)", "y=2, x=1"),
    ("(x,y)=(1,2)", "(1,2)"),
    ("x:y=1:2", "y:x=2:1"),
    ("x:y=1:2", "2:4"),
    ("y=x", "x=y"),
    ("p=2q", r"q=\frac{p}{2}"),
    ("y=2x", "f(x)=2x"),
    (r"\text{Area}=5", "A=5"),
    ("4+1=5", "5"),
    (r"\frac13 = 0.333", "0.333"),
]
DIFFERENT = [
    ("(1,2)", "y=1, x=2"),
    ("(x,y)=(1,2)", "(y,x)=(1,2)"),
    ("(x,y)=(1,2)", "(a,b)=(1,2)"),
    ("(x,y)=(1,2)", "y=1, x=2"),
    ("x:y=1:2", "y:x=1:2"),
    ("f(x)=2x", "g(x)=2x"),
    ("x=5", "f(x)=5"),
    ("f(2)=5", "f(3)=5"),
    ("AB=5", "CD=5"),
    (r"\overline{AB}=5", r"\overline{CD}=5"),
    ("10=5", "5"),
    ("(3,1)", r"3 \text{ or } 1"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_the_same_names_and_values(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_other_names_or_values(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
