"""The demo's base model: a small model made on the spot by a supervised warm start, before any RL.

Runs in one process on its default device: the models are small, and every process would compute the
same. Deterministic by seed, bit for bit on one machine.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax import Array

from polaris_jax.batch.placing import first_fit_decreasing
from polaris_jax.config import RunConfig, WarmstartSection
from polaris_jax.data.prompts import render_example
from polaris_jax.demo.arithmetic import supervised_examples
from polaris_jax.demo.chains import Mix
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.models import Decoder, ModelConfig, next_token_logprobs, save_pretrained
from polaris_jax.models.attention import attend as attention
from polaris_jax.system.files import delete_partials, write_bytes
from polaris_jax.system.foreign import read_json
from polaris_jax.system.progress import Progress
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
# Fields that a warmstart.json of earlier versions lacks, as they were.
ADDED = {"habits": 0.0, "habit_rate": 0.9, "min_steps": 1, "max_steps": 5, "families": []}
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
    model: Decoder,
    examples: Sequence[Example],
    section: WarmstartSection,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> Decoder:
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
    length = np.array([len(prompt) + len(completion) for prompt, completion in examples])
    plans = list(_batches(examples, section))
    row_len = _best_row_len(length, plans)
    packed = [first_fit_decreasing(length[plan], row_len) for plan in plans]
    heights = _row_counts([1 + int(row.max()) for row, _, _ in packed])
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), model)
    opt_state = _optimizer(section.learning_rate, section.steps).init(params)
    for first, count in _runs(heights):
        shape = heights[first], row_len
        batches = [
            _arrays([examples[i] for i in plans[step]], packed[step], shape)
            for step in range(first, first + count)
        ]
        batches += [_arrays([], ((), (), ()), shape)] * (STEPS_A_CALL - count)
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
    """The example indices of every step: shuffled epochs, their ragged ends dropped; ascending."""
    rng = np.random.default_rng(section.seed)
    order, at = rng.permutation(len(examples)), 0
    for _ in range(section.steps):
        if at + section.batch_size > len(examples):
            order, at = rng.permutation(len(examples)), 0
        yield np.sort(order[at : at + section.batch_size])
        at += section.batch_size


def _best_row_len(length: np.ndarray, plans: Sequence[np.ndarray]) -> int:
    """The row length of least estimated cost, from the first batches."""
    unit = -(-int(length.max()) // ROW_MULTIPLE_TOKENS) * ROW_MULTIPLE_TOKENS

    def cost(row_len: int) -> int:
        placed = [first_fit_decreasing(length[plan], row_len) for plan in plans[:64]]
        needed = [1 + int(row.max()) for row, _, _ in placed]
        return sum(_row_counts(needed)) * row_len * (ATTENTION_BREAK_EVEN_TOKENS + row_len)

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
    examples: Sequence[Example],
    places: Sequence[Sequence[int] | np.ndarray],
    shape: tuple[int, int],
) -> dict[str, np.ndarray]:
    """A batch as packed rows.

    Args:
        examples: the batch's examples.
        places: row, first position and segment number of each example.
        shape: (rows, tokens of a row).
    """
    token_BT, position_BT, segment_BT = (np.zeros(shape, np.int32) for _ in range(3))
    weight_BT = np.zeros(shape, np.float32)
    for (prompt, completion), row, at, segment in zip(examples, *places, strict=True):
        end = at + len(prompt) + len(completion)
        token_BT[row, at:end] = [*prompt, *completion]
        position_BT[row, at:end] = np.arange(end - at)
        segment_BT[row, at:end] = segment
        # Entry t speaks of token t+1; the first token of a row has no predecessor.
        weight_BT[row, at + max(len(prompt) - 1, 0) : end - 1] = 1.0
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
    params: Decoder,
    opt_state: Any,
    *,
    stack: dict[str, Array],
    count: Array,
    learning_rate: float,
    steps: int,
) -> tuple[Decoder, Any, Array]:
    """The first `count` steps of a stack of batches; the losses of the others are 0."""

    def one(i: Array, carry: tuple[Decoder, Any, Array]) -> tuple[Decoder, Any, Array]:
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


def _cross_entropy(params: Decoder, arrays: dict[str, Array]) -> Array:
    segment_BT = arrays["segment_BT"]

    def attend(_: Array, q: Array, k: Array, v: Array, carry: None) -> tuple[Array, None]:
        return attention(q, k, v, segment_BT), carry

    # Unrolled: these models are shallow, and a scan copies each layer's weights on the CPU.
    hidden_BTD, _ = params.forward(
        arrays["token_BT"], arrays["position_BT"], attend, None, unroll=True
    )
    logp_BT, _ = next_token_logprobs(params, hidden_BTD, arrays["token_BT"], segment_BT, 1.0)
    return -jnp.sum(logp_BT * arrays["weight_BT"])


def base_model_architecture(config: RunConfig) -> ModelConfig:
    """The architecture of the model that `make_base_model` makes."""
    return warmstart_model_config(config.warmstart, vocab_size=len(build_tokenizer()))


def make_base_model(config: RunConfig, path: epath.Path, progress: Progress) -> None:
    """Trains the small base model by supervision, unless it is already there and complete."""
    section, done = config.warmstart, path / "warmstart.json"
    identity = dataclasses.asdict(section) | {"prompt_suffix": config.data.prompt_suffix}
    remedy = f"delete {path} to make the model anew"
    identity = json.loads(json.dumps(identity))
    if done.exists() and ADDED | read_json(done, remedy=remedy) == identity:
        return
    tokenizer = build_tokenizer()
    model_config = warmstart_model_config(section, vocab_size=len(tokenizer))
    suffix = config.data.prompt_suffix
    examples = [
        render_example(tokenizer, problem.problem, completion, suffix=suffix)
        for problem, completion in supervised_examples(
            section.examples,
            seed=section.seed,
            slip_rate=section.slip_rate,
            habits=section.habits,
            habit_rate=section.habit_rate,
            mix=Mix(section.min_steps, section.max_steps, section.families),
        )
    ]
    model = Decoder.init(model_config, jax.random.key(section.seed))
    progress.line(
        f"warm start: {section.steps} supervised steps on {len(examples)} worked solutions, "
        f"{model_config.num_parameters:,} parameters"
    )
    with progress.phase("warm start", section.steps) as phase:
        model = warm_start(
            model,
            examples,
            section,
            on_step=lambda step, loss: phase.advance_to(step + 1, f"loss {loss:.3f}"),
        )
    done.unlink(missing_ok=True)  # or a kill here would leave these weights under the old name
    delete_partials(path)
    save_pretrained(model, path, tokenizer=tokenizer)
    write_bytes(done, json.dumps(identity, sort_keys=True).encode())
