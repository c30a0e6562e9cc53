"""`polaris prepare` as a person calls it: several sources, what leaves and why, and mistakes."""

import json

import pytest

from polaris_jax.__main__ import main
from polaris_jax.data.problem_sets import find_training_problems
from polaris_jax.data.problems import problems_digest, read_made_of, read_problems
from polaris_jax.system.files import epath

CONFIG = "--config=configs/tiny_cpu.py"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path):
    plain = [
        {"id": f"a{i}", "problem": f"Start with {i}. Add 1.", "answer": i + 1} for i in range(6)
    ]
    (tmp_path / "b.csv").write_text(
        "frage,loesung\nStart with 7. Add 2.,9\nStart with 3. Add 1.,4\nShow it.,\n"
    )
    write(tmp_path / "bench.jsonl", [{"problem": "Start with 5. Add 1.", "answer": "6"}])
    return write(tmp_path / "a.jsonl", plain)


def run(tmp_path, *more, where="run"):
    return main(["prepare", CONFIG, f"--workdir={tmp_path / where}", *map(str, more)])


def records(tmp_path, where="run"):
    text = (tmp_path / where / "rejected.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_several_sources_benchmarks_and_caps(files, tmp_path, capsys):
    sources = [f"--source={files},cap=2", f"--source={tmp_path / 'b.csv'},problem=frage"]
    more = ["--answer_column=answer", f"--against={tmp_path / 'bench.jsonl'}"]
    sources[1] += ",answer=loesung"
    assert run(tmp_path, *sources, *more) == 0
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "prepare.json").read_text())
    problems = read_problems(tmp_path / "run" / "problems.parquet")[0]
    assert summary["rows"] == summary["kept"] + sum(summary["counts"].values()) == 9
    assert summary["counts"]["malformed"] == 1
    assert summary["counts"]["duplicate"] == 1
    assert summary["counts"]["in_benchmark"] == 1
    assert summary["kept"] == len(problems)
    assert summary["sources"]["a"]["kept"] == 2
    assert all(source["local"] for source in summary["sources"].values())
    assert summary["options"]["drop"] == ["near", "proof", "choice", "image", "answer"]
    assert {problem.source for problem in problems} == {"a", "b"}
    assert [r["source"] for r in records(tmp_path)] == sorted(
        r["source"] for r in records(tmp_path)
    )
    bad = next(r for r in records(tmp_path) if r["reason"] == "malformed")
    assert (bad["source"], bad["place"]) == ("b", "b.csv:4")
    known = next(r for r in records(tmp_path) if r["reason"] == "in_benchmark")
    assert known["of"]["problem"] == "Start with 5. Add 1."
    assert any(line.split() == ["in_benchmark", "1", "0", "1"] for line in out.splitlines())
    assert not (tmp_path / "run" / ".prepare_rows").exists()

    first = (tmp_path / "run" / "problems.parquet").read_bytes()
    assert run(tmp_path, *sources[::-1], *more, where="again") == 0
    assert (tmp_path / "again" / "problems.parquet").read_bytes() == first


def test_train_finds_what_was_prepared_of_data_problems(files, tmp_path):
    """The file records the digest of the source as every command reads it, rules or not."""
    assert run(tmp_path, f"--config.data.problems={files}") == 0
    made_of = read_made_of(epath.Path(tmp_path / "run" / "problems.parquet"))
    assert made_of["digest"] == problems_digest(read_problems(files)[0], extras=True)
    from polaris_jax.config.data import DataSection

    found = find_training_problems(
        DataSection(problems=str(files)), epath.Path(tmp_path / "run"), print, make=list
    )
    assert found.place == "problems.parquet"


def test_a_run_that_began_keeps_its_problems(files, tmp_path, capsys, monkeypatch):
    from polaris_jax.commands import prepare

    assert run(tmp_path, f"--config.data.problems={files}") == 0
    before = (tmp_path / "run" / "problems.parquet").read_bytes()
    monkeypatch.setattr(prepare, "_run_began", lambda _: True)
    assert run(tmp_path, f"--config.data.problems={files}", "--drop=") == 0
    assert "problems.parquet stays: the run in" in capsys.readouterr().out
    assert (tmp_path / "run" / "problems.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--source=none.jsonl"], "--source='none.jsonl': there is no such file"),
        (["--source={a},cap=x"], "cap=x: must be a whole number"),
        (["--source={a}", "--source={a}"], "two sources are called 'a'"),
        (["--source={a}", "--config.data.problems={a}"], "names problems, too"),
        (["--config.data.problems={a}", "--problem_column=q"], "belongs to --source"),
        (["--source={a}", "--drop=near,images"], "--drop=images: no such rule; there are near"),
        (["--source={a}", "--against=nothing"], "--against='nothing': there is no such file"),
        (["--source={a}", "--problem_column=q"], "no problem in it: 6 rows, 6 malformed"),
        (["--source={a}", "--near_similarity=2"], "near_similarity"),
        (["--source={a}", "--pass_rates=0.9:0.1"], "must be two rates in [0, 1], the lower one"),
        (["--source={empty}"], "no problem in it: 0 rows"),
    ],
)
def test_mistakes(files, tmp_path, capsys, more, words):
    (tmp_path / "empty.jsonl").write_text("")
    more = [word.format(a=files, empty=tmp_path / "empty.jsonl") for word in more]
    assert run(tmp_path, *more) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "problems.parquet").exists()


def test_if_every_row_leaves_the_reasons_are_said(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"problem": "Prove that it is so.", "answer": "see proof"}])
    assert run(tmp_path, f"--source={path}") == 2
    assert "every one of 1 rows was left out (1 proof); --drop names" in capsys.readouterr().err
    assert run(tmp_path, f"--source={path}", "--drop=") == 0


def test_a_pass_rate_of_another_model_counts_if_it_is_asked_for_twice(tmp_path):
    """Its column has to be named, and the range; by default it stays an extra column."""
    rows = [{"problem": f"Start with {i}.", "answer": i, "difficulty": f"{i}/8"} for i in range(8)]
    path = write(tmp_path / "p.jsonl", rows)
    assert run(tmp_path, f"--source={path}", "--pass_rates=0.2:0.8") == 0
    problems = read_problems(tmp_path / "run" / "problems.parquet")[0]
    assert [p.pass_rate for p in problems] == [None] * 8
    assert problems[5].extra == {"difficulty": "5/8"}
    assert run(tmp_path, f"--source={path},pass_rate=difficulty", "--pass_rates=0.2:0.8") == 0
    problems = read_problems(tmp_path / "run" / "problems.parquet")[0]
    assert [p.pass_rate for p in problems] == [k / 8 for k in range(2, 7)]
    assert {r["reason"] for r in records(tmp_path)} == {"pass_rate_outside"}
