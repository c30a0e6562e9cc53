"""The native draw has XLA's tokens; the slow test makes a million draws."""

import functools

import jax
import numpy as np
import pytest

from polaris_jax.rollout import native
from polaris_jax.rollout.programs.draw import RowParams, draw_tokens
from tests.support.rollout.native_kernels import needs_compiler
from tests.tolerances import NORM_ATOL

pytestmark = needs_compiler
by_xla = jax.jit(draw_tokens)
by_native = jax.jit(functools.partial(draw_tokens, by_native=True))


@pytest.fixture(scope="module", autouse=True)
def kernels():
    native.load()


def params(temperature_B, *, top_k=0) -> RowParams:
    batch = len(temperature_B)
    return RowParams(
        temperature_B=np.asarray(temperature_B, np.float32),
        top_p_B=np.ones(batch, np.float32),
        top_k_B=np.full(batch, top_k, np.int32),
        min_p_B=np.zeros(batch, np.float32),
        seed_B=np.zeros(batch, np.uint32),
        sample_B=np.zeros(batch, np.int32),
    )


def uniforms(rng, batch):
    """What `jax.random.uniform` can give."""
    return (rng.integers(0, 1 << 23, batch) / (1 << 23)).astype(np.float32)


def logits(rng, batch, vocab):
    """Rows from flat to sharp, some with tokens of mass 0."""
    scale_B1 = np.resize([0.0, 0.5, 2, 5, 9], (batch, 1)).astype(np.float32)
    logit_BV = rng.standard_normal((batch, vocab), np.float32) * scale_B1
    logit_BV[1::4, rng.integers(0, vocab, vocab // 3)] = -np.inf
    return logit_BV


def assert_alike(logit_BV, uniform_B, settings) -> None:
    """The same tokens, and log-probs up to the order of one sum and to XLA's two kinds of log."""
    token_B, logp_B = by_native(logit_BV, uniform_B, settings)
    expected_B, expected_logp_B = by_xla(logit_BV, uniform_B, settings)
    np.testing.assert_array_equal(token_B, expected_B)
    np.testing.assert_allclose(logp_B, expected_logp_B, atol=NORM_ATOL, rtol=1e-6)


# Blocks of 256, 512 and 1,024 tokens; the last one complete or not.
@pytest.mark.parametrize(
    ("batch", "vocab"),
    [
        (8, 20_480),
        *(
            pytest.param(*shape, marks=pytest.mark.slow)
            for shape in ((32, 16_385), (5, 70_016), (4, 300_032))
        ),
    ],
    ids=str,
)
def test_tokens_are_xlas_and_logprobs_up_to_rounding(batch, vocab):
    rng = np.random.default_rng(vocab)
    for temperature in (1.0, 1.4, 1e-3):
        logit_BV = logits(rng, batch, vocab)
        for _ in range(3):
            assert_alike(logit_BV, uniforms(rng, batch), params([temperature] * batch))
    for uniform in (0.0, 1 - 2**-23):  # the ends
        uniform_B = np.full(batch, uniform, np.float32)
        assert_alike(logits(rng, batch, vocab), uniform_B, params(np.linspace(0.5, 2, batch)))


@pytest.mark.slow
def test_a_million_tokens_are_xlas():
    rng = np.random.default_rng(0)
    batch = 512
    for _ in range(50):
        logit_BV = jax.device_put(logits(rng, batch, 17_000))
        for _ in range(40):
            settings = params(rng.choice([0.7, 1.0, 1.4], batch))
            assert_alike(logit_BV, uniforms(rng, batch), settings)


def test_a_greedy_row_takes_the_first_of_the_likeliest():
    rng = np.random.default_rng(0)
    logit_BV = logits(rng, 4, 16_385)
    logit_BV[:, [16_384, 77, 9_000]] = 60.0
    settings = params([0.0, 1.0, 0.0, 0.0])
    assert_alike(logit_BV, uniforms(rng, 4), settings)
    token_B, _ = by_native(logit_BV, uniforms(rng, 4), settings)
    assert [token_B[b] for b in (0, 2, 3)] == [77, 77, 77]


def test_a_row_is_the_same_bits_in_any_company():
    rng = np.random.default_rng(0)
    rows = logits(rng, 8, 20_480), uniforms(rng, 8), np.linspace(0.5, 2, 8, dtype=np.float32)
    together = jax.jit(native.draw)(*rows)
    for part in ([0], [7], [2, 3], [4, 5, 6]):
        alone = jax.jit(native.draw)(*(x[part] for x in rows))
        for got, expected in zip(alone, together, strict=True):
            np.testing.assert_array_equal(got, np.asarray(expected)[part])


def test_a_nan_shows_in_the_rows_logprob_alone():
    rng = np.random.default_rng(0)
    logit_BV = logits(rng, 4, 16_385)
    logit_BV[2, 16_000] = np.nan
    token_B, logp_B = by_native(logit_BV, uniforms(rng, 4), params([1.0, 1.0, 1.0, 0.0]))
    assert np.isnan(logp_B).tolist() == [False, False, True, False]
    assert np.all((token_B >= 0) & (token_B < 16_385))


def test_a_filter_is_xlas():
    rng = np.random.default_rng(0)
    logit_BV, uniform_B = logits(rng, 4, 16_385), np.full(4, 0.9, np.float32)
    settings = params([1.0] * 4)._replace(top_k_B=np.array([0, 3, 0, 1], np.int32))
    assert_alike(logit_BV, uniform_B, settings)
    token_B, _ = by_native(logit_BV, uniform_B, settings)
    assert token_B[3] == logit_BV[3].argmax()


@pytest.mark.parametrize("vocab", [100, 1 << 14, (1 << 20) + 1])
def test_a_vocabulary_outside_the_kernels_range_is_refused(vocab):
    assert vocab not in native.DRAWN_VOCABS
    logit_BV, row_B = np.zeros((1, vocab), np.float32), np.ones(1, np.float32)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="draw: shapes do not fit"):
        jax.block_until_ready(jax.jit(native.draw)(logit_BV, row_B, row_B))
