"""One set of rows reads alike from every kind of file, and a missing source says what to do."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polaris_jax.data import sources, tables
from polaris_jax.data.problems import read_problems
from polaris_jax.data.sources import DataError, read_rows, resolve_source

ROWS = [{"problem": f"Q{i}", "answer": str(i)} for i in range(5)]


def write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    return path


def fields(source):
    return [dict(row.fields) for row in read_rows(resolve_source(str(source)))]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrow"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    assert fields(write(tmp_path / f"set{suffix}")) == ROWS
    assert fields(tmp_path) == ROWS


@pytest.mark.parametrize("key", ["data", "problems"])
def test_json_with_the_list_inside(tmp_path, key):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"version": 1, key: ROWS}))
    assert fields(path) == ROWS


def test_data_set_directory_reads_its_training_split_in_order(tmp_path):
    write(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[3:])
    write(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:3])
    write(tmp_path / "data" / "test-00000-of-00001.parquet", [{"problem": "T", "answer": "0"}])
    (tmp_path / "dataset_info.json").write_text("{}")
    assert fields(tmp_path) == ROWS
    files = resolve_source(str(tmp_path))
    assert next(iter(read_rows(files))).place == "data/train-00000-of-00002.parquet:row 1"
    assert files.names_beside == ("data/test-00000-of-00001.parquet",)


def test_files_beside_a_training_split_are_told(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    for number in range(5):
        write(tmp_path / f"more{number}.jsonl", ROWS)
    _, report = read_problems(tmp_path)
    assert report.messages[0] == (
        "5 files beside the train split (more0.jsonl, more1.jsonl, more2.jsonl, ...)"
    )


@pytest.mark.parametrize(
    ("train", "others"),
    [
        ("train.jsonl", ["test.parquet"]),
        ("train.json", ["test.arrow", "validation.jsonl"]),
        ("train.parquet", ["train.jsonl", "test.parquet"]),
        ("train/data.jsonl", ["test/data.parquet"]),
    ],
)
def test_a_training_split_of_any_format_comes_first(tmp_path, train, others):
    write(tmp_path / train)
    for name in others:
        write(tmp_path / name, [{"problem": "T", "answer": "0"}])
    files = resolve_source(str(tmp_path))
    assert fields(tmp_path) == ROWS
    assert files.names_beside == tuple(sorted(others))
    message = read_problems(tmp_path)[1].messages[0]
    assert message == f"{len(others)} files beside the train split ({', '.join(sorted(others))})"


def test_text_files_beside_tables_are_told(tmp_path):
    write(tmp_path / "a.parquet", ROWS)
    write(tmp_path / "b.jsonl", ROWS)
    assert read_problems(tmp_path)[1].messages == ("1 files beside the tables (b.jsonl)",)


def test_an_arrow_file_reads_like_a_stream(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(tmp_path / "s.arrow"), table.schema) as file:
        file.write_table(table)
    assert fields(tmp_path / "s.arrow") == ROWS


# In a process of its own: pyarrow may end it.
READ_DAMAGED = """
import random, sys
from pathlib import Path
from etils import epath
from polaris_jax.data.sources import DataError
from polaris_jax.data.tables import table_rows  # without the child that reads first
path, source = Path(sys.argv[1]), random.Random(0)
whole = path.read_bytes()
refused = 0
for _ in range(150):
    damaged = bytearray(whole)
    for _ in range(2):
        damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
    path.write_bytes(damaged)
    try:
        list(table_rows(epath.Path(path), path.name, ("problem", "answer")))
    except DataError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("name", ["s.parquet", "s.arrow"])
def test_flipped_bits_are_told_and_end_nothing(tmp_path, name):
    path = write(tmp_path / name, [{"problem": f"Q{n}", "answer": "1"} for n in range(200)])
    command = [sys.executable, "-c", READ_DAMAGED, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 20


def test_a_row_that_is_no_text_leaves_the_others(tmp_path):
    offsets, data = b"\0\0\0\0\1\0\0\0\2\0\0\0", b"\xffP"
    texts = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    table = pa.table({"problem": texts, "answer": ["1", "2"]})
    pq.write_table(table, tmp_path / "s.parquet")
    problems, report = read_problems(tmp_path / "s.parquet")
    assert [problem.problem for problem in problems] == ["P"]
    assert "s.parquet:row 1: not readable" in report.messages[0]


def test_columns_that_say_nothing_are_not_read(tmp_path):
    table = pa.table(
        {"problem": ["P"], "answer": ["1"], "seen": pa.array([2**62], pa.timestamp("us"))}
    )
    pq.write_table(table, tmp_path / "s.parquet")
    assert [problem.answer for problem in read_problems(tmp_path / "s.parquet")[0]] == ["1"]


def test_our_own_file_with_an_answer_that_is_no_json(tmp_path):
    table = pa.table({"problem": ["P", "Q"], "answer": ["{", "1"]})
    pq.write_table(table.replace_schema_metadata(tables.JSON_ANSWERS), tmp_path / "s.parquet")
    problems, report = read_problems(tmp_path / "s.parquet")
    assert [problem.answer for problem in problems] == [1]
    assert "row 1: answer: not valid JSON" in report.messages[0]


@pytest.mark.parametrize("name", ["constraints.jsonl", "strains.jsonl", "restrained/b.jsonl"])
def test_train_inside_another_word_is_no_split(tmp_path, name):
    write(tmp_path / "algebra.jsonl", ROWS[:2])
    write(tmp_path / name, ROWS[2:])
    assert fields(tmp_path) == ROWS


@pytest.mark.parametrize(
    "name", ["math_train.jsonl", "trainset.jsonl", "MathTrain.jsonl", "TRAIN/b.jsonl"]
)
def test_train_as_a_word_is_the_split(tmp_path, name):
    write(tmp_path / "a.jsonl", ROWS[:2])
    write(tmp_path / name, ROWS[2:])
    assert fields(tmp_path) == ROWS[2:]


def test_directory_without_splits_reads_all(tmp_path):
    write(tmp_path / "a.parquet", ROWS[:2])
    write(tmp_path / "b.parquet", ROWS[2:])
    write(tmp_path / "notes.json", [{"x": 1}])
    assert fields(tmp_path) == ROWS


def test_a_bad_line_is_handed_on_with_its_place(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n\xff\xfe\n"text"\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
    with path.open("ab") as file:
        file.write(b'{"a": ' + b"9" * 5000 + b"}\n")
    rows = list(read_rows(resolve_source(str(path))))
    assert [row.place for row in rows] == [f"s.jsonl:{n}" for n in (1, 3, 4, 5, 6, 7, 8)]
    assert [row.error is None for row in rows] == [True, False, False, False, False, True, False]


def test_windows_text_reads(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert fields(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", "{", "not valid JSON"),
        ("s.json", f"[{'9' * 5000}]", "thousands of digits"),
        ("s.json", '{"a": 1}', "expected a list of objects, or an object with one"),
        ("s.json", "3", "expected a list of objects"),
        ("s.parquet", "no", "not a parquet file"),
        ("s.arrow", "no", "not an arrow stream"),
        ("s.txt", "no", "cannot read .txt"),
    ],
)
def test_an_unreadable_file_is_an_error(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(resolve_source(str(tmp_path / name))))


@pytest.mark.parametrize("name", ["none.jsonl", "some/none.parquet", "/no/such/place", "word"])
def test_a_missing_path_is_no_hub_name(name):
    with pytest.raises(DataError, match="there is no such file or directory"):
        resolve_source(name)


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name_is_not_the_present_directory(tmp_path, monkeypatch, name):
    write(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    assert fields(".") == ROWS
    with pytest.raises(DataError, match=rf"^evaluate\.problems='{name}': no source given"):
        read_problems(name, field="evaluate.problems")


def test_a_directory_without_rows(tmp_path):
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(DataError, match=r"the directory holds no \.jsonl"):
        resolve_source(str(tmp_path))


def test_a_hub_name_without_network_says_so(tmp_path, monkeypatch):
    """Offline mode fails as a machine without network does, and at once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot be reached; check the path or the network"):
        resolve_source("owner/name")


def test_a_hub_name_reads_what_was_downloaded(tmp_path, monkeypatch):
    write(tmp_path / "data" / "train.parquet")
    monkeypatch.setattr(sources, "download_dataset", lambda name, *_, **__: tmp_path)
    assert fields("owner/name") == ROWS
