"""A supervised warm start: makes a small base model on the spot, before any RL.

Runs in one process on its default device: the models are small, and every process would compute the
same. Deterministic by seed, bit for bit on one machine.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from polaris_jax.config import WarmstartSection
from polaris_jax.models import ModelConfig, Qwen, next_token_logprobs
from polaris_jax.models.attention import attend as attention
from polaris_jax.train.optimizer import guarded_step

Example = tuple[Sequence[int], Sequence[int]]

BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.05  # of the steps
ROW_MULTIPLE_TOKENS = 32
# A call's temporaries are fresh memory: on a CPU two fifths of a step of 0.8M parameters were the
# kernel clearing it when each step was a call. Ctrl-C is answered between calls, hence not more.
STEPS_A_CALL = 4
# Attention over this number of positions costs a token about as much as the matrices of a small
# model (0.8M parameters, 2 CPU cores): long rows waste attention, short ones waste padding.
ATTENTION_BREAK_EVEN_TOKENS = 460


def warmstart_model_config(section: WarmstartSection, *, vocab_size: int) -> ModelConfig:
    """The architecture that a warm start makes: a small Qwen3 with tied embeddings.

    Args:
        section: sizes of the model.
        vocab_size: vocabulary size of the tokenizer.
    """
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=section.hidden_size,
        intermediate_size=section.intermediate_size,
        num_layers=section.num_layers,
        num_heads=section.num_heads,
        num_kv_heads=section.num_kv_heads,
        head_dim=section.head_dim,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        max_position_embeddings=section.max_position_tokens,
        tie_embeddings=True,
        qkv_bias=False,
        qk_norm=True,
    )


def warm_start(
    model: Qwen,
    examples: Sequence[Example],
    section: WarmstartSection,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> Qwen:
    """`model` after `section.steps` steps of cross-entropy on the completions, float32.

    Each step takes `batch_size` examples of a shuffled epoch, packed into one of two numbers of
    rows of one length; the loss is the mean over the batch's completion tokens. AdamW with a short
    linear warm-up and cosine decay to zero.

    Args:
        model: start; its arrays are copied, not donated.
        examples: (prompt token ids, completion token ids), stop token included.
        section: steps, batch_size, learning_rate, seed.
        on_step: called for each step with its number, from 0, and its loss in nats a token; for
            a few steps in a row once they are done.

    Raises:
        ValueError: no example, an empty completion, a token id outside the vocabulary, or fewer
            examples than a batch.
    """
    _check(examples, section, model.config)
    plans = list(_batches(examples, section))
    row_len = _best_row_len(examples, plans)
    packed = [_first_fit_decreasing(examples, plan, row_len) for plan in plans]
    heights = _row_counts([len(bins) for bins in packed])
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), model)
    opt_state = _optimizer(section.learning_rate, section.steps).init(params)
    for first, count in _runs(heights):
        rows = heights[first]
        batches = [
            _arrays(examples, bins, rows=rows, row_len=row_len)
            for bins in [*packed[first : first + count], *[[]] * (STEPS_A_CALL - count)]
        ]
        params, opt_state, loss_U = _several_steps(
            params,
            opt_state,
            stack={name: np.stack([batch[name] for batch in batches]) for name in batches[0]},
            count=np.int32(count),
            learning_rate=section.learning_rate,
            steps=section.steps,
        )
        for i, loss in enumerate(np.asarray(loss_U)[:count]):
            if on_step is not None:
                on_step(first + i, float(loss))
    return params


def _check(examples: Sequence[Example], section: WarmstartSection, config: ModelConfig) -> None:
    if len(examples) < section.batch_size:
        raise ValueError(
            f"warmstart.batch_size={section.batch_size}: there are {len(examples)} examples; lower "
            "it or raise warmstart.examples"
        )
    for i, (prompt, completion) in enumerate(examples):
        if not completion:
            raise ValueError(f"warm start example {i}: the completion is empty; leave it out")
        low, high = min(*prompt, *completion, 0), max(*prompt, *completion, 0)
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"warm start example {i}: token ids {low} to {high} must lie in "
                f"[0, {config.vocab_size}), the model's vocabulary"
            )


def _batches(examples: Sequence[Example], section: WarmstartSection) -> Iterator[np.ndarray]:
    """The example indices of every step: shuffled epochs, their ragged ends dropped."""
    rng = np.random.default_rng(section.seed)
    order, at = rng.permutation(len(examples)), 0
    for _ in range(section.steps):
        if at + section.batch_size > len(examples):
            order, at = rng.permutation(len(examples)), 0
        yield order[at : at + section.batch_size]
        at += section.batch_size


def _length(example: Example) -> int:
    return len(example[0]) + len(example[1])


def _first_fit_decreasing(
    examples: Sequence[Example], indices: np.ndarray, row_len: int
) -> list[list[int]]:
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted((int(i) for i in indices), key=lambda i: (-_length(examples[i]), i)):
        length = _length(examples[i])
        row = next((r for r, free in enumerate(room) if free >= length), len(bins))
        if row == len(bins):
            bins.append([])
            room.append(row_len)
        bins[row].append(i)
        room[row] -= length
    return bins


def _best_row_len(examples: Sequence[Example], plans: Sequence[np.ndarray]) -> int:
    """The row length of least estimated cost, from the first batches."""
    longest = max(_length(example) for example in examples)
    unit = -(-longest // ROW_MULTIPLE_TOKENS) * ROW_MULTIPLE_TOKENS

    def cost(row_len: int) -> int:
        bins = [_first_fit_decreasing(examples, plan, row_len) for plan in plans[:64]]
        rows = sum(_row_counts([len(members) for members in bins]))
        return rows * row_len * (ATTENTION_BREAK_EVEN_TOKENS + row_len)

    return min(
        (unit * n // 2 for n in (2, 3, 4, 6, 8)), key=lambda row_len: (cost(row_len), row_len)
    )


def _row_counts(needed: Sequence[int]) -> list[int]:
    """Rows that each batch is given: one of two counts, so that the step compiles twice at most.

    The larger is what the largest batch needs; the smaller is the one that pays for fewest rows.
    """
    most = max(needed, default=0)

    def paid(usual: int) -> list[int]:
        return [usual if rows <= usual else most for rows in needed]

    return min((paid(usual) for usual in sorted(set(needed))), key=sum, default=[])


def _runs(heights: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first step, number of steps) of neighbours with as many rows, at most `STEPS_A_CALL`."""
    first = 0
    for _, run in itertools.groupby(heights):
        end = first + len(list(run))
        for start in range(first, end, STEPS_A_CALL):
            yield start, min(STEPS_A_CALL, end - start)
        first = end


def _arrays(
    examples: Sequence[Example], bins: list[list[int]], *, rows: int, row_len: int
) -> dict[str, np.ndarray]:
    token_BT = np.zeros((rows, row_len), np.int32)
    position_BT = np.zeros((rows, row_len), np.int32)
    segment_BT = np.zeros((rows, row_len), np.int32)
    weight_BT = np.zeros((rows, row_len), np.float32)
    for row, members in enumerate(bins):
        at = 0
        for segment, i in enumerate(members, start=1):
            prompt, completion = examples[i]
            end = at + len(prompt) + len(completion)
            token_BT[row, at:end] = [*prompt, *completion]
            position_BT[row, at:end] = np.arange(end - at)
            segment_BT[row, at:end] = segment
            # Entry t speaks of token t+1; the first token of a row has no predecessor.
            weight_BT[row, at + max(len(prompt) - 1, 0) : end - 1] = 1.0
            at = end
    weight_BT /= max(weight_BT.sum(), 1.0)
    return {
        "token_BT": token_BT,
        "position_BT": position_BT,
        "segment_BT": segment_BT,
        "weight_BT": weight_BT,
    }


def _optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    warmup = max(1, round(WARMUP_SHARE * steps))

    def schedule(step: Any) -> Any:
        ramp = jnp.minimum((step + 1) / warmup, 1.0)
        return learning_rate * ramp * 0.5 * (1 + jnp.cos(math.pi * step / steps))

    return optax.adamw(schedule, b1=BETAS[0], b2=BETAS[1], weight_decay=WEIGHT_DECAY)


@functools.partial(
    jax.jit, static_argnames=("learning_rate", "steps"), donate_argnames=("params", "opt_state")
)
def _several_steps(
    params: Qwen,
    opt_state: Any,
    *,
    stack: dict[str, Array],
    count: Array,
    learning_rate: float,
    steps: int,
) -> tuple[Qwen, Any, Array]:
    """The first `count` steps of a stack of batches; the losses of the others are 0."""

    def one(i: Array, carry: tuple[Qwen, Any, Array]) -> tuple[Qwen, Any, Array]:
        params, opt_state, loss_U = carry
        arrays = {name: x_UBT[i] for name, x_UBT in stack.items()}
        loss, grads = jax.value_and_grad(_cross_entropy)(params, arrays)
        params, opt_state, _, _ = guarded_step(
            grads,
            params,
            opt_state=opt_state,
            transform=_optimizer(learning_rate, steps),
            max_grad_norm=MAX_GRAD_NORM,
        )
        return params, opt_state, loss_U.at[i].set(loss)

    size = stack["token_BT"].shape[0]
    return jax.lax.fori_loop(0, count, one, (params, opt_state, jnp.zeros(size, jnp.float32)))


def _cross_entropy(params: Qwen, arrays: dict[str, Array]) -> Array:
    segment_BT = arrays["segment_BT"]

    def attend(_: Array, q: Array, k: Array, v: Array, carry: None) -> tuple[Array, None]:
        return attention(q, k, v, segment_BT), carry

    # Unrolled: these models are shallow, and a scan copies each layer's weights on the CPU.
    hidden_BTD, _ = params.forward(
        arrays["token_BT"], arrays["position_BT"], attend, None, unroll=True
    )
    logp_BT, _ = next_token_logprobs(params, hidden_BTD, arrays["token_BT"], segment_BT, 1.0)
    return -jnp.sum(logp_BT * arrays["weight_BT"])
