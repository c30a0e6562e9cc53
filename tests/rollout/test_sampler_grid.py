"""The same tokens for any slots, pages, pool and order of requests."""

import dataclasses

import numpy as np
import pytest

from polaris_jax.rollout import Sampler
from tests.support.rollout.rollout_cases import small_model
from tests.support.rollout.sampler_cases import (
    PARAMS,
    PROMPTS,
    ROOMY,
    only,
    reference,
    same_rollouts,
)
from tests.tolerances import SCHEDULE_LOGPROB_ATOL

# Pages of a roomy pool, and of one too small for its slots, in which rows must give way. The
# largest request alone takes 15 pages of 4 tokens or 4 of 16, and one page is never given out.
POOLS = {
    (slots, page_size): {"roomy": 2048 // page_size, "tight": tight}
    for slots, page_size, tight in (
        (2, 4, 17),
        (2, 16, 6),
        (3, 4, 19),
        (3, 16, 6),
        (16, 4, 24),
        (16, 16, 7),
    )
}
SPREAD = {(2, 4, "tight"), (2, 16, "roomy"), (3, 4, "roomy"), (3, 16, "tight"), (16, 4, "tight")}
SPREAD |= {(16, 16, "tight")}
CELLS = [
    pytest.param(*cell, pool, marks=() if (*cell, pool) in SPREAD else pytest.mark.slow)
    for cell, pools in POOLS.items()
    for pool in pools
]


def sampler_of(slots: int, page_size: int, pool: str) -> Sampler:
    num_pages = POOLS[slots, page_size][pool]
    config = dataclasses.replace(ROOMY, slots=slots, page_size=page_size, num_pages=num_pages)
    return Sampler(small_model(), config)


def same_in_order(sampler: Sampler, order: list[int]) -> None:
    """The rollouts of `order` are the reference's, and no page is left behind."""
    actual = sampler.generate([PROMPTS[i] for i in order], only(PARAMS, order))
    expected = [reference()[i] for i in order]
    assert same_rollouts(actual, expected, tuple(order)) <= SCHEDULE_LOGPROB_ATOL
    assert sampler.stats()["pages_used"] == 0


@pytest.mark.parametrize(("slots", "page_size", "pool"), CELLS)
def test_slots_pages_and_preemption_do_not_matter(slots, page_size, pool):
    sampler = sampler_of(slots, page_size, pool)
    same_in_order(sampler, list(range(10)))
    assert (sampler.stats()["preemptions"] > 0) == (pool == "tight")


@pytest.mark.parametrize("permutation", [0, 1, 2])
@pytest.mark.parametrize(
    ("slots", "page_size", "pool"),
    [
        pytest.param(16, 16, "roomy"),
        pytest.param(3, 16, "tight"),
        pytest.param(2, 4, "tight", marks=pytest.mark.slow),
        pytest.param(16, 4, "tight", marks=pytest.mark.slow),
    ],
)
def test_the_order_of_requests_does_not_matter(slots, page_size, pool, permutation):
    order = np.random.default_rng(permutation).permutation(10).tolist()
    same_in_order(sampler_of(slots, page_size, pool), order)


def test_company_does_not_matter():
    sampler = Sampler(small_model(), ROOMY)
    for i in (0, 4, 7):
        same_in_order(sampler, [i])
