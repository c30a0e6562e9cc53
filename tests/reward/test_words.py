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
]
DIFFERENT = [
    ("A", "-A"),
    ("B", "-B"),
    ("abcd", "-abcd"),
    ("abcd", "ABCD"),
    ("A", "A-"),
    ("A-B", "AB"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_the_same_words(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_other_words(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
