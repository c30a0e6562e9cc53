"""The README's code is the project's own."""

import ast
import pathlib
import re

import pytest

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


@pytest.mark.parametrize(
    ("path", "name"), [("loop.py", "train"), ("step.py", "step"), ("step.py", "collect_rollouts")]
)
def test_the_algorithm_is_shown_as_it_is(path, name):
    assert without_docstring(path, name) in README


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
