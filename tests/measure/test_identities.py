"""When `calibrate` and `probe` may go on with what an earlier call measured."""

import dataclasses
import importlib

import pytest

from polaris_jax.commands.flags import define_policy, parse
from polaris_jax.config import RunConfig
from polaris_jax.measure.calibrate import count_identity
from polaris_jax.measure.probe import row_identity
from polaris_jax.records import Problem
from polaris_jax.system.progress import Progress
from tests.support.micro_run import flags, make_base

CONFIG = RunConfig()
PROBLEMS = [Problem("a", "1 + 1?", "2"), Problem("b", "2 + 2?", "4")]


def changed(section, **fields) -> RunConfig:
    new = dataclasses.replace(getattr(CONFIG, section), **fields)
    return dataclasses.replace(CONFIG, **{section: new})


@pytest.mark.parametrize("identity", [count_identity, row_identity])
@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("reward", {"mode": "eval"}),
        ("reward", {"function": "a.py:f"}),
        ("reward", {"correct_at": 0.5}),
        ("model", {"path": "other"}),
        ("data", {"prompt_suffix": ""}),
    ],
    ids=["mode", "function", "correct_at", "model", "suffix"],
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


@pytest.mark.parametrize("identity", [count_identity, row_identity])
def test_extra_columns_count_if_a_function_may_read_them(identity):
    more = [dataclasses.replace(PROBLEMS[0], extra={"tests": [1]}), PROBLEMS[1]]
    for function, same in (("", True), ("a.py:f", False)):
        config = changed("reward", function=function)
        of_more = identity(config, more, max_response_tokens=8)
        assert (of_more == identity(config, PROBLEMS, max_response_tokens=8)) == same


def test_rows_that_an_earlier_version_left_are_those_of_the_math_grader():
    assert not {"reward.function", "reward.correct_at", "extra"} & set(
        count_identity(CONFIG, PROBLEMS, max_response_tokens=8)
    )


@pytest.mark.parametrize("identity", [count_identity, row_identity])
def test_a_field_as_it_always_was_changes_no_identity(identity):
    """So that the rows of earlier versions, which lack the field, still count."""
    names = identity(CONFIG, PROBLEMS, max_response_tokens=8)
    added = {"data.shots", "data.weighting", "data.arithmetic.families", "warmstart.max_steps"}
    assert not added & set(names)
    weighted = changed("data", weighting="pass_rate")  # changes which prompts, and no response
    assert identity(weighted, PROBLEMS, max_response_tokens=8) == names
    longer = changed("warmstart", max_steps=8)
    assert identity(longer, PROBLEMS, max_response_tokens=8) != names


@pytest.mark.parametrize("identity", [count_identity, row_identity])
def test_worked_examples_count_by_their_text(identity, tmp_path):
    path = tmp_path / "shots.jsonl"
    found = []
    for answer in ("2", "3"):
        path.write_text(f'{{"problem": "1 + 1?", "response": "{answer}"}}\n')
        config = changed("data", shots=str(path))
        found.append(identity(config, PROBLEMS, max_response_tokens=8))
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["calibrate", "probe"])
def test_the_base_is_measured_under_the_scaling_that_training_begins_with(
    name, tmp_path, monkeypatch
):

    class Asked(Exception):
        pass

    def ask(*_, rope_scaling, **__):
        raise Asked(rope_scaling)

    module = importlib.import_module(f"polaris_jax.measure.{name}")
    monkeypatch.setattr(module, "open_policy", ask)
    line = [*flags(*make_base(tmp_path)), f"--workdir={tmp_path / 'run'}"]
    for factor in ("1.0", "1.5"):
        stretch = f"--config.stages[0].rope_factor={factor}"
        asked = parse(name, [*line, stretch], doc="", define=define_policy)
        with pytest.raises(Asked) as caught:
            getattr(module, name)(asked.config, asked.workdir, progress=Progress(enabled=False))
        scaling = caught.value.args[0]
        assert (scaling and scaling.factor) == (None if factor == "1.0" else 1.5)
