"""The head at counted tokens alone: equal to the head everywhere, at the cost of those tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from polaris_jax.models import HeadLoop, counted_logprobs, counted_loss, target_logprobs
from polaris_jax.plan.hlo import program_traffic
from tests.tolerances import GRADIENT_RTOL, LOGPROB_ATOL, LOSS_RTOL

BATCH, LENGTH, WIDTH, VOCAB = 2, 12, 16, 40
MASKS = {
    "none": np.zeros((BATCH, LENGTH), bool),
    "one": np.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) == 17,
    "second row": np.array([[False] * LENGTH, [True] * LENGTH]),
    "some": np.random.default_rng(0).random((BATCH, LENGTH)) < 0.4,
    "all": np.ones((BATCH, LENGTH), bool),
}


def make_inputs():
    """Head, hidden states, targets, temperatures, and the terms of a loss."""
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (BATCH, LENGTH)
    return (
        jax.random.normal(keys[0], (VOCAB, WIDTH)),
        jax.random.normal(keys[1], (*shape, WIDTH)),
        jax.random.randint(keys[2], shape, 0, VOCAB),
        0.5 + jax.random.uniform(keys[3], shape),
        {"weight_BT": jax.random.normal(keys[4], shape)},
    )


def token_loss(logp, entropy, terms):
    """Not linear in either, so that the slopes are the tokens' own."""
    return terms["weight_BT"] * (jnp.exp(logp / 4) - entropy**2)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def everywhere(head_VD, hidden_BTD, counted_BT):
    """The same loss, with its gradient, by way of `target_logprobs` and jax's own rules."""
    _, _, target_BT, temperature_BT, terms = make_inputs()
    logp_BT, entropy_BT = target_logprobs(head_VD, hidden_BTD, target_BT, temperature_BT)
    return jnp.sum(jnp.where(counted_BT, token_loss(logp_BT, entropy_BT, terms), 0.0))


@functools.partial(jax.jit, static_argnames="chunk_tokens")
def at_counted(head_VD, hidden_BTD, counted_BT, chunk_tokens):
    _, _, target_BT, temperature_BT, terms = make_inputs()
    loss, *found = counted_loss(
        *(head_VD, hidden_BTD, target_BT, temperature_BT, counted_BT, terms),
        token_loss=token_loss,
        loop=HeadLoop(chunk_tokens),
    )
    return loss, found


at_counted_with_gradient = jax.jit(
    jax.value_and_grad(at_counted, argnums=(0, 1), has_aux=True), static_argnums=3
)
compiled_target_logprobs = jax.jit(target_logprobs)


def assert_close(got, want, rtol):
    scale = max(float(jnp.abs(want).max()), 1e-30)
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 512])
@pytest.mark.parametrize("mask", MASKS)
def test_loss_and_gradient_are_those_of_the_head_everywhere(mask, chunk_tokens):
    head_VD, hidden_BTD, target_BT, temperature_BT, _ = make_inputs()
    counted_BT = jnp.asarray(MASKS[mask])
    (loss, found), got = at_counted_with_gradient(head_VD, hidden_BTD, counted_BT, chunk_tokens)
    want_loss, want = everywhere(head_VD, hidden_BTD, counted_BT)
    assert float(loss) == pytest.approx(float(want_loss), rel=LOSS_RTOL)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, GRADIENT_RTOL)
    values = compiled_target_logprobs(head_VD, hidden_BTD, target_BT, temperature_BT)
    for one, other in zip(found, values, strict=True):
        np.testing.assert_allclose(one, other * counted_BT, rtol=0, atol=LOGPROB_ATOL)


@pytest.mark.parametrize("mask", MASKS)
def test_log_probs_are_those_of_the_head_everywhere_and_zero_elsewhere(mask):
    head_VD, hidden_BTD, target_BT, temperature_BT, _ = make_inputs()
    inputs = (head_VD, hidden_BTD, target_BT, temperature_BT)
    counted_BT = MASKS[mask]
    found = counted_logprobs(*inputs, jnp.asarray(counted_BT), loop=HeadLoop(5))
    for one, other in zip(found, compiled_target_logprobs(*inputs), strict=True):
        np.testing.assert_allclose(one, other * counted_BT, rtol=0, atol=LOGPROB_ATOL)
        assert (np.asarray(one)[~counted_BT] == 0).all()


def test_a_chunk_without_a_counted_token_is_not_evaluated():
    """What is not a number in it would spread to the head's gradient."""
    head_VD, hidden_BTD, *_ = make_inputs()
    counted_BT = jnp.asarray(MASKS["second row"])  # 12 tokens: two whole chunks of 6
    poisoned_BTD = jnp.where(counted_BT[..., None], hidden_BTD, jnp.nan)
    grad = jax.grad(lambda *args: at_counted(*args)[0])
    got_VD = grad(head_VD, poisoned_BTD, counted_BT, 6)
    assert jnp.isfinite(got_VD).all()
    assert not jnp.isfinite(grad(head_VD, poisoned_BTD, jnp.asarray(MASKS["all"]), 6)).all()
    np.testing.assert_array_equal(got_VD, grad(head_VD, hidden_BTD, counted_BT, 6))


def test_one_program_serves_any_number_of_counted_tokens_and_a_plan_counts_the_most():
    head_VD, hidden_BTD, *_ = make_inputs()

    def traffic(chunk_tokens):
        function = jax.jit(jax.grad(lambda *args: at_counted(*args, chunk_tokens)[0]))
        lowered = function.lower(head_VD, hidden_BTD, jnp.asarray(MASKS["some"]))
        return program_traffic(lowered.compile().as_text(), devices=1)

    several = traffic(4)
    assert (several.dynamic_loops, several.bounded_loops) == (0, 1)
    # Each of the 6 rounds reads the head at least twice and adds to its gradient.
    assert several.hbm_bytes >= 6 * 4 * VOCAB * WIDTH * 4
    assert several.hbm_bytes > traffic(12).hbm_bytes


def test_a_float32_head_keeps_a_float32_gradient_under_bfloat16_hidden_states():
    head_VD, hidden_BTD, *_ = make_inputs()
    counted_BT = jnp.asarray(MASKS["some"])
    grad = jax.grad(lambda *args: at_counted(*args)[0], argnums=(0, 1))
    grad_VD, grad_BTD = grad(head_VD, hidden_BTD.astype(jnp.bfloat16), counted_BT, 1)
    assert grad_VD.dtype == jnp.float32 and grad_BTD.dtype == jnp.bfloat16
    assert (grad_VD.astype(jnp.bfloat16).astype(jnp.float32) != grad_VD).any()


@pytest.mark.parametrize("mask", MASKS)
def test_devices_that_share_the_vocabulary_give_the_loss_and_gradient_of_one(mask):
    """Counted tokens lie unevenly over the devices, on some of them none."""
    head_VD, hidden_BTD, target_BT, temperature_BT, terms = make_inputs()
    counted_BT = jnp.asarray(MASKS[mask])
    loop = HeadLoop(2, ("v",), ("v",))

    def local(head_VD, hidden_BTD, counted_BT, target_BT, temperature_BT, terms):
        def loss(head_VD, hidden_BTD):
            return counted_loss(
                *(head_VD, hidden_BTD, target_BT, temperature_BT, counted_BT, terms),
                token_loss=token_loss,
                loop=loop,
            )[0]

        share, grads = jax.value_and_grad(loss, argnums=(0, 1))(head_VD, hidden_BTD)
        return jax.lax.psum(share, "v"), grads

    rows, tokens = PartitionSpec("v"), PartitionSpec(None, "v")
    sharded = jax.jit(
        jax.shard_map(
            local,
            mesh=Mesh(np.array(jax.devices()[:4]), ("v",)),
            in_specs=(rows, tokens, tokens, tokens, tokens, tokens),
            out_specs=(PartitionSpec(), (rows, tokens)),
            check_vma=False,
        )
    )
    loss, got = sharded(head_VD, hidden_BTD, counted_BT, target_BT, temperature_BT, terms)
    want_loss, want = everywhere(head_VD, hidden_BTD, counted_BT)
    assert float(loss) == pytest.approx(float(want_loss), rel=LOSS_RTOL)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, GRADIENT_RTOL)
