"""`polaris grade`: rows in order, resumed where it stopped, and the mistakes one can make."""

import json
from pathlib import Path

import pytest

from polaris_jax.__main__ import main
from polaris_jax.commands import grade as grade_module
from polaris_jax.commands.grade import GradeOptions, grade_file
from polaris_jax.config import ConfigError
from polaris_jax.system.progress import Progress

PAIRS = [("\\boxed{5}", "5"), ("\\boxed{\\frac{2}{4}}", "0.5"), ("\\boxed{6}", "7"), ("none", "1")]
REWARDS = [1.0, 1.0, 0.0, 0.0]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"id": i, "text": text, "gold": gold} for i, (text, gold) in enumerate(PAIRS)]
    return write(tmp_path / "responses.jsonl", rows)


def graded(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def quiet() -> Progress:
    return Progress(enabled=False)


def test_rows_come_in_order_and_say_why(source: Path, tmp_path: Path) -> None:
    summary = grade_file(source, tmp_path / "out.jsonl", GradeOptions(), progress=quiet())
    rows = graded(tmp_path / "out.jsonl")
    assert [row["reward"] for row in rows] == REWARDS
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["layer"] == "exact"
    assert rows[1]["answer"] == "\\frac{2}{4}"
    assert rows[2]["reason"] == "another number"
    assert rows[3]["answer"] is None
    assert (summary.rows, summary.correct) == (4, 2)
    assert "4 rows, 2 correct (50.0%)" in summary.table()


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_rerun_goes_on_after_the_last_whole_row(
    source: Path, tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(grade_module, "BATCH_ROWS", 2)
    grade_file(source, out, GradeOptions(), progress=quiet())
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:cut]) + lines[cut][:9])
    summary = grade_file(source, out, GradeOptions(), progress=quiet())
    assert (summary.resumed, summary.rows, summary.correct) == (cut, 4, 2)
    assert out.read_bytes() == whole


def test_outputs_of_other_settings_are_set_aside_and_taken_back(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    wholes = {}
    for preset in ("default", "strict", "lenient"):
        grade_file(source, out, GradeOptions(preset=preset), progress=Progress())
        wholes[preset] = out.read_bytes()
    told = [line for line in capsys.readouterr().out.splitlines() if "set aside" in line]
    assert [line.split(" aside")[0] for line in told] == ["4 rows of other settings set"] * 2
    asides = [Path(line.split(" as ")[1]).read_bytes() for line in told]
    assert asides == [wholes["default"], wholes["strict"]]
    again = grade_file(source, out, GradeOptions(), progress=quiet())
    assert again.resumed == 4
    assert out.read_bytes() == wholes["default"]


def test_golds_of_a_problem_file_by_id(tmp_path: Path) -> None:
    problems = write(
        tmp_path / "problems.jsonl",
        [{"id": "a", "problem": "1+1?", "answer": "2"}, {"id": "b", "problem": "?", "answer": "3"}],
    )
    rows = [{"problem_id": "b", "text": "\\boxed{3}"}, {"problem_id": "a", "text": "\\boxed{3}"}]
    source = write(tmp_path / "responses.jsonl", [{"identity": {"n": 1}}, *rows])
    out = tmp_path / "out.jsonl"
    grade_file(source, out, GradeOptions(problems=str(problems)), progress=quiet())
    assert [row["reward"] for row in graded(out)] == [1.0, 0.0]


@pytest.mark.parametrize("ids", [("a", "b"), ("a", "a-1a4f21d8c2fa0865")], ids=["text", "id"])
def test_golds_of_problems_that_repeat(ids: tuple[str, str], tmp_path: Path) -> None:
    """`evaluate` keeps a text that occurs twice, `train` renames an id that does."""
    texts = ("1+1?", "1+1?") if ids[1] == "b" else ("1+1?", "1+2?")
    again = "b" if ids[1] == "b" else "a"
    rows = zip(("a", again), texts, ("2", "3"), strict=True)
    problems = write(
        tmp_path / "problems.jsonl",
        [{"id": id, "problem": text, "answer": answer} for id, text, answer in rows],
    )
    responses = [{"problem_id": id, "text": "\\boxed{3}"} for id in ids]
    out = tmp_path / "out.jsonl"
    options = GradeOptions(problems=str(problems))
    grade_file(write(tmp_path / "r.jsonl", responses), out, options, progress=quiet())
    assert [row["reward"] for row in graded(out)] == [0.0, 1.0]


def test_windows_text_is_graded(source: Path, tmp_path: Path) -> None:
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes().replace(b"\n", b"\r\n"))
    grade_file(source, tmp_path / "out.jsonl", GradeOptions(), progress=quiet())
    assert [row["reward"] for row in graded(tmp_path / "out.jsonl")] == REWARDS


def test_the_command_prints_its_table(source: Path, tmp_path: Path, capsys) -> None:
    assert main(["grade", f"--input={source}", f"--out={tmp_path / 'o.jsonl'}"]) == 0
    assert "4 rows, 2 correct" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ([r"\frac{2}{4}", "0.5"], ["exact", "equal"]),
        (["-5", "3"], ["not equal", "another number"]),
        (["5 cm", "5 kg"], ["units differ: cm and kg"]),
    ],
)
def test_explain_prints_the_path(pair: list[str], words: list[str], capsys) -> None:
    assert main(["grade", "--explain", *pair]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON (nested too deeply)"),
        ("[1]", "line 1: list; a row is a JSON object"),
        ('{"text": "x"}', "--gold_field: needed"),
        ('{"text": "x", "problem_id": "a"}', "--problems: needed"),
        ('{"gold": "x"}', "--text_field: needed"),
        ('{"text": 5, "gold": "x"}', "text is int"),
        ('{"text": "x", "gold": "1"}\n{"text": "x"}', "line 2: no field 'gold'"),
    ],
)
def test_bad_rows_are_named(text: str, words: str, tmp_path: Path, capsys) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(text + "\n")
    assert main(["grade", f"--input={source}", f"--out={tmp_path / 'o.jsonl'}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "--input: needed"),
        (["--input=none.jsonl", "--out=o"], "--input=none.jsonl: there is no such file"),
        (["--input=/", "--out=o"], "--input=/: it is a directory; name one file in it"),
        (["--input=S"], "--out: needed"),
        (["--input=S", "--out=S"], "it is the input"),
        (["--input=S", "--out=/none/here/o"], "it lies in no directory that exists; name a file"),
        (["--input=S", "--out=o", "--problems=none"], "--problems=none: there is no such file"),
        (["--input=S", "--out=o", "--mode=both"], "mode"),
        (["--input=S", "--out=o", "--presett=strict"], "did you mean --preset?"),
        (["--input=S", "--out=o", "--workers=0"], "workers"),
        (["--explain", "5"], "needs an answer and a gold"),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(args, words, source: Path, capsys) -> None:
    assert main(["grade", *(arg.replace("=S", f"={source}") for arg in args)]) == 2
    out, error = capsys.readouterr()
    assert words in error
    assert error.count("\n") == 1
    assert "Traceback" not in out + error


@pytest.mark.parametrize("damage", [b'{"id":\n', b"\xff\n", b"5\n", b'{"reward": "x"}\n'])
def test_a_rerun_goes_on_before_the_first_damaged_row(
    source: Path, tmp_path: Path, damage: bytes
) -> None:
    out = tmp_path / "out.jsonl"
    grade_file(source, out, GradeOptions(), progress=quiet())
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join([lines[0], damage, *lines[2:]]))
    summary = grade_file(source, out, GradeOptions(), progress=quiet())
    assert (summary.resumed, summary.rows) == (1, 4)
    assert out.read_bytes() == whole


def test_a_gold_that_is_no_answer_is_named_with_its_line(tmp_path: Path) -> None:
    rows = [{"text": "5", "gold": "5"}, {"text": "5", "gold": {"answer": "5"}}]
    path = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(ConfigError, match=r"line 2: gold: gold=.*of type dict"):
        grade_file(path, tmp_path / "out.jsonl", GradeOptions(), progress=quiet())


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    rows = [{"text": "5", "gold": float("nan"), "seen": [float("inf")]}]
    path = write(tmp_path / "in.jsonl", rows)
    grade_file(path, tmp_path / "out.jsonl", GradeOptions(), progress=quiet())
    row = graded(tmp_path / "out.jsonl")[0]
    assert row["gold"] is None
    assert row["seen"] == [None]


def test_everything_may_lie_in_a_bucket(bucket, capsys) -> None:
    def lines(*rows: dict) -> bytes:
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    bucket.put("bucket/golds.jsonl", lines({"id": "b", "problem": "?", "answer": "3"}))
    right, wrong = [{"problem_id": "b", "text": f"\\boxed{{{i}}}"} for i in (3, 4)]
    bucket.put("bucket/r.jsonl", lines(right, wrong))
    place = "gs://bucket"
    command = ["grade", f"--input={place}/r.jsonl", f"--problems={place}/golds.jsonl"]
    command += [f"--out={place}/new/graded.jsonl", "--workers=1"]
    assert main(command) == 0
    assert "2 rows, 1 correct" in capsys.readouterr().out
    whole = bucket.read("bucket/new/graded.jsonl")
    assert [json.loads(line)["reward"] for line in whole.splitlines()] == [1.0, 0.0]

    bucket.put("bucket/new/graded.jsonl", whole[:-5])
    assert main(command) == 0
    assert "resumed after 1 rows" in capsys.readouterr().out
    assert bucket.read("bucket/new/graded.jsonl") == whole

    assert main([*command, "--preset=strict"]) == 0
    assert f"2 rows of other settings set aside as {place}/new/graded.settings-" in (
        capsys.readouterr().out
    )
    assert main(command) == 0
    assert bucket.read("bucket/new/graded.jsonl") == whole
    assert main([*command, f"--out={place}/r.jsonl"]) == 2
    assert f"--out={place}/r.jsonl: it is the input" in capsys.readouterr().err


def test_the_columns_of_the_input_stay(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "text": r"\boxed{3}", "answer": "3", "reward": 0.5, "tags": ["a"]},
        {"id": 8, "text": r"\boxed{4}", "answer": "3", "reward": 1, "tags": []},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    grade_file(source, tmp_path / "out.jsonl", GradeOptions(), progress=quiet())
    found = graded(tmp_path / "out.jsonl")
    assert [row["reward"] for row in found] == [1.0, 0.0]
    for row, new in zip(rows, found, strict=True):
        assert new["text"] == row["text"] and new["gold"] == row["answer"]
        assert (new["id"], new["tags"]) == (row["id"], row["tags"])
        assert (new["input_reward"], new["input_answer"]) == (row["reward"], row["answer"])


def test_an_audit_lists_the_pairs_on_which_sympy_differs(tmp_path: Path, capsys) -> None:
    pairs = [("1/2", "0.5"), ("0.6666666666666666", "2/3"), ("3", "4"), ("\\text{no}", "5")]
    rows = [{"text": f"\\boxed{{{answer}}}", "gold": gold} for answer, gold in pairs]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = ["grade", f"--input={source}", f"--out={out}", "--audit=sympy", "--workers=1"]
    for _ in range(2):  # the second call reads the finished rows
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert "sympy: agrees on 2, differs on 1, no verdict on 1" in printed
        assert "row 2: '0.6666666666666666' for '2/3': we say equal (rounding)" in printed
    assert [row["sympy"] for row in graded(out)] == [True, False, False, None]
    assert graded(out)[3]["sympy_reason"].startswith("not compared as values")


def test_a_column_named_sympy_is_no_audit(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"text": "\\boxed{1}", "gold": "1", "sympy": "mine"}])
    for _ in range(2):
        summary = grade_file(source, tmp_path / "out.jsonl", GradeOptions(), progress=quiet())
    assert "sympy" not in summary.table()
    assert graded(tmp_path / "out.jsonl")[0]["sympy"] == "mine"
