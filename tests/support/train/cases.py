"""Small models and graded batches for the trainer's tests, and the slow, obvious reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from polaris_jax.batch import group_advantages, pack
from polaris_jax.config import MeshSection, ModelSection, ObjectiveSection, OptimizerSection
from polaris_jax.models import Decoder, ModelConfig, token_logprobs
from polaris_jax.records import Graded, TrainBatch
from polaris_jax.sharding import make_mesh, private_copies
from polaris_jax.train.state import state_shardings
from polaris_jax.train.update import Updater
from tests.support.random_models import random_model

QWEN3 = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
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

ROW_LEN = 48
MAX_TOKENS = 33  # of a sequence
ROWS = 8
TEMPERATURE = 1.3
FP32 = ModelSection(dtype="float32", remat="none")
OPTIMIZER = OptimizerSection(learning_rate=1e-3)


def make_model(config: ModelConfig = QWEN3, seed: int = 0) -> Decoder:
    """Random weights whose logits have a standard deviation near 1."""
    return random_model(config, seed, noise=0.1)


def make_graded(seed: int = 0, *, prompts: int = 6, responses: int = 4) -> Graded:
    """Random sequences of 8 to 33 tokens with random rewards, none of the groups uninformative."""
    rng = np.random.default_rng(seed)
    ids = [
        [rng.integers(1, 64, rng.integers(4, 24)) for _ in range(responses)] for _ in range(prompts)
    ]
    reward_PR = rng.integers(0, 2, (prompts, responses)).astype(np.float32)
    reward_PR[:, 0], reward_PR[:, 1] = 1.0, 0.0
    return Graded(
        problem_ids=[f"p{i}" for i in range(prompts)],
        prompts=[rng.integers(1, 64, rng.integers(4, 10)).tolist() for _ in range(prompts)],
        golds=["0"] * prompts,
        token_ids=[[r.tolist() for r in group] for group in ids],
        logprobs=[[(-4 - rng.random(len(r))).tolist() for r in group] for group in ids],
        texts=[[""] * responses] * prompts,
        finish_reasons=[["stop"] * responses] * prompts,
        reward_PR=reward_PR,
    )


def pack_case(
    graded: Graded,
    objective: ObjectiveSection | None = None,
    *,
    row_len=ROW_LEN,
    rows=ROWS,
    share_prompts=False,
) -> TrainBatch:
    objective = objective or ObjectiveSection()
    return pack(
        graded,
        advantage_PR=group_advantages(graded.reward_PR),
        fresh_PR=np.ones(graded.reward_PR.shape, bool),
        row_len=row_len,
        rows=rows,
        objective=objective,
        max_response_tokens=24,
        temperature=TEMPERATURE,
        share_prompts=share_prompts,
    )


@functools.cache
def one_device_mesh():
    return make_mesh(MeshSection(), jax.devices()[:1])


@functools.cache
def make_updater(
    objective: ObjectiveSection | None = None,
    *,
    mesh=None,
    optimizer=OPTIMIZER,
    model=FP32,
    row_len=ROW_LEN,
    rows=ROWS,
    parks=False,
) -> Updater:
    """An updater that tests share: it holds nothing but compiled programs."""
    return Updater(
        objective or ObjectiveSection(),
        optimizer,
        model,
        mesh or one_device_mesh(),
        rows=rows,
        row_len=row_len,
        parks=parks,
    )


logprobs = jax.jit(token_logprobs)


@jax.jit
def _sequence_gradient(model, token_T, is_response_T, advantage):
    def loss(model):
        position_BT = jnp.arange(len(token_T))[None]
        logit_BTV = model.unembed(model(token_T[None], position_BT)) / TEMPERATURE
        logp_TV = jax.nn.log_softmax(logit_BTV[0], axis=-1)
        logp_T = jnp.take_along_axis(logp_TV[:-1], token_T[1:, None], axis=-1)[:, 0]
        return -advantage * (logp_T * is_response_T[1:]).sum()

    return jax.grad(loss)(model)


def plain_gradient(model: Decoder, graded: Graded) -> Decoder:
    """Gradient of the on-policy token mean, one unpacked sequence after another, dense softmax."""
    advantage_PR = group_advantages(graded.reward_PR)
    tokens = sum(len(r) for group in graded.token_ids for r in group)
    total = jax.tree.map(jnp.zeros_like, model)
    for p, group in enumerate(graded.token_ids):
        for r, response in enumerate(group):
            prompt = graded.prompts[p]
            end = len(prompt) + len(response)
            token_T = np.zeros(MAX_TOKENS, np.int32)  # one shape; what follows cannot be seen
            token_T[:end] = [*prompt, *response]
            is_response_T = np.zeros(MAX_TOKENS, np.float32)
            is_response_T[len(prompt) : end] = 1 / tokens
            grads = _sequence_gradient(model, token_T, is_response_T, float(advantage_PR[p, r]))
            total = jax.tree.map(jnp.add, total, grads)
    return total


def accumulated_gradient(updater: Updater, model: Decoder, batch: TrainBatch) -> Decoder:
    """What the updater hands to the optimizer, before the clip."""
    shardings = state_shardings(model.config, OPTIMIZER, updater.mesh)
    return updater.gradient(private_copies(model, shardings.params), batch)[0]


def values(metrics) -> dict[str, float | None]:
    return {name: getattr(value, "value", value) for name, value in metrics.items()}


def max_leaf_difference(a, b, *, relative: bool) -> float:
    """Largest |a - b| over all leaves, each relative to its largest |b| when `relative`."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = np.abs(y).max() if relative else 1.0
        worst = max(worst, float(np.abs(x - y).max() / max(scale, 1e-30)))
    return worst
