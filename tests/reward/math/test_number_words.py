"""Numbers in English words."""

from fractions import Fraction

import pytest

from polaris_jax.reward import answers_match
from polaris_jax.reward.math.number_words import spelt_number

VALUES = {
    "seven": 7, "twenty one": 21, "one hundred": 100, "one hundred and five": 105,
    "two thousand three hundred forty two": 2342, "three million": 3_000_000,
    "one half": Fraction(1, 2), "two thirds": Fraction(2, 3), "zero": 0, "ninety nine": 99,
}  # fmt: skip
NONE = ["", "one two", "twenty eleven", "twenty ten", "and one", "one and", "hundred", "apples",
        "twenty one hundred", "thirds", "five zero", "twenty zero", "zero million"]  # fmt: skip


@pytest.mark.parametrize("words", VALUES)
def test_values(words: str) -> None:
    assert spelt_number(words.split()) == VALUES[words]


@pytest.mark.parametrize("words", NONE)
def test_what_is_no_number(words: str) -> None:
    assert spelt_number(words.split()) is None


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("twenty-one", "21"), (r"\text{twenty one}", "21"), (r"\text{one-half}", r"\frac12"),
     (r"\text{two thirds}", "2/3"), ("two million", "2000000"), (r"\text{five cm}", "5 cm"),
     (r"204_{\text{five}}", "204_5")],
)  # fmt: skip
def test_answers(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)
