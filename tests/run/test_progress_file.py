"""Rows of a long command survive a kill and never mix with those of other settings or inputs."""

import json
import os
import zlib

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.run import progress_file
from polaris_jax.run.progress_file import ProgressFile

MODEL = {"weights": "a", "tokenizer": "b"}


def opened(path, n=8, **options):
    return ProgressFile(path, {"n": n}, key=("id",), **options)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def test_rows_come_back_and_a_torn_line_goes(path):
    opened(path).append([{"id": "a"}, {"id": "b"}])
    with path.open("a") as file:
        file.write('{"id": "c')
    again = opened(path)
    assert again.rows == [{"id": "a"}, {"id": "b"}]
    again.append([{"id": "c"}])
    assert lines(path) == [{"id": "a"}, {"id": "b"}, {"id": "c"}]


def test_the_settings_lie_beside_the_rows(path):
    opened(path, inputs=MODEL).append([{"id": "a"}])
    assert lines(path) == [{"id": "a"}]
    identity = json.loads((path.parent / "rows.identity.json").read_text())
    assert identity["settings"] == {"n": 8}
    assert identity["inputs"] == MODEL
    assert identity["rows"] == {"count": 1, "crc32": zlib.crc32(path.read_bytes())}


@pytest.mark.parametrize("way", ["a digit", "one for another", "an order"])
def test_rows_that_are_not_those_that_were_written_are_refused(path, way):
    opened(path).append([{"id": "a", "correct": 2}, {"id": "b", "correct": 3}])
    text = path.read_text()
    first, second = text.splitlines(keepends=True)
    changed = {
        "a digit": text.replace("2", "6"),
        "one for another": first.replace("a", "z") + second,
    }
    path.write_text(changed.get(way, second + first))
    with pytest.raises(ConfigError, match=r"rows\.jsonl: its first 2 rows are not those .* delete"):
        opened(path)
    path.write_text(text)
    assert len(opened(path).rows) == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.identity.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_refused_by_name(path, name, make):
    opened(path).append([{"id": "a"}])
    (path.parent / name).unlink()
    make(path.parent / name)
    with pytest.raises(ConfigError, match=rf"{name}: is a .*, expected a regular file; restore"):
        opened(path)


def test_rows_that_a_kill_left_uncounted_count(path):
    file = opened(path)
    file.append([{"id": "a"}])
    beside = path.with_name("rows.identity.json")
    before = beside.read_bytes()
    file.append([{"id": "b"}])
    beside.write_bytes(before)
    assert opened(path).rows == [{"id": "a"}, {"id": "b"}]
    file = opened(path)
    file.append([{"id": "c"}])
    assert json.loads(beside.read_text())["rows"]["count"] == 3


def test_a_torn_unit_goes_like_a_torn_line(path):
    rows = [{"id": id, "sample": r} for id in "ab" for r in range(3)]

    def units(**options):
        return ProgressFile(path, {"n": 3}, key=("id", "sample"), unit=3, **options)

    units().append(rows)
    path.write_bytes(path.read_bytes()[:-30])  # within the last problem's second row
    again = units()
    assert again.rows == rows[:3]
    again.append(rows[3:])
    assert units(writes=False).rows == rows


def test_rows_that_are_made_anew_leave_with_their_unit(path):
    rows = [{"id": id, "sample": r, "failed": id == "b" and r == 1} for id in "abc" for r in (0, 1)]

    def units(**options):
        again = lambda row: row["failed"]  # noqa: E731
        return ProgressFile(path, {"n": 2}, key=("id", "sample"), unit=2, again=again, **options)

    units().append(rows)
    left = units()
    assert left.rows == [*rows[:2], *rows[4:]] == lines(path)
    left.append(rows[2:4])
    anew = [row | {"made_anew": True} for row in rows[2:4]]
    assert units().rows == units(writes=False).rows == [*left.rows, *anew]  # once, not each time


def test_an_end_while_rows_leave_loses_none(path, monkeypatch):
    """The file behind its checksum, or before it, would count as another's."""
    rows = [{"id": id, "failed": id == "a"} for id in "abc"]
    opened(path).append(rows)
    write = progress_file.write_bytes
    for whole in (0, 1):
        done = []

        def ends(place, content, done=done, whole=whole):
            if len(done) == whole:
                raise OSError(28, "No space left on device")
            done.append(place)
            write(place, content)

        monkeypatch.setattr(progress_file, "write_bytes", ends)
        with pytest.raises(OSError, match="No space"):
            opened(path, again=lambda row: row["failed"])
        monkeypatch.setattr(progress_file, "write_bytes", write)
        assert opened(path, writes=False).rows == rows
    assert opened(path, again=lambda row: row["failed"]).rows == rows[1:]


def test_a_row_counts_once(path):
    file = opened(path)
    file.append([{"id": "a", "correct": 1}, {"id": "b", "correct": 2}])
    file.append([{"id": "b", "correct": 9}, {"id": "c", "correct": 3}])
    expected = [{"id": id, "correct": i + 1} for i, id in enumerate("abc")]
    assert lines(path) == expected
    path.write_bytes(path.read_bytes() * 2)  # what a second writer would have left
    assert opened(path).rows == expected
    assert lines(path) == expected


def test_units_of_two_writers_are_told_apart(path):
    """Two commands at once have written the same problems, their rows in turn."""
    rows = [{"id": id, "sample": r} for id in "ab" for r in range(2)]
    ProgressFile(path, {"n": 2}, key=("id", "sample"), unit=2)
    mixed = [rows[0], rows[0], rows[1], rows[2], rows[1]]  # b's second response is missing
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    assert ProgressFile(path, {"n": 2}, key=("id", "sample"), unit=2).rows == rows[:2]


def test_rows_of_other_settings_outlive_every_further_change(path, capsys):
    contents = {}
    for n in (8, 16, 32):
        file = opened(path, n)
        assert file.rows == []
        file.append([{"id": f"{i} of {n}"} for i in range(n)])
        contents[n] = path.read_bytes()
    aside = {file.read_bytes() for file in path.parent.glob("rows.settings-*.jsonl")}
    assert aside == {contents[8], contents[16]}
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" set aside as ")[0] for line in told] == [
        "8 rows of other settings",
        "16 rows of other settings",
    ]
    assert all((path.parent / line.rpartition("/")[2]).exists() for line in told)

    assert len(opened(path, 8, writes=False).rows) == 8
    again = opened(path, 8)
    assert len(again.rows) == 8
    again.append([{"id": "new"}])
    assert len(opened(path, 8).rows) == 9
    assert len(opened(path, 32).rows) == 32
    assert len(opened(path, 8).rows) == 9


@pytest.mark.parametrize("kept", ["rows", "identity", "neither"])
def test_a_kill_between_two_settings_mixes_nothing(path, kept):
    """Whatever of the two files a kill leaves old, the rows are those of their settings."""
    opened(path, 8).append([{"id": "of 8"}])
    opened(path, 16).append([{"id": "of 16"}])
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    opened(path, 8)
    if kept == "rows":  # emptied, and the settings not yet written
        path.write_bytes(b"")
        identity = path.with_name("rows.identity.json")
        identity.write_bytes(before[identity])
    elif kept == "identity":  # the settings written, the rows not yet
        path.write_bytes(b"")
    assert opened(path, 8).rows == [{"id": "of 8"}]
    assert opened(path, 16).rows == [{"id": "of 16"}]


def test_other_inputs_are_refused_and_nothing_changes(path):
    opened(path, inputs=MODEL).append([{"id": "a"}])
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    places = dict.fromkeys(MODEL, "model.path=m")
    for changed in ("weights", "tokenizer"):
        with pytest.raises(ConfigError, match=rf"model\.path=m: another {changed} than the rows"):
            opened(path, inputs=MODEL | {changed: "c"}, places=places)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before
    assert opened(path, inputs=MODEL).rows == [{"id": "a"}]


def test_other_inputs_of_rows_that_were_set_aside_are_refused(path):
    opened(path, 8, inputs=MODEL).append([{"id": "of 8"}])
    opened(path, 16, inputs=MODEL).append([{"id": "of 16"}])
    places = dict.fromkeys(MODEL, "model.path=m")
    with pytest.raises(ConfigError, match="another weights"):
        opened(path, 8, inputs=MODEL | {"weights": "c"}, places=places)


@pytest.mark.parametrize("aside", [False, True])
def test_a_file_of_version_0_2_still_counts(path, aside):
    """Its first line is the settings; the present inputs are taken as its own."""
    head = json.dumps({"identity": {"n": 8}}, sort_keys=True)
    path.write_text(f'{head}\n{{"id": "a"}}\n')
    if aside:  # as that version set rows aside
        path.rename(path.with_name("rows.jsonl.settings-" + _digest(head)))
    file = opened(path, inputs=MODEL)
    assert file.rows == [{"id": "a"}]
    file.append([{"id": "b"}])
    assert lines(path) == [{"id": "a"}, {"id": "b"}]
    with pytest.raises(ConfigError, match="another weights"):
        opened(path, inputs=MODEL | {"weights": "c"}, places=dict.fromkeys(MODEL, "m"))


def _digest(head: str) -> str:
    import hashlib

    return hashlib.sha256(head.encode()).hexdigest()[:8]


def test_a_file_without_rows_is_not_worth_keeping(path, capsys):
    for n in (8, 16):
        opened(path, n)
    assert sorted(p.name for p in path.parent.iterdir()) == ["rows.identity.json", "rows.jsonl"]
    assert capsys.readouterr().out == ""


def test_a_reader_leaves_the_file_alone(path):
    reader = opened(path, writes=False)
    reader.append([{"id": "a"}])
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("damage", [b'{"id":\n', b"\xff\n", b"5\n", b"{}\n", b'{"id": []}\n'])
def test_rows_behind_damage_count_as_undone(path, damage):
    opened(path)
    path.write_bytes(b'{"id": 1}\n' + damage + b'{"id": 2}\n')
    assert opened(path).rows == [{"id": 1}]
    assert path.read_bytes() == b'{"id": 1}\n'


def test_a_row_that_the_command_cannot_have_written_is_damage(path):
    opened(path).append([{"id": 1, "correct": 8}, {"id": 2, "correct": 9}, {"id": 3, "correct": 0}])
    assert len(opened(path, valid=lambda row: row["correct"] <= 8).rows) == 1


@pytest.mark.parametrize("identity", [None, b"", b"{", b"[]", b'{"settings": 5, "inputs": {}}'])
def test_rows_whose_settings_are_lost_are_refused_not_dropped(path, identity):
    opened(path).append([{"id": "a"}])
    beside = path.with_name("rows.identity.json")
    beside.unlink() if identity is None else beside.write_bytes(identity)
    with pytest.raises(ConfigError, match=r"rows\.identity\.json beside it.*restore that file"):
        opened(path)
    assert lines(path) == [{"id": "a"}]


def test_a_head_that_is_no_text_is_refused(path):
    path.write_bytes(b"\xff\n{}\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl: .*move both away"):
        opened(path)
    assert path.read_bytes() == b"\xff\n{}\n"


def test_a_file_that_belongs_to_another_command_is_not_written(path):
    file = opened(path)
    taken: list[bool] = []

    def check() -> None:
        if taken:
            raise RuntimeError("taken over")

    file = opened(path, may_write=check)
    taken.append(True)
    with pytest.raises(RuntimeError, match="taken over"):
        file.append([{"id": "a"}])
    assert path.read_bytes() == b""
