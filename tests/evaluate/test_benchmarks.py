"""A benchmark is read whole, in its order, with answers of any type."""

import json

import pytest

from polaris_jax.assemble import evaluation_problems
from polaris_jax.config.data import PROMPT_SUFFIX
from polaris_jax.config.sections import EvaluateSection, RunConfig
from polaris_jax.data.prompts import add_suffix
from polaris_jax.data.sources import DataError
from polaris_jax.evaluate.benchmarks import (
    BENCHMARKS,
    POOLED,
    is_benchmark,
    known_benchmarks,
    read_against,
    read_benchmark,
    texts_digest,
)
from polaris_jax.records import Problem
from polaris_jax.system.files import as_place
from polaris_jax.system.progress import Progress
from tests.fixtures.gold_cases import SIZES, benchmark_rows
from tests.support.original_data import DATA, needs_original


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(index, **fields):
    return {"id": f"b-{index}", "problem": f"Q{index}." + PROMPT_SUFFIX, "answer": "1", **fields}


def test_reads_the_benchmarks_shape(tmp_path):
    rows = [row(0), row(1, answer=142.0), row(2, answer=["1", "2"]), row(3, problem="Q0.")]
    problems = read_benchmark(write(tmp_path / "mine.jsonl", rows))
    assert [p.id for p in problems] == [r["id"] for r in rows], "a repeat must stay"
    assert [p.answer for p in problems] == ["1", 142.0, ["1", "2"], "1"]
    assert add_suffix(problems[0].problem, PROMPT_SUFFIX) == problems[0].problem


def test_a_malformed_row_stops_the_evaluation(tmp_path):
    path = write(tmp_path / "mine.jsonl", [row(0), row(1, answer="")])
    with pytest.raises(DataError, match=r"1 malformed rows \(mine.jsonl:2: answer: is empty\)"):
        read_benchmark(path)


def test_a_known_name_with_another_size_is_refused(tmp_path):
    path = write(tmp_path / "aime24.jsonl", [row(0)])
    with pytest.raises(DataError, match=r"aime24.jsonl': 1 problems, and aime24 has 30; .*mend"):
        read_benchmark(path)


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("aime24.jsonl", [row(i) for i in range(29)], "29 problems, and aime24 has 30"),
        ("aime24.jsonl", [*(row(i) for i in range(29)), row(29, answer="")], "1 malformed rows"),
        ("mine.jsonl", [row(0), row(1, answer="")], None),
    ],
    ids=["a problem less", "a malformed row", "another set"],
)
def test_an_evaluation_reads_a_known_benchmark_whole_and_others_as_they_are(
    tmp_path, name, rows, words
):
    section = EvaluateSection(problems=str(write(tmp_path / name, rows)))
    config, progress = RunConfig(evaluate=section), Progress(enabled=False)
    if words is None:
        assert evaluation_problems(config, progress)[1] == {"malformed": 1}
        return
    with pytest.raises(DataError, match=words):
        evaluation_problems(config, progress)


def test_a_benchmark_by_its_name_is_no_file():
    assert is_benchmark("data/aime24.jsonl")
    assert not is_benchmark("math-ai/aime24") and not is_benchmark("")


@pytest.mark.parametrize("name", SIZES)
def test_a_whole_file_of_a_benchmark(name, tmp_path):
    rows = benchmark_rows(name)
    problems = read_benchmark(write(tmp_path / f"{name}.jsonl", rows))
    assert len(problems) == BENCHMARKS[name].problems == SIZES[name]
    assert BENCHMARKS.keys() == SIZES.keys()
    assert [p.id for p in problems] == [r["id"] for r in rows]
    answers = [r["answer"] for r in rows]
    stripped = [[text.strip() for text in a] if isinstance(a, list) else a for a in answers]
    assert [p.answer for p in problems] == stripped
    texts = [p.problem for p in problems]
    assert len(set(texts)) < len(texts), "a repeat must stay"
    assert [add_suffix(text, PROMPT_SUFFIX) for text in texts] == texts
    rows.append(row(len(rows)))
    with pytest.raises(DataError, match=f"{len(rows)} problems, and {name} has {len(rows) - 1}"):
        read_benchmark(write(tmp_path / f"{name}.jsonl", rows))


@needs_original
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_five_files(name):
    problems = read_benchmark(DATA / "benchmarks" / f"{name}.jsonl")
    assert len(problems) == BENCHMARKS[name].problems
    assert all(add_suffix(p.problem, PROMPT_SUFFIX) == p.problem for p in problems)


def test_a_name_reads_what_the_hub_has(tmp_path, monkeypatch):
    from polaris_jax.data import sources

    write(tmp_path / "train.jsonl", [row(i) for i in range(30)])
    asked = []

    def download(name, *_, **__):
        asked.append(name)
        return as_place(tmp_path)

    monkeypatch.setattr(sources, "download_dataset", download)
    monkeypatch.chdir(tmp_path)
    said = []
    problems = read_benchmark("aime24", say=said.append)
    assert len(problems) == 30
    assert asked == ["HuggingFaceH4/aime_2024"]
    assert "its texts are not those that the recipe evaluated as aime24" in said[0]
    section = EvaluateSection(problems="aime24")
    config, progress = RunConfig(evaluate=section), Progress(enabled=False)
    assert len(evaluation_problems(config, progress)[0]) == 30
    name, against = read_against("aime24", say=said.append)
    assert (name, len(against)) == ("aime24", 30)


def test_other_files_are_read_as_they_are_to_compare_with(tmp_path):
    path = write(tmp_path / "mine.jsonl", [row(0), row(0, id="again"), row(1, answer="")])
    said = []
    name, problems = read_against(f"{path},name=held_out", say=said.append)
    assert (name, len(problems)) == ("held_out", 1)
    with pytest.raises(DataError, match=r"--against=.*none\.jsonl.*no such file"):
        read_against(str(tmp_path / "none.jsonl"), say=said.append)


def test_a_digest_does_not_depend_on_order_suffix_or_macros():
    texts = ["What is $\\frac12$?", "How many?"]
    problems = [Problem(f"{i}", text, "1") for i, text in enumerate(texts)]
    others = [
        Problem("x", "How  many?" + PROMPT_SUFFIX, "2"),
        Problem("y", "What is \\(\\dfrac{1}{2}\\)?", "3"),
    ]
    assert texts_digest(problems) == texts_digest(others)


@needs_original
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_digests_of_the_five_files(name):
    said = []
    read_benchmark(DATA / "benchmarks" / f"{name}.jsonl", say=said.append)
    assert said == []


@pytest.mark.parametrize("field", ["evaluate.problems", "--against"])
def test_a_word_that_is_no_benchmark_names_them(field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"{field}='amc24'.*; give a path, or one of aime24"):
        is_benchmark("amc24", field=field)
    (tmp_path / "amc24").mkdir()
    assert not is_benchmark("amc24", field=field)


def pooled(text):
    return evaluation_problems(
        RunConfig(evaluate=EvaluateSection(problems=text)), Progress(enabled=False)
    )


def test_sets_are_pooled_and_keep_their_names(tmp_path):
    first = write(tmp_path / "first.jsonl", [row(0, level=3), row(1, answer="")])
    second = write(tmp_path / "second.jsonl", [row(0), row(2)])
    problems, left_out = pooled(f"{first}+{second}")
    assert [p.id for p in problems] == ["b-0", "second/b-0", "b-2"]
    assert [p.extra[POOLED] for p in problems] == ["first", "second", "second"]
    assert problems[0].extra["level"] == 3
    assert left_out == {"malformed": 1}
    alone = pooled(f"{second}")[0]
    assert [p.id for p in alone] == ["b-0", "b-2"] and POOLED not in alone[0].extra
    named = pooled(f"{first},name=one+{first},name=two")[0]
    assert [p.id for p in named] == ["b-0", "two/b-0"]


def test_a_file_with_a_plus_in_its_name_is_one_source(tmp_path):
    path = write(tmp_path / "a+b.jsonl", [row(0)])
    assert POOLED not in pooled(str(path))[0][0].extra


def test_sets_that_cannot_be_pooled(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(0)])
    with pytest.raises(DataError, match=r"two sets are named a; name them apart"):
        pooled(f"{path}+{path}")
    with pytest.raises(DataError, match="a source is empty"):
        pooled(f"{path}+")
    with pytest.raises(DataError, match="1 problems, and aime25 has 30"):
        pooled(f"{path}+{write(tmp_path / 'aime25.jsonl', [row(0)])}")


def test_the_known_benchmarks_of_a_source():
    assert known_benchmarks("aime24+data/aime25.jsonl+mine.jsonl") == ["aime24", "aime25"]
    assert known_benchmarks("") == known_benchmarks("mine.jsonl") == []
