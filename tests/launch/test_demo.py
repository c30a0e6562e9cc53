"""The demo scripts: their help, the interpreter they take, and the commands in order."""

import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def call(name, *arguments, python, **more):
    return subprocess.run(
        ["bash", str(ROOT / "launch" / name), *arguments],
        env=os.environ | {"POLARIS_PYTHON": str(python)} | more,
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


SCRIPTS = ["demo.sh", "demo_real.sh", "demo_seeds.sh", "tiny.sh"]


@pytest.mark.parametrize("name", [*SCRIPTS, "ablations.sh"])
def test_help_runs_nothing(name, python):
    done = call(name, "--help", python=python)
    assert done.returncode == 0
    assert f"launch/{name} [" in done.stdout
    assert "-m polaris_jax" not in done.stdout


def commands_of(done):
    """(command, config, workdir) of each polaris command that a script has run."""
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("-m polaris")]
    value = re.compile(r"--(?:config|workdir|out)=(\S+)")
    return [(line[2], *(m[1] for word in line if (m := value.fullmatch(word)))) for line in lines]


def test_the_demo_trains_one_base_both_ways(python):
    done = call("demo.sh", "w", "--config.seed=1", python=python)
    assert done.returncode == 0, done.stderr
    plain, polaris = "configs/demo.py:plain", "configs/demo.py:recipe"
    assert commands_of(done) == [
        ("evaluate", "configs/demo.py", "w/base"),
        *((name, polaris, "w/polaris") for name in ("calibrate", "probe", "train", "evaluate")),
        ("report", polaris, "w/polaris"),
        *((name, plain, "w/plain") for name in ("train", "evaluate")),
    ]
    lines = [line for line in done.stdout.splitlines() if line.startswith("-m polaris")]
    assert all("--config.seed=1" in line for line in lines)
    assert all("--config.model.path=w/base/base_model" in line for line in lines[1:])
    tokens = "--config.rollout.total_tokens=launch/demo_result.py tokens w/polaris"
    assert done.stdout.count(tokens) == 2  # plain GRPO samples as many
    assert "launch/demo_result.py w" in done.stdout


def test_the_real_demo_scores_before_and_after(python):
    done = call("demo_real.sh", "w", python=python)
    assert done.returncode == 0, done.stderr
    config = "configs/smollm2_sums.py"
    assert commands_of(done)[:4] == [
        (name, config, "w") for name in ("evaluate", "train", "evaluate", "report")
    ]
    assert "show w/before_responses.jsonl --limit=5" in done.stdout


@pytest.mark.parametrize("more", [(), ("--all",)])
def test_the_ablations_are_every_table(more, python):
    done = call("ablations.sh", "--out", "o", *more, python=python)
    assert done.returncode == 0, done.stderr
    tables = [line.split()[3] for line in done.stdout.splitlines() if "ablate" in line.split()]
    there = {path.stem for path in (ROOT / "configs/ablations").glob("[!_]*.py")}
    named = {pathlib.Path(table).stem for table in tables}
    assert named == there if more else named < there
    assert f"--out=o/{pathlib.Path(tables[0]).stem} --bases=o/bases" in done.stdout
    assert "--out=o/yarn --bases=o/yarn/bases" in done.stdout
    assert done.stdout.splitlines()[-1] == "launch/ablations.py o docs/results"


def test_the_tiny_recipe_runs_every_command_with_that_interpreter(python):
    done = call("tiny.sh", "w", "--config.seed=1", python=python)
    assert done.returncode == 0, done.stderr
    words = [line.split() for line in done.stdout.splitlines()[:-1]]
    assert [line[2] for line in words] == [
        *("prepare", "calibrate", "probe", "evaluate", "train", "evaluate", "report")
    ]
    assert all(line[:2] == ["-m", "polaris_jax"] for line in words)
    assert all("--workdir=w" in line and "--config.seed=1" in line for line in words)


@pytest.mark.parametrize("name", ["base_model", "curated.parquet"])
def test_what_a_kill_left_half_copied_is_copied_again(tmp_path, name):
    """Runs demo_seeds.sh twice; the first is killed while it copies `name`."""
    source, root = tmp_path / "seeds" / "polaris-0", tmp_path / "seeds"
    files = [f"base_model/{part}.safetensors" for part in "ab"] + ["curated.parquet", "probe.json"]
    (source / "base_model").mkdir(parents=True)
    for file in files:
        (source / file).write_text(file)
    # `train` ends the script: what is copied for a seed comes before.
    python, cp = tmp_path / "python", tmp_path / "bin" / "cp"
    cp.parent.mkdir()
    python.write_text(
        "#!/usr/bin/env bash\n[[ ${3:-} != train || $4 != *tiny_cpu* || $5 != */plain* ]]\n"
    )
    cp.write_text(
        "#!/usr/bin/env bash\n"
        f'[[ $2 == */{name} ]] || exec {shutil.which("cp")} "$@"\n'
        'target=$3; [[ $target != */ ]] || target+=$(basename "$2")\n'
        'if [[ -d $2 ]]; then mkdir "$target"; target+=/a.safetensors; fi\n'
        'echo half > "$target"; kill -9 $PPID\n'
    )
    for path in (python, cp):
        path.chmod(0o755)
    path = os.environ["PATH"]
    killed = call("demo_seeds.sh", str(root), python=python, PATH=f"{cp.parent}:{path}")
    assert killed.returncode == -signal.SIGKILL
    assert call("demo_seeds.sh", str(root), python=python).returncode == 1
    for arm, copied in (("plain-0", files[:2]), ("control-0", files)):
        for file in copied:
            assert (root / arm / file).read_text() == file
        assert not list((root / arm).glob("*.part"))


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *((name, "--workdir=w") for name in ("demo.sh", "tiny.sh", "demo_real.sh")),
        *(("demo_seeds.sh", "--seeds=3"), ("ablations.sh", "--seeds=3")),
    ],
)
def test_another_flag_is_refused(name, argument, python):
    done = call(name, argument, python=python)
    assert done.returncode == 2
    assert argument in done.stderr


@pytest.mark.parametrize("name", [*SCRIPTS, "ablations.sh"])
def test_a_missing_interpreter_is_named(name, tmp_path):
    done = call(name, python=tmp_path / "none")
    assert done.returncode == 2
    assert "set POLARIS_PYTHON" in done.stderr
