"""When `calibrate` and `probe` may go on with what an earlier call measured."""

import dataclasses

import pytest

from polaris_jax.config import RunConfig
from polaris_jax.measure.calibrate import count_identity
from polaris_jax.measure.probe import row_identity
from polaris_jax.records import Problem

CONFIG = RunConfig()
PROBLEMS = [Problem("a", "1 + 1?", "2"), Problem("b", "2 + 2?", "4")]


def changed(section, **fields) -> RunConfig:
    new = dataclasses.replace(getattr(CONFIG, section), **fields)
    return dataclasses.replace(CONFIG, **{section: new})


@pytest.mark.parametrize("identity", [count_identity, row_identity])
@pytest.mark.parametrize(
    ("section", "fields"),
    [("reward", {"mode": "eval"}), ("model", {"path": "other"}), ("data", {"prompt_suffix": ""})],
    ids=["mode", "model", "suffix"],
)
def test_what_a_reward_depends_on_changes_the_identity(identity, section, fields):
    config = changed(section, **fields)
    assert identity(config, PROBLEMS, max_response_tokens=8) != identity(
        CONFIG, PROBLEMS, max_response_tokens=8
    )


@pytest.mark.parametrize(
    "fields", [{"preset": "aggressive"}, {"batch_prompts": 8}, {"max_response_tokens": 8}]
)
def test_what_is_made_of_the_counts_does_not(fields):
    """Another preset curates the same counts: nothing is sampled again for it."""
    config = changed("calibrate", **fields)
    assert count_identity(config, PROBLEMS, max_response_tokens=8) == count_identity(
        CONFIG, PROBLEMS, max_response_tokens=8
    )


@pytest.mark.parametrize("fields", [{"n": 4}, {"temperature": 1.0}])
def test_n_and_temperature_of_a_calibration_count(fields):
    config = changed("calibrate", **fields)
    assert count_identity(config, PROBLEMS, max_response_tokens=8) != count_identity(
        CONFIG, PROBLEMS, max_response_tokens=8
    )
