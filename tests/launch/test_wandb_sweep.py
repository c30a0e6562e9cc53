"""launch/wandb_sweep.*: the settings and the metric are real, and a run gets its own workdir."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from polaris_jax.commands.config_file import check_override, load_config
from polaris_jax.config import build_config
from polaris_jax.metrics.glossary import is_known

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "wandb_sweep.sh"


def test_the_sweep_is_over_settings_of_its_config_and_scores_what_that_writes():
    sweep = yaml.safe_load((ROOT / "launch" / "wandb_sweep.yaml").read_text())
    program, config, args = sweep["command"]
    assert (program, args) == ("${program}", "${args}")
    assert ROOT / sweep["program"] == SCRIPT
    loaded = load_config(config.removeprefix("--config="))
    for name, parameter in sweep["parameters"].items():
        for value in parameter["values"]:
            check_override(loaded, name.removeprefix("config."), str(value))
    evaluate = build_config(loaded).evaluate
    assert evaluate.every_steps
    assert sweep["metric"]["name"] == f"eval/avg@{evaluate.n}" and is_known(
        f"eval/avg@{evaluate.n}"
    )


@pytest.fixture
def launch(tmp_path):
    """Runs the script with a stand-in for the interpreter, which prints its arguments."""
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def run(*words, **environment):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        return subprocess.run(
            [str(SCRIPT), *words],
            env=kept | {"POLARIS_PYTHON": str(python)} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_run_trains_in_a_workdir_of_its_id(launch):
    done = launch("--config=demo:plain", "--config.seed=1", WANDB_RUN_ID="k7", WANDB_SWEEP_ID="s1")
    assert done.stdout.split() == [
        *("-m", "polaris_jax", "train", "--config=demo:plain", "--config.seed=1"),
        "--workdir=workdirs/sweep/k7",
        "--config.metrics.wandb=True",
        "--config.metrics.wandb_group=s1",
    ]


@pytest.mark.parametrize("run_id", ["", "../other"])
def test_no_run_without_an_id_of_its_own(launch, run_id):
    done = launch("--config=demo:plain", WANDB_RUN_ID=run_id)
    assert done.returncode == 2 and "WANDB_RUN_ID" in done.stderr
