"""The console script: no traceback where nobody reads, the version, and one way in."""

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

import polaris_jax
from polaris_jax.__main__ import main

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"]], ids=" ".join)
def test_a_pipe_that_nobody_reads(arguments):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "polaris_jax", *arguments],
        stdout=write_end,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    os.close(write_end)
    assert done.stderr == b""
    assert done.returncode == 1


PIPES = """
import os, sys
from polaris_jax.commands.run import run_command

def closes(stream_is_closed):
    read_end, write_end = os.pipe()
    os.close(read_end)
    if stream_is_closed:
        os.dup2(write_end, 1)
    os.write(write_end, b"x" * 100_000)

sys.exit(run_command(lambda: closes(sys.argv[1] == "stdout")))
"""


@pytest.mark.parametrize("which", ["stdout", "another"])
def test_only_a_closed_output_ends_a_command_without_a_word(which):
    done = subprocess.run(
        [sys.executable, "-c", PIPES, which],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (1, which == "another")
    assert all(line.startswith("error: Broken pipe; ") for line in lines)


def test_an_interrupted_command_does_not_take_the_interpreter_down():
    """XLA's threads may be at work: an orderly exit under them ended in a segmentation fault."""
    text = (
        "import atexit, polaris_jax.__main__ as module\n"
        "module.main = lambda: 130\n"
        "atexit.register(print, 'taken down')\n"
        "print('said')\n"
        "module.entry()"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"said\n", b"")


def test_the_script_is_the_same_way_in():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["polaris"] == "polaris_jax.__main__:entry"


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"polaris_jax {polaris_jax.__version__}\n"


def test_help_says_where_the_config_fields_are(capsys):
    assert main(["--help"]) == 0
    assert "polaris train --help=SECTION" in capsys.readouterr().out


def test_a_command_is_suggested_only_where_one_is_near(capsys):
    assert main(["xyzzy"]) == 2
    error = capsys.readouterr().err
    assert "did you mean" not in error
    assert "there are init, prepare, calibrate" in error
