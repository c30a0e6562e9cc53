"""The result of a run in one sentence with its interval, what ran, and how it ended."""

from __future__ import annotations

import json

import pytest
from etils import epath

from polaris_jax.report.result import ending, further_sentence, result_sentence, what_ran
from polaris_jax.report.run_files import read_run
from polaris_jax.run.standing import read_standing, score_text
from tests.support.report.synthetic import RUN, evaluation, write_run

BASE = evaluation(0.36) | {"checkpoint": "base"}


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run")


def files(run_dir):
    return read_run(epath.Path(run_dir))


def put(run_dir, name, value):
    (run_dir / name).write_text(json.dumps(value))


def test_a_gain_with_its_interval(run_dir):
    # 1.96 * 0.019 * sqrt(2) = 0.0527
    assert result_sentence(files(run_dir)) == (
        "Held-out accuracy rose from 36.0% to 68.0%: +32.0 points, 95% interval +26.7 to +37.3 "
        "(avg@8 of 256 problems)."
    )
    assert further_sentence(files(run_dir)).startswith("During training the held-out score went")


@pytest.mark.parametrize(
    ("score", "words"),
    [(0.37, "went from 36.0% to 37.0%"), (0.20, "fell from 36.0% to 20.0%")],
)
def test_what_is_no_gain_is_not_called_one(run_dir, score, words):
    put(run_dir, "eval.json", evaluation(score))
    sentence = result_sentence(files(run_dir))
    assert words in sentence
    assert ("neither a gain nor a loss is shown" in sentence) == (score == 0.37)


def test_scores_of_the_same_problems_are_paired(run_dir):
    scores = {f"p{i}": float(i % 2) for i in range(40)}
    put(run_dir, "before_eval.json", BASE | {"problem_scores": scores})
    better = {name: min(1.0, score + 0.5) for name, score in scores.items()}
    put(run_dir, "eval.json", evaluation(0.68) | {"problem_scores": better})
    assert "+25.0 points, 95% interval" in result_sentence(files(run_dir))
    assert "problems, paired" in result_sentence(files(run_dir))


def test_a_score_alone_has_its_own_interval(run_dir):
    (run_dir / "before_eval.json").unlink()
    put(run_dir, "eval.json", evaluation(0.5) | {"interval": [0.44, 0.57]})
    assert result_sentence(files(run_dir)) == (
        "The model after RL solves 50.0% of 256 held-out problems (95% interval 44.0% to 57.0%; "
        "avg@8)."
    )
    put(run_dir, "eval.json", evaluation(0.5) | {"stderr": None})
    assert "(without an interval; avg@8)" in result_sentence(files(run_dir))


@pytest.mark.parametrize("interval", [None, [1.0, 1.0]])
def test_problems_that_all_agree_give_no_interval(run_dir, interval):
    """Earlier versions gave 100% to 100%."""
    sure = {"stderr": 0.0, "interval": interval}
    put(run_dir, "eval.json", evaluation(1.0) | sure)
    put(run_dir, "before_eval.json", BASE | {"avg@k": 0.0} | sure)
    assert "+100.0 points, without an interval" in result_sentence(files(run_dir))
    (run_dir / "before_eval.json").unlink()
    assert "(without an interval; avg@8)" in result_sentence(files(run_dir))


def test_a_score_that_cannot_be_compared_says_why(run_dir):
    put(run_dir, "eval.json", evaluation(0.68) | {"temperature": 1.3})
    assert "rose" not in result_sentence(files(run_dir))
    assert further_sentence(files(run_dir)) == (
        "The score before RL (36.0%) is not comparable: temperature 1 and 1.3."
    )


def test_without_a_score_the_rewards_stand_and_no_interval(run_dir):
    for name in ("eval.json", "before_eval.json"):
        (run_dir / name).unlink()
    assert "so without an interval" in result_sentence(files(run_dir))
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in x.items() if not k.startswith("eval/")} for x in lines]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in kept))
    sentence = result_sentence(files(run_dir))
    assert "of 48 steps" in sentence and "so there is no interval" in sentence


def test_held_out_scores_at_two_temperatures_say_so(run_dir):
    """As the full-size configs take them: the later stages' temperature is higher."""
    for name in ("eval.json", "before_eval.json"):
        (run_dir / name).unlink()
    config = {"evaluate.temperature": 0.6, "stages[0].evaluate_temperature": 0.0}
    put(run_dir, "run.json", RUN | {"config": config})
    assert "(avg@8), measured" in result_sentence(files(run_dir))
    hotter = config | {"stages[1].evaluate_temperature": 1.2}
    put(run_dir, "run.json", RUN | {"config": hotter})
    assert "(avg@8, at temperatures 0.6 and 1.2), measured" in result_sentence(files(run_dir))
    assert "(at temperatures 0.6 and 1.2)" in score_text(read_standing(epath.Path(run_dir)))
    put(run_dir, "run.json", RUN | {"config": config})
    assert " points)" in score_text(read_standing(epath.Path(run_dir)))


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ((), "The probe suggests temperature 1"),
        (("probe.json",), "Calibration keeps 735 of 768 problems"),
        (("probe.json", "calibrate.json"), "No step of training is recorded here, and no score."),
    ],
)
def test_what_there_is_before_a_training(run_dir, gone, words):
    for name in ("eval.json", "before_eval.json", "metrics.jsonl", *gone):
        (run_dir / name).unlink()
    assert words in result_sentence(files(run_dir))


def test_what_ran_in_words(run_dir):
    config = {
        "batch.rescue": True,
        "batch.substitute": True,
        "model.path": "runs/base",
        "rollout.prompts_per_step": 32,
        "rollout.responses_per_prompt": 8,
        "stages[0].steps": 24,
        "stages[1].steps": 30,
    }
    start = {"time": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T02:05:00+00:00"}
    facts = {"counts": {"sampled_tokens": 1234567}, "devices": {"cpu": 1}, "starts": [start]}
    put(run_dir, "run.json", RUN | {"config": config} | facts)
    text = what_ran(files(run_dir))
    for words in (
        "GRPO with rescue and substitution trained runs/base for 48 steps of at most 54 in 2 stag",
        "32 prompts x 8 responses a step; temperature 1 then 1.1, responses of up to 72 then 96",
        "1,234,567 tokens sampled.",
        "1 CPU device, commit abc1234, polaris_jax 0.1.0, jax 0.10.2, begun 2026-01-01 00:00 UTC",
        "2 h 05 min in all.",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("starts", "kind", "words"),
    [
        ([{"ended": "finished"}], "good", "The run finished."),
        ([{"ended": "failed: OSError: disk"}], "bad", "The run failed: OSError: disk"),
        ([{"ended": "stopped by SIGTERM"}], "open", "was stopped by SIGTERM"),
        ([{"ended": "finished"}, {}], "open", "records no end"),
        ([{}], "good", "last stage is complete"),
    ],
    ids=["finished", "failed", "stopped", "killed", "old"],
)
def test_how_it_ended(run_dir, starts, kind, words):
    put(run_dir, "run.json", RUN | {"starts": starts})
    found = ending(files(run_dir))
    assert found.kind == kind and words in found.text
