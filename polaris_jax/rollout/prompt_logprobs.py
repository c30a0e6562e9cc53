"""Log-probs of the prompts' own tokens: the trainer's definition, the sampler's weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from polaris_jax.models import token_logprobs
from polaris_jax.rollout.programs import Model
from polaris_jax.rollout.programs.spec import PREFILL_CALL_TOKENS
from polaris_jax.sharding import from_host, on_members, replicated, to_host

SHORTEST_ROW = 32


def prompt_logprobs(
    model: Model,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    mesh: Mesh | None = None,
) -> list[tuple[float, ...]]:
    """For each prompt, log p(token t | tokens before t) for t = 1 .. length - 1, in nats.

    Rows are padded to powers of two, with one program for each.

    Args:
        model: the sampler's weights.
        prompts: token ids of each prompt.
        temperatures: one temperature a prompt; 0 counts as 1, as in sampling.
        mesh: the sampler's mesh; its processes call together, with the same arguments.
    """
    found: list[tuple[float, ...]] = [()] * len(prompts)
    by_width: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_width.setdefault(_row_width(len(prompt)), []).append(index)
    for width, indices in sorted(by_width.items()):
        rows = max(1, PREFILL_CALL_TOKENS // width)
        for first in range(0, len(indices), rows):
            part = indices[first : first + rows]
            token_BT = np.zeros((rows, width), np.int32)
            segment_BT = np.zeros((rows, width), np.int32)
            temperature_BT = np.ones((rows, 1), np.float32)
            for row, index in enumerate(part):
                token_BT[row, : len(prompts[index])] = prompts[index]
                segment_BT[row, : len(prompts[index])] = 1
                temperature_BT[row] = temperatures[index] or 1.0
            args = on_members((token_BT, segment_BT, temperature_BT), mesh, axis=None)
            logp_BT = to_host(from_host(_program(mesh), model, *args))
            for row, index in enumerate(part):
                found[index] = tuple(logp_BT[row, : len(prompts[index]) - 1].tolist())
    return found


def _row_width(length: int) -> int:
    return max(SHORTEST_ROW, 1 << (length - 1).bit_length())


@functools.cache
def _program(mesh: Mesh | None) -> Any:
    # Replicated, because a process of the mesh can only read its own shards.
    return jax.jit(_logprobs, out_shardings=None if mesh is None else replicated(mesh))


def _logprobs(
    model: Any, token_BT: jax.Array, segment_BT: jax.Array, temperature_BT: jax.Array
) -> jax.Array:
    position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
    return token_logprobs(model, token_BT, position_BT, segment_BT, temperature_BT)[0]
