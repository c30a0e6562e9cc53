"""Rows from a function: what it may yield, how it may fail, and that its process ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from polaris_jax.__main__ import main
from polaris_jax.data import function_source
from polaris_jax.data.function_source import function_rows, is_function
from polaris_jax.data.problems import problem_set_hash, read_problems
from polaris_jax.data.sources import DataError
from polaris_jax.records import Problem

ROW = '{"problem": f"What is {i} + 1?", "answer": i + 1, "id": f"p{i}"}'


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes `mine.py` with a function `rows` of this body, and gives its name as a source."""
    monkeypatch.chdir(tmp_path)

    def write(body, head=""):
        text = f"{head}\ndef rows():\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        (tmp_path / "mine.py").write_text(text)
        return f"{tmp_path / 'mine.py'}:rows"

    return write


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mine.py:rows", True),
        ("a dir/mine.py:rows", True),
        ("package.module:rows", True),
        ("module:rows", True),
        ("mine.py", False),
        ("mine.py:", False),
        ("mine.py:two words", False),
        ("gs://bucket/mine.py:rows", False),
        ("owner/name", False),
        ("rows.jsonl", False),
        ("", False),
    ],
)
def test_what_is_written_as_a_function(source, expected):
    assert is_function(source) is expected


def test_rows_are_read_as_those_of_any_source(written, tmp_path):
    source = written(f"for i in range(3): yield {ROW}")
    problems, report = read_problems(source)
    assert [(p.id, p.problem, p.answer) for p in problems] == [
        ("p0", "What is 0 + 1?", 1),
        ("p1", "What is 1 + 1?", 2),
        ("p2", "What is 2 + 1?", 3),
    ]
    assert (report.source, report.rows, report.kept, report.counts) == (source, 3, 3, {})
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            f'{{"id": "p{i}", "problem": "What is {i} + 1?", "answer": {i + 1}}}\n'
            for i in range(3)
        )
    )
    assert problem_set_hash(problems) == problem_set_hash(read_problems(file)[0])


def test_problem_records_a_list_and_a_module_beside_it(written, tmp_path):
    (tmp_path / "beside.py").write_text("TEXTS = ['a?', 'b?']\n")
    source = written(
        "return [Problem(id=t, problem=t, answer=[1, '1.0'], pass_rate=0.5) for t in TEXTS]",
        head="from beside import TEXTS\nfrom polaris_jax.records import Problem",
    )
    assert read_problems(source)[0] == [
        Problem(id=text, problem=text, answer=[1, "1.0"], pass_rate=0.5) for text in ("a?", "b?")
    ]


def test_the_example_of_the_page_is_read(tmp_path, request):
    page = (request.config.rootpath / "docs" / "howto" / "problem_source.md").read_text()
    (tmp_path / "my_problems.py").write_text(page.split("```python")[1].split("```")[0])
    problems, report = read_problems(f"{tmp_path / 'my_problems.py'}:sums")
    assert (report.rows, report.kept) == (1000, len(problems))
    assert problems[0].id == "sum0"


def test_a_function_of_a_package_in_the_present_directory(written, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "sets.py").write_text(f"def rows():\n    i = 0\n    yield {ROW}\n")
    written("pass")
    assert [p.id for p in read_problems("pack.sets:rows")[0]] == ["p0"]


def test_a_malformed_row_is_left_out_and_counted_as_in_a_file(written):
    source = written(f"i = 1\nyield {{'problem': 'no answer'}}\nyield {ROW}")
    problems, report = read_problems(source)
    assert [p.id for p in problems] == ["p1"]
    assert report.counts == {"malformed": 1}
    assert report.messages[0].startswith(f"{source}:row 1: no answer, gold")


def test_what_it_prints_is_no_row_and_nothing_of_it_is_imported_here(written):
    source = written(
        f"for i in range(2):\n    print('hello')\n    os.write(1, b'raw')\n    yield {ROW}",
        head="print('importing')\nimport os",
    )
    assert len(read_problems(source)[0]) == 2
    assert "mine" not in sys.modules
    assert "problem_source" not in sys.modules


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("yield ROW\nraise KeyError('x')", "row 2: KeyError: 'x' (mine.py, line 4); mend"),
        ("yield ROW\nraise SystemExit(3)", "row 2: SystemExit: 3 (mine.py, line 4); mend"),
        ("yield ROW\nyield [1]", "row 2 is a list; yield a dict with a problem and an answer"),
        ("yield ROW | {'x': {1}}", "row 1: TypeError: Object of type set is not JSON"),
        ("return 3", "returned a int; yield rows one by one, or return a list"),
        ("return 'rows'", "returned a str; yield rows"),
        ("import os\nyield ROW\nos._exit(7)", "its process ended with status 7 after row 1"),
        ("import os\nyield ROW\nos.kill(os.getpid(), 9)", "ended with status -9 after row 1"),
        ("yield ROW\nyield ROW | {'x': 'y' * 5000}", "row 2 has over 4,096 bytes; yield shorter"),
        ("while True: yield ROW", "yields more than 9 rows; let it end earlier"),
        ("return []", "no problem in it: 0 rows"),
    ],
)
def test_each_failure_is_one_line_with_function_row_and_remedy(written, monkeypatch, body, words):
    monkeypatch.setattr(function_source, "MAX_ROW_BYTES", 4096)
    monkeypatch.setattr(function_source, "MAX_ROWS", 9)
    source = written(body, head="ROW = {'problem': 'a', 'answer': 1}")
    with pytest.raises(DataError) as caught:
        read_problems(source, field="evaluate.problems", unique=False)
    text = str(caught.value)
    assert text.startswith(f"evaluate.problems={source!r}: ")
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("def rows(): pass", "other", "has no 'other'; name a function that it defines"),
        ("rows = 3", "rows", "has the type int and is not callable"),
        ("import no_such_module", "rows", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def rows(:", "rows", "SyntaxError"),
        ("1 / 0", "rows", "ZeroDivisionError: division by zero (mine.py, line 1); mend it"),
        ("def rows(n): yield", "rows", "row 1: TypeError: rows() missing 1 required"),
    ],
)
def test_a_function_that_cannot_be_called(tmp_path, text, name, words):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(DataError) as caught:
        read_problems(f"{tmp_path / 'mine.py'}:{name}")
    assert words in str(caught.value)


def test_a_file_that_is_missing():
    with pytest.raises(DataError, match=r"there is no file none\.py; check the path"):
        read_problems("none.py:rows")


def test_a_function_that_hangs_is_ended(written, monkeypatch, tmp_path):
    body = f"import os, time\nopen('pid', 'w').write(str(os.getpid()))\ni = 0\nyield {ROW}\n"
    rows = function_rows(written(body + "time.sleep(600)"))
    assert next(rows).fields["id"] == "p0"
    monkeypatch.setattr(function_source, "SILENCE_S", 0.2)
    with pytest.raises(DataError, match=r"gave no row 2 within 0\.2 s; mend it where it hangs"):
        next(rows)
    assert ended(int((tmp_path / "pid").read_text()))


def ended(process: int) -> bool:
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("command", ["prepare", "train"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_it_ends_with_the_command(written, tmp_path, request, command, number):
    body = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\nyield"
    config = request.config.rootpath / "configs" / "tiny_cpu.py"
    line = [f"--config={config}", f"--config.data.problems={written(body)}", "--workdir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "polaris_jax", command, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(request.config.rootpath)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # nohup ignores it
    )
    until = time.monotonic() + 120
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9), said
    assert "Traceback" not in said
    assert ended(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "run" / "problems.parquet").exists()


def test_a_failure_leaves_nothing_behind(written, tmp_path, request, capsys):
    source = written(f"i = 0\nyield {ROW}\nraise ValueError('no more')")
    config = request.config.rootpath / "configs" / "tiny_cpu.py"
    line = [f"--config={config}", f"--config.data.problems={source}", "--workdir=run"]
    assert main(["prepare", *line]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "row 2: ValueError: no more (mine.py, line 5); mend the function" in said.err
    assert not list(tmp_path.glob("run/*.parquet"))
    assert not (tmp_path / "run" / "prepare.json").exists()
