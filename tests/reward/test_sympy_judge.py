"""sympy's verdict on what our parser reads: equal, different, or none with its reason."""

import pytest

from polaris_jax.reward import RewardInput
from polaris_jax.reward.sympy_judge import Unjudged, judge, same_texts

EQUAL = [
    ("1/2", "0.5"),
    (r"\sin 90^\circ", "1"),
    (r"\sin 2x", r"2\sin x\cos x"),
    (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    (r"\log_2 x", r"\frac{\ln x}{\ln 2}"),
    (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
    ("2x+2=4", "x+1=2"),
    ("x = 5", "5"),
    (r"5\text{ cm}", "5"),
    (r"5\%", "0.05"),
    ("1, 2", "2, 1"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    ("x > 3", r"(3,\infty)"),
    ("x<3 or x>5", r"(-\infty,3)\cup(5,\infty)"),
    ("1 < x < 2", "2 > x > 1"),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}+\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{pmatrix}2&4\\6&8\end{pmatrix}",
    ),
    (r"\text{even}", r"\text{even}"),
]
DIFFERENT = [
    ("0.333", "1/3"),
    (r"\sin x", r"\cos x"),
    ("x = 5", "y = 5"),
    ("x + y = 2", "x + y = 3"),
    ("(1, 2)", "(2, 1)"),
    ("(1, 2)", "[1, 2]"),
    ("1, 2, 2", "1, 2"),
    ("x > 3", r"[3,\infty)"),
    ("(1,2]", "(1,3]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1, 2)"),
]
NO_VERDICT = [
    (r"\text{no}", "5", "not compared as values"),
    ("204_5", "204", "not compared as values"),
    (r"\frac{1}{0}", "1", "no value"),
    ("x < y", "y > x", "no set of reals"),
    ("((", "1", "not read"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(answer, gold):
    assert same_texts(answer, gold)
    assert same_texts(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer, gold):
    assert not same_texts(answer, gold)
    assert not same_texts(gold, answer)


@pytest.mark.parametrize(("answer", "gold", "reason"), NO_VERDICT)
def test_no_verdict(answer, gold, reason):
    with pytest.raises(Unjudged, match=reason):
        same_texts(answer, gold)


def test_one_of_several_golds_is_enough():
    assert judge(RewardInput("1/2", answer=["3", "0.5"])) == 1.0
    assert judge(RewardInput("1/2", answer=[r"\text{no}", "3"])) == 0.0
    with pytest.raises(Unjudged, match="no gold"):
        judge(RewardInput("1/2", answer=None))


def test_no_text_is_evaluated(tmp_path):
    """As Python, which sympy's own reader of strings would do."""
    mark = tmp_path / "mark"
    for text in (f"__import__('os').mkdir('{mark}')", f"open('{mark}', 'w')"):
        with pytest.raises(Unjudged):
            same_texts(text, "1")
    assert not mark.exists()
