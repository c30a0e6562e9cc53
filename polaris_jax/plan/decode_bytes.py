"""HBM bytes of one decode step, from the compiled program: weights, keys and values, and the rest.

A step has to read every weight once and every live key and value once. All else that the compiled
program moves is overhead: copies of weights or pages, passes over logits, activations.

`hlo_ledger` counts the bytes in the compiled text. The text does not say how much of the pool an
attention kernel reads, so this part is counted from shapes: the kernel reads each row's live pages
once a layer, rounded up to a full block. (`ragged_paged_attention` starts a copy for each block of
a row, and a row is one query. The kernel's queries and outputs count like other operands and
results.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from polaris_jax.plan.compile import device_bytes
from polaris_jax.plan.hlo_ledger import OTHER, Branch, Ledger, Line, main_loop_ledger, owned_bytes
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.programs.spec import program_spec
from polaris_jax.sharding import slot_shards

WEIGHTS, KV = "weights", "KV"


@dataclasses.dataclass(frozen=True)
class DecodeBytes:
    """The HBM bytes of one decode step on one device.

    Attributes:
        rows: sequences of a data shard.
        context_tokens: tokens of each sequence whose keys and values are live.
        weights: bytes of the weights.
        live: bytes of the live keys and values.
        moved: bytes that the program moves in a step, by owner. Bytes that are moved once a call
            are divided evenly among the call's steps.
        lines: the instructions of a step, most bytes first.
        outside: the instructions that run once a call, most bytes first.
    """

    rows: int
    context_tokens: int
    weights: int
    live: int
    moved: dict[str, float]
    lines: tuple[Line, ...]
    outside: tuple[Line, ...]

    @property
    def ratio(self) -> float:
        """Moved bytes over the bytes that every program has to read."""
        return sum(self.moved.values()) / (self.weights + self.live)

    @property
    def ratio_without_kv(self) -> float:
        """Moved bytes without keys and values, over the bytes of the weights.

        In `ratio` long contexts hide this overhead.
        """
        return (self.moved[WEIGHTS] + self.moved[OTHER]) / self.weights


def decode_bytes(
    text: str,
    args: tuple[Any, ...],
    *,
    config: SamplerConfig,
    mesh: Mesh,
    context_tokens: int,
    branch: Branch = "least",
) -> DecodeBytes:
    """The bytes of one step of a compiled decode program.

    Without a kernel, a loop over pages whose end is known only at run time counts as one turn.

    Args:
        text: text of the compiled program.
        args: the arguments that `rollout.programs.abstract.decode_program` names.
        config: the sizes that the program was made for.
        mesh: the sampler's mesh.
        context_tokens: live tokens of each row.
        branch: "least" draws without top-k, top-p, min-p and greedy rows; "most" draws with them.

    Raises:
        ValueError: the compiler left out arguments, so that the text's parameters cannot be
            matched to the arguments.
    """
    weights, pool, rows = args[:3]
    leaves = jax.tree.leaves(args)
    first, last = (len(jax.tree.leaves(part)) for part in (weights, (weights, pool)))
    owners = {i: WEIGHTS if i < first else KV for i in range(last)}
    layers, data = weights.config.num_layers, slot_shards(mesh)
    rows_here = rows.token_B.shape[0] // data
    pool_tokens = layers * (config.num_pages // data) * config.page_size
    block = program_spec(weights.config, config, mesh).layout.block_tokens
    block = max(1, block // config.page_size) * config.page_size
    read_tokens = rows_here * -(-context_tokens // block) * block
    ledger = main_loop_ledger(
        text, owners=owners, kernel_share={KV: read_tokens / pool_tokens}, branch=branch
    )
    if ledger.parameters != len(leaves):
        raise ValueError(
            f"the compiled program has {ledger.parameters} parameters for {len(leaves)} arguments"
        )
    return DecodeBytes(
        rows=rows_here,
        context_tokens=context_tokens,
        weights=device_bytes(weights),
        live=device_bytes(pool) * layers * rows_here * context_tokens // pool_tokens,
        moved=_a_step(ledger),
        lines=_largest_first(ledger.turn),
        outside=_largest_first(ledger.outside),
    )


def _a_step(ledger: Ledger) -> dict[str, float]:
    turn, outside = owned_bytes(ledger.turn), owned_bytes(ledger.outside)
    return {
        owner: turn.get(owner, 0.0) + outside.get(owner, 0.0) / ledger.turns
        for owner in (WEIGHTS, KV, OTHER)
    }


def _largest_first(lines: Sequence[Line]) -> tuple[Line, ...]:
    return tuple(sorted(lines, key=lambda line: -line.total))
