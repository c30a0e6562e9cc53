"""The text of a source holds its place and its options, and a mistake in it says what to write."""

import json

import pytest

from polaris_jax.data.problems import read_problems
from polaris_jax.data.source_text import DataError, parse_source


def test_place_and_options():
    source = parse_source("openai/gsm8k,config=main,split=test,cap=50,answer=final")
    assert (source.where, source.name, source.cap) == ("openai/gsm8k", "gsm8k", 50)
    assert (source.config, source.split, source.revision) == ("main", "test", "")
    assert source.columns == (("answer", "final"),)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("data/math_train.jsonl", "math_train"),
        ("owner/Set-53K", "Set-53K"),
        ("mine.py:sums", "sums"),
        ("a/b/", "b"),
        ("x.csv,name=mine", "mine"),
    ],
)
def test_name(text, name):
    assert parse_source(text).name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.csv,colum=x", "no option 'colum'; there are name, cap"),
        ("a.csv,answers=x", "no option 'answers'; did you mean answer?"),
        ("a.csv,answer", "'answer' is no option; write them as name=value"),
        ("a.csv,answer=", "answer= has no value"),
        ("a.csv,cap=1,cap=2", "cap= is given twice"),
        ("a.csv,cap=0", "cap=0: must be a whole number above 0"),
        ("a.csv,cap=many", "cap=many: must be a whole number above 0"),
        ("o/n,split=train[:10%]", r"split=train\[:10%\]: use letters"),
    ],
)
def test_mistakes(text, words):
    with pytest.raises(DataError, match=words):
        parse_source(text)


def test_a_file_whose_name_has_a_comma(tmp_path):
    path = tmp_path / "a,b=c.jsonl"
    path.write_text(json.dumps({"problem": "Q", "answer": "1"}))
    assert parse_source(str(path)).where == str(path)
    assert len(read_problems(path)[0]) == 1


def test_columns_are_read_under_our_names(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"frage": "Q1", "answer": "a worked text", "final": 7, "difficulty": "5/8"},
        {"frage": "Q2", "answer": "another"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = f"{path},problem=frage,answer=final"
    (problem,), report = read_problems(source)
    assert (problem.problem, problem.answer, problem.pass_rate) == ("Q1", 7, None)
    assert problem.extra == {"other_answer": "a worked text", "difficulty": "5/8"}
    assert report.counts == {"malformed": 1}
    assert "has nothing in column 'final' for answer (frage, answer)" in report.messages[0]
    rated = read_problems(f"{source},pass_rate=difficulty")[0]
    assert [p.pass_rate for p in rated] == [0.625]


def test_a_row_may_do_without_a_column_that_is_not_needed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("q,answer,difficulty,key\nQ1,1,0.5,a\nQ2,2,,b\nQ3,3,0.25,\n,4,0.5,d\n")
    problems, report = read_problems(f"{path},problem=q,pass_rate=difficulty,id=key")
    assert [p.pass_rate for p in problems] == [0.5, None, 0.25]
    assert [p.id for p in problems][:2] == ["a", "b"]
    assert report.counts == {"malformed": 1}
    assert "has nothing in column 'q' for problem" in report.messages[0]
    with pytest.raises(DataError, match=r"a\.csv.*id=keys: no row has something in column 'keys'"):
        read_problems(f"{path},problem=q,id=keys")


def test_a_row_without_the_named_column_does_not_take_its_namesake(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("problem,answer,pass_rate,difficulty\nQ1,1,0.9,0.5\nQ2,2,0.9,\n")
    problems = read_problems(f"{path},pass_rate=difficulty")[0]
    assert [p.pass_rate for p in problems] == [0.5, None]
    assert all(float(p.extra["other_pass_rate"]) == 0.9 for p in problems)


@pytest.mark.parametrize("option", ["split=train", "config=main", "revision=v1"])
def test_options_of_the_hub_belong_to_data_sets(tmp_path, option):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"problem": "Q", "answer": "1"}))
    words = f"{option.partition('=')[0]} belongs to a data set of the Hub, and this is a file"
    with pytest.raises(DataError, match=words):
        read_problems(f"{path},{option}")
