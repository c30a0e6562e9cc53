"""Warnings about a model and golds that the math grader cannot reward."""

import pytest

from polaris_jax.config.data import DataSection
from polaris_jax.config.sections import RewardSection
from polaris_jax.records import Problem
from polaris_jax.reward.configured import has_tags, warn_of_reward


class Tokenizer:
    """A vocabulary and a chat template."""

    def __init__(self, *words, template=None):
        self.words, self.chat_template = words, template

    def get_vocab(self):
        return dict.fromkeys(self.words, 0)


BARE, TAGGED = Tokenizer("a"), Tokenizer("a", "</think>")


def warnings(tokenizer=BARE, *, reward=None, data=None, golds=("1", "2")):
    said = []
    problems = [Problem(id=str(i), problem="?", answer=gold) for i, gold in enumerate(golds)]
    warn_of_reward(
        reward or RewardSection(), data or DataSection(), tokenizer, problems, said.append
    )
    return said


@pytest.mark.parametrize(
    ("tokenizer", "tags"),
    [
        (BARE, False),
        (TAGGED, True),
        (Tokenizer("a", template="{{ x }}</think>"), True),
        (Tokenizer("a", template={"default": "{{ x }}", "tool": "</think>"}), True),
    ],
    ids=["bare", "vocabulary", "template", "templates"],
)
def test_tags_are_found(tokenizer, tags):
    assert has_tags(tokenizer) is tags


def test_a_model_without_tags_is_warned_of():
    (line,) = warnings()
    assert "set reward.mode=eval" in line


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer": TAGGED},
        {"reward": RewardSection(mode="eval")},
        {"reward": RewardSection(function="a.py:score")},
        {"data": DataSection(prompt_suffix=" Think in <think> tags.")},
        {"data": DataSection(response_prefill="<think>")},
    ],
    ids=["tags", "eval", "own reward", "suffix", "prefill"],
)
def test_others_are_not(settings):
    assert warnings(**settings) == []


def test_golds_in_words_are_warned_of():
    (line,) = warnings(TAGGED, golds=("Paris", "Rome", "3"))
    assert "67% of the golds are words, such as 'Paris'" in line
    assert warnings(TAGGED, golds=("Paris", "2", "3")) == []
    assert warnings(TAGGED, golds=()) == []


def test_golds_that_cannot_be_read_are_warned_of():
    (line,) = warnings(TAGGED, golds=("A proof.\n" * 40, '{"tests": [1]}\nassert f(1)', "3"))
    assert "cannot read 67% of the golds" in line
