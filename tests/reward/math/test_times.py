"""Times of day and dates in plain forms."""

import pytest

from polaris_jax.reward import answers_match

SAME = [
    ("3:30 PM", "15:30"), ("15:30", r"3{:}30\text{ p.m.}"), ("3 pm", r"3\text{ PM}"),
    ("12:00 AM", "0:00 "), ("9:05 a.m.", "9:05"), (r"\text{7:45 AM}", "7:45 am"),
    ("May 5, 2020", "5 May 2020"), (r"\text{May 5th}", "May 5"), ("Sept 3", "September 3rd"),
    (r"\text{the 4th of July}", "July 4"),
]  # fmt: skip
OTHERS = [
    ("3:30 PM", "3:30"), ("3:30 PM", "3:30 AM"), ("12 am", "12 pm"), ("3 pm", "3"),
    ("May 5", "May 6"), ("May 5", "June 5"), ("May 5, 2020", "May 5, 2021"),
    ("25:30 pm", "1:30 am"),
    ("May 40", "May 41"), ("3:30", "7:1"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_the_same_time(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), OTHERS)
def test_another_time(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
