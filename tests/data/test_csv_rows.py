"""A csv file reads like any other, and one bad line spoils no more than itself."""

import pytest

from polaris_jax.data.problems import read_problems
from polaris_jax.data.sources import DataError, read_rows, resolve_source


def rows(path):
    return list(read_rows(resolve_source(str(path))))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
def test_each_delimiter(tmp_path, delimiter, newline):
    path = tmp_path / "a.csv"
    cells = [["Is 1, 2 or; 3\t?", "1", "a"], ['a "b" c', "2", ""]]
    text = newline.join(
        [delimiter.join(("problem", "answer", "id"))]
        + [
            delimiter.join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row)
            for row in cells
        ]
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    problems, report = read_problems(path)
    assert [(p.problem, p.answer) for p in problems] == [(c[0], c[1]) for c in cells]
    assert problems[0].id == "a"
    assert report.rows == 2


def test_line_breaks_in_a_cell_and_the_lines_of_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('problem,answer\n"one\n\ntwo",1\nthree,3\n')
    found = rows(path)
    assert [row.place for row in found] == ["a.csv:2", "a.csv:5"]
    assert found[0].fields["problem"] == "one\n\ntwo"


def test_bad_lines_are_rows_with_an_error(tmp_path):
    path = tmp_path / "a.csv"
    long = "x" * 140_000
    path.write_bytes(
        b"problem,answer\nQ1,1\nQ2,2,3\nQ3\nQ\xff4,4\nQ5,5\n" + f'"{long}",6\nQ7,7\n'.encode()
    )
    errors = [row.error for row in rows(path)]
    assert errors[0] is None
    assert errors[1] == "has 3 cells, and the header 2"
    assert errors[2] == "has 1 cells, and the header 2"
    assert errors[3] == "is no UTF-8; save the file as UTF-8"
    assert errors[4] is None
    assert "field larger than field limit" in str(errors[5])
    assert errors[-1] is None


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "has no names of columns"), ("a,a\n1,2\n", "has two columns 'a'")],
    ids=["empty", "twice"],
)
def test_a_header_that_is_none(tmp_path, text, words):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        rows(path)


def test_csv_in_a_directory_is_read_if_there_is_nothing_else(tmp_path):
    (tmp_path / "train.csv").write_text("problem,answer\nQ,1\n")
    assert len(rows(tmp_path)) == 1
    (tmp_path / "rows.jsonl").write_text('{"problem": "P", "answer": "2"}\n')
    assert [row.fields["problem"] for row in rows(tmp_path)] == ["P"]
