"""`calibrate --compare`: what is read, what is written, and what is refused."""

import json

import pytest
from etils import epath

from polaris_jax.__main__ import main
from polaris_jax.data.problems import write_problems
from polaris_jax.measure.compare_difficulty import read_pass_rates
from polaris_jax.records import Problem

PNG = b"\x89PNG"


def workdir(path, rates, *, tag="", n=None):
    path.mkdir(parents=True, exist_ok=True)
    problems = [Problem(i, f"{i}?", "1", pass_rate=rate) for i, rate in rates.items()]
    write_problems(problems, path / f"{tag}difficulty.parquet")
    if n is not None:
        (path / f"{tag}calibrate.json").write_text(json.dumps({"n": n}))
    return path


def log(path, *steps):
    lines = [{"index": list(step), "score": list(step.values())} for step in steps]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_workdir_against_an_accuracy_log(tmp_path, capsys):
    ours = workdir(tmp_path / "ours", {"1": 0.5, "2": 1.0, "3": None, "4": 0.0}, n=8)
    theirs = log(tmp_path / "log.jsonl", {1: 0.25, 2: 1.0}, {1: 0.75, 9: 0.0})
    with theirs.open("a") as file:
        file.write('{"index": [1, 1], "score": [1.0]}\n')
    out = tmp_path / "out"
    assert main(["calibrate", "--compare", str(ours), str(theirs), "--out", str(out)]) == 0
    found = json.loads((out / "difficulty_compared.json").read_text())
    assert [model["name"] for model in found["models"]] == ["ours", "log"]
    assert [model["n"] for model in found["models"]] == [8, 4]
    assert found["models"][0]["without_pass_rate"] == 1
    assert found["models"][1]["unusable_lines"] == 1
    assert (found["common"], found["means"]) == (2, [0.75, 0.75])
    assert (out / "difficulty_compared.png").read_bytes().startswith(PNG)
    said = capsys.readouterr().out
    assert "ours: 3 problems, 8 rollouts each" in said and "1 without pass rate" in said
    assert "2 problems in common: both solve 2 at least once" in said


def test_rollouts_are_those_of_the_calibration_beside_the_file(tmp_path):
    rates = {"a": 0.5, "b": 0.0}
    folder = workdir(tmp_path / "w", rates, tag="after_", n=16)
    assert read_pass_rates(epath.Path(folder / "after_difficulty.parquet")).n == 16
    (folder / "after_calibrate.json").write_text("{")
    assert read_pass_rates(epath.Path(folder / "after_difficulty.parquet")).n == 2


def test_nothing_in_common_still_has_histograms(tmp_path, capsys):
    a, b = (workdir(tmp_path / name, {f"{name}{i}": i / 4 for i in range(5)}) for name in "ab")
    out = tmp_path / "out"
    assert main(["calibrate", f"--compare={a},{b}", f"--out={out}", "--names=1.5B,7B"]) == 0
    assert "only the histograms compare" in capsys.readouterr().out
    found = json.loads((out / "difficulty_compared.json").read_text())
    assert [model["name"] for model in found["models"]] == ["1.5B", "7B"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["{a}"], "needs two paths"),
        (["{a}", "{a}", "{a}"], "needs two paths"),
        (["{a}", "{tmp}/none"], "there is no such file or directory"),
        (["{a}", "{tmp}"], "has no difficulty.parquet"),
        (["{a}", "{bad}"], "no line of an accuracy log (line 1: "),
        (["{a}", "{empty}"], "no line of an accuracy log; name a workdir"),
        (["{a}", "{text}"], "neither .parquet nor .jsonl"),
        (["{a}", "{a}", "--names=one"], "1 names for 2 paths"),
        (["{a}", "{a}", "--out={text}"], "a file is there"),
        (["{a}", "{a}", "--workdir=x"], "takes no --workdir"),
    ],
)
def test_what_is_no_comparison_is_refused_in_a_line(words, error, tmp_path, capsys):
    places = {"tmp": tmp_path / "tmp", "a": workdir(tmp_path / "a", {"1": 0.5})}
    (tmp_path / "tmp").mkdir()
    for name, text in {"bad": "no JSON\n", "empty": ""}.items():
        places[name] = tmp_path / f"{name}.jsonl"
        places[name].write_text(text)
    places["text"] = tmp_path / "rates.txt"
    places["text"].write_text("0.5")
    assert main(["calibrate", "--compare", *(word.format(**places) for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and error in said and said.count("\n") == 1
