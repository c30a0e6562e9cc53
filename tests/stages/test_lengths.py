"""Expected response lengths: the newest visit's mean, restored as saved."""

import copy
import json

from polaris_jax.stages.lengths import LengthTable


def table() -> LengthTable:
    made = LengthTable()
    made.record(["a", "b"], [[[1] * 10, [1] * 20], [[1] * 4, [1] * 4]])
    return made


def test_the_newest_visit_counts_and_the_unknown_are_average():
    made = table()
    assert made.expected(["b", "a", "new"], max_response_tokens=100) == [4.0, 15.0, 9.5]
    made.record(["a"], [[[1] * 2, [1] * 4]])
    assert made.expected(["a", "b"], max_response_tokens=100) == [3.0, 4.0]
    assert made.expected(["a", "b"], max_response_tokens=3) == [3.0, 3.0]


def test_what_calibration_measured_counts_until_the_first_visit():
    made = LengthTable({"a": 40.0, "b": 10.0})
    assert made.expected(["b", "a", "new"], max_response_tokens=100) == [10.0, 40.0, 25.0]
    made.record(["a"], [[[1] * 2, [1] * 4]])
    assert made.expected(["a", "b"], max_response_tokens=100) == [3.0, 10.0]


def test_another_tables_lengths_count_where_there_is_none():
    table = LengthTable({"a": 3.0})
    table.add_unknown(LengthTable({"a": 9.0, "b": 5.0}))
    assert table.expected(["a", "b"], max_response_tokens=64) == [3.0, 5.0]


def test_nothing_is_expected_of_problems_that_nobody_has_seen():
    assert LengthTable().expected(["a"], max_response_tokens=9) is None
    assert table().expected(["new", "newer"], max_response_tokens=9) is None


def test_a_copy_and_a_saved_state_are_as_they_were():
    made = table()
    snapshot = copy.copy(made)
    saved = json.loads(json.dumps(made.state_dict()))
    made.record(["a"], [[[1]]])
    assert snapshot.expected(["a"], max_response_tokens=99) == [15.0]
    restored = LengthTable()
    restored.record(["gone"], [[[1]]])
    restored.load_state_dict(saved)
    assert restored.state_dict() == snapshot.state_dict()
    assert restored.expected(["gone"], max_response_tokens=99) is None
