"""The lengths that a plan assumes."""

import math

import numpy as np
import pytest

from polaris_jax.plan.lengths import Lengths, cut_lognormal, draw


@pytest.mark.parametrize("mean", [500.0, 20_000.0, 40_000.0])
def test_the_moments_are_those_of_many_draws(mean):
    lengths = cut_lognormal(mean, 52_224)
    token_PR, _ = draw(lengths, prompts=40_000, responses=4)
    assert token_PR.max() <= lengths.longest
    assert math.isclose(token_PR.mean(), mean, rel_tol=0.01)
    assert math.isclose((token_PR.astype(float) ** 2).mean(), lengths.square, rel_tol=0.02)


def test_all_at_the_budget():
    lengths = cut_lognormal(100.0, 100)
    assert lengths == Lengths(100.0, 10_000.0, 100, math.inf)
    assert (draw(lengths, prompts=3, responses=2)[0] == 100).all()


def test_the_responses_to_a_problem_have_similar_lengths_and_history_knows_them():
    token_PR, expected_P = draw(cut_lognormal(20_000.0, 10**6), prompts=4000, responses=8)
    logs = np.log(token_PR)
    assert 0.33 < logs.std(axis=1, ddof=1).mean() < 0.36
    assert 0.48 < logs.mean(axis=1).std() < 0.54
    assert np.corrcoef(logs.mean(axis=1), np.log(expected_P))[0, 1] > 0.9
