"""The demo scripts: their help, the interpreter they take, and the commands in order."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def call(name, *arguments, python):
    return subprocess.run(
        ["bash", str(ROOT / "launch" / name), *arguments],
        env=os.environ | {"POLARIS_PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def python(tmp_path):
    """A stand-in that prints what it was asked to run."""
    path = tmp_path / "python"
    path.write_text('#!/usr/bin/env bash\necho "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", ["demo.sh", "demo_seeds.sh"])
def test_help_runs_nothing(name, python):
    done = call(name, "--help", python=python)
    assert done.returncode == 0
    assert f"launch/{name} [WORKDIR]" in done.stdout
    assert "-m polaris_jax" not in done.stdout


def test_the_demo_runs_every_command_with_that_interpreter(python):
    done = call("demo.sh", "w", "--config.seed=1", python=python)
    assert done.returncode == 0, done.stderr
    words = [line.split() for line in done.stdout.splitlines()[:-1]]
    assert [line[2] for line in words] == [
        *("prepare", "calibrate", "probe", "evaluate", "train", "evaluate", "report")
    ]
    assert all(line[:2] == ["-m", "polaris_jax"] for line in words)
    assert all("--workdir=w" in line and "--config.seed=1" in line for line in words)


@pytest.mark.parametrize(
    ("name", "argument"), [("demo.sh", "--workdir=w"), ("demo_seeds.sh", "--seeds=3")]
)
def test_another_flag_is_refused(name, argument, python):
    done = call(name, argument, python=python)
    assert done.returncode == 2
    assert argument in done.stderr


@pytest.mark.parametrize("name", ["demo.sh", "demo_seeds.sh"])
def test_a_missing_interpreter_is_named(name, tmp_path):
    done = call(name, python=tmp_path / "none")
    assert done.returncode == 2
    assert "set POLARIS_PYTHON" in done.stderr
