"""Signs of life: rare, bounded, written by nobody who does not own the workdir yet."""

import json

import pytest
from etils import epath

from polaris_jax.run import signs as module
from polaris_jax.run.signs import MOST_WARNINGS, Signs, read_signs, read_warnings


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "time", lambda: 1e9 + now[0])
    return now


def test_a_process_gives_a_sign_a_minute(tmp_path, clock):
    place = epath.Path(tmp_path)
    signs = [Signs(place, process=k) for k in (0, 1)]
    for at_s in range(0, 200, 10):
        clock[0] = at_s
        for sign in signs:
            sign.doing(f"at {at_s}")
    found = read_signs(place)
    assert [(sign.process, sign.doing) for sign in found] == [(0, "at 180"), (1, "at 180")]
    assert found[0].time_s == 1e9 + 180
    assert sorted(path.name for path in (tmp_path / "alive").iterdir()) == ["0.json", "1.json"]


def test_warnings_wait_until_the_workdir_is_ours(tmp_path, clock):
    place = epath.Path(tmp_path)
    signs = Signs(place, process=0)
    signs.warned("too early")
    assert list(tmp_path.iterdir()) == []
    signs.doing("work")
    assert [w["text"] for w in read_warnings(place)] == ["too early"]
    clock[0] = 5.0
    signs.warned("too early")
    (warning,) = read_warnings(place)
    assert warning == {"text": "too early", "count": 2, "first_s": 1e9, "last_s": 1e9 + 5}
    for number in range(2 * MOST_WARNINGS):
        signs.warned(f"{number}" * 2000)
    kept = read_warnings(place)
    assert len(kept) == MOST_WARNINGS
    assert kept[-1]["text"].startswith(str(2 * MOST_WARNINGS - 1))
    assert max(len(warning["text"]) for warning in kept) == module.MOST_CHARS


def test_a_later_start_keeps_the_warnings_and_other_processes_write_none(tmp_path, clock):
    place = epath.Path(tmp_path)
    for text in ("first start", "second start"):
        signs = Signs(place, process=0)
        signs.doing("work")
        signs.warned(text)
    other = Signs(place, process=1)
    other.doing("work")
    other.warned("of process 1")
    assert [w["text"] for w in read_warnings(place)] == ["first start", "second start"]


def test_a_disk_that_refuses_ends_nothing(tmp_path, clock):
    signs = Signs(epath.Path(tmp_path / "gone" / "away"), process=0)
    signs.warned("w")
    signs.doing("work")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"process": "x"}', "[" * 5000, '{"process": 0, "host": 1, "pid": 2}', "\xff"],
)
def test_a_damaged_sign_is_left_out(tmp_path, text):
    (tmp_path / "alive").mkdir()
    (tmp_path / "alive" / "0.json").write_text(text, encoding="latin-1")
    (tmp_path / "warnings.json").write_text(
        text or json.dumps([{"text": 1}, 3]), encoding="latin-1"
    )
    assert read_signs(epath.Path(tmp_path)) == []
    assert read_warnings(epath.Path(tmp_path)) == []
