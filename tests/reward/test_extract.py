"""Which part of a response counts as its answer."""

import time

import pytest

from polaris_jax.reward import score_response
from polaris_jax.reward.extract import WINDOW_CHARS, last_box, response_answer

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
    ],
)
def test_a_megabyte_of_anything_is_read_in_linear_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start_s = time.perf_counter()
    score_response(text, "5", mode="eval")
    score_response("</think>" + text, "5")
    assert time.perf_counter() - start_s < 1.0
