"""What a training run writes: the mark of a reward that something beside the answers decided."""

from __future__ import annotations

import json

import pytest

from polaris_jax.config import build_config, default_config
from polaris_jax.reward import Grader
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.outputs import GRADER_STATS, Outputs


@pytest.mark.parametrize(
    ("failure", "repeatable"),
    [
        ("timeouts", False),
        ("crashes", False),
        ("memory", False),
        ("errors", True),
        ("invalid", True),
        ("graded", True),
    ],
)
def test_a_run_says_that_the_machine_decided_a_reward(tmp_path, monkeypatch, failure, repeatable):
    config = build_config(default_config())
    claim = workdir_lib.claim(tmp_path, config)
    outputs = Outputs(tmp_path, config, claim, tokenizer=None)
    with Grader(workers=1) as grader:
        stats = grader.stats()
        assert set(GRADER_STATS) <= stats.keys()
        monkeypatch.setattr(grader, "stats", lambda: stats | {failure: 1})
        outputs.note_grading(grader)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["deterministic"] is repeatable
