"""Values that are told apart however small they are; zero is what cancels to nothing."""

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
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_one_value(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_two_values(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
