"""Rows become problems under every usual field name; what is not one is named and counted."""

import dataclasses
import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.data.problems import (
    problem_set_hash,
    problems_digest,
    read_problems,
    write_problems,
)
from polaris_jax.data.rows import COLUMNS, RowError, parse_row
from polaris_jax.data.sources import UNREAD, DataError
from polaris_jax.data.tables import table_rows
from polaris_jax.records import Problem


def write_jsonl(path, rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("field", ["problem", "question", "prompt"])
@pytest.mark.parametrize("gold", ["answer", "gold", "final_answer", "ground_truth", "solution"])
def test_field_names(field, gold):
    problem = parse_row({field: " What? ", gold: "42", "id": "x"})
    assert (problem.problem, problem.answer, problem.id) == ("What?", "42", "x")


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"answer": 142.0}, 142.0),
        ({"answer": 7}, 7),
        ({"answer": 10**400}, 10**400),
        ({"answer": ["9.6\n", 2, 0.5]}, ["9.6", 2, 0.5]),
        ({"answer": "Half of 4 is 2.\n#### 2"}, "2"),
        ({"answer": "2 + 2 = 4, #### 2,000"}, "2,000"),
        ({"answer": "So 110.\n#### 110\nThe answer is: 110"}, "110"),
        ({"answer": "#### Must be short\nOne line."}, "#### Must be short\nOne line."),
        ({"reward_model": {"ground_truth": '["3", "three"]'}}, ["3", "three"]),
        ({"ground_truth": "[1, 2]"}, "[1, 2]"),
        ({"ground_truth": '["a\\nb"]'}, '["a\\nb"]'),
        ({"answer": "3", "solution": "So \\boxed{4}."}, "3"),
        (
            {"answer": None, "solution": "First \\boxed{1}, so \\boxed{\\frac{1}{2}}."},
            "\\frac{1}{2}",
        ),
        ({"answer": " ", "solution": "So \\boxed{4}."}, "4"),
        ({"solution": "So \\boxed {5}.\nDone."}, "5"),
        ({"solution": "The roots are $\\boxed{1}$ and $\\boxed{2}$."}, "1, 2"),
        ({"solution": "So \\boxed5.\nDone."}, "5"),
        ({"solution": "So $\\boxed{\\{1,2\\}}$.\nDone."}, "\\{1,2\\}"),
        ({"solution": "So $\\boxed{\\left\\{1\\right.}$.\nDone."}, "\\left\\{1\\right."),
        ({"solution": "12"}, "12"),
        ({"reward_model": {"ground_truth": "5", "style": "rule"}}, "5"),
    ],
    ids=[
        "float",
        "int",
        "large",
        "list",
        "gsm8k",
        "in a line",
        "metamath",
        "heading",
        "json list",
        "interval",
        "json lines",
        "answer first",
        "boxed",
        "blank",
        "apart",
        "boxes",
        "bare box",
        "set",
        "escaped",
        "short",
        "verl",
    ],
)
def test_answers(fields, answer):
    got = parse_row({"problem": "Q", **fields}).answer
    assert got == answer
    assert type(got) is type(answer)


def test_chat_prompt_and_number_id():
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    problem = parse_row({"prompt": turns, "answer": "1", "id": 7})
    assert (problem.problem, problem.id) == ("Q", "7")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"answer": "1"}, "no problem, question, prompt"),
        ({"problem": "  ", "answer": "1"}, "problem: is empty"),
        ({"problem": 3, "answer": "1"}, "problem: expected a text, got int"),
        ({"prompt": [{"role": "system", "content": "S"}], "answer": "1"}, "without a user turn"),
        ({"problem": "Q"}, "no answer, gold"),
        ({"problem": "Q", "answer": None}, "answer: is empty"),
        ({"problem": "Q", "answer": " "}, "answer: is empty"),
        ({"problem": "Q", "answer": []}, "answer: is empty"),
        ({"problem": "Q", "answer": True}, "expected a text, a finite number"),
        ({"problem": "Q", "answer": float("nan")}, "expected a text, a finite number"),
        ({"problem": "Q", "answer": ["1", None]}, "expected a text, a finite number"),
        ({"problem": "Q", "answer": {"a": 1}}, "expected a text, a finite number"),
        (
            {"problem": "Q", "reward_model": '{"ground_truth": "5"}'},
            "reward_model: expected an object",
        ),
        ({"problem": "Q", "solution": "Long.\nNo box."}, "without .boxed"),
        ({"problem": "Q", "answer": "1", "pass_rate": 1.5}, "pass_rate=1.5"),
        ({"problem": "Q", "answer": "1", "pass_rate": 10**400}, "pass_rate=1000"),
        ({"problem": "Q", "answer": "1", "response_tokens": -1}, "response_tokens=-1"),
        ({"problem": "Q", "answer": "A.\n#### "}, "answer: is empty"),
        ({"problem": "Q", "solution": "#### Step 1\nNo box."}, "without .boxed"),
        ({"problem": "Q", "answer": "1", "response_tokens": [3]}, r"response_tokens=\[3\]"),
        ({"problem": "Q\ud800", "answer": "1"}, r"problem: holds '\\ud800', half of a character"),
        ({"problem": "Q", "answer": ["1", "\udc00"]}, r"answer: holds '\\udc00'"),
        ({"problem": "Q", "answer": "1", "id": "\ud800"}, "id: holds"),
        ({"problem": "Q", "answer": "1", "source": "\ud800"}, "source: holds"),
    ],
)
def test_malformed(fields, reason):
    with pytest.raises(RowError, match=reason):
        parse_row(fields)


def test_ids_are_stable_without_a_given_one():
    a, b, c = (parse_row({"problem": q, "answer": "1"}) for q in ("Q  1", "q 1 ", "Q 2"))
    assert a.id == b.id != c.id
    assert a.id == "".join(ch for ch in a.id if ch in "0123456789abcdef")


def test_a_malformed_row_is_named_and_counted_and_the_rest_is_read(tmp_path):
    path = write_jsonl(
        tmp_path / "set.jsonl",
        [
            {"problem": "Q1", "answer": "1", "id": "a"},
            '{"problem": "Q2", \n',
            "\n",
            {"problem": "Q3", "answer": ""},
            "[1, 2]\n",
            {"problem": "Q4", "answer": "4", "id": "a"},
            {"problem": "q1", "answer": "1", "id": "b"},
            {"problem": "Q1 ", "answer": "2", "id": "c"},
        ],
    )
    problems, report = read_problems(path)
    assert [p.problem for p in problems] == ["Q1", "Q4"]
    assert (report.rows, report.kept) == (7, 2)
    assert report.counts == {
        "malformed": 3,
        "duplicate": 2,
        "duplicate_with_other_answer": 1,
        "renamed_id": 1,
    }
    assert report.rows == report.kept + report.counts["malformed"] + report.counts["duplicate"]
    assert report.messages[0].startswith("set.jsonl:2: not valid JSON")
    assert report.messages[1] == "set.jsonl:4: answer: is empty"
    assert report.messages[2].startswith("set.jsonl:5: expected an object")
    assert report.messages[3] == (
        "set.jsonl:8: the problem of set.jsonl:1 with another answer, '2', there '1'"
    )
    json.dumps(report.as_dict())


def test_rows_that_lose_turns_or_columns_are_counted(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"prompt": [system, {"role": "user", "content": f"Q{i}"}], "answer": "1", "level": 3}
        for i in range(3)
    ]
    rows += [{"prompt": [{"role": "user", "content": "alone"}], "answer": "1"}]
    rows[0]["made"] = datetime.datetime(2026, 1, 1)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "chats.parquet")
    problems, report = read_problems(tmp_path / "chats.parquet")
    assert [p.problem for p in problems] == ["Q0", "Q1", "Q2", "alone"]
    assert problems[0].extra == {"level": 3}
    assert [p.turns for p in problems] == [(("system", "Be brief."),)] * 3 + [()]
    assert report.lost == {"column made": 4}  # a column of a table, in every row
    assert report.counts == {}
    assert report.as_dict()["lost"] == report.lost


def test_every_malformed_row_is_counted_though_few_are_spelled_out(tmp_path):
    path = write_jsonl(tmp_path / "s.jsonl", ["x\n"] * 50 + [{"problem": "Q", "answer": 1}])
    _, report = read_problems(path)
    assert report.counts == {"malformed": 50}
    assert len(report.messages) == 20


@pytest.mark.parametrize("rows", [[], ["nonsense\n"]], ids=["empty", "all malformed"])
def test_an_empty_set_is_an_error(tmp_path, rows):
    path = write_jsonl(tmp_path / "s.jsonl", rows)
    with pytest.raises(DataError, match=f"no problem in it: {len(rows)} rows") as error:
        read_problems(path)
    assert "\n" not in str(error.value)


def test_not_unique_keeps_repeats_but_not_repeated_ids(tmp_path):
    rows = [{"problem": "Q", "answer": "1", "id": "a"}, {"problem": "Q", "answer": "1", "id": "b"}]
    path = write_jsonl(tmp_path / "s.jsonl", rows)
    assert len(read_problems(path, unique=False)[0]) == 2
    with pytest.raises(DataError, match="id 'a' occurs twice"):
        read_problems(write_jsonl(path, [rows[0], rows[0]]), unique=False)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20)
ONE = st.one_of(
    TEXTS.map(str.strip).filter(lambda t: t and "#### " not in t),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
)


@settings(max_examples=12, deadline=None)
@given(
    answers=st.lists(st.one_of(ONE, st.lists(ONE, min_size=1, max_size=3)), min_size=1, max_size=6),
    rate=st.one_of(st.none(), st.floats(0, 1)),
)
def test_parquet_keeps_every_record_and_type(tmp_path_factory, answers, rate):
    path = tmp_path_factory.mktemp("p") / "problems.parquet"
    problems = [
        Problem(f"id{i}", f"Q {i}?", answer, "src", rate, rate and 31.5 * i)
        for i, answer in enumerate(answers)
    ]
    write_problems(problems, path)
    back, report = read_problems(path)
    assert back == problems
    assert [json.dumps(p.answer) for p in back] == [json.dumps(p.answer) for p in problems]
    assert report.counts == {}
    assert [p.name for p in Path(path).parent.iterdir()] == ["problems.parquet"]


def test_a_record_that_no_row_gives_comes_back_as_a_row_would(tmp_path):
    path = tmp_path / "problems.parquet"
    write_problems([Problem("a", " Q? ", "  5 "), Problem("b", "R?", "2 + 3 #### 5")], path)
    back, _ = read_problems(path)
    assert back == [Problem("a", "Q?", "5"), Problem("b", "R?", "5")]
    write_problems(back, path)
    assert read_problems(path)[0] == back


def test_messages_are_of_letters_that_any_file_takes_and_short(tmp_path):
    rows = ['{"\\ud800": 1}\n', {"problem": "P", "answer": [["x"] * 5000]}]
    path = write_jsonl(tmp_path / "s.jsonl", [{"problem": "Q", "answer": "1"}, *rows])
    messages = read_problems(path)[1].messages
    assert messages[0].endswith("among its fields (\\ud800)")
    assert all(len(message.encode()) <= 400 for message in messages)


EXTRA = {"tests": [1, {"a": None}], "level": 3, "é": "x", "flag": True, "rate": 0.5}


def test_other_columns_are_extra_and_survive_a_file(tmp_path):
    rows = [
        {"id": "a", "problem": "P", "answer": "1", **EXTRA, "empty": None},
        {"id": "b", "problem": "Q", "answer": "2", "solution": "no extra"},
        {"id": "c", "problem": "R", "answer": "3", "extra": {"x": 1}, "score": float("nan")},
    ]
    problems, _ = read_problems(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [problem.extra for problem in problems] == [EXTRA, {}, {"extra": {"x": 1}}]
    for number in range(2):  # what was written is read, and written again
        write_problems(problems, tmp_path / f"{number}.parquet")
        assert read_problems(tmp_path / f"{number}.parquet")[0] == problems
        problems = read_problems(tmp_path / f"{number}.parquet")[0]
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()


def test_a_file_of_problems_without_extra_has_the_columns_it_always_had(tmp_path):
    write_problems([Problem("a", "P", "1")], tmp_path / "a.parquet")
    names = pq.read_schema(tmp_path / "a.parquet").names
    assert names == ["id", "problem", "answer", "source", "pass_rate", "response_tokens"]


def test_columns_of_a_table_that_hold_json_are_extra(tmp_path):
    columns = {
        "problem": ["P"],
        "answer": ["1"],
        "texts": [["a", "b"]],
        "pair": [{"x": 1, "y": [0.5]}],
        "word": pa.array(["w"]).dictionary_encode(),
        "when": pa.array([2**62], pa.timestamp("us")),
        "bytes": [b"x"],
        "mixed": pa.array([{"when": 0}], pa.struct([("when", pa.timestamp("us"))])),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file:
        arrow = pa.ipc.new_file(file, table.schema)
        arrow.write_table(table)
        arrow.close()
    for name in ("a.parquet", "b.arrow"):
        (problem,) = read_problems(tmp_path / name)[0]
        assert problem.extra == {"texts": ["a", "b"], "pair": {"x": 1, "y": [0.5]}, "word": "w"}


@pytest.mark.parametrize("at", [0.1, 0.25, 0.4, 0.55])
def test_damaged_rows_of_our_own_parquet_are_refused(tmp_path, at):
    problems = [Problem(f"p{i}", f"What is {i} plus {7 * i}?", str(8 * i)) for i in range(300)]
    file = tmp_path / "problems.parquet"
    write_problems(problems, file)
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"problems\.parquet.*not a parquet file"):
        read_problems(str(file))


def test_an_image_column_counts_where_it_has_an_image(tmp_path):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    one = {"bytes": b"x", "path": None}
    table = pa.table(
        {
            "problem": ["a", "b", "c"],
            "answer": ["1", "2", "3"],
            "image": pa.array([None, one, {"bytes": None, "path": None}], image),
            "images": pa.array([None, [], [one]], pa.list_(image)),
            "raw": pa.array([None, b"x", b"y"], pa.binary()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with pa.ipc.new_stream(str(tmp_path / "t.arrow"), table.schema) as stream:
        stream.write_table(table)
    for name in ("t.parquet", "t.arrow"):
        rows = [row.fields for row in table_rows(epath.Path(tmp_path / name), name, COLUMNS)]
        assert [row["image"] is UNREAD for row in rows] == [False, True, True]
        assert [row["images"] is UNREAD for row in rows] == [False, False, True]
        assert rows[0]["image"] is None is rows[1]["images"]
        assert all(row["raw"] is UNREAD for row in rows)  # no list or object: not looked at
        lost = read_problems(str(tmp_path / name))[1].lost
        assert lost == {"column image": 2, "column images": 1, "column raw": 3}


def turn(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("chat", "turns", "lost"),
    [
        ([turn("user", "Q")], (), 0),
        ([turn("system", "S"), turn("user", "Q")], (("system", "S"),), 0),
        (
            [turn("user", "A"), turn("assistant", "B"), turn("user", "Q")],
            (("user", "A"), ("assistant", "B")),
            0,
        ),
        ([turn("user", "Q"), turn("assistant", "gold")], (), 1),  # what follows is no prompt
        ([turn("system", ["image"]), turn("user", "Q")], (), 1),
        ([turn("tool", "T"), turn("user", "Q")], (), 1),
    ],
    ids=["question", "system", "chat", "answered", "image", "tool"],
)
def test_the_turns_of_a_chat(chat, turns, lost, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"prompt": chat, "answer": "1"}) + "\n")
    problems, report = read_problems(path)
    assert problems[0].problem == "Q"
    assert problems[0].turns == turns
    assert report.lost.get("turns", 0) == lost
    write_problems(problems, tmp_path / "own.parquet")  # and back, with the other columns
    assert read_problems(tmp_path / "own.parquet")[0] == problems


def test_turns_count_in_the_digests_where_there_are_any():
    plain = Problem("a", "Q", "1")
    chat = dataclasses.replace(plain, turns=(("system", "S"),))
    for digest in (problem_set_hash, problems_digest):
        assert digest([plain]) != digest([chat])
