"""Answers in words: hyphens join words, and letters that are no word keep their case."""

import pytest

from polaris_jax.reward import answers_match

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
