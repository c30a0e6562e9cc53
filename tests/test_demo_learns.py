"""The demo's shortest form learns, and its controls do not: the end of the whole chain."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.micro_run import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo learns"), pytest.mark.timeout(1800)]

STEPS = 120
# Gain of the held-out score, as a share, from before to after training; chance alone moves a score
# of 128 x 4 responses by one or two points.
LEAST_GAIN, MOST_OF_A_CONTROL = 0.06, 0.025  # plain GRPO gains 0.125 from this base


def polaris(*words):
    """The exit code of a command; on one device, as the demo has."""
    line = [sys.executable, "-m", "polaris_jax", *words]
    return subprocess.run(line, cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}).returncode


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The demo's base model, scored before any training."""
    workdir = tmp_path_factory.mktemp("demo") / "base"
    assert polaris("evaluate", "--config=configs/demo.py", f"--workdir={workdir}") == 0
    return workdir


def score(workdir):
    return json.loads((workdir / "eval.json").read_text())["avg@k"]


def trained(base, workdir, *flags):
    line = [
        "--config=configs/demo.py",
        f"--workdir={workdir}",
        f"--config.model.path={base / 'base_model'}",
        "--config.warmstart.steps=0",
        f"--config.stages[0].steps={STEPS}",
        f"--config.evaluate.every_steps={STEPS}",
        *flags,
    ]
    assert polaris("train", *line) in (0, 1)  # 1: half of a control's steps taught nothing
    assert polaris("evaluate", *line, "--checkpoint=latest") == 0
    return score(workdir)


def test_it_learns(base, tmp_path):
    assert trained(base, tmp_path / "run") - score(base) > LEAST_GAIN


@pytest.mark.parametrize("control", ["permute", "foreign_golds"])
def test_a_control_learns_nothing(control, base, tmp_path):
    gain = trained(base, tmp_path / "run", f"--config.reward.control={control}") - score(base)
    assert gain < MOST_OF_A_CONTROL
