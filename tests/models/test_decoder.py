"""The decoder's properties: causality, segments, padding, scan against loop, rotary scalings."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models import (
    Decoder,
    ModelConfig,
    RopeScaling,
    model_tree_path,
    param_axes,
    param_shapes,
)
from polaris_jax.models.attention import attend as self_attend
from polaris_jax.models.layers import gated, rope_frequencies, yarn_attention_factor
from tests.support.random_models import random_model
from tests.tolerances import GRADIENT_RTOL

QWEN3 = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_position_embeddings=128,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=True,
)
QWEN2 = dataclasses.replace(
    QWEN3, qkv_bias=True, qk_norm=False, tie_embeddings=False, model_type="qwen2"
)
CONFIGS = [pytest.param(QWEN3, id="qwen3"), pytest.param(QWEN2, id="qwen2")]


def make(config: ModelConfig, seed: int = 0) -> Decoder:
    return random_model(config, seed, noise=0.1)


def tokens(batch: int, length: int) -> tuple[jax.Array, jax.Array]:
    token_BT = jax.random.randint(jax.random.key(1), (batch, length), 0, QWEN3.vocab_size)
    return token_BT, jnp.broadcast_to(jnp.arange(length)[None], (batch, length))


@pytest.mark.parametrize("config", CONFIGS)
def test_param_paths_shapes_and_axes_agree(config):
    model = make(config)
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    shapes = {model_tree_path(path): leaf.shape for path, leaf in leaves}
    assert shapes == param_shapes(config)
    assert {p: len(a) for p, a in param_axes(config).items()} == {
        p: len(s) for p, s in shapes.items()
    }
    assert sum(math.prod(s) for s in shapes.values()) == config.num_parameters


@pytest.mark.parametrize("given", [np.asarray, lambda x: np.asarray(x).tolist()])
@pytest.mark.parametrize("attention", ["reference", "chunked"])
def test_host_arrays_and_lists_are_taken_as_device_arrays_are(given, attention):
    model, (token_BT, position_BT) = make(QWEN3), tokens(2, 8)
    segment_BT = jnp.array([[1] * 5 + [2] * 3, [1] * 6 + [0] * 2])
    arrays = (token_BT, position_BT, segment_BT)
    want = model(*arrays, attention=attention)
    got = model(*map(given, arrays), attention=attention)
    np.testing.assert_array_equal(got, want)


def input_gradient(model: Decoder, attention: str, position_BT: jax.Array, segment_BT=None):
    """The function of t: |d logits at t / d input embedding| of each position of a row, [T]."""
    length = position_BT.shape[1]
    untied = dataclasses.replace(model.config, tie_embeddings=False)

    def logit_at(embed_VD, t):
        # Each position reads its own embedding row, so a gradient row is a position.
        params = model.params() | {"embed_VD": embed_VD}
        if model.config.tie_embeddings:
            params["head_VD"] = model.params()["embed_VD"]
        moved = Decoder.from_params(untied, params)
        hidden = moved(jnp.arange(length)[None], position_BT, segment_BT, attention=attention)
        return moved.unembed(hidden)[0, t].sum()

    gradient = jax.jit(jax.grad(logit_at))
    embed_VD = model.params()["embed_VD"]
    return lambda t: np.abs(np.asarray(gradient(embed_VD, t))).sum(axis=1)[:length]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("attention", ["reference", "chunked"])
def test_causality_by_gradient(config, attention, monkeypatch):
    monkeypatch.setattr("polaris_jax.models.attention.portable.SHORT_ROW_BLOCK_TOKENS", 4)
    gradient_of = input_gradient(make(config), attention, tokens(1, 10)[1])
    for t in (0, 5, 9):
        reached = gradient_of(t) > 0
        assert reached[: t + 1].all()
        assert not reached[t + 1 :].any()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("attention", ["reference", "chunked"])
def test_a_logit_has_no_gradient_beyond_its_segment(config, attention, monkeypatch):
    """Exactly none: neither at other segments nor at padding, wherever in the row that lies."""
    monkeypatch.setattr("polaris_jax.models.attention.portable.SHORT_ROW_BLOCK_TOKENS", 4)
    segment_T = np.array([1] * 3 + [0] * 2 + [2] * 6 + [3] * 2 + [0] * 3)
    position_T = np.concatenate([np.arange(n) for n in (3, 2, 6, 2, 3)])
    model = make(config)
    gradient_of = input_gradient(
        model, attention, jnp.asarray(position_T)[None], jnp.asarray(segment_T)[None]
    )
    here = np.arange(len(segment_T))
    for t in np.flatnonzero(segment_T):
        reached = gradient_of(t) != 0
        np.testing.assert_array_equal(reached, (segment_T == segment_T[t]) & (here <= t))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("attention", ["reference", "chunked"])
def test_packed_segments_equal_separate_rows(config, attention, monkeypatch):
    monkeypatch.setattr("polaris_jax.models.attention.portable.SHORT_ROW_BLOCK_TOKENS", 8)
    model = make(config)
    token_BT, position_BT = tokens(2, 9)
    run = jax.jit(functools.partial(Decoder.__call__, attention=attention))
    apart = run(model, token_BT, position_BT)
    packed_token = jnp.concatenate([token_BT[:1], token_BT[1:], jnp.zeros((1, 3), int)], axis=1)
    packed_position = jnp.concatenate([position_BT[:1], position_BT[1:], jnp.arange(3)[None]], 1)
    segment = jnp.array([[1] * 9 + [2] * 9 + [0] * 3])
    together = run(model, packed_token, packed_position, segment)
    np.testing.assert_allclose(together[0, :9], apart[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(together[0, 9:18], apart[1], rtol=1e-5, atol=1e-5)
    assert np.isfinite(together).all()


def test_the_gate_has_the_gradient_of_its_definition_and_keeps_its_inputs_alone():
    gate, up, weight = jax.random.normal(jax.random.key(0), (3, 5, 64)) * 4

    def gradients(function):
        return jax.grad(lambda *args: jnp.sum(weight * function(*args)), argnums=(0, 1))(gate, up)

    plain = gradients(lambda gate, up: jax.nn.silu(gate) * up)
    for got, want in zip(gradients(gated), plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=GRADIENT_RTOL, atol=GRADIENT_RTOL)
    _, pull = jax.vjp(gated, gate, up)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) == gate.size + up.size


def test_scan_unroll_and_remat_agree_in_value_and_gradient():
    model = make(QWEN3)
    token_BT, position_BT = tokens(2, 7)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(model, remat, unroll):
        def attend(_, q, k, v, carry):
            return self_attend(q, k, v, None, backend="reference"), carry + 1

        hidden, count = model.forward(
            token_BT, position_BT, attend, jnp.int32(0), remat=remat, unroll=unroll
        )
        return (hidden**2).sum(), count

    (want, count), want_grad = loss(model, "none", False)
    assert count == QWEN3.num_layers
    for remat, unroll in [("layer", False), ("none", True), ("layer", True)]:
        (got, _), grad = loss(model, remat, unroll)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(want_grad), strict=True):
            assert jnp.abs(a - b).max() <= GRADIENT_RTOL * jnp.abs(b).max()


def test_one_compile_for_new_weights():
    traces = []

    @jax.jit
    def run(model, token_BT, position_BT):
        traces.append(1)
        return model(token_BT, position_BT)

    token_BT, position_BT = tokens(1, 4)
    for seed in range(3):
        run(make(QWEN3, seed), token_BT, position_BT)
    assert len(traces) == 1


def test_rope_scaling_changes_frequencies_as_written():
    base, factor = rope_frequencies(QWEN3)
    assert factor == 1.0
    linear = dataclasses.replace(QWEN3, rope_scaling=RopeScaling("linear", 2.0))
    np.testing.assert_allclose(rope_frequencies(linear)[0], base / 2, rtol=1e-6)
    yarn = dataclasses.replace(QWEN3, rope_scaling=RopeScaling("yarn", 1.5, 32))
    scaled, factor = rope_frequencies(yarn)
    assert factor == pytest.approx(0.1 * math.log(1.5) + 1)
    # Fast pairs are kept, slow ones interpolated, none beyond the two.
    assert scaled[0] == pytest.approx(base[0])
    assert scaled[-1] == pytest.approx(base[-1] / 1.5)
    assert ((scaled <= base * (1 + 1e-6)) & (scaled >= base / 1.5 * (1 - 1e-6))).all()


def test_both_formulas_of_the_attention_factor_come_to_one():
    # Ours: the explicit factor. vLLM: attn_factor x (0.1 ln f + 1); it is exported as 0.9610.
    explicit = RopeScaling("yarn", 1.5, 32_768, attention_factor=1.0)
    assert yarn_attention_factor(explicit) == 1.0
    assert 0.9610 * yarn_attention_factor(RopeScaling("yarn", 1.5, 32_768)) == pytest.approx(
        1.0, abs=1e-4
    )


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
LLAMA3 = YARN | {"rope_type": "llama3"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_type": "dynamic"}, "rope_type='dynamic'"),
        ({"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings"),
        ({"rope_type": "linear", "factor": 0.5}, "factor=0.5"),
        ({"rope_type": "linear", "factor": "2"}, "factor='2': must be a finite number"),
        ({"rope_type": "linear", "factor": math.nan}, "factor=nan: must be a finite number"),
        (YARN | {"factor": math.inf}, "factor=inf: must be a finite number"),
        (YARN | {"beta_fast": 1.0, "beta_slow": 32.0}, "beta_slow=32.0, beta_fast=1.0: yarn needs"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor=4.0, high_freq_factor=4.0: llama3"),
    ],
)
def test_bad_rope_scaling_is_named(fields, words):
    with pytest.raises(ValueError, match=words):
        RopeScaling(**fields)


@pytest.mark.parametrize(
    ("name", "size"),
    [("num_kv_heads", 0), ("vocab_size", -50), ("num_layers", 0), ("head_dim", 8.0)],
)
def test_impossible_sizes_are_named(name, size):
    with pytest.raises(ValueError, match=f"{name}={size}: must be a whole number from 1 to "):
        dataclasses.replace(QWEN3, **{name: size})


def test_bad_params_are_named():
    params = make(QWEN3).params()
    with pytest.raises(ValueError, match=r"norm_D.*missing"):
        Decoder.from_params(QWEN3, {k: v for k, v in params.items() if k != "norm_D"})
    with pytest.raises(ValueError, match=r"extra.*unexpected"):
        Decoder.from_params(QWEN3, params | {"extra": params["norm_D"]})
    with pytest.raises(ValueError, match=r"norm_D: shape"):
        Decoder.from_params(QWEN3, params | {"norm_D": jnp.ones(3)})
