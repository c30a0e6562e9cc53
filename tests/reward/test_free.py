"""The answer of a text that nobody marked: boxes, words, formulas, numbers."""

import time

import pytest

from polaris_jax.reward import score_response
from polaris_jax.reward.free import free_answer

TEXTS = {
    "one box": (r"so $\boxed{5}$ it is, not 6.", "5"),
    "boxes joined by and": (r"$\boxed{2}\quad\text{and}\quad\boxed{-1}$", "2, -1"),
    "boxes joined by commas": (r"\boxed{1},\boxed{2},\boxed{3}", "1, 2, 3"),
    "boxes of parts": (r"\boxed{3} \text{ for part (a) and } \boxed{1}", "3, 1"),
    "a box that leads to the next": (r"\boxed{3}, so the sum is \boxed{6}", "6"),
    "boxes of other sentences": (r"First \boxed{3}. And then, \boxed{6}", "6"),
    "boxes without a conjunction": (r"\boxed{1} no no \boxed{2}", "2"),
    "nested boxes": (r"\boxed{\boxed{5}}", "5"),
    "an empty last box": (r"\boxed{5} \boxed{}", None),
    "an unclosed last box": (r"\boxed{5} \boxed{6", "5"),
    "the answer is": ("The answer is 42. I checked it 3 times.", "42"),
    "the last announcement": ("An answer is 3? No: the answer is $4$. Done.", "4"),
    "a formula behind the words": (r"Final answer: the point is \((1,2)\).", "(1,2)"),
    "a number behind a formula": ("Final Answer: The volume of $ABC$ is 120.", "120"),
    "words behind the words": ("The answer is Evelyn", "Evelyn"),
    "the last formula": ("As $a=1$ we find $b = 7$", "b = 7"),
    "formulas of a list": ("The roots are $1$ and $-2$", "1, -2"),
    "display formulas": ("So\n\\[ x^2 \\]\nholds", "x^2"),
    "the last number": ("It took 3 days and 1,250.5 dollars", "1,250.5"),
    "a fraction in prose": ("the chance is then 2/3 in all", "2/3"),
    "a percentage in prose": ("it rises by at least 100%.", "100%"),
    "a negative number": ("this gives us -4 in the end", "-4"),
    "an escaped dollar": (r"the price of it is \$5 then", "5"),
    "no number inside a word": ("AZYUK2A or so it says here", "AZYUK2A or so it says here"),
    "an expression": ("x^2+1", "x^2+1"),
    "one word": ("Thursday", "Thursday"),
    "nothing": ("  ", None),
}


@pytest.mark.parametrize("case", TEXTS)
def test_free_answers(case: str) -> None:
    text, answer = TEXTS[case]
    assert free_answer(text) == answer


def test_free_mode_scores() -> None:
    assert score_response("Therefore $x \\geq 5$ is the solution.", "$x >= 5$", mode="free") == 1.0
    assert score_response("Therefore $x < 5$ is the solution.", "$x > 5$", mode="free") == 0.0
    assert score_response(r"\boxed{1},\boxed{2}", "1,2", mode="free") == 1.0
    assert score_response(r"\boxed{1},\boxed{2}", "2", mode="eval") == 1.0


def test_a_gold_of_several_boxes_is_a_list() -> None:
    gold = r"\boxed{1} papers and \boxed{2} bins"
    assert score_response(r"\boxed{1,2}", gold, mode="eval") == 1.0
    assert score_response(r"\boxed{2}", gold, mode="eval") == 0.0


BOMBS = {
    "dollars": "$" * 1_000_000,
    "brackets": r"\[" * 500_000,
    "boxes": r"\boxed{" * 140_000,
    "whole boxes": r"\boxed{1}," * 100_000,
    "digits": "1" * 1_000_000,
    "commas": "1," * 500_000,
    "thousands": "1,111" * 200_000,
    "slashes": "1/1" * 300_000,
    "points": "." * 1_000_000,
    "announcements": "the answer is " * 70_000,
    "spaces": "answer" + " " * 1_000_000 + "is",
    "sentence ends": ". " * 500_000,
    "blank lines": "the answer is" + "\n " * 500_000,
    "words": "and " * 250_000,
    "backslashes": "\\" * 1_000_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_megabyte_is_quick(bomb: str) -> None:
    start_s = time.process_time()
    free_answer(BOMBS[bomb])
    free_answer("$1$ " + BOMBS[bomb])
    assert time.process_time() - start_s < 10  # some 0.3 s; quadratic ones take hours
