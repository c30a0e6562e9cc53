"""Chats of any form are problems: TRL's prompts, complete chats, ShareGPT's, content in parts."""

import pytest

from polaris_jax.data.rows import NeedsImage, RowError, parse_row

USER = {"role": "user", "content": "What is 2 + 3?"}
REPLY = {"role": "assistant", "content": "It is \\boxed{5}."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "answer": "5"},
        {"prompt": [USER], "solution": "It is \\boxed{5}."},
        {"prompt": [USER], "completion": [REPLY]},
        {"prompt": USER["content"], "completion": "So \\boxed{5}"},
        {"messages": [USER, REPLY]},
        {"messages": [USER, {"role": "assistant", "content": "5"}]},
        {
            "conversations": [
                {"from": "human", "value": USER["content"]},
                {"from": "gpt", "value": "#### 5"},
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]}],
         "answer": "5"},
        {"prompt": USER["content"], "solutions": ["\\boxed{5}"]},
    ],
    ids=[
        "trl prompt", "trl with a solution", "trl completion", "texts", "complete chat",
        "bare reply", "sharegpt", "parts", "solutions",
    ],
)  # fmt: skip
def test_question_and_answer(row):
    problem = parse_row(row)
    assert problem.problem == USER["content"]
    assert problem.answer in ("5", ["5"])
    assert problem.extra == {}


def test_earlier_turns_stay():
    system = {"role": "system", "content": "Be brief."}
    problem = parse_row({"messages": [system, USER, REPLY, {**USER, "content": "And 3 + 3?"}],
                         "answer": "6"})  # fmt: skip
    assert problem.problem == "And 3 + 3?"
    assert [role for role, _ in problem.turns] == ["system", "user", "assistant"]


def test_a_column_that_is_not_used_stays_an_extra():
    problem = parse_row({"problem": "Q", "answer": "1", "messages": [USER], "completion": "x"})
    assert problem.extra == {"messages": [USER], "completion": "x"}


def test_an_image_in_the_question():
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": "x"}]
    with pytest.raises(NeedsImage):
        parse_row({"messages": [{"role": "user", "content": parts}], "answer": "1"})


def test_a_chat_without_an_answer_says_where_one_belongs():
    with pytest.raises(RowError, match="the chat's last turn: a worked text without"):
        parse_row({"messages": [USER, {"role": "assistant", "content": "Hm.\nLet me think."}]})
    with pytest.raises(RowError, match="no answer, gold"):
        parse_row({"messages": [USER]})


@pytest.mark.parametrize(
    ("value", "rate"), [("5/8", 0.625), (" 0/8", 0.0), (0.5, 0.5)], ids=["text", "zero", "number"]
)
def test_a_pass_rate_may_be_a_share_in_words(value, rate):
    assert parse_row({"problem": "Q", "answer": "1", "pass_rate": value}).pass_rate == rate


@pytest.mark.parametrize("value", ["9/8", "5/0", "hard"])
def test_a_pass_rate_that_is_none(value):
    with pytest.raises(RowError, match="pass_rate"):
        parse_row({"problem": "Q", "answer": "1", "pass_rate": value})
