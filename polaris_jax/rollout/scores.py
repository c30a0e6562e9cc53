"""Log-probs of complete sequences: of their tokens, and of the likeliest others in their place."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from polaris_jax import sharding
from polaris_jax.models import token_logprobs
from polaris_jax.rollout.fused_weights import Model
from polaris_jax.rollout.programs.spec import PREFILL_CALL_TOKENS

SHORTEST_ROW = 32
CHUNK_TOKENS = 512  # whose logits are held at once
TOPS = (1, 20)  # a call computes the smallest of these that is enough


class Scores(NamedTuple):
    """What a model thinks of one sequence, for its tokens from the second on, in nats.

    Attributes:
        logprobs: log-prob of each token, given the tokens before it.
        top_ids: the likeliest tokens in the place of each token, the likeliest first.
        top_logprobs: their log-probs; the token's own is bitwise that of `logprobs`.
    """

    logprobs: tuple[float, ...]
    top_ids: tuple[tuple[int, ...], ...]
    top_logprobs: tuple[tuple[float, ...], ...]


def score(
    model: Any,
    sequences: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    *,
    top: int,
    mesh: Mesh | None = None,
) -> list[Scores]:
    """The scores of sequences under softmax(logits / temperature), computed without the pages.

    Rows are padded to powers of two, and so is their number: one program for each such shape.

    Args:
        model: the sampler's weights.
        sequences: token ids, each at least one.
        temperatures: one temperature a sequence; 0 counts as 1, as in sampling.
        top: number of likeliest tokens to return, at most 20 and the size of the vocabulary.
        mesh: the sampler's mesh; its processes call together, with the same arguments.

    Raises:
        ValueError: `top` is out of range. (`Sampler.score` also checks the token ids.)
    """
    if not 0 <= top <= TOPS[-1]:
        raise ValueError(f"top={top}: must be in [0, {TOPS[-1]}]; ask for fewer tokens")
    found: list[Any] = [None] * len(sequences)
    program = _program(mesh, next(one for one in TOPS if one >= top))
    results = _row_results(program, model, sequences, temperatures, mesh=mesh, fill=False)
    for index, (logp_T, top_TK, top_logp_TK) in results:
        last = len(sequences[index]) - 1
        found[index] = Scores(
            tuple(logp_T[:last].tolist()),
            tuple(map(tuple, top_TK[:last, :top].tolist())),
            tuple(map(tuple, top_logp_TK[:last, :top].tolist())),
        )
    return found


def prompt_logprobs(
    model: Model,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    mesh: Mesh | None = None,
) -> list[tuple[float, ...]]:
    """For each prompt, log p(token t | tokens before t) for t = 1 .. length - 1, in nats.

    Rows are padded to powers of two, with one program for each, and computed as the trainer does.

    Args:
        model: the sampler's weights.
        prompts: token ids of each prompt.
        temperatures: one temperature a prompt; 0 counts as 1, as in sampling.
        mesh: the sampler's mesh; its processes call together, with the same arguments.
    """
    found: list[tuple[float, ...]] = [()] * len(prompts)
    results = _row_results(
        _logprob_program(mesh), model, prompts, temperatures, mesh=mesh, fill=True
    )
    for index, (logp_T,) in results:
        found[index] = tuple(logp_T[: len(prompts[index]) - 1].tolist())
    return found


def _row_results(
    program: Any,
    model: Any,
    sequences: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    *,
    mesh: Mesh | None,
    fill: bool,
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """(index, its row of each of the program's results) of every sequence.

    Args:
        program: jitted (model, token_BT, segment_BT, temperature_B) -> results [B, T, ...].
        model: the sampler's weights.
        sequences: token ids; each is a row of a power of two.
        temperatures: one temperature a sequence; 0 counts as 1.
        mesh: the sampler's mesh.
        fill: True: every call of a width has as many rows as are allowed. False: the next power of
            two. The bits of a result may depend on it.
    """
    by_width: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        width = max(SHORTEST_ROW, _power_of_two(len(sequence)))
        by_width.setdefault(width, []).append(index)
    for width, indices in sorted(by_width.items()):
        most = max(1, PREFILL_CALL_TOKENS // width)
        for first in range(0, len(indices), most):
            part = indices[first : first + most]
            rows = most if fill else min(most, _power_of_two(len(part)))
            token_BT = np.zeros((rows, width), np.int32)
            segment_BT = np.zeros((rows, width), np.int32)
            temperature_B = np.ones(rows, np.float32)
            for row, index in enumerate(part):
                token_BT[row, : len(sequences[index])] = sequences[index]
                segment_BT[row, : len(sequences[index])] = 1
                temperature_B[row] = temperatures[index] or 1.0
            args = sharding.on_members((token_BT, segment_BT, temperature_B), mesh, axis=None)
            results = sharding.to_host(sharding.from_host(program, model, *args))
            for row, index in enumerate(part):
                yield index, tuple(result[row] for result in results)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@functools.cache
def _program(mesh: Mesh | None, top: int) -> Any:
    out = None if mesh is None else sharding.replicated(mesh)
    return jax.jit(functools.partial(_scores, top=top), out_shardings=out)


@functools.cache
def _logprob_program(mesh: Mesh | None) -> Any:
    # Replicated, because a process of the mesh can only read its own shards.
    return jax.jit(_logprobs, out_shardings=None if mesh is None else sharding.replicated(mesh))


def _logprobs(model: Any, token_BT: Array, segment_BT: Array, temperature_B: Array) -> tuple[Array]:
    position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
    return token_logprobs(model, token_BT, position_BT, segment_BT, temperature_B[:, None])[:1]


def _scores(
    model: Any, token_BT: Array, segment_BT: Array, temperature_B: Array, *, top: int
) -> tuple[Array, Array, Array]:
    batch, length = token_BT.shape
    position_BT = jnp.broadcast_to(jnp.arange(length), token_BT.shape)
    hidden_BTD = model(token_BT, position_BT, segment_BT)
    target_BT = jnp.pad(token_BT[:, 1:], ((0, 0), (0, 1)))
    chunk = min(CHUNK_TOKENS, length)

    def scored(inputs: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        hidden_BCD, target_BC = inputs
        logit_BCV = model.unembed(hidden_BCD).astype(jnp.float32) / temperature_B[:, None, None]
        logp_BCV = jax.nn.log_softmax(logit_BCV, axis=-1)
        logp_BC = jnp.take_along_axis(logp_BCV, target_BC[..., None], axis=-1)[..., 0]
        top_logp_BCK, top_BCK = jax.lax.top_k(logp_BCV, min(top, logp_BCV.shape[-1]))
        return logp_BC, top_BCK, top_logp_BCK

    def in_chunks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, length // chunk, chunk, *x.shape[2:]), 1, 0)

    def joined(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(batch, length, *x.shape[3:])

    found = jax.lax.map(scored, (in_chunks(hidden_BTD), in_chunks(target_BT)))
    logp_BT, top_BTK, top_logp_BTK = map(joined, found)
    return logp_BT, top_BTK, top_logp_BTK
