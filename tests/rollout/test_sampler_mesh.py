"""The sampler on eight devices, split over data and tensor, gives the tokens of one device."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from polaris_jax.config import ConfigError
from polaris_jax.models import Decoder
from polaris_jax.records import Response
from polaris_jax.rollout import RolloutAborted, Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.balance import assign_shards
from polaris_jax.rollout.scores import prompt_logprobs
from polaris_jax.sharding import make_sampler_mesh, on_slots
from tests.support.random_models import random_model
from tests.support.rollout.rollout_cases import (
    CONFIG,
    differing_tokens,
    random_prompts,
    small_model,
)
from tests.tolerances import NEAR_TIE_SHARE, SAMPLER_LOGPROB_ATOL, SCHEDULE_LOGPROB_ATOL

ROOT = Path(__file__).parents[2]
WIDE = dataclasses.replace(
    CONFIG, vocab_size=64, intermediate_size=64, num_heads=16, num_kv_heads=8, head_dim=8
)
PROMPTS = random_prompts(12, seed=2, longest=20)
TEMPERATURES = (0.0, 0.6, 1.0, 1.5) * 3
SEEDS = tuple(range(50, 62))
PARAMS = SamplingParams(
    temperature=TEMPERATURES,
    n=2,
    max_tokens=(20, 9, 20, 14) * 3,
    seed=SEEDS,
    stop_token_ids=(7,),
)
SIZES = SamplerConfig(slots=16, page_size=4, num_pages=16 * 11, max_len=40, decode_steps=4)
MESHES = [
    pytest.param(8, 1, id="8x1", marks=pytest.mark.slow),
    pytest.param(4, 2, id="4x2"),
    pytest.param(2, 4, id="2x4"),
    pytest.param(1, 8, id="1x8", marks=pytest.mark.slow),
]


@functools.cache
def wide_model() -> Decoder:
    return random_model(WIDE, 1, scale=3.0)


@functools.cache
def one_device():
    return Sampler(wide_model(), SIZES).generate(PROMPTS, PARAMS)


def mesh(data: int, tensor: int):
    return make_sampler_mesh(jax.devices(), data=data, tensor=tensor)


def log_prob_difference(actual) -> float:
    """Largest difference from one device; tokens agree but for near ties, which are counted."""
    expected = one_device()
    parted, largest = differing_tokens(
        expected,
        actual,
        model=wide_model(),
        prompts=PROMPTS,
        temperatures=TEMPERATURES,
        seeds=SEEDS,
    )
    assert parted <= NEAR_TIE_SHARE * sum(len(r.token_ids) for g in expected for r in g)
    return largest


@pytest.mark.parametrize(("data", "tensor"), MESHES)
def test_tokens_and_log_probs_are_those_of_one_device(data, tensor):
    # So few pages that rows are preempted on every shard.
    pages = data * (13 if data > 1 else 24)
    # On some meshes as on accelerators: the next call is on its way before the last is read.
    config = dataclasses.replace(SIZES, num_pages=pages, dispatch_ahead=data >= 4)
    sampler = Sampler(wide_model(), config, mesh=mesh(data, tensor))
    actual = sampler.generate(PROMPTS, PARAMS)
    stats = sampler.stats()
    assert stats["preemptions"] > 0
    assert stats["pages_used"] == 0
    # Heads and MLP split over devices: partial sums in another order, as in another program.
    bound = SAMPLER_LOGPROB_ATOL if tensor > 1 else SCHEDULE_LOGPROB_ATOL
    assert log_prob_difference(actual) <= bound

    # Once more after an update: same shapes, so nothing is compiled.
    sampler.release_pool()
    sampler.update_weights(wide_model())
    sampler.reset_stats()
    assert sampler.generate(PROMPTS, PARAMS) == actual
    assert sampler.stats()["compiles"] == 0


@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "ahead"])
def test_a_shard_of_few_rows_goes_on_beside_a_full_one(ahead):
    """Their calls have the bucket of the fullest shard."""
    config = dataclasses.replace(SIZES, min_rows=1, dispatch_ahead=ahead)
    sampler = Sampler(wide_model(), config, mesh=mesh(2, 1))
    assert sampler._engine.spec.row_buckets == (2, 4, 8)
    # All but two of the first shard's rows end at once, and none of the second's.
    shards = assign_shards([len(prompt) + 20 for prompt in PROMPTS], 2)
    ends = [i for i, shard in enumerate(shards) if shard == 0][:-2]
    params = SamplingParams(
        temperature=TEMPERATURES,
        max_tokens=[3 if i in ends else 20 for i in range(12)],
        seed=SEEDS,
    )
    actual = sampler.generate(PROMPTS, params, expected_tokens=[20.0] * 12)
    assert sampler._live.driver.steps <= 24
    expected = Sampler(wide_model(), SIZES).generate(PROMPTS, params)
    assert [r.token_ids for g in actual for r in g] == [r.token_ids for g in expected for r in g]


def two_processes(script: str, data: int, tensor: int) -> list[dict]:
    """What each of two processes reports that run a script of tests/support/rollout."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        sys.executable,
        str(Path(__file__).parents[1] / "support" / "rollout" / script),
        str(port),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pair = [
        subprocess.Popen(
            [*words, str(rank), str(data), str(tensor)], stdout=subprocess.PIPE, text=True, env=env
        )
        for rank in range(2)
    ]
    return [json.loads(p.communicate(timeout=500)[0].splitlines()[-1]) for p in pair]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "tensor"), [(2, 2), (1, 1)], ids=["2x2", "1x1"])
def test_two_processes_sync_together_and_sample_alone(data, tensor):
    reports = two_processes("two_process_sync.py", data, tensor)
    expected = Sampler(small_model(), SamplerConfig(slots=4, num_pages=40, max_len=48)).generate(
        random_prompts(5, longest=20), SamplingParams(max_tokens=12)
    )
    for rank, report in enumerate(reports):
        assert report["tokens"] == [list(group[0].token_ids) for group in expected]
        for got, group in zip(report["logprobs"], expected, strict=True):
            np.testing.assert_allclose(got, group[0].logprobs, atol=SCHEDULE_LOGPROB_ATOL)
        assert report["addressable"]
        assert report["local"] == [rank]
        assert report["share"] == tensor


@pytest.mark.slow
@pytest.mark.parametrize(("data", "tensor"), [(1, 4), (2, 2)], ids=["1x4", "2x2"])
def test_two_processes_share_a_sampler(data, tensor):
    reports = two_processes("two_process_sampler.py", data, tensor)
    for report in reports:
        assert report["same"]
        assert report["compiles"] == 0
        assert report["ended"] == "aborted"
        assert report["pages"] == 90 * data
        assert (report["used"], report["share"], report["members"]) == (0, [0, 1], [0, 1])
    assert reports[0]["tokens"] == reports[1]["tokens"]
    assert reports[0]["logprobs"] == reports[1]["logprobs"]
    assert reports[0]["scored"] == reports[1]["scored"]
    wanted = prompt_logprobs(wide_model(), PROMPTS, TEMPERATURES)
    for ours, theirs in zip(reports[0]["scored"], wanted, strict=True):
        assert ours == pytest.approx(theirs, abs=SAMPLER_LOGPROB_ATOL)
    actual = [
        [Response(tuple(t), tuple(lp), "") for t, lp in zip(*group, strict=True)]
        for group in zip(reports[0]["tokens"], reports[0]["logprobs"], strict=True)
    ]
    assert log_prob_difference(actual) <= SAMPLER_LOGPROB_ATOL


def test_rows_of_a_sampler_without_a_mesh_lie_on_a_device_of_this_process(monkeypatch):
    other = jax.devices()[3]  # the first of all devices is another process's, but for process 0
    monkeypatch.setattr(jax, "local_devices", lambda: [other])
    assert on_slots(np.arange(3), None).devices() == {other}


def test_samples_are_dealt_by_tokens_and_by_nothing_else():
    assert assign_shards([5, 5, 5, 5], 2) == [0, 1, 0, 1]
    assert assign_shards([9, 1, 1, 1, 9], 2) == [0, 1, 1, 1, 1]
    assert assign_shards([], 3) == []
    costs = np.random.default_rng(0).integers(1, 100, 400).tolist()
    loads = np.bincount(assign_shards(costs, 8), weights=costs)
    assert loads.max() - loads.min() <= 100


def test_the_samples_of_one_prompt_use_every_shard():
    params = SamplingParams(n=8, max_tokens=10, seed=3)
    sampler, live = Sampler(wide_model(), SIZES, mesh=mesh(4, 2)), []
    (group,) = sampler.generate(
        PROMPTS[:1], params, on_progress=lambda *_: live.append(sampler.stats()["live_rows"])
    )
    assert live[0] == [2, 2, 2, 2]
    assert (sampler.stats()["live_rows_min"], sampler.stats()["live_rows_max"]) == (2, 2)
    (expected,) = Sampler(wide_model(), SIZES).generate(PROMPTS[:1], params)
    assert [r.token_ids for r in group] == [r.token_ids for r in expected]
    # Two samples on each of four shards: prefilled once there, taken over once.
    assert sampler.stats()["prefix_hits"] == 4
    assert all(a.peak_used for a in sampler._live.state.allocators)


def test_an_abort_releases_the_pages_of_every_shard():
    sampler = Sampler(wide_model(), SIZES, mesh=mesh(4, 2))
    polls = iter([False, False, True])
    with pytest.raises(RolloutAborted):
        sampler.generate(PROMPTS, PARAMS, should_abort=lambda: next(polls))
    assert sampler.stats()["pages_used"] == 0


@pytest.mark.parametrize(
    ("changes", "data", "tensor", "message"),
    [
        ({}, 2, 3, "rollout.tensor=3: must be at least 1 and divide the 8 devices"),
        ({}, 16, 1, "rollout.data=16: .* needs 16 devices and has 8"),
        ({}, 5, 2, "rollout.data=5: .* needs 10 devices .* at most 4"),
        ({"slots": 6}, 4, 1, "rollout.slots=6: must be a multiple of .* data=4"),
        ({"num_pages": 6}, 4, 1, "rollout.num_pages=6: each of 4 data shards needs at least 2"),
        ({}, 1, 4, "rollout.tensor=4: must divide the model's num_kv_heads=2"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(changes, data, tensor, message):
    with pytest.raises(ConfigError, match=message):
        Sampler(small_model(), dataclasses.replace(SIZES, **changes), mesh=mesh(data, tensor))


def test_a_process_takes_all_its_accelerators_and_one_cpu():
    class Chip:
        platform = "tpu"

    assert dict(make_sampler_mesh(jax.devices()).shape) == {"data": 1, "tensor": 1}
    assert dict(make_sampler_mesh(jax.devices(), tensor=2).shape) == {"data": 1, "tensor": 2}
    chips = [Chip() for _ in range(4)]
    assert dict(make_sampler_mesh(chips).shape) == {"data": 4, "tensor": 1}
    assert dict(make_sampler_mesh(chips, tensor=2).shape) == {"data": 2, "tensor": 2}
