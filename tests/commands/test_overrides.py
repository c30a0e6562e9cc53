"""An override of the wrong kind is answered with the rule and an example."""

import pytest

from polaris_jax.commands.config_file import overrides
from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError

TINY = "--config=configs/tiny_cpu.py"


def parsed(*words):
    return parse("train", [TINY, "--workdir=w", *words], doc="").config


@pytest.fixture(autouse=True)
def in_repository(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=x", "seed=x: expected a whole number, like --config.seed=0"),
        ("seed=", "seed=: expected a whole number"),
        ("seed", "seed: needs a value, like --config.seed=0"),
        ("rollout.slots=1.5", "expected a whole number, like --config.rollout.slots=128"),
        (
            "optimizer.learning_rate=abc",
            "expected a number, like --config.optimizer.learning_rate=",
        ),
        ("batch.rescue=maybe", "expected true or false, like --config.batch.rescue=True"),
        (
            "evaluate.length_edges=x",
            "expected whole numbers, with commas between them, like "
            "--config.evaluate.length_edges=(24,40)",
        ),
        (
            "probe.temperatures=x",
            "expected numbers, with commas between them, like "
            "--config.probe.temperatures=(0.6,1.0,1.4)",
        ),
        ("evaluate.budgets=(16,32", "expected whole numbers, with commas between them, like"),
        ("evaluate.budgets=016,032", "expected whole numbers, with commas"),
        ("evaluate.budgets=16,,32", "expected whole numbers, with commas"),
        ("evaluate.budgets=1.5", "expected whole numbers, with commas"),
        ("probe.temperatures=1.2.3,4,5", "expected numbers, with commas between them, like"),
        ("probe.temperatures=0.5,nan,1", "expected numbers, with commas between them, like"),
        ("probe.temperatures=0.5,1e999,1", "expected numbers, with commas between them, like"),
        ("evaluate.length_edges[0]=3", "has no entries; set it whole, like"),
        ("stages=3", "stages is a list; set a field of one entry, like --config.stages[0].steps"),
        ("stages[0]=3", "stages[0] is a section; set a field of it, like --config.stages[0].steps"),
        ("rollout=3", "rollout is a section; set a field of it, like --config.rollout."),
        ("stages[a].steps=0", "no such entry; the number in brackets counts from 0"),
        ("stages.0.temperature=1", "stands in brackets, --config.stages[0].temperature"),
        ("stages[7].steps=3", "no such entry; the config has stages[0] to stages[1]"),
        ("stages[0].step=3", "did you mean stages[0].steps?"),
        ("rollout.slot=3", "did you mean rollout.slots?"),
        ("seed.x=3", "there is no such field"),
    ],
)
def test_the_rule_and_an_example(override, words):
    with pytest.raises(ConfigError) as caught:
        parsed(f"--config.{override}")
    text = str(caught.value)
    assert words in text
    assert override.split("=")[0] in text
    assert "\n" not in text


def test_what_is_right_passes():
    config = parsed(
        "--config.stages[-1].steps=3",
        "--config.evaluate.length_edges=(1, 2)",
        "--config.evaluate.budgets=8,16",
        "--config.probe.temperatures=0.5,1,1.25",
        "--config.optimizer.learning_rate=1",
        "--noconfig.batch.rescue",
        "--config.seed",
        "7",
        "--config.model.path=a=b",
    )
    assert config.stages[1].steps == 3
    assert config.evaluate.length_edges == (1, 2)
    assert config.evaluate.budgets == (8, 16)
    assert config.probe.temperatures == (0.5, 1.0, 1.25)
    assert config.optimizer.learning_rate == 1.0
    assert (config.batch.rescue, config.seed, config.model.path) == (False, 7, "a=b")


@pytest.mark.parametrize(
    ("value", "budgets"),
    [
        ("", ()),
        ("()", ()),
        ("8", (8,)),
        ("8,", (8,)),
        ("[8, 16]", (8, 16)),
        (" ( 8,16 ) ", (8, 16)),
    ],
)
def test_lists_of_numbers(value, budgets):
    assert parsed(f"--config.evaluate.budgets={value}").evaluate.budgets == budgets
    assert parsed("--config.evaluate.budgets", value).evaluate.budgets == budgets
    config = parsed("--config.probe.temperatures=1e-1, .5,+0.9,2.")
    assert config.probe.temperatures == (0.1, 0.5, 0.9, 2.0)


@pytest.mark.parametrize(
    "words",
    [
        ["--config.data.arithmetic.families=trade,ride"],
        ["--config.data.arithmetic.families=(trade, ride)"],
        ["--config.data.arithmetic.families=('trade','ride')"],
        ['--config.data.arithmetic.families=["trade","ride",]'],
        ["--config.data.arithmetic.families", "trade,ride"],
    ],
)
def test_lists_of_texts_need_no_quotes(words):
    assert parsed(*words).data.arithmetic.families == ("trade", "ride")


def test_a_text_of_a_list_may_hold_any_character():
    config = parsed("--config.data.template_args=enable_thinking=false,mode=1")
    assert config.data.template_args == ("enable_thinking=false", "mode=1")
    assert parsed("--config.data.template_args=a=(1)").data.template_args == ("a=(1)",)
    assert parsed("--config.data.template_args=()").data.template_args == ()
    with pytest.raises(ConfigError, match=r"needs a value, like --config.*=\(one,two\)"):
        parsed("--config.data.template_args")


def test_words_behind_two_dashes_are_none():
    assert list(overrides(["--config.seed=1", "--", "--config.seed=2"])) == [(0, "seed", "1")]
