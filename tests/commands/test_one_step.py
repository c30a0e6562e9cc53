"""One step of training from the command line on: what `make test-quick` sees of a run."""

import json

import numpy as np

from polaris_jax.metrics.glossary import is_known
from polaris_jax.models import load_pretrained
from tests.support.micro_run import ROOT, final_leaves, finish, flags, make_base, start_train

# The tiny configuration with its first stage alone.
CONFIG = """
from polaris_jax.commands.config_file import load_config

def get_config():
    config = load_config({tiny!r})
    config.stages = config.stages[:1]
    return config
"""


def test_one_step_samples_grades_updates_and_saves(tmp_path):
    config, workdir = tmp_path / "one_stage.py", tmp_path / "run"
    config.write_text(CONFIG.format(tiny=str(ROOT / "configs" / "tiny_cpu.py")))
    base, problems = make_base(tmp_path)
    micro = [flag for flag in flags(base, problems)[1:] if "stages[1]" not in flag]
    line = [f"--config={config}", *micro, "--config.stages[0].steps=1"]
    out = finish(start_train(workdir, line))
    assert "finished: 1 steps" in out

    (metrics,) = (json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines())
    (timing,) = (json.loads(text) for text in (workdir / "timing.jsonl").read_text().splitlines())
    assert [name for name in (*metrics, *timing) if not is_known(name)] == []
    assert 0 < metrics["rollout/reward_mean"] < 1
    assert metrics["batch/informative_groups"] > 0
    assert metrics["rollout/logp_gap_max"] < 1e-4
    assert metrics["update/skipped"] == 0 < metrics["update/grad_norm"]
    assert np.isclose(metrics["update/ratio_mean"], 1, atol=1e-4)  # the step was on policy
    before, after = load_pretrained(base)[0].params(), final_leaves(workdir)
    moved = [np.abs(after[f"params/{name}"] - value).max() for name, value in before.items()]
    assert min(moved) > 0 and max(moved) < 0.01  # learning rate 3e-3, the first step of Adam
