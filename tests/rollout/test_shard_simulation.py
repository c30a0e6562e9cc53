"""The product's driver on the shipped pods, under a roofline clock.

A decode step of a shard reads its weights and the keys and values of its live tokens; a call lasts
as long as its slowest shard. Lengths are correlated within a prompt (`plan.lengths`), pages are as
many as the pools hold. The balanced time reads an equal part on every shard.
"""

import numpy as np
import pytest

from polaris_jax.plan.lengths import draw
from polaris_jax.plan.rollout_clock import Timed, time_host, time_pod
from tests.support.rollout.pods import LENGTHS, PODS, PROMPT_TOKENS, PROMPTS, RESPONSES

LARGEST_WASTE, LARGEST_WASTE_OF_PODS = 0.10, 0.12
PLAN_RTOL = 0.05
H100 = PODS["h100:32"]


def one_host(seed: int, *, known: bool = True, **clock: bool) -> tuple[Timed, float]:
    """(a quarter of a step on one host of 8 H100s, its balanced seconds)."""
    token_PR, expected_P = draw(LENGTHS, prompts=32, responses=RESPONSES, seed=seed)
    timed = time_host(
        H100.sampler,
        H100.clock(**clock),
        token_PR,
        prompt_tokens=PROMPT_TOKENS,
        longest=LENGTHS.longest,
        expected_P=expected_P if known else None,
        grain=16,
    )
    return timed, H100.balanced_s(token_PR, samplers=1)


def pod_time(name: str, *, seed: int, grain: int, by_sample: bool = True) -> tuple[float, float]:
    """(seconds of a step's rollout, of a balanced one)."""
    pod = PODS[name]
    token_PR, expected_P = draw(LENGTHS, prompts=PROMPTS, responses=RESPONSES, seed=seed)
    timed = time_pod(
        pod.samplers,
        pod.sampler,
        pod.clock(),
        token_PR,
        prompt_tokens=PROMPT_TOKENS,
        longest=LENGTHS.longest,
        expected_P=expected_P,
        grain=grain,
        by_sample=by_sample,
    )
    return timed.time_s, pod.balanced_s(token_PR)


def test_shards_of_a_host_lose_little_against_perfect_balance():
    waste = []
    for seed in range(3):
        timed, balanced_s = one_host(seed)
        waste.append(timed.time_s / balanced_s - 1)
        assert timed.moves > 0
    assert 0 < np.mean(waste) < LARGEST_WASTE
    still, _ = one_host(2, moves=False)
    assert still.moves == 0 and still.time_s > 1.08 * timed.time_s


@pytest.mark.slow
@pytest.mark.parametrize("name", PODS)
def test_pods_lose_little_against_perfect_balance(name):
    """The slowest of a pod's hosts loses a little more than a host does on average."""
    ratios = [took / even for took, even in (pod_time(name, seed=s, grain=4) for s in range(2))]
    assert 1 < np.mean(ratios) < 1 + LARGEST_WASTE_OF_PODS


def test_hosts_lose_less_if_samples_are_dealt_and_not_groups():
    samples, balanced_s = pod_time("v6e:8x8", seed=0, grain=16)
    groups, _ = pod_time("v6e:8x8", seed=0, grain=16, by_sample=False)
    assert samples < 0.9 * groups and samples < (1 + LARGEST_WASTE_OF_PODS) * balanced_s


def estimate_agrees(name: str, *, grain: int, seeds: range) -> None:
    ratios = [took / even for took, even in (pod_time(name, seed=s, grain=grain) for s in seeds)]
    assert PODS[name].estimate().imbalance == pytest.approx(np.mean(ratios), rel=PLAN_RTOL)


def test_the_plan_says_what_the_simulation_says():
    estimate_agrees("v6e:8x8", grain=8, seeds=range(8))


@pytest.mark.slow
@pytest.mark.parametrize("name", PODS)
def test_the_plan_says_what_fine_simulations_say(name):
    estimate_agrees(name, grain=4, seeds=range(6))


@pytest.mark.slow
def test_knowing_the_lengths_beforehand_pays():
    """On v5p only half of the samples have a slot at first, and the longest take the first."""
    pod = PODS["v5p:2x2x4"]
    token_PR, expected_P = draw(LENGTHS, prompts=32, responses=RESPONSES)
    known, unknown = (
        time_host(
            pod.sampler,
            pod.clock(),
            token_PR,
            prompt_tokens=PROMPT_TOKENS,
            longest=LENGTHS.longest,
            expected_P=expected,
            grain=16,
        ).time_s
        for expected in (expected_P, None)
    )
    assert known < unknown
