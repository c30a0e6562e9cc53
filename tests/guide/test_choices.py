"""What is chosen for a model and its data, and what is refused."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.data.problems import ReadReport
from polaris_jax.guide.choices import (
    BUDGETS,
    Memory,
    Sampled,
    after_sampling,
    choose,
    held_out_count,
    misfits,
    prompt_limit,
    split,
)
from polaris_jax.guide.model_facts import ModelFacts, look_at_model
from polaris_jax.guide.problem_facts import UNREADABLE, ProblemFacts
from polaris_jax.models.presets import preset
from tests.support.stranger import random_qwen3

MEMORY = Memory(1, 1, 32, "enough")
MODEL = ModelFacts("m", preset("qwen3-1.7b"), SimpleNamespace(), True, True, 40_960)
DATA = ProblemFacts(
    source="d",
    problems=(),
    report=ReadReport("d", 100, 100, {}, ()),
    columns=("problem", "answer"),
    lengths=tuple(range(50, 150)),
    kinds={"number": 1.0},
    without_question=0.0,
    example="?",
)


def chosen(model=MODEL, data=DATA, *, cpu=False, most=10**9, problems=1000):
    return choose(
        model,
        data,
        train_problems=problems,
        cpu=cpu,
        memory_for=lambda length: MEMORY if length <= most else None,
    )


def test_the_longest_budget_that_fits_is_taken():
    assert chosen().budgets[-1] == BUDGETS[0]
    assert chosen(most=10_000).budgets[-1] == 8_192
    assert chosen(most=10) is None
    assert chosen(cpu=True).budgets == (512,)


def test_the_context_is_that_of_a_models_own_scaling(tmp_path):
    model = random_qwen3(tmp_path / "model")
    fields = json.loads((model / "config.json").read_text())
    before = look_at_model(str(model)).context_tokens
    assert before == fields["max_position_embeddings"]
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": before}
    (model / "config.json").write_text(json.dumps(fields | {"rope_scaling": yarn}))
    assert look_at_model(str(model)).context_tokens == 4 * before


def test_prompt_and_response_fit_the_context():
    short = dataclasses.replace(MODEL, context_tokens=256)
    found = chosen(short)
    assert found.max_prompt_tokens + found.budgets[-1] <= 256


@pytest.mark.parametrize(("problems", "cpu", "steps"), [(1000, False, 24), (10, True, 20)])
def test_steps_are_some_epochs(problems, cpu, steps):
    assert chosen(problems=problems, cpu=cpu).steps == steps


def test_tags_decide_the_mode():
    assert chosen().mode == "train"
    assert chosen(dataclasses.replace(MODEL, tags=False)).mode == "eval"


def sampled(**fields):
    usual = {
        "responses": 64,
        "correct": 5,
        "ended": 60,
        "with_tags": 60,
        "longest": 40,
        "budget": 256,
    }
    return Sampled(**(usual | fields), lines=())


def test_responses_without_tags_change_the_mode():
    assert after_sampling(chosen(), sampled()).mode == "train"
    assert after_sampling(chosen(), sampled(with_tags=0)).mode == "eval"
    assert after_sampling(chosen(), sampled(ended=2, with_tags=0)).mode == "train"


def test_without_a_correct_response_nothing_is_probed():
    assert after_sampling(chosen(), sampled()).probes
    assert not after_sampling(chosen(), sampled(correct=0)).probes


def test_a_cpu_lowers_a_budget_that_nobody_needs():
    assert after_sampling(chosen(cpu=True), sampled(ended=64)).budgets == (96,)
    assert after_sampling(chosen(cpu=True), sampled(ended=63)).budgets == (512,)
    assert after_sampling(chosen(), sampled(ended=64)).budgets[-1] == BUDGETS[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"without_question": 0.9}, "the prompt does not contain the question"),
        ({"kinds": {UNREADABLE: 1.0}}, "--reward=my_reward.py:score"),
        ({"lengths": (40_950,) * 3}, "leave"),
    ],
    ids=["template", "golds", "context"],
)
def test_a_misfit_names_a_remedy(fields, words):
    (line,) = misfits(MODEL, dataclasses.replace(DATA, **fields), own_reward=False)
    assert words in line


def test_what_fits_is_no_misfit():
    assert misfits(MODEL, DATA, own_reward=False) == []
    code = dataclasses.replace(DATA, kinds={UNREADABLE: 1.0})
    assert misfits(MODEL, code, own_reward=True) == []


def test_one_long_prompt_does_not_take_the_context():
    data = dataclasses.replace(DATA, lengths=(50,) * 99 + (500,))
    assert prompt_limit(data, 40_960) == 512
    assert prompt_limit(data, 256) == 128


@pytest.mark.parametrize(
    ("problems", "asked", "count"),
    [(10, None, 0), (40, None, 8), (500, None, 50), (10_000, None, 100), (40, 0, 0), (40, 20, 20)],
)
def test_held_out(problems, asked, count):
    assert held_out_count(problems, asked) == count
    train, kept = split(problems, count)
    assert len(kept) == count
    assert sorted(train + kept) == list(range(problems))


def test_more_than_half_is_not_held_out():
    with pytest.raises(ConfigError, match="--hold_out=21"):
        held_out_count(40, 21)
