"""What a stage's entry hands on: temperature, moments, rotary scaling, budget."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from etils import epath

from polaris_jax.checkpoint.convert import convert, load_any
from polaris_jax.models import load_config
from tests.support.wiring.lines import PROBED, SCORED, TRAINED, YARN, Micro
from tests.support.wiring.spies import (
    Calls,
    Recorded,
    Rescued,
    RopeScaling,
    Updated,
    base_weights,
    distinct_ngrams,
    read_json,
    run,
    texts_of,
    tokenizer_of,
)

pytestmark = pytest.mark.xdist_group("wiring")  # one worker makes what its tests share


@pytest.fixture(scope="module")
def kept(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Calls:
    """Two stages that differ in rotary scaling alone; moments stay."""
    fields = {
        "stages[0].max_response_tokens": 16,
        "stages[1].steps": 1,
        "stages[1].temperature_rule": "fixed",
        "stages[1].reset_optimizer": False,
    }
    return run("train", micro.line(fields), tmp_path_factory.mktemp("kept") / "run")


def decision(recorded: Recorded, kind: str) -> dict:
    """What stage 1's entry has decided of a kind."""
    entry = read_json(recorded.workdir / "stages.json")[1]
    [found] = [d for d in entry["decisions"] if d["kind"] == kind]
    return found


def test_the_target_diversity_is_that_of_the_stages_start(two_stages: Recorded, micro: Micro):
    [start] = two_stages.calls.until(Updated).asked(PROBED)
    assert start.params.temperature == 1.1
    assert start.weights == base_weights(micro.base)
    target = distinct_ngrams(texts_of(start, tokenizer_of(micro.base)))
    chosen = decision(two_stages, "temperature")
    assert f"target {target:.4f}" in chosen["reason"]
    # By its end the stage has another: the first of the table was measured there.
    at_the_end = chosen["table"][0]
    assert at_the_end["temperature"] == 1.1
    assert f"{at_the_end['diversity']:.4f}" != f"{target:.4f}"


def test_candidates_are_measured_with_what_the_stage_has_learned(two_stages: Recorded):
    first, *candidates = two_stages.calls.asked(PROBED)
    table = decision(two_stages, "temperature")["table"]
    assert [asked.params.temperature for asked in candidates] == [r["temperature"] for r in table]
    learned = two_stages.calls.of(Updated)[1].gave
    assert {asked.weights for asked in candidates} == {learned}
    # The former stage's policy, budget and problems, as its start was measured.
    for asked in candidates:
        assert (asked.prompts, asked.rope) == (first.prompts, first.rope)
        assert asked.params.max_tokens == first.params.max_tokens == 12


def test_the_stage_samples_at_the_chosen_temperature(two_stages: Recorded):
    chosen = decision(two_stages, "temperature")["value"]
    assert chosen > 1.1
    asked = [call.params.temperature for call in two_stages.calls.asked(TRAINED)]
    assert asked == [1.1, 1.1, chosen, chosen]


def test_a_reset_leaves_zero_moments_and_the_weights(two_stages: Recorded):
    first, before, after, last = two_stages.calls.of(Updated)
    assert first.moments == after.moments == (0.0, 0.0)
    assert min(*before.moments, *last.moments) > 0
    assert decision(two_stages, "reset_optimizer")["value"] is True
    assert after.weights == before.gave


def test_without_a_reset_the_moments_stay(kept: Calls):
    _, before, after = kept.of(Updated)
    assert min(after.moments) > 0
    assert after.moments != before.moments
    assert after.weights == before.gave


def test_the_rotary_scaling_reaches_trainer_sampler_and_held_out_score(two_stages: Recorded):
    expected = [None, None, RopeScaling(**YARN), RopeScaling(**YARN)]
    assert [call.rope for call in two_stages.calls.of(Updated)] == expected
    assert [call.rope for call in two_stages.calls.asked(TRAINED)] == expected
    assert [call.rope for call in two_stages.calls.asked(SCORED)] == [None, *expected]


def test_a_checkpoint_is_evaluated_and_exported_under_the_scaling_of_its_stage(
    two_stages: Recorded, micro: Micro, tmp_path: Path
):
    checkpoints, yarn = two_stages.workdir / "checkpoints", RopeScaling(**YARN)
    convert(str(checkpoints), str(tmp_path / "export"), form="hf", dtype="auto")
    assert load_config(tmp_path / "export").rope_scaling == yarn
    assert load_any(epath.Path(checkpoints))[0].config.rope_scaling == yarn
    for own, expected in (("keep", yarn), ("drop", None)):
        fields = {"evaluate.own_rope": own}
        calls = run("evaluate", micro.line(fields), tmp_path / own, f"--checkpoint={checkpoints}")
        assert [call.rope for call in calls.asked(SCORED)] == [expected]


def test_another_rotary_scaling_alone_takes_another_sampler(kept: Calls):
    expected = [None, None, RopeScaling(**YARN)]
    assert [call.rope for call in kept.of(Updated)] == expected
    asked = kept.asked(TRAINED)
    assert [call.rope for call in asked] == expected
    assert asked[0].sampler == asked[1].sampler != asked[2].sampler


def test_the_budget_reaches_sampler_and_rescue(two_stages: Recorded):
    budgets = [12, 12, 16, 16]
    assert [call.params.max_tokens for call in two_stages.calls.asked(TRAINED)] == budgets
    assert [call.max_response_tokens for call in two_stages.calls.of(Rescued)] == budgets


def test_every_rollout_is_of_the_newest_weights(two_stages: Recorded, micro: Micro):
    updates = two_stages.calls.of(Updated)
    learned = [base_weights(micro.base), *(update.gave for update in updates)]
    assert all(a != b for a, b in pairwise(learned))
    assert [call.weights for call in two_stages.calls.asked(TRAINED)] == learned[:-1]
    assert [call.weights for call in two_stages.calls.asked(SCORED)] == learned
