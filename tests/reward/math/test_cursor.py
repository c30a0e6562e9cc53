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
    ("5", r"5\text{ times}"),
    ("n", r"n\text{ ways}"),
    ("500000", r"5\text{ lakh}"),
    ("50", r"5\text{ tens}"),
    ("2000", r"2\text{ thousands}"),
    ("60", r"3\text{ score}"),
    (r"30\%", r"30\text{ per cent}"),
    (r"30\%", r"30\%\text{ of students}"),
    ("5", r"\text{the answer is} = 5"),
    *(("60", rf"60\text{{ {words}}}") for words in ("more", "more students", "more than Bob")),
    *(("60", rf"60\text{{ {words}}}") for words in ("fewer", "pieces less", "feet higher")),
    *(("60", rf"60\text{{ {words}}}") for words in ("m above the ground", "cm below")),
    *(("60", rf"60\text{{ {words}}}") for words in ("negative integers", "larger cubes")),
    *(("60", rf"60\text{{ {words}}}") for words in ("zero digits", "ten dollar bills")),
    *(("60", rf"60\text{{ {words}}}") for words in ("games under the rules", "smaller cubes")),
    *(("60", rf"60\text{{ {words}}}") for words in ("in base ten", "in decimal")),
    ("60", r"60\text{ pounds of base metal}"),
    *(("5", rf"5\text{{ {words}}}") for words in ("decimal places", "binary digits", "base pairs")),
    *(("5", rf"5\text{{ {words}}}") for words in ("plus signs", "minus signs", "scores", "can")),
    *(("5", rf"5\text{{ {words}}}") for words in ("false statements", "wrong answers")),
    *(("5", rf"5\text{{ {words}}}") for words in ("other students", "fewer apples", "fails")),
    *(("5", rf"\text{{{words}}} = 5") for words in ("least value", "number of base pairs")),
    *(("5", rf"\text{{{words}}} = 5") for words in ("power", "area under the curve")),
    ("5", r"\text{number of false statements} = 5"),
    (r"\frac{3}{4}\text{ miles}", r"3\text{ quarters of a mile}"),
]
DIFFERENT = [
    *(("5", rf"5\text{{ {word}}}") for word in ("dozen", "tenths", "hundredths", "thousandths")),
    *(("5", rf"5\text{{ {word}}}") for word in ("halves", "quarters", "thirds", "fifths")),
    *(("5", rf"5\text{{ {word}}}") for word in ("squared", "cubed", "factorial", "doubled")),
    ("5", "5 dozen"),
    *(("5", rf"5\text{{ {word}}}") for word in ("lakh", "score", "thousands", "crore")),
    *(("5", rf"5\text{{ {words}}}") for words in ("is wrong", "is not the answer", "or less")),
    *(("5", rf"5\text{{ {words}}}") for words in ("or fewer", "at most", "at least", "cm at most")),
    *(("5", rf"5\text{{ {words}}}") for words in ("below zero", "minus two", "per hundred")),
    *(("101", rf"101\text{{ {words}}}") for words in ("base two", "in base two", "in binary")),
    *(("5", rf"\text{{{words}}} = 5") for words in ("not", "wrong answer", "at least")),
    *(("5", rf"5\text{{ {words}}}") for words in ("or more", "basis points", "ppm", "is invalid")),
    *(("5", text) for text in (r"\text{the wrong answer} = 5", r"x = 5\text{ fails}")),
    *((r"30\%", answer) for answer in (r"30\text{ cm}", r"30^\circ", r"\$30", "30 apples")),
    (r"30\%", r"0.3\text{ m}"),
    (r"30\%", r"x = 30\text{ cm}"),
    (r"(30\%, 40\%)", r"(30\text{ cm}, 40\text{ cm})"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_one_quantity(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_two_quantities(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
