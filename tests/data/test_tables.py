"""Tables that decode to more than the memory are refused; those that compress well are read."""

from __future__ import annotations

import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polaris_jax.data.problems import read_problems
from polaris_jax.data.sources import DataError
from tests.support.hostile_files import dictionary, nested


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def written(file, table):
    if file.suffix == ".parquet":
        pq.write_table(table, file, compression="zstd")
    else:
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    return file


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("table", "words"),
    [(dictionary(4096, 1), "decodes to more than"), (nested(3000, 1), "too much memory")],
    ids=["equal rows", "equal entries of a list"],
)
def test_a_small_file_that_takes_the_memory_is_refused(tmp_path, suffix, table, words):
    file = written(tmp_path / f"bomb{suffix}", table())
    assert file.stat().st_size < 3 << 20
    before = peak_bytes()
    with pytest.raises(DataError, match=words) as caught:
        read_problems(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak_bytes() - before < 1 << 30


def test_a_long_row_is_left_out_and_the_next_is_read(tmp_path):
    texts = ["x" * (17 << 20), "What is 1+1?"]
    file = written(tmp_path / "p.parquet", pa.table({"problem": texts, "answer": ["1", "2"]}))
    problems, report = read_problems(file)
    assert [p.problem for p in problems] == ["What is 1+1?"]
    assert report.messages == ("p.parquet:row 1: has over 16,777,216 bytes; shorten it",)


def test_a_file_that_compresses_well_is_read(tmp_path):
    texts = [f"What is {i} + 1? " + "Think step by step. " * 50 for i in range(20_000)]
    table = pa.table({"problem": texts, "answer": [str(i) for i in range(20_000)]})
    file = written(tmp_path / "p.parquet", table)
    assert file.stat().st_size < 1 << 20
    assert len(read_problems(file)[0]) == 20_000
