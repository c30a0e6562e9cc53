"""Rows of a long command survive a kill and never mix with those of other settings."""

import json

from polaris_jax.run.progress_file import ProgressFile


def test_rows_come_back_and_a_torn_line_goes(tmp_path):
    path = tmp_path / "rows.jsonl"
    ProgressFile(path, {"n": 8}, writes=True).append([{"id": "a"}, {"id": "b"}])
    with path.open("a") as file:
        file.write('{"id": "c')
    again = ProgressFile(path, {"n": 8}, writes=True)
    assert again.rows == [{"id": "a"}, {"id": "b"}]
    again.append([{"id": "c"}])
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == again.rows


def test_a_torn_unit_goes_like_a_torn_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"id": id, "sample": r} for id in "ab" for r in range(3)]
    ProgressFile(path, {"n": 3}, writes=True, unit=3).append(rows)
    path.write_bytes(path.read_bytes()[:-30])  # within the last problem's second row
    again = ProgressFile(path, {"n": 3}, writes=True, unit=3)
    assert again.rows == rows[:3]
    again.append(rows[3:])
    assert ProgressFile(path, {"n": 3}, writes=False, unit=3).rows == rows


def test_rows_of_other_settings_outlive_every_further_change(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    wholes = {}
    for n in (8, 16, 32):
        file = ProgressFile(path, {"n": n}, writes=True)
        assert file.rows == []
        file.append([{"id": f"of {n}"}] * n)
        wholes[n] = path.read_bytes()
    aside = {file.read_bytes() for file in tmp_path.glob("rows.jsonl.settings-*")}
    assert aside == {wholes[8], wholes[16]}
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" set aside as ")[0] for line in told] == [
        "8 rows of other settings",
        "16 rows of other settings",
    ]
    assert all((tmp_path / line.rpartition("/")[2]).exists() for line in told)

    assert ProgressFile(path, {"n": 8}, writes=False).rows == [{"id": "of 8"}] * 8
    again = ProgressFile(path, {"n": 8}, writes=True)
    assert again.rows == [{"id": "of 8"}] * 8
    again.append([{"id": "new"}])
    assert len(ProgressFile(path, {"n": 8}, writes=True).rows) == 9
    assert len(ProgressFile(path, {"n": 32}, writes=True).rows) == 32
    assert len(ProgressFile(path, {"n": 8}, writes=True).rows) == 9


def test_a_file_without_rows_is_not_worth_keeping(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    for n in (8, 16):
        ProgressFile(path, {"n": n}, writes=True)
    assert list(tmp_path.iterdir()) == [path]
    assert capsys.readouterr().out == ""


def test_a_reader_leaves_the_file_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    reader = ProgressFile(path, {"n": 8}, writes=False)
    reader.append([{"id": "a"}])
    assert not path.exists()
    assert reader.rows == [{"id": "a"}]


def test_rows_behind_damage_count_as_undone(tmp_path):
    path = tmp_path / "rows.jsonl"
    for damage in (b'{"id":\n', b"\xff\n", b"5\n"):
        ProgressFile(path, {"n": 8}, writes=True)
        head = path.read_bytes().partition(b"\n")[0] + b"\n"
        path.write_bytes(head + b'{"id": 1}\n' + damage + b'{"id": 2}\n')
        assert ProgressFile(path, {"n": 8}, writes=True).rows == [{"id": 1}]
        assert path.read_bytes() == head + b'{"id": 1}\n'


def test_a_head_that_is_no_text_is_of_other_settings(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\n{}\n")
    assert ProgressFile(path, {"n": 8}, writes=True).rows == []
    (aside,) = tmp_path.glob("rows.jsonl.settings-*")
    assert aside.read_bytes() == b"\xff\n{}\n"
