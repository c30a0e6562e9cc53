"""The original's accuracy log: what counts, and what is named and skipped."""

import json
import random

import pytest

from polaris_jax.stages import SkippedLine, read_accuracy_log
from tests.support.original_data import DATA, needs_original


def write(path, *lines):
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")
    return path


def test_malformed_lines_are_named_and_the_rest_is_read(tmp_path):
    log = read_accuracy_log(
        write(
            tmp_path / "log.jsonl",
            {"index": [7, 7, 7, 7], "score": [0.5]},
            {"index": [1, 2], "score": [0.25, 1.0]},
            "{not json",
            "",
            [1, 2],
            {"index": [1], "accuracy": [1.0]},
            {"index": 1, "score": 1.0},
            {"index": ["1"], "score": [1.0]},
            {"index": [3], "score": [1.5]},
            {"index": [3], "score": [True]},
            {"index": [2, 2], "score": [0.75, 1], "extra": 0},
        )
    )
    assert log.scores == {1: (0.25,), 2: (1.0, 0.75, 1.0)}
    assert log.lines == 2
    assert [skipped.line for skipped in log.skipped] == [1, 3, 5, 6, 7, 8, 9, 10]
    assert log.skipped[0] == SkippedLine(1, "4 indices and 1 scores")
    assert all(skipped.reason for skipped in log.skipped)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe", "no UTF-8"),
        (b'{"index": [1], "score": [' + b"9" * 5000 + b"]}", "thousands of digits"),
        (b"[" * 100_000, "nested deeper than 100 levels"),
    ],
    ids=["bytes", "a number without end", "depth"],
)
def test_a_line_that_no_parser_takes_ends_nothing(tmp_path, line, reason):
    path = tmp_path / "log.jsonl"
    path.write_bytes(line + b'\n{"index": [1], "score": [0.5]}\n')
    log = read_accuracy_log(path)
    assert log.scores == {1: (0.5,)}
    assert [skipped.line for skipped in log.skipped] == [1]
    assert reason in log.skipped[0].reason


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_accuracy_log(tmp_path / "none.jsonl")


def test_a_log_of_the_originals_shape(tmp_path):
    """The first line names each problem 4 times, the others name 8 problems, scored in quarters.

    A third of the problems are visited twice. What must come out is counted in whole quarters.
    """
    draw = random.Random(0)
    once = draw.sample(range(60_000), 480)
    order = once + once[:160]
    visits = [(index, draw.choices(range(5), (37, 14, 12, 13, 24))[0]) for index in order]
    steps = [visits[i : i + 8] for i in range(0, len(visits), 8)]
    first = {"index": [i for i, _ in steps[0] for _ in range(4)], "score": [0.0] * 8}
    lines = [{"index": [i for i, _ in s], "score": [q / 4 for _, q in s]} for s in steps]
    log = read_accuracy_log(write(tmp_path / "log.jsonl", first, *lines))
    assert log.skipped == (SkippedLine(1, "32 indices and 8 scores"),)
    assert (log.lines, len(log.scores)) == (80, 480)
    assert sum(map(len, log.scores.values())) == 640

    quarters = {}
    for index, q in visits:
        quarters.setdefault(index, []).append(q)
    assert list(log.scores) == list(quarters)
    assert log.scores == {i: tuple(q / 4 for q in several) for i, several in quarters.items()}


@needs_original
def test_the_originals_log():
    log = read_accuracy_log(DATA / "accuracy_log.jsonl")
    assert log.skipped == (SkippedLine(1, "32 indices and 8 scores"),)
    assert (log.lines, len(log.scores)) == (516, 4_032)
    assert sum(map(len, log.scores.values())) == 4_128
