"""How held-out problems are asked and graded: by `evaluate`, and by `train` on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polaris_jax.demo.tiny_tokenizer import TURN_END, TURN_START
from tests.support.wiring.lines import PROBED, PROBLEMS, PROMPTS, SCORED, TRAINED, YARN, Micro
from tests.support.wiring.spies import (
    Calls,
    Recorded,
    RopeScaling,
    Scored,
    read_json,
    read_lines,
    run,
)

OPENING = f"{TURN_END}\n{TURN_START}assistant\n"  # of a response's turn, in the prompt

pytestmark = pytest.mark.xdist_group("wiring")  # one worker makes what its tests share


@pytest.fixture(scope="module")
def evaluated(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """`evaluate` without YaRN and with it, at settings that are no defaults."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    fields = {
        "stages[1].rope_factor": 1.0,  # the run's own; an evaluation goes by rope.yarn
        "rope.yarn.factor": 1.25,
        "evaluate.yarn": "both",
        "evaluate.temperature": 0.8,
        "evaluate.top_k": 5,
        "evaluate.top_p": 0.9,
    }
    return Recorded(workdir, run("evaluate", micro.line(fields), workdir))


def test_evaluate_hands_on_how_to_sample(evaluated: Recorded):
    asked = evaluated.calls.asked(SCORED)
    assert len(asked) == 2
    for call in asked:
        assert (call.params.temperature, call.params.top_k, call.params.top_p) == (0.8, 5, 0.9)
        assert (len(call.prompts), call.params.max_tokens) == (3, 16)
    summary = read_json(evaluated.workdir / "eval.json")
    assert (summary["temperature"], summary["top_k"], summary["top_p"]) == (0.8, 5, 0.9)
    assert {call.mode for call in evaluated.calls.of(Scored)} == {"eval"}


def test_evaluate_samples_without_yarn_and_with_it(evaluated: Recorded):
    ropes = [call.rope for call in evaluated.calls.asked(SCORED)]
    assert ropes == [None, RopeScaling(**YARN)]
    assert read_json(evaluated.workdir / "eval.json")["yarn_factor"] == 1.25


@pytest.mark.parametrize(("yarn", "rope"), [("on", RopeScaling(**YARN)), ("off", None)])
def test_evaluate_samples_in_the_one_way_that_it_is_told(
    yarn: str, rope: RopeScaling | None, micro: Micro, tmp_path: Path
):
    fields = {"rope.yarn.factor": 1.25, "evaluate.yarn": yarn}
    calls = run("evaluate", micro.line(fields), tmp_path)
    assert [call.rope for call in calls.asked(SCORED)] == [rope]


def test_a_training_run_is_scored_as_the_config_says(two_stages: Recorded):
    asked = two_stages.calls.asked(SCORED)
    assert [call.params.temperature for call in asked] == [0.7, 0.7, 0.7, 1.3, 1.3]
    # The last stage's budget, in the first one too: scores of all steps can be compared.
    assert [call.params.max_tokens for call in asked] == [16] * 5
    assert {(call.params.top_k, call.params.top_p) for call in asked} == {(7, 0.9)}
    assert len({tuple(call.prompts) for call in asked}) == 1
    assert len({tuple(call.params.seed) for call in asked}) == 1  # and so is their noise


def test_the_held_out_score_is_graded_in_eval_mode(two_stages: Recorded):
    scored = [call for call in two_stages.calls.of(Scored) if call.mode == "eval"]
    assert [len(call.texts) for call in scored] == [3 * SCORED] * 5
    assert not any(OPENING in text for call in scored for text in call.texts)
    lines = read_lines(two_stages.workdir / "metrics.jsonl")
    means = [float(np.mean(call.rewards)) for call in scored]
    assert [line[f"eval/avg@{SCORED}"] for line in lines] == pytest.approx(means)
    assert max(means) > 0


def test_a_budget_of_its_own_holds_for_the_held_out_score(micro: Micro, tmp_path: Path):
    fields = {
        "stages[0].steps": 1,
        "stages[1].steps": 1,
        "stages[1].rope_factor": 1.0,
        "stages[1].temperature_rule": "fixed",
        "evaluate.every_steps": 1,
        "evaluate.max_response_tokens": 12,
    }
    calls = run("train", micro.line(fields), tmp_path)
    assert [call.params.max_tokens for call in calls.asked(TRAINED)] == [12, 16]
    assert [call.params.max_tokens for call in calls.asked(SCORED)] == [12, 12, 12]


def texts(calls: Calls, mode: str) -> list[str]:
    """What was graded in a mode."""
    return [text for call in calls.of(Scored) if call.mode == mode for text in call.texts]


def test_training_is_graded_in_train_mode(two_stages: Recorded):
    graded = texts(two_stages.calls, "train")
    # Four steps, and four measurements of diversity.
    assert len(graded) == 4 * PROMPTS * TRAINED + 4 * PROBLEMS * PROBED
    assert all(text.startswith(OPENING) for text in graded)
