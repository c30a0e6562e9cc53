"""Every row has one fate, which depends on the rows and not on their order."""

import collections
import json
import random

import pytest

from polaris_jax.data.prepare.options import RULES
from polaris_jax.data.prepare.output import write_kept, write_rejected
from polaris_jax.data.prepare.pipeline import Preparation
from polaris_jax.data.prepare.reading import count_rows, open_sources
from polaris_jax.data.prepare.summary import summary, table
from polaris_jax.data.prepare.terms import Rules
from polaris_jax.data.problems import problems_digest, read_made_of, read_problems
from polaris_jax.data.sources import DataError, resolve_source
from polaris_jax.records import Problem
from polaris_jax.system.files import epath
from polaris_jax.system.progress import Progress
from tests.support.planted import synthetic_rows

BENCHMARK = Problem(
    "b1", "A train leaves at noon with 120 people and loses 7 at each of 11 stops. How many stay?",
    "43",
)  # fmt: skip


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Closes the files of a test's preparations."""
    opened = []
    begin = Preparation.__init__

    def remember(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        opened.append(self)

    monkeypatch.setattr(Preparation, "__init__", remember)
    yield
    for found in opened:
        found.close()


def prepared(folder, sources, *, rules=RULES, benchmarks=(), most=10**6):
    folder.mkdir()
    found = Preparation(
        open_sources(list(map(str, sources)), rules=frozenset(rules)),
        Rules(True, 0.8, benchmarks, lambda problems: [len(p.problem) for p in problems], most),
        folder=folder,
        progress=Progress(enabled=False),
    )
    found.digest = found.read()
    found.leave_out_repeats()
    found.leave_out_long_prompts()
    found.leave_out_known()
    found.apply_caps()
    found.finish()
    return found


def write(path, rows):
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return path


def row(text, answer="1", **fields):
    return {"problem": text, "answer": answer, **fields}


def fates(found):
    return {r.get("id", r["place"]): r["reason"] for r in found.rejected()}


WORDS = (
    "the quick brown fox jumps over a lazy dog near 12 old trees and counts every leaf twice while "
    "all other animals of this forest sleep under the snow until spring comes back to the valley"
)


def test_each_row_has_one_fate_and_all_are_counted(tmp_path):
    rows = [
        row(f"{WORDS}. How many?", "24", id="kept"),
        row(f" {WORDS.upper()}.  How many?", "24", id="repeat"),
        row(f"{WORDS}, please. How many?", "24", id="near"),
        row(f"{WORDS}, if you like. How many?", "25", id="another answer"),
        row(BENCHMARK.problem.replace("noon", "noon,"), "43", id="known"),
        row("As shown in the figure, find x.", "3", id="image"),
        row("Prove that it is so.", "see proof", id="proof"),
        row("long " * 100, "2", id="long"),
        "{torn\n",
    ]
    found = prepared(
        tmp_path / "f", [write(tmp_path / "a.jsonl", rows)],
        benchmarks=[("bench", [BENCHMARK])], most=400,
    )  # fmt: skip
    assert fates(found) | {"kept": "", "near": "", "repeat": ""} == {
        "kept": "",
        "repeat": "",
        "near": "",
        "known": "in_benchmark",
        "image": "needs_image",
        "proof": "proof",
        "long": "prompt_too_long",
        "a.jsonl:9": "malformed",
    }
    assert collections.Counter(fates(found).values())["duplicate"] == 1
    assert collections.Counter(fates(found).values())["near_duplicate"] == 1
    told = summary(found, 20)
    assert told["rows"] == told["kept"] + sum(told["counts"].values()) == 9
    assert told["sources"]["a"]["counts"] == told["counts"]
    known = next(r for r in found.rejected() if r["reason"] == "in_benchmark")
    assert known["of"]["id"] == "b1"
    assert known["of"]["benchmark"] == "bench"
    assert known["of"]["problem"] == BENCHMARK.problem
    assert any(line.split() == ["near_duplicate", "1"] for line in table(found))


def test_rules_that_are_off_leave_all_rows(tmp_path):
    rows = [row("As shown in the figure, find x.", "3"), row("Prove it.", "see proof")]
    rows += [row(f"{WORDS}. How many?", "24"), row(f"{WORDS}, please. How many?", "24")]
    found = prepared(tmp_path / "f", [write(tmp_path / "a.jsonl", rows)], rules=())
    assert fates(found) == {}


def kept_texts(found):
    return {(p.id, p.problem, str(p.answer)) for p in found.kept()}


def test_another_order_of_rows_and_files_gives_the_same_set(tmp_path):
    rows = list(synthetic_rows(400))
    # Contradictions, an id that is taken, and copies that differ in an id.
    rows += [
        json.dumps(row("Which?", answer, id=f"c{i}")) + "\n" for i, answer in enumerate("1221")
    ]
    rows += [json.dumps(row(f"Other {i}", "5", id="s1")) + "\n" for i in range(3)]
    whole = prepared(
        tmp_path / "0", [write(tmp_path / "all.jsonl", rows)], benchmarks=[("b", [BENCHMARK])]
    )
    random.Random(0).shuffle(rows)
    half = len(rows) // 2
    folder = tmp_path / "all"
    folder.mkdir()
    write(folder / "x.jsonl", rows[:half])
    write(folder / "y.jsonl", rows[half:])
    parts = prepared(tmp_path / "1", [folder], benchmarks=[("b", [BENCHMARK])])
    assert kept_texts(parts) == kept_texts(whole)
    assert parts.counts == whole.counts
    assert len({id for id, *_ in kept_texts(whole)}) == len(kept_texts(whole))
    answers = {answer for _, text, answer in kept_texts(whole) if text == "Which?"}
    assert len(answers) == 1


def test_the_same_bytes_twice_and_in_another_order_of_sources(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        rows = list(synthetic_rows(160))
        random.Random(seed).shuffle(rows)
        write(tmp_path / f"{name}.jsonl", rows[:120])
    sources = [f"{tmp_path / 'a.jsonl'},cap=50", tmp_path / "b.jsonl"]
    written = []
    for number, order in enumerate((sources, sources, sources[::-1])):
        found = prepared(tmp_path / f"f{number}", order)
        write_kept(found, tmp_path / "out.parquet", made_of={"digest": found.digest})
        write_rejected(found, tmp_path / "out.jsonl")
        written.append([(tmp_path / f"out.{e}").read_bytes() for e in ("parquet", "jsonl")])
    assert written[0] == written[1] == written[2]
    assert {p.source for p in found.kept()} == {"a", "b"}
    assert summary(found, 20)["sources"]["a"]["kept"] == 50
    assert summary(found, 20)["counts"]["over_cap"] > 0


def test_the_file_is_one_that_read_problems_reads_and_its_digest_that_of_the_source(tmp_path):
    rows = [
        row("Q1", "1", id="x", level=3),
        row("Q1 ", 1, id="y"),
        row("Q2", ["2", "two"], id="x"),
        {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q3"}],
         "answer": 3.5},
        {"prompt": [{"role": "system", "content": "T"}, {"role": "user", "content": "Q3"}],
         "answer": 4.5},
        {"prompt": [{"role": "system", "content": "U"}, {"role": "user", "content": "Q3"}],
         "answer": 5.5},
        "torn\n",
    ]  # fmt: skip
    path = write(tmp_path / "a.jsonl", rows)
    found = prepared(tmp_path / "f", [path])
    assert found.digest == problems_digest(read_problems(path)[0], extras=True)
    out = tmp_path / "problems.parquet"
    write_kept(found, out, made_of={"name": "a"})
    assert read_problems(out)[0] == list(found.kept())
    assert len({problem.id for problem in found.kept()}) == 5
    assert read_made_of(epath.Path(out)) == {"name": "a"}


def test_a_majority_of_answers_stays(tmp_path):
    rows = [row("Q", answer, id=f"{i}") for i, answer in enumerate(["9", "7", "7"])]
    found = prepared(tmp_path / "f", [write(tmp_path / "a.jsonl", rows)])
    assert [p.answer for p in found.kept()] == ["7"]
    assert summary(found, 20)["counts"] == {"duplicate": 2, "duplicate_with_other_answer": 1}
    (message,) = summary(found, 20)["messages"]
    assert message.startswith("a.jsonl:1: the problem of a.jsonl:")
    assert message.endswith("with another answer, '9', there '7'")


def test_two_sources_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "x.jsonl", [row("Q")])
    texts = [str(tmp_path / folder / "x.jsonl") for folder in "ab"]
    with pytest.raises(DataError, match=r"--source=.*two sources are called 'x'; add ,name="):
        open_sources(texts, rules=frozenset(), field="--source")
    assert len(open_sources([texts[0], f"{texts[1]},name=y"], rules=frozenset())) == 2


def test_columns_of_the_call_are_those_of_sources_without_their_own(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"q": "Q1", "answer": "1"}])
    b = write(tmp_path / "b.jsonl", [{"frage": "Q2", "answer": "2"}])
    sources = open_sources(
        [str(a), f"{b},problem=frage"], rules=frozenset(), columns={"problem": "q"}
    )
    rows = [dict(r.fields) for source in sources for r in source.rows()]
    assert [r["problem"] for r in rows] == ["Q1", "Q2"]


def test_the_number_of_rows_is_known_before(tmp_path):
    path = write(tmp_path / "a.jsonl", [row("Q")] * 7)
    assert count_rows(resolve_source(str(path))) == 7
