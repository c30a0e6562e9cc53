"""The written config loads, says what was chosen, and no foreign text breaks out of it."""

import dataclasses

import pytest

from polaris_jax.commands.config_file import load_config
from polaris_jax.config import build_config, row_len_tokens
from polaris_jax.guide.choices import Choices, Memory
from polaris_jax.guide.config_text import Names, about_lines, config_text

CHOICES = Choices(
    cpu=True,
    max_prompt_tokens=64,
    budgets=(96, 128),
    mode="eval",
    mode_why="the model has no </think>",
    memory=Memory(2, 4, 16, "enough"),
    prompts_per_step=8,
    steps=20,
    learning_rate=1e-5,
)
NAMES = Names("my.py", "runs/my", "model", "train.jsonl", "test.jsonl", "", "cpu", ())


def built(tmp_path, names=NAMES, choices=CHOICES, target=""):
    file = tmp_path / "my.py"
    file.write_text(config_text(names, choices))
    return build_config(load_config(f"{file}:{target}" if target else str(file)))


@pytest.mark.parametrize("cpu", [True, False], ids=["cpu", "pod"])
@pytest.mark.parametrize("target", ["", "quick"], ids=["run", "quick"])
def test_it_loads(cpu, target, tmp_path):
    config = built(tmp_path, choices=dataclasses.replace(CHOICES, cpu=cpu), target=target)
    assert config.model.path == "model"
    assert config.evaluate.problems == "test.jsonl"
    assert config.rollout.slots == 16
    assert len(config.stages) == 2
    assert config.stages[0].steps == (1 if target else 20)
    assert (config.mesh.context, config.rollout.tensor) == ((1, 1) if cpu else (2, 4))
    if not cpu:  # 64 and 128 tokens, in blocks of the TPU's attention: 2 x 128 a part of a row
        assert row_len_tokens(config) == 512


def test_without_a_probe_the_temperature_is_fixed(tmp_path):
    choices = dataclasses.replace(CHOICES, probes=False)
    assert built(tmp_path).stages[0].temperature_rule == "probe"
    assert built(tmp_path, choices=choices).stages[0].temperature_rule == "fixed"
    assert "polaris probe " in config_text(NAMES, CHOICES)
    assert "polaris probe " not in config_text(NAMES, choices)


def test_another_target_is_refused(tmp_path):
    with pytest.raises(ValueError, match="take quick, or nothing"):
        built(tmp_path, target="slow")


def test_a_reward_function_takes_the_place_of_the_mode(tmp_path):
    config = built(tmp_path, dataclasses.replace(NAMES, reward="r.py:score"))
    assert config.reward.function == "r.py:score"


@pytest.mark.parametrize(
    "text",
    ['a"""\nraise SystemExit\n"""', "it's", 'say "hi"', "back\\slash\\", "\u202egpj", "new\nline"],
    ids=["docstring", "quote", "quotes", "backslash", "direction", "line"],
)
def test_foreign_text_stays_text(text, tmp_path):
    about = about_lines(("data", [text]))
    names = dataclasses.replace(NAMES, model=text, problems=text, evaluate=text, about=about)
    config = built(tmp_path, names)
    assert (config.model.path, config.data.problems) == (text, text)
