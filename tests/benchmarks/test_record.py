"""A record comes back from its file, and a ratio that falls is found."""

import dataclasses
import json

import check
import pytest
from peers import record
from peers.record import OURS, Row

OUR_ROW = Row("S1: small", OURS, OURS, "this commit", "float32", "libc", {}, 1.0, 200.0, None, 1)
ROW = dataclasses.replace(
    OUR_ROW,
    side="vllm, blocks of 32",
    system="vllm",
    version="1",
    settings={"block_size": 32},
    tokens_per_s=100.0,
    ratio=2.0,
)
HALF = dataclasses.replace(
    ROW, side="vllm, bfloat16", dtype="bfloat16", tokens_per_s=160.0, ratio=1.25
)
TRIED = dataclasses.replace(ROW, side="vllm, blocks of 128", ratio=None, candidate=True)


def made(*rows: Row) -> record.Record:
    return record.new_record("sampler", threads=2, rows=rows, notes=["a note"])


def test_a_record_comes_back_from_its_file(tmp_path):
    whole = made(OUR_ROW, ROW, TRIED)
    whole.write(tmp_path / "x.json")
    assert record.read(tmp_path / "x.json") == whole


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '{"rows": [{}]}'])
def test_what_is_no_record_is_named(text, tmp_path):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match=r"x\.json: no record of a benchmark"):
        record.read(path)


@pytest.mark.parametrize(
    ("ratio", "words"), [(1.91, ""), (2.4, ""), (1.89, "1.890, 94.5% of the recorded 2.000")]
)
def test_a_ratio_below_95_percent_is_worse(ratio, words):
    tried = dataclasses.replace(TRIED, side=ROW.side)  # the best of a grid is tried, too
    now = made(OUR_ROW, dataclasses.replace(ROW, ratio=ratio), tried)
    lines = record.worse(made(OUR_ROW, ROW, tried), now)
    assert len(lines) == bool(words)
    assert words in "".join(lines)


def test_a_row_that_is_gone_is_worse_and_a_candidate_is_not():
    other_point = dataclasses.replace(ROW, side="another point of the grid", settings={"batch": 1})
    assert record.worse(made(OUR_ROW, ROW), made(OUR_ROW, other_point)) == []
    (line,) = record.worse(made(OUR_ROW, ROW, TRIED), made(OUR_ROW))
    assert "recorded 2.000, not measured now" in line


def test_a_record_is_as_fast_as_itself():
    """Sides of one system that are no points of a grid are compared one by one."""
    forms = [
        dataclasses.replace(
            ROW,
            side=f"{mode}, {batches}",
            system="transformers",
            ratio=ratio,
            settings={"mode": mode, "batches": batches},
        )
        for mode, batches, ratio in (("static", 1, 6.0), ("static", 4, 3.0), ("continuous", 1, 2.0))
    ]
    whole = made(OUR_ROW, *forms, ROW)
    assert record.worse(whole, whole) == []
    slower = dataclasses.replace(forms[1], ratio=1.0)
    (line,) = record.worse(whole, made(OUR_ROW, forms[0], slower, forms[2], ROW))
    assert "static, 4: 1.000" in line


def test_the_table_names_dtype_allocator_and_settings():
    text = "\n".join(record.table(made(OUR_ROW, ROW, TRIED)))
    assert "| vllm, blocks of 32 | 1 | float32 | libc | block_size=32 | 1 | 100 | 2.00 |" in text
    assert "| tried once |" in text
    assert text.endswith("- a note")


def test_the_readme_quotes_the_fastest_side_of_our_dtype_and_of_any():
    (line,) = record.readme_lines(made(OUR_ROW, ROW, HALF, TRIED), "x.json")
    assert line == (
        "| S1: small | 2.00 times vllm, blocks of 32 (float32, libc); 1.25 times vllm, bfloat16 "
        "(bfloat16, libc) | [sampler](x.json) |"
    )


def test_our_rate_over_the_anchors_is_the_median_over_the_turns():
    mine, anchor = check.rows_of(
        "S1",
        [10.0, 20.0, 40.0],
        [100.0, 100.0, 100.0],
        seconds=3.0,
        dtype="bfloat16",
        allocator="libc",
        peak_bytes=9,
    )
    assert mine.dtype == anchor.dtype == "bfloat16"
    assert (mine.ratio, mine.tokens_per_s) == (None, 20.0)
    assert (anchor.side, anchor.ratio) == (record.ANCHOR, 0.2)


def run_check(monkeypatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["check.py", *words])
    try:
        check.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(("ratio", "code"), [(2.0, 0), (1.8, 1)])
def test_two_records_are_compared_without_a_measurement(ratio, code, tmp_path, monkeypatch, capsys):
    made(OUR_ROW, ROW).write(tmp_path / "old.json")
    made(OUR_ROW, dataclasses.replace(ROW, ratio=ratio)).write(tmp_path / "new.json")
    flags = (f"--record={tmp_path / 'old.json'}", f"--new={tmp_path / 'new.json'}")
    assert run_check(monkeypatch, *flags) == code
    assert ("kept: every ratio" in capsys.readouterr().out) == (not code)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--record=nowhere.json",), "nowhere.json: no such record; make one with --write"),
        (("--tiny", "--write"), "--tiny: its figures mean nothing"),
    ],
)
def test_what_cannot_be_compared_is_refused(words, text, monkeypatch, capsys):
    assert run_check(monkeypatch, *words) == 2
    assert text in capsys.readouterr().err


def test_another_processors_record_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "old.json"
    made(OUR_ROW, ROW).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cpu": "an abacus"}))
    assert run_check(monkeypatch, f"--record={path}") == 2
    assert "measured on an abacus" in (said := capsys.readouterr().err)
    assert ", 2 threads, this is " in said


@pytest.mark.parametrize("vectors", ["", "here"])
def test_the_record_of_this_machine_is_found_among_others(vectors, tmp_path, monkeypatch, capsys):
    """One name may stand for processors with other vector units."""
    monkeypatch.setattr(record, "vector_units", lambda: "here")
    monkeypatch.setattr(check, "RECORDS", tmp_path)
    assert run_check(monkeypatch) == 2
    assert "only of no machine; record this machine" in capsys.readouterr().err
    other, own = made(OUR_ROW, ROW), dataclasses.replace(made(OUR_ROW, ROW), vectors=vectors)
    dataclasses.replace(other, vectors="there").write(tmp_path / "a.json")
    new = tmp_path / "new"
    made(OUR_ROW, ROW).write(new)
    assert run_check(monkeypatch, f"--new={new}") == 2
    assert " with there, 2 threads" in capsys.readouterr().err
    own.write(tmp_path / "b.json")
    assert run_check(monkeypatch, f"--new={new}") == 0
    assert "kept: every ratio" in capsys.readouterr().out


def test_the_record_that_names_this_machines_vector_units_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "RECORDS", tmp_path)
    monkeypatch.setattr(record, "vector_units", lambda: "here")
    own = made(OUR_ROW, ROW)
    fast = dataclasses.replace(ROW, ratio=9.0)
    dataclasses.replace(own, vectors="", rows=(OUR_ROW, fast)).write(tmp_path / "a.json")
    own.write(tmp_path / "b.json")
    assert run_check(monkeypatch, f"--new={tmp_path / 'b.json'}") == 0


def test_a_row_that_is_not_recorded_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "RECORDS", tmp_path)
    made(OUR_ROW, ROW).write(tmp_path / "a.json")
    made(OUR_ROW, ROW, HALF).write(tmp_path / "new")
    assert run_check(monkeypatch, f"--new={tmp_path / 'new'}") == 0
    assert "not in the record of" in (said := capsys.readouterr().out)
    assert said.count("S1: small, bfloat16") == 1


def test_a_record_is_written_under_its_machines_name(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "RECORDS", tmp_path)
    found = dataclasses.replace(made(OUR_ROW, ROW), cpu="A (R) CPU", vectors="avx2")
    monkeypatch.setattr(check, "measured", lambda args: found)
    assert run_check(monkeypatch, "--write") == 0
    assert record.read(tmp_path / "a_r_cpu_with_avx2_2_threads.json") == found


@pytest.mark.parametrize(("second", "code"), [(2.0, 0), (1.8, 1)])
def test_a_ratio_that_fell_is_measured_once_more(second, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "RECORDS", tmp_path)
    made(OUR_ROW, ROW, HALF).write(tmp_path / "a.json")
    asked = []

    def measured(args, chosen=None):
        asked.append(chosen)
        if chosen is None:
            return made(OUR_ROW, dataclasses.replace(ROW, ratio=1.0), HALF)
        return made(OUR_ROW, dataclasses.replace(ROW, ratio=second))

    monkeypatch.setattr(check, "measured", measured)
    assert run_check(monkeypatch) == code
    assert asked == [None, {("S1", "float32")}]
    said = capsys.readouterr().out
    assert "1.000, 50.0% of the recorded 2.000" in said.split("measured once more")[0]
    assert ("kept: every ratio" in said) == (not code)


@pytest.mark.parametrize("other", [{"cpu": "an abacus"}, {"threads": 64}], ids=str)
def test_records_of_two_machines_are_not_compared(other, tmp_path, monkeypatch, capsys):
    paths = tmp_path / "old.json", tmp_path / "new.json"
    for path in paths:
        made(OUR_ROW, ROW).write(path)
    paths[1].write_text(json.dumps(json.loads(paths[1].read_text()) | other))
    assert run_check(monkeypatch, f"--record={paths[0]}", f"--new={paths[1]}") == 2
    assert f"{paths[1]} is " in capsys.readouterr().err
