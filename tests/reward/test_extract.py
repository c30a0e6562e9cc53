"""The answer of a response, by mode: train, eval, free."""

from __future__ import annotations

import time

import pytest

from polaris_jax.reward import score_response
from polaris_jax.reward.extract import WINDOW_CHARS, free_answer, last_box, response_answer

PROMPT = "<user>\nQ? Put the final answer within \\boxed{}.\n<assistant>\n<think>\n"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{4} then \boxed{5}", "5"),
        (r"\boxed{5} then \boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed {5}", "5"),
        ("\\boxed\n{5}", "5"),
        (r"\boxed 5", "5"),
        (r"\boxed5", "5"),
        (r"\boxed 12.", "12"),
        (r"\boxed x", "x"),
        (r"\fbox{5}", "5"),
        (r"\fbox{4} \boxed{5}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"so { and \boxed{5}", "5"),
        (r"so } and \boxed{5} }", "5"),
        (r"\boxed{}", None),
        (r"\boxed{  }", None),
        (r"\boxed{5} \boxed{}", None),
        (r"\boxedx{5}", None),
        (r"\boxed{5", None),
        (r"\boxed{\{5}", r"\{5"),
        (r"\boxed", None),
        (r"5", None),
        ("", None),
    ],
)
def test_last_box(text: str, answer: str | None) -> None:
    assert last_box(text) == answer


def test_unclosed_last_box_falls_back_in_eval_mode_only() -> None:
    text = r"</think> \boxed{5} and then \boxed{6"
    assert response_answer(text, "eval") == "5"
    assert response_answer(text, "train") is None


@pytest.mark.parametrize(
    ("response", "train", "evaluate"),
    [
        (r"work </think> \boxed{5}", 1, 1),
        (r"work \boxed{5}", 0, 1),
        (r"work \boxed{5} </think> no box", 0, 1),
        (r"work \boxed{4} </think> \boxed{5}", 1, 1),
        (r"a </think> b </think> \boxed{5}", 0, 1),
        (r"a </think> \boxed{5} </think> \boxed{6}", 1, 0),
        (r"a </think> \boxed{6} </think> \boxed{5}", 0, 1),
        (r"</think>\boxed{}", 0, 0),
        (r"a </think> The answer is \boxed{5", 0, 0),
    ],
)
def test_modes_read_their_part_of_the_text(response: str, train: int, evaluate: int) -> None:
    assert score_response(PROMPT + response, "5", mode="train") == train
    assert score_response(response, "5", mode="eval") == evaluate


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed\frac{1}{2}.", r"\frac{1}{2}"),
        (r"\boxed{4} no: \boxed\dfrac12", r"\dfrac12"),
        (r"\boxed \sqrt[3]{\frac{1}{2}} is", r"\sqrt[3]{\frac{1}{2}}"),
        (r"\boxed-\pi", r"-\pi"),
        (r"\boxed\text{yes} it is", r"\text{yes}"),
        (r"so \boxed5.", "5"),
        (r"so \boxed 1,234.", "1,234"),
        (r"\boxed{4} and \boxed\frac{1}{2", None),
        (r"\boxed\alpha", None),
    ],
)
def test_a_command_without_braces_is_a_box(text: str, box: str | None) -> None:
    assert last_box(text) == box


def test_a_box_across_two_windows_is_one_box() -> None:
    for place in range(10):
        text = r"\boxed{4}" + r"\boxed{5}" + " " * (WINDOW_CHARS - place)
        assert last_box(text) == "5"
        cut = "a" * 100 + r"\boxedx{5}" + " " * (WINDOW_CHARS - place - 3)
        assert last_box(cut) is None


def test_opening_tag_is_not_needed() -> None:
    assert score_response(r"the template opened it </think> \boxed{5}", "5") == 1.0


def test_the_empty_box_of_the_prompt_is_never_the_answer() -> None:
    assert score_response(PROMPT + "</think> five", "") == 0.0
    assert score_response(PROMPT + "</think> five", "{}") == 0.0


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mode='test'.*'train'.*'eval'"):
        score_response("", "5", mode="test")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [None, 5, b"5"])
def test_a_response_that_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match="a response is a text; pass '' where there is none"):
        score_response(text, "5")


@pytest.mark.parametrize(
    "piece",
    [
        *("\\boxed{", "{", "}", "\\", "\\boxed{5}", "\\boxed ", "\\boxed", "</think>"),
        *("\\\\\\boxed{", "\\boxedx", "\\fboxx"),
        *("%", "\\begin{"),
    ],
)
def test_a_megabyte_of_anything_is_read_in_linear_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))

    def took_s() -> float:
        start_s = time.process_time()
        score_response(text, "5", mode="eval")
        score_response("</think>" + text, "5")
        return time.process_time() - start_s

    # The best of three: beside other work even a process's own time may double for a while.
    assert any(took_s() < 1.0 for _ in range(3))


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
    "comments": "% \\boxed{5}\n" * 80_000,
    "percent signs": "5 % \\boxed{5} x% of " * 50_000,
    "escaped boxes": r"\\boxed{5}" * 100_000,
    "verbs": r"\verb|\boxed{5}" * 70_000,
    "listings": r"\lstinline{\boxed{5}" * 50_000,
    "options of listings": r"\lstinline[\boxed{5}" * 50_000,
    "comments of HTML": r"<!-- \boxed{5}" * 70_000,
    "verbatim text": r"\begin{verbatim}\boxed{5}" * 40_000,
    "verbatim texts": r"\begin{comment}\boxed{5}\end{comment}" * 25_000,
    "false parts": r"\iffalse\boxed{5}\fi" * 40_000,
    "words before an answer": "I think that " * 80_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_megabyte_is_quick(bomb: str) -> None:
    start_s = time.process_time()
    free_answer(BOMBS[bomb])
    free_answer("$1$ " + BOMBS[bomb])
    assert time.process_time() - start_s < 10  # some 0.3 s; quadratic ones take hours
