"""The README's code is the project's own."""

import ast
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from polaris_jax import loop
from polaris_jax.commands.flags import parse
from polaris_jax.config import build_config
from polaris_jax.data.problem_sets import read_named
from polaris_jax.evaluate.benchmarks import find_held_out_problems
from tests.support import micro_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def without_docstring(path: str, name: str) -> str:
    """A function's source, without its docstring."""
    source = (ROOT / "polaris_jax" / path).read_text()
    lines = source.splitlines()
    (function,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    docstring = function.body[0]
    assert function.end_lineno and docstring.end_lineno
    head = lines[function.lineno - 1 : docstring.lineno - 1]
    return "\n".join([*head, *lines[docstring.end_lineno : function.end_lineno]])


def python_blocks() -> list[str]:
    """The code blocks of the part "From Python": one that trains, one that samples."""
    part = re.search(r"^## From Python\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert part
    return re.findall(r"```python\n(.*?)```", part[1], re.DOTALL)


def results() -> list[tuple[str, str]]:
    """(result, linked file) of each row of the table of results."""
    part = re.search(r"^## Results\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert part
    rows = [line.strip("|").split("|") for line in part[1].splitlines() if line.startswith("| ")]
    links = [re.search(r"\]\((.*?)\)", row[-1]) for row in rows[1:]]
    return [(row[1], link[1]) for row, link in zip(rows[1:], links, strict=True) if link]


def numbers(text: str) -> list[str]:
    """The numbers in a text, as written, without separators of thousands."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    return re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)", text)


def test_the_algorithm_is_shown_as_it_is():
    assert without_docstring("loop.py", "train") in README


def test_it_is_read_in_minutes():
    assert len(README.splitlines()) <= 140


@pytest.mark.parametrize(("result", "path"), results(), ids=[path for _, path in results()])
def test_each_number_of_a_result_is_in_its_file(result, path):
    found = numbers(result)
    assert found
    assert set(found) <= set(numbers((ROOT / path).read_text()))


def test_numbers_that_differ_are_seen():
    assert numbers("1,234.5 tokens, +41.5 points, 83.4% ± 1.8% of h100:8") == [
        "1234.5",
        "41.5",
        "83.4",
        "1.8",
        "8",
    ]


def test_the_training_example_runs(tmp_path):
    base, problems = micro_run.make_base(tmp_path)
    words = [*micro_run.flags(base, problems), f"--workdir={tmp_path / 'run'}"]
    config = dataclasses.asdict(parse("train", words, doc="").config)
    code = python_blocks()[0]
    assert len(code.split("\n\n")[1].splitlines()) <= 4
    for shown, used in (
        ("from configs import polaris_4b\n", ""),
        ('polaris_4b.get_config("h100:8")', "micro_config"),
        ('"problems.jsonl"', repr(str(problems))),
        ('"held_out.jsonl"', repr(str(problems))),
        ("runs/4b", str(tmp_path / "run")),
    ):
        assert shown in code
        code = code.replace(shown, used)
    script = tmp_path / "example.py"
    script.write_text(
        f"import ml_collections\n\nmicro_config = ml_collections.ConfigDict({config!r})\n{code}"
        "assert state.done and state.step == 9\n"
    )
    ran = [
        subprocess.run(
            [sys.executable, script],
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert "finished: 9 steps" in ran[0]
    assert "already complete: 9 steps" in ran[1]


def test_the_training_example_names_what_its_config_reads(tmp_path, monkeypatch):
    """The config that the README shows finds its problems and its held-out problems."""
    _, problems = micro_run.make_base(tmp_path)
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr(loop, "run", lambda config, workdir: taken.append(build_config(config)))
    for name in re.findall(r'"(\w+\.jsonl)"', code := python_blocks()[0]):
        pathlib.Path(name).write_text(problems.read_text())
    exec(code, {})
    (config,) = taken
    assert config.stages[0].max_response_tokens == 39_936  # the 4B recipe's own
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    lines = []
    held_out, _ = find_held_out_problems(config.evaluate, config.data, lines.append, make=list)
    trained_on = read_named(config.data.problems, lines.append)[0]
    assert len(held_out) == len(trained_on) == len(rows)


def test_the_sampling_example_runs(tmp_path, capsys):
    base, _ = micro_run.make_base(tmp_path)
    code = python_blocks()[1]
    for shown, used in (("Qwen/Qwen3-0.6B", str(base)), ("max_tokens=512", "max_tokens=16")):
        assert shown in code
        code = code.replace(shown, used)
    code = code.replace("max_len=1024", "max_len=64").replace("What is 7 times 8?", "Start with 3.")
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["responses"]) == 4
    assert "<think>" in capsys.readouterr().out


def test_train_fits_on_a_screen():
    assert len(without_docstring("loop.py", "train").splitlines()) <= 60


def test_the_tree_names_every_file_and_folder():
    tree = re.search(r"^polaris_jax/\n(.*?)^configs/", README, re.MULTILINE | re.DOTALL)
    assert tree
    named = set(re.findall(r"(?<![\w/(])([a-z_]+(?:\.py|/))(?=\s)", tree[1]))
    package = ROOT / "polaris_jax"
    there = {f"{p.name}/" for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"}
    there |= {p.name for p in package.glob("*.py") if not p.name.startswith("__")}
    assert there <= named
