"""`probe --compare`: several probes in one figure, also of earlier versions."""

import json

import pytest

from polaris_jax.__main__ import main
from polaris_jax.report.figures import zone_spans

OLD = {  # as versions before the sweep's further columns left it
    "temperatures": [0.4, 0.8, 1.2],
    "accuracies": [0.4, 0.5, 0.1],
    "stderrs": [0.01, None, 0.02],
    "diversities": [0.2, 0.3, 0.6],
    "n": 32,
    "problems": 64,
    "initial_temperature": 0.8,
}
NEW = OLD | {
    "diversity_stderrs": [0.01, 0.01, None],
    "entropies": [0.1, 0.3, None],
    "problem_set": "ab",
    "initial_temperature": None,
}


@pytest.fixture
def places(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "probe.json").write_text(json.dumps(OLD))
    (tmp_path / "stage1_probe.json").write_text(json.dumps(NEW))
    return [str(tmp_path / "old"), str(tmp_path / "stage1_probe.json")]


def test_a_workdir_and_a_file(places, tmp_path, capsys):
    assert main(["probe", "--compare", *places, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "probes_compared.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "old: 3 temperatures, best accuracy 50.0%, suggested temperature 0.8" in said
    assert f"{tmp_path.name} stage1: " in said and "suggested temperature none" in said
    assert "warning" not in said


def test_the_zones_of_each_are_said_and_drawn(places, tmp_path, capsys):
    labels = ["rgz", "rgz", "pcz"]
    (tmp_path / "after_probe.json").write_text(json.dumps(NEW | {"zones": {"labels": labels}}))
    drawn = tmp_path / "probes_compared.png"
    assert main(["probe", "--compare", *places, "--out", str(tmp_path)]) == 0
    without = drawn.read_bytes()
    line = ["probe", "--compare", places[0], str(tmp_path / "after_probe.json")]
    assert main([*line, f"--out={tmp_path}", "--names=before,after"]) == 0
    said = capsys.readouterr().out
    assert "before: 3 temperatures, best accuracy 50.0%, suggested temperature 0.8\n" in said
    assert "suggested temperature none; rgz 0.4 to 0.8, pcz 1.2\n" in said
    assert drawn.read_bytes() != without


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        (["cold", "rgz", "rgz", "pcz"], [(0.2, 0.6, "cold"), (0.6, 1.2, "rgz"), (1.2, 1.6, "pcz")]),
        (["rgz", "cez", "rgz", "rgz"], [(0.2, 0.6, "rgz"), (0.6, 0.9, "cez"), (0.9, 1.6, "rgz")]),
        (["rgz"], []),
        (None, []),
    ],
    ids=["zones", "one twice", "too few labels", "no zones"],
)
def test_zones_end_halfway_between_two_temperatures(labels, spans):
    found = {"temperatures": [0.4, 0.8, 1.0, 1.4], "zones": labels and {"labels": labels}}
    assert [(*map(pytest.approx, ends), zone) for *ends, zone in zone_spans(found)] == spans


def test_other_samples_are_warned_of(places, tmp_path, capsys):
    (tmp_path / "other.json").write_text(json.dumps(NEW | {"n": 8, "problem_set": "cd"}))
    line = ["probe", "--compare", *places, str(tmp_path / "other.json")]
    assert main([*line, f"--out={tmp_path}", "--names=a,b,c"]) == 0
    said = capsys.readouterr().out
    assert "warning: n differs (a 32, b 32, c 8)" in said
    assert "warning: problem_set differs (a None, b ab, c cd)" in said


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", "Expecting"),
        ("[]", "expected an object"),
        ("{}", "no field 'temperatures'"),
        (json.dumps(OLD | {"accuracies": [0.1]}), "of different lengths"),
        (json.dumps({**OLD, "temperatures": [], "accuracies": [], "diversities": []}), "empty"),
        (json.dumps(OLD | {"diversities": [None, 0.1, 0.2]}), "a diversity is null"),
        (json.dumps(OLD | {"temperatures": ["1", "2", "3"]}), "expected int or float"),
    ],
)
def test_what_is_no_probe_is_refused(content, error, places, tmp_path, capsys):
    (tmp_path / "probe.json").write_text(content)
    assert main(["probe", "--compare", places[0], str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert error in said
