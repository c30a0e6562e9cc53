"""What a planner knows without compiling: least bytes, and what links need; nothing is compiled."""

import dataclasses

import jax
import pytest

from polaris_jax.config import (
    BatchSection,
    MeshSection,
    ModelSection,
    ObjectiveSection,
    OptimizerSection,
    RunConfig,
    StageSection,
)
from polaris_jax.plan.compile import update_set
from polaris_jax.plan.hlo import link_s, program_traffic
from polaris_jax.plan.job import Setting, make_job
from polaris_jax.plan.planner import Planner
from polaris_jax.plan.topologies import CHIPS, parse_topology

CONFIG = dataclasses.replace(
    RunConfig(),
    model=ModelSection(path="Qwen/Qwen3-4B"),
    stages=(StageSection(max_response_tokens=1000),),
)
SETTING = Setting(MeshSection(fsdp=8), rows=8, sampler_tensor=2)


def make_planner(**sections):
    config = dataclasses.replace(CONFIG, **sections)
    job = make_job(config, stage=None, mean_response_tokens=0)
    return Planner(job, parse_topology("cpu:8"), range(8), CHIPS["h100"])


@pytest.mark.parametrize(
    ("sections", "bytes_a_parameter"),
    [
        pytest.param({}, 16, id="float32 moments"),
        pytest.param({"optimizer": OptimizerSection(moment_dtype="bfloat16")}, 12, id="bfloat16"),
        pytest.param({"optimizer": OptimizerSection(moments_in_host_memory=True)}, 8, id="on host"),
        pytest.param({"objective": ObjectiveSection(kl_coef=0.1)}, 20, id="a reference"),
    ],
)
def test_least_bytes_follow_the_moments_and_the_reference(sections, bytes_a_parameter):
    planner = make_planner(**sections)
    sampler = 2 / 2  # bfloat16 over two devices
    want = planner.job.model.num_parameters * (bytes_a_parameter / 8 + sampler)
    assert planner.least_bytes(SETTING) == pytest.approx(want)


@pytest.mark.parametrize(("kl_coef", "share"), [(0.0, 0), (0.1, 1)])
def test_the_reference_of_a_kl_term_is_as_large_as_the_weights(kl_coef, share):
    planner = make_planner(objective=ObjectiveSection(kl_coef=kl_coef))
    made = update_set(planner.job, SETTING, jax.devices()[:8])
    assert made.reference_bytes == share * made.params_bytes


@pytest.mark.parametrize(("asked", "shares"), [("auto", True), ("off", False)])
def test_the_update_is_planned_with_the_arrays_that_a_run_gives_it(asked, shares):
    """`auto` on CPUs, whose attention takes branches."""
    planner = make_planner(batch=BatchSection(share_prompts=asked))
    made = update_set(planner.job, SETTING, jax.devices()[:8])
    assert made.shares_prompts == shares
    arrays = made.accumulate.args[2]
    assert ("branch_BT" in arrays) == shares
    assert not shares or arrays["branch_BT"] == arrays["segment_BT"]  # shape, dtype, sharding


@pytest.mark.parametrize(
    ("groups", "chip", "speed"),
    [
        pytest.param("[2,8]<=[16]", "h100", "link_bytes_per_s", id="within a host"),
        pytest.param("[8,2]<=[2,8]T(1,0)", "h100", "far_link_bytes_per_s", id="two, a host apart"),
        pytest.param("{{0,1},{7,8}}", "h100", "far_link_bytes_per_s", id="neighbours on two hosts"),
        pytest.param("{{4,7},{8,15}}", "h100", "link_bytes_per_s", id="far apart on one host"),
        pytest.param("[1,16]<=[16]", "h100", "far_link_bytes_per_s", id="over both hosts"),
        pytest.param("[8,2]<=[2,8]T(1,0)", "v5p", "link_bytes_per_s", id="no hosts"),
    ],
)
def test_a_group_leaves_its_host_by_the_numbers_of_its_devices(groups, chip, speed):
    text = f"""
ENTRY %main (p: f32[100]) -> f32[100] {{
  %p = f32[100]{{0}} parameter(0)
  ROOT %c = f32[100]{{0}} collective-broadcast(%p), channel_id=1, replica_groups={groups}
}}
"""
    chip = CHIPS[chip]
    traffic = program_traffic(text, devices=16, host_devices=chip.near)
    assert link_s(traffic, chip) == pytest.approx(400 / getattr(chip, speed))
