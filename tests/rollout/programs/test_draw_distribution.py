"""Drawn tokens follow the exact masked softmax: chi-square over 50,000 draws a case."""

import jax
import numpy as np
import pytest
from scipy import stats

from polaris_jax.rollout.programs.draw import draw_tokens
from tests.rollout.programs.test_draw import kept_by_oracle, row_params
from tests.tolerances import CHI_SQUARE_LEVEL

DRAWS, VOCAB = 50_000, 40
OFF = {"temperature": 1.0, "top_k": 0, "min_p": 0.0, "top_p": 1.0}
CASES = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 1.4},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.15},
    "all": {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
}
draw = jax.jit(draw_tokens)


def logits() -> np.ndarray:
    return (1.5 * np.random.default_rng(0).standard_normal(VOCAB)).astype(np.float32)


def drawn(settings: dict, seed: int = 1) -> np.ndarray:
    """How often each token was drawn, [V]."""
    uniform_B = np.random.default_rng(seed).random(DRAWS, np.float32)
    logit_BV = np.broadcast_to(logits(), (DRAWS, VOCAB))
    token_B, _ = draw(logit_BV, uniform_B, row_params(DRAWS, **settings))
    return np.bincount(np.asarray(token_B), minlength=VOCAB)


def p_value(count_V: np.ndarray, settings: dict) -> float:
    """Of the counts under the exact distribution; 0 where a dropped token was drawn.

    Tokens that are expected fewer than 5 times are counted as one.
    """
    mass_V = kept_by_oracle(logits(), **settings)
    if count_V[mass_V == 0].any():
        return 0.0
    expected_V = DRAWS * mass_V / mass_V.sum()
    rare = expected_V < 5
    expected, count = (np.append(x[~rare], x[rare].sum()) for x in (expected_V, count_V))
    some = expected > 0
    return float(stats.chisquare(count[some], expected[some]).pvalue)


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_exact_distribution(case):
    settings = OFF | CASES[case]
    assert p_value(drawn(settings), settings) > CHI_SQUARE_LEVEL


@pytest.mark.parametrize(
    ("drawn_with", "claimed"),
    [
        ({"temperature": 1.05}, {}),
        ({}, {"top_k": 30}),
        ({"top_p": 0.8}, {"top_p": 0.85}),
        ({"top_k": 7}, {"top_k": 8}),
        ({"min_p": 0.15}, {"min_p": 0.1}),
    ],
    ids=["temperature", "no-filter", "top_p", "top_k", "min_p"],
)
def test_a_wrong_sampler_is_found(drawn_with, claimed):
    assert p_value(drawn(OFF | drawn_with), OFF | claimed) < CHI_SQUARE_LEVEL
