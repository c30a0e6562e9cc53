"""Answers in words, spelt numbers, choices with their letters, times and dates."""

from __future__ import annotations

from fractions import Fraction

import pytest

from polaris_jax.reward import answers_match
from polaris_jax.reward.math.words import spelt_number

EQUAL = [
    (r"\text{well-known}", r"\text{well known}"),
    ("dayton", "Dayton"),
    ("EVEN", "even"),
    (r"\text{DAYTON}", "Dayton"),
    ("(A)", r"\text{A}"),
    ("abcd", "abcd"),
    ("A", r"\text{A is correct}"),
    ("I", r"\text{I only}"),
    ("A", r"A\text{ cm}^2"),
]
DIFFERENT = [
    ("A", "-A"),
    ("B", "-B"),
    ("abcd", "-abcd"),
    ("abcd", "ABCD"),
    ("A", "A-"),
    ("A-B", "AB"),
    *(("A", rf"\text{{A {words}}}") for words in ("is wrong", "is false", "but not B")),
    *(("A", rf"\text{{A {words}}}") for words in ("is ruled out", "isn't right", "has an error")),
    *(("A", rf"{letter}\text{{ is wrong}}") for letter in ("A", r"\textbf{(A)}", r"\text{not A}")),
    ("I", r"\text{I is false}"),
    ("A", r"\sim A"),
    ("a", r"\text{a is wrong}"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_the_same_words(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_other_words(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)


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


CHOICES_EQUAL = [
    *(("C", text) for text in (r"\textbf{(C)}\ 12", "(C) 12", "C) 12", r"\text{(C) }12")),
    *(("B", rf"\textbf{{(B)}}{text}") for text in (r"\ 2x", r"\ \$12", r"\ -3", r"\frac12")),
    ("B", r"\textbf{(B)}\text{ Tuesday}"),
    ("Tuesday", r"\textbf{(B)}\text{ Tuesday}"),
    *(("C", text) for text in (r"(C)\ 12", r"(C)~12", r"$(C)\quad \frac12$")),
    ("12", r"\textbf{(C)}\ 12"),
    ("0.5", r"\textbf{(C) }\frac{1}{2}"),
]
CHOICES_DIFFERENT = [
    *(("A", f"(A){text}") for text in ("x", "-1", "+1", "(B)", "^2", "12x", " 12, (B) 13")),
    *(("A", rf"\textbf{{(A)}}\text{{ {text}}}") for text in ("is wrong", "not", "or (B)")),
    ("A", r"\text{(A)}\text{ is ruled out}"),
    ("A", r"\text{A) wrong}"),
    *(("A", rf"\text{{(A) {words}}}") for words in ("unlikely", "crossed out", "struck")),
    *(("A", f"(A){text}") for text in ("2", "12", "3+2", "3!", "2^3", r"\frac12", " 3+2", " 3!")),
    ("A", "(A) 12 or 13"),
    ("D", "(C) 12"),
    ("12", "(C) 12"),  # a product, where the letter is not set as text
    ("13", r"\textbf{(C)}\ 12"),
    ("(C) 13", "(C) 12"),
    ("(D) 12", "(C) 12"),
    (r"\textbf{(D)}\ 12", r"\textbf{(C)}\ 12"),
]


@pytest.mark.parametrize(("answer", "gold"), CHOICES_EQUAL)
def test_a_choice_with_its_text_is_its_letter(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), CHOICES_DIFFERENT)
def test_products_denials_and_other_choices_are_not(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)


SAME = [
    ("3:30 PM", "15:30"), ("15:30", r"3{:}30\text{ p.m.}"), ("3 pm", r"3\text{ PM}"),
    ("12:00 AM", "0:00 "), ("9:05 a.m.", "9:05"), (r"\text{7:45 AM}", "7:45 am"),
    ("May 5, 2020", "5 May 2020"), (r"\text{May 5th}", "May 5"), ("Sept 3", "September 3rd"),
    (r"\text{the 4th of July}", "July 4"), ("05:00", r"5\!:\!00"), (r"\text{10:30}", "10:30."),
    ("2:4", "1:2"), ("9:24", "3:8"), ("19:60", "38:120"),  # ratios
]  # fmt: skip
OTHERS = [
    ("3:30 PM", "3:30"), ("3:30 PM", "3:30 AM"), ("12 am", "12 pm"), ("3 pm", "3"),
    ("May 5", "May 6"), ("May 5", "June 5"), ("May 5, 2020", "May 5, 2021"),
    ("25:30 pm", "1:30 am"),
    ("May 40", "May 41"), ("3:30", "7:1"), ("5:15", "10:30"), (r"05\!:\!00", "17:00"),
    (r"\text{5:15}", "10:30."),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_the_same_time(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), OTHERS)
def test_another_time(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
