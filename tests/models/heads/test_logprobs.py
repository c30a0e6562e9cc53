"""token_logprobs against dense log-softmax, its masks, its chunks and its memory."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models import token_logprobs
from tests.models.test_decoder import QWEN3, make, tokens

compiled_logprobs = jax.jit(token_logprobs, static_argnames="chunk_tokens")


@jax.jit
def dense(model, token_BT, position_BT, segment_BT, temperature):
    logit = model.unembed(model(token_BT, position_BT, segment_BT))
    logp_BTV = jax.nn.log_softmax(logit / jnp.asarray(temperature, jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(logp_BTV[:, :-1], token_BT[:, 1:, None], axis=-1)[..., 0]
    entropy = -(jnp.exp(logp_BTV) * logp_BTV).sum(-1)
    return chosen, entropy[:, :-1]


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_equals_dense_for_any_chunk(chunk, temperature):
    model = make(QWEN3)
    token_BT, position_BT = tokens(2, 8)
    logp, entropy = compiled_logprobs(
        model, token_BT, position_BT, None, temperature, chunk_tokens=chunk
    )
    want_logp, want_entropy = dense(model, token_BT, position_BT, None, temperature)
    np.testing.assert_allclose(logp[:, :-1], want_logp, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy[:, :-1], want_entropy, rtol=1e-4, atol=1e-5)
    assert (logp[:, -1] == 0).all() and (entropy[:, -1] == 0).all()
    assert logp.dtype == entropy.dtype == jnp.float32


def test_zero_at_padding_and_across_segments():
    model = make(QWEN3)
    token_BT, position_BT = tokens(1, 8)
    segment = jnp.array([[1, 1, 1, 2, 2, 0, 0, 0]])
    logp, entropy = compiled_logprobs(model, token_BT, position_BT, segment, 1.0)
    expected = np.array([True, True, False, True, False, False, False, False])
    assert ((np.asarray(logp)[0] != 0) == expected).all()
    assert ((np.asarray(entropy)[0] != 0) == expected).all()


def test_temperature_a_token():
    model = make(QWEN3)
    token_BT, position_BT = tokens(2, 6)
    temperature = np.array([[0.5], [2.0]], np.float32)
    got, _ = compiled_logprobs(model, token_BT, position_BT, None, temperature)
    for row, value in enumerate([0.5, 2.0]):
        want, _ = compiled_logprobs(
            model, token_BT[row : row + 1], position_BT[row : row + 1], None, value
        )
        np.testing.assert_allclose(got[row], want[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-30, 1e-12, 1e-4, 0.05])
def test_near_temperature_0_the_likeliest_token_is_certain(temperature):
    model = make(QWEN3)
    position_BT = jnp.arange(2)[None]
    best = int(jnp.argmax(model.unembed(model(jnp.array([[5, 0]]), position_BT))[0, 0]))
    token_BT = jnp.array([[5, best]])

    @jax.jit
    def score(model):
        logp, entropy = token_logprobs(model, token_BT, position_BT, None, temperature)
        return logp[0, 0], entropy[0, 0]

    logp, entropy = score(model)
    gap = float(jnp.diff(jnp.sort(model.unembed(model(token_BT, position_BT))[0, 0])[-2:])[0])
    rest = QWEN3.vocab_size * np.exp(-gap / temperature)
    assert -rest - 1e-6 <= logp <= 0
    assert 0 <= entropy <= rest * (1 + gap / temperature) + 1e-6
    slope = jax.jit(jax.grad(lambda model: score(model)[0]))(model)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens=0: must be at least 1"),
        ({"temperature": np.ones(3)}, r"temperature of shape \(3,\).*\(1, 4\)"),
        ({"temperature": np.ones((2, 1))}, r"temperature of shape \(2, 1\)"),
        ({"token_BT": [1, 2]}, r"token_BT of shape \(2,\): must be \[B, T\]"),
        ({"position_BT": [0, 1, 2, 3]}, r"position_BT of shape \(4,\)"),
        ({"segment_BT": np.ones((1, 3), int)}, r"segment_BT of shape \(1, 3\)"),
        ({"remat": "all"}, "remat='all': expected one of none, layer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_do_not_fit_are_named(changed, message):
    token_BT, position_BT = tokens(1, 4)
    arguments = {"token_BT": token_BT, "position_BT": position_BT} | changed
    with pytest.raises(ValueError, match=message):
        token_logprobs(make(QWEN3), **arguments)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.array([[1.0, 0.0, 1.0, 1.0]])])
def test_temperature_must_be_positive(bad):
    token_BT, position_BT = tokens(1, 4)
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(make(QWEN3), token_BT, position_BT, None, bad)


def test_gradient_equals_dense():
    model = make(QWEN3)
    token_BT, position_BT = tokens(2, 8)

    def chunked_loss(model):
        logp, entropy = token_logprobs(model, token_BT, position_BT, chunk_tokens=3)
        return (logp[:, :-1] ** 2).sum() + entropy.sum()

    def dense_loss(model):
        logp, entropy = dense(model, token_BT, position_BT, None, 1.0)
        return (logp**2).sum() + entropy.sum()

    got, want = (jax.jit(jax.grad(loss))(model) for loss in (chunked_loss, dense_loss))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max() + 1))


def test_memory_does_not_hold_all_logits():
    config = dataclasses.replace(QWEN3, vocab_size=32_768, num_layers=1)
    model = make(config)
    token_BT, position_BT = tokens(1, 256)

    def loss(model, chunk_tokens):
        return token_logprobs(model, token_BT, position_BT, chunk_tokens=chunk_tokens)[0].sum()

    def temporary_bytes(chunk):
        grad = jax.jit(jax.grad(lambda m: loss(m, chunk)))
        return grad.lower(model).compile().memory_analysis().temp_size_in_bytes

    all_logits_bytes = 256 * 32_768 * 4
    assert temporary_bytes(16) < all_logits_bytes < temporary_bytes(256)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("libtpu")
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'polaris_jax[tpu]'"
)
@pytest.mark.parametrize(
    ("head", "most_gib"),
    [
        pytest.param("counted_loss", 1.5, id="the update's"),
        pytest.param("target_logprobs", 1.0, id="that of token_logprobs"),
    ],
)
def test_the_head_of_a_53248_token_row_needs_little_memory_on_a_v5p(head, most_gib):
    """1.31 and 0.87 GiB, gradients counted as outputs; all its logits would take 32 GB."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).parents[2] / "support" / "models" / "compile_head.py",
            head,
        ],
        env=os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["temporaries"] < most_gib * (1 << 30)
