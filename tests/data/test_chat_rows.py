"""Chats of any form are problems: TRL's prompts, complete chats, ShareGPT's, content in parts."""

import json

import pytest

from polaris_jax.data.problem_sets import read_named
from polaris_jax.data.problems import read_problems
from polaris_jax.data.rows import NeedsImage, RowError, lost_parts, parse_row

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


def test_turns_stay_beside_a_blank_column_of_the_problem():
    system = {"role": "system", "content": "Be brief."}
    problem = parse_row({"problem": " ", "messages": [system, USER, REPLY], "solution": ""})
    assert problem.problem == USER["content"]
    assert problem.turns == (("system", "Be brief."),)
    assert problem.answer == "5"


def test_chats_that_end_in_the_same_question_are_different_problems(tmp_path):
    question = {"role": "user", "content": "What is x squared?"}
    path = tmp_path / "chats.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [{"role": "user", "content": f"Let x = {x}."}, REPLY, question],
                    "answer": str(x * x),
                }
            )
            + "\n"
            for x in (2, 3, 4, 2)
        )
    )
    problems, report = read_problems(path)
    assert [problem.answer for problem in problems] == ["4", "9", "16"]
    assert len({problem.id for problem in problems}) == 3
    assert report.counts == {"duplicate": 1, "renamed_id": 2}


def test_a_developer_is_a_system_and_a_tool_that_takes_the_history_away_is_told_of(tmp_path):
    developer = {"role": "developer", "content": "Answer in base 7."}
    assert parse_row({"messages": [developer, USER], "answer": "5"}).turns == (
        ("system", "Answer in base 7."),
    )
    chat = [USER, {"role": "tool", "content": "5"}, {**USER, "content": "And 3 + 3?"}]
    path = tmp_path / "tools.jsonl"
    path.write_text(json.dumps({"messages": chat, "answer": "6"}) + "\n")
    said = []
    read_named(str(path), said.append)
    (line,) = said
    assert "1 of 1 rows are asked without the turns before their question" in line
    assert lost_parts({"messages": [USER, REPLY], "answer": "5"}) == ["turns"]  # no warning


def test_a_chat_may_be_json_text_as_in_a_csv_file():
    for name in ("messages", "prompt"):
        problem = parse_row({name: json.dumps([USER, REPLY]), "answer": "5"})
        assert problem.problem == USER["content"]
    with pytest.raises(RowError, match="messages: begins like a list of turns and is not valid"):
        parse_row({"messages": json.dumps([USER])[:-1], "answer": "5"})
    assert parse_row({"prompt": "[1, 2] has what sum?", "answer": "3"}).problem.startswith("[1")


def test_a_cap_in_data_problems_is_told_of(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "1?", "answer": "1"}\n{"problem": "2?", "answer": "2"}\n')
    said = []
    assert len(read_named(f"{path},cap=1", said.append)[0]) == 2
    assert "cap=1 holds for `polaris prepare` alone" in said[0]


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
    ("value", "rate"),
    [("5/8", 0.625), (" 0/8", 0.0), (0.5, 0.5), ("0.5", 0.5)],
    ids=["text", "zero", "number", "csv"],
)
def test_a_pass_rate_may_be_a_share_in_words(value, rate):
    row = {"problem": "Q", "answer": "1", "pass_rate": value, "response_tokens": "512"}
    assert parse_row(row).pass_rate == rate
    assert parse_row(row).response_tokens == 512


@pytest.mark.parametrize("value", ["9/8", "5/0", "hard", "nan", "1.5"])
def test_a_pass_rate_that_is_none(value):
    with pytest.raises(RowError, match="pass_rate"):
        parse_row({"problem": "Q", "answer": "1", "pass_rate": value})
