"""Every hostile file ends in one printable line that names it, through the command line.

The table is `tests/support/hostile_files.py`: a new case is one line there.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from polaris_jax.__main__ import main
from polaris_jax.data import prompt_child
from polaris_jax.system.foreign import printable
from tests.support.hostile_files import CASES, SPECIMENS, Hostile, specimen

PROMPT_S = 3.0  # in these tests; prompts of good templates take a thousandth
MOST_S = 30.0


def command(kind: str, place: Path, out: Path) -> list[str]:
    """The command line that reads a specimen of a kind."""
    if kind in ("problems", "table", "document"):
        return [
            "prepare",
            "--config=configs/tiny_cpu.py",
            f"--config.data.problems={place}",
            f"--workdir={out}",
        ]
    if kind == "checkpoint":
        return ["convert", "--from", str(place), "--to", str(out)]
    return ["generate", "--model", str(place), "--prompt", "What is 1+1?", "--max_tokens", "1"]


@pytest.fixture(scope="module")
def specimens(tmp_path_factory):
    """A good specimen of each kind, made once."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = specimen(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


def run(case: Hostile, good: Path, directory: Path) -> int:
    place = directory / good.name
    (shutil.copytree if good.is_dir() else shutil.copy)(good, place)
    case.spoil(place)
    return main(command(case.kind, place, directory / "out"))


@pytest.mark.parametrize("kind", SPECIMENS)
def test_the_good_specimen_is_read(kind, specimens, tmp_path, capfd):
    case = Hostile("good", kind, lambda _: None, "")
    assert run(case, specimens(kind), tmp_path) == 0, capfd.readouterr().err


@pytest.mark.parametrize("case", CASES, ids=lambda case: printable(case.name))
def test_a_hostile_file_is_one_line(case, specimens, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(prompt_child, "PROMPT_S", PROMPT_S)
    monkeypatch.chdir(Path(__file__).parents[1])
    start_s = time.monotonic()
    status = run(case, specimens(case.kind), tmp_path)
    assert time.monotonic() - start_s < MOST_S
    out, error = capfd.readouterr()
    steps = [line for line in error.splitlines(True) if line.startswith("warning: checkpoint ")]
    assert case.kind == "checkpoint" or not steps
    text = out if case.skipped else error
    assert case.names in text, (out, error)
    assert printable(out + error, lines=True) == out + error
    if case.skipped:
        assert status == 0
        return
    line = error.removeprefix("".join(steps))  # a step that is not whole is one warning
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert len(line) < 1000
    # A checkpoint of ours that cannot be read is a failure at run time.
    assert status in ((1, 2) if case.kind == "checkpoint" else (2,))


def test_names_are_unique_and_there_are_many():
    twice = [name for name, count in Counter(case.name for case in CASES).items() if count > 1]
    assert not twice
    assert len(CASES) >= 290
