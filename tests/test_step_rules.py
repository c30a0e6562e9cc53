"""The rules that end a run whose numbers cannot be trusted."""

import collections
import json
import math
import types
from typing import Any

import pytest

from polaris_jax.config import CheckpointSection, build_config, default_config
from polaris_jax.metrics import Mean
from polaris_jax.metrics.writer import reduce_metrics
from polaris_jax.run.step_clock import StepClock, beyond_grace
from polaris_jax.stages.guards import check_health
from tests.support.micro_run import flags, make_base, start_train


def config(*, gate: float = 0.0, max_skips: int = 3):
    tree = default_config()
    tree.rollout.max_logp_gap_mean = gate
    tree.optimizer.max_skips = max_skips
    return build_config(tree)


def test_a_gap_above_the_gate_ends_the_run_and_one_below_does_not():
    check_health(4, 0, {"rollout/logp_gap_mean": 0.019}, config(gate=0.02))
    words = r"step 4: rollout/logp_gap_mean=0.021 nats exceeds rollout.max_logp_gap_mean=0.02"
    with pytest.raises(RuntimeError, match=words):
        check_health(4, 0, {"rollout/logp_gap_mean": 0.021}, config(gate=0.02))


@pytest.mark.parametrize("metrics", [{}, {"rollout/logp_gap_mean": None}])
def test_a_step_without_fresh_tokens_has_no_gap_to_judge(metrics):
    check_health(0, 0, metrics, config(gate=1e-9))


def test_without_a_gate_no_gap_is_too_large():
    check_health(0, 0, {"rollout/logp_gap_mean": 5.0}, config(gate=0.0))
    for gap in (math.nan, math.inf):
        line = reduce_metrics({"rollout/logp_gap_mean": Mean(gap, 1.0)})
        with pytest.raises(RuntimeError, match="step 4: rollout/logp_gap_mean is not finite"):
            check_health(4, 0, line, config(gate=0.02))
        check_health(4, 0, line, config(gate=0.0))


def test_with_8_bit_keys_and_values_there_always_is_a_gate():
    tree = default_config()
    tree.rollout.kv_dtype, tree.objective.old_logprobs = "int8", "sampler"
    check_health(0, 0, {"rollout/logp_gap_mean": 0.09}, build_config(tree))
    words = "logp_gap_mean=0.11 .*max_logp_gap_mean=0.1: .*kv_dtype=int8 rounds it, auto does not"
    with pytest.raises(RuntimeError, match=words):
        check_health(0, 0, {"rollout/logp_gap_mean": 0.11}, build_config(tree))
    tree.rollout.max_logp_gap_mean = 0.02
    with pytest.raises(RuntimeError, match=r"exceeds rollout\.max_logp_gap_mean=0\.02"):
        check_health(0, 0, {"rollout/logp_gap_mean": 0.03}, build_config(tree))


def test_updates_skipped_in_a_row_end_the_run():
    check_health(7, 2, {}, config())
    with pytest.raises(RuntimeError, match="step 7: 3 updates in a row had a non-finite gradient"):
        check_health(7, 3, {}, config())


@pytest.mark.slow
def test_the_gate_fires_in_a_run(tmp_path):
    """Rounding alone is above this gate: the first step is the last, and it is written."""
    base, problems = make_base(tmp_path)
    gate = "--config.rollout.max_logp_gap_mean=1e-12"
    process = start_train(tmp_path / "run", flags(base, problems, gate))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1, out
    assert "Traceback" not in out
    assert "exceeds rollout.max_logp_gap_mean=1e-12: the sampler's policy is not" in out
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0]
    assert 1e-12 < lines[0]["rollout/logp_gap_mean"] < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_with_8_bit_keys_and_values_measures_its_gap_and_is_bound_to_them(tmp_path):
    base, problems = make_base(tmp_path)
    settings = (
        "--config.objective.old_logprobs=sampler",
        "--config.rollout.max_logp_gap_mean=1e-5",
    )
    run = tmp_path / "run"
    eight = "--config.rollout.kv_dtype=int8"
    process = start_train(run, flags(base, problems, *settings, eight))
    out, _ = process.communicate(timeout=1000)
    assert process.returncode == 1, out
    assert "does not read keys and values of rollout.kv_dtype='int8'" in out
    assert "policy is not the trainer's; rollout.kv_dtype=int8 rounds it, auto does not" in out
    (line,) = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert 1e-5 < line["rollout/logp_gap_mean"] < 0.1

    process = start_train(run, flags(base, problems, *settings))
    out, _ = process.communicate(timeout=1000)
    assert process.returncode == 2 and "rollout.kv_dtype" in out, out


@pytest.mark.parametrize(("update_s", "save_s", "told"), [(20.0, 5.0, False), (20.0, 5.1, True)])
def test_an_update_that_outlasts_the_grace_is_told(update_s, save_s, told):
    line = {"time/update_s": update_s, "time/save_s": save_s, "time/rollout_s": 1000.0}
    text = beyond_grace(line, CheckpointSection(grace_s=25.0, every_steps=7))
    assert bool(text) == told
    assert not told or ("checkpoint.grace_s=25" in text and "checkpoint.every_steps=7" in text)


def test_a_run_is_told_once_and_not_of_the_step_that_compiles():
    clock, section = StepClock(), CheckpointSection(grace_s=25.0)
    stats = collections.defaultdict(float)
    sampler = types.SimpleNamespace(stats=lambda: stats, reset_stats=lambda: None)
    grader = types.SimpleNamespace(stats=dict)
    told = []
    for _ in range(4):
        line = clock.line(sampler, grader, devices=[])
        told.append(bool(clock.grace_warning(line | {"time/update_s": 30.0}, section)))
    assert told == [False, True, False, False]


def test_what_an_entry_has_probed_is_no_steps():
    clock, stats = StepClock(), collections.defaultdict(float, response_tokens=64.0)
    sampler: Any = types.SimpleNamespace(stats=lambda: stats, reset_stats=stats.clear)
    graded = {"graded": 16}
    grader: Any = types.SimpleNamespace(stats=lambda: graded)
    clock.begin_stage(sampler, grader)
    graded["graded"] += 24
    line = clock.line(sampler, grader, devices=[])
    assert line["reward/graded"] == 24
    assert not stats["response_tokens"]


def test_a_step_without_an_update_needs_no_grace():
    assert beyond_grace({}, CheckpointSection()) == ""
