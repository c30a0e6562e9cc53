"""Worn phrases, which readers had to decode, stay out of the package."""

import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "polaris_jax"
WORN = [
    r"\b(is|are) told\b",
    r"\bso many\b",
    r"\bthe same of\b",
    r"\bReturns (where|when)\b",
    r"\bgo(es)? on\b",
    r"\bwhat there is of\b",
    r"\bas they come\b",
    r"^\s+\w+(, \w+)*: (of|as)\b",  # an argument entry without a noun
]


def worn_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if any(re.search(p, line) for p in WORN)]


def test_the_package_is_free_of_worn_phrases():
    found = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := worn_lines(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "Returns where a run may go on.",
        "it goes on",
        "        path: of the file.",
        "        a, b: as given.",
        "so many rows",
    ],
)
def test_a_worn_phrase_is_seen(line):
    assert worn_lines(line)


@pytest.mark.parametrize("line", ["    of: int", "a goal", "    path: the file.", "options"])
def test_plain_words_are_not(line):
    assert not worn_lines(line)
