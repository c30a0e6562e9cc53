"""What stands behind a number: words that change it are no nouns of things counted."""

import pytest

from polaris_jax.reward import answers_match

EQUAL = [
    ("60", r"5\text{ dozen}"),
    (r"\frac{3}{2}", r"3\text{ halves}"),
    ("0.3", r"3\text{ tenths}"),
    ("0.05", r"5\text{ hundredths}"),
    ("25", r"5\text{ squared}"),
    ("125", r"5\text{ cubed}"),
    ("120", r"5\text{ factorial}"),
    (r"5\text{ cm}^2", r"5\text{ cm squared}"),
    (r"5\text{ cm}^2", r"5\text{ square cm}"),
    ("3", r"3\text{ apples}"),
    (r"\frac{3}{4}\text{ miles}", r"3\text{ quarters of a mile}"),
]
DIFFERENT = [
    *(("5", rf"5\text{{ {word}}}") for word in ("dozen", "tenths", "hundredths", "thousandths")),
    *(("5", rf"5\text{{ {word}}}") for word in ("halves", "quarters", "thirds", "fifths")),
    *(("5", rf"5\text{{ {word}}}") for word in ("squared", "cubed", "factorial", "doubled")),
    ("5", "5 dozen"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_one_quantity(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_two_quantities(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
