"""SECURITY.md: every line about what is not trusted names tests, and they exist."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
UNTRUSTED = PAGE.split("## What is not trusted")[1].split("\n## ")[0]
ROWS = [line for line in UNTRUSTED.splitlines() if line.startswith("|")][2:]


def named_in(row):
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_each_line_names_tests_that_exist(row):
    named = named_in(row)
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file} has no {name}"


def test_the_limits_that_it_states_are_those_of_the_code():
    from polaris_jax.data import prompt_child, prompt_renderer, tables
    from polaris_jax.system import foreign

    stated = {
        "at most 100 levels": foreign.MAX_DEPTH == 100,
        "10 million values": foreign.MAX_VALUES == 10_000_000,
        "at most 16 MiB": foreign.LINE_BYTES == 16 << 20,
        "at most 512 MiB": foreign.ROWS_BYTES == 512 << 20,
        "at most 32 MiB": foreign.INDEX_BYTES == 32 << 20,
        "1 GiB and 8 times": (tables.MEMORY_BYTES >> 30, tables.MEMORY_TIMES) == (1, 8),
        "256 MiB and 200 times": (tables.DECODED_BYTES >> 20, tables.DECODED_TIMES) == (256, 200),
        "20 s a prompt, 8 GiB": (prompt_child.PROMPT_S, prompt_child.MEMORY_BYTES >> 30) == (20, 8),
        "4 million characters": prompt_renderer.MOST_CHARS == 4 << 20,
    }
    assert all(stated.values()), stated
    assert all(words in UNTRUSTED for words in stated)
