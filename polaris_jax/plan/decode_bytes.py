"""HBM bytes of one decode step, from the compiled program: weights, keys and values, and the rest.

A step has to read every weight once and every live key and value once. What the compiled program
moves beside that is overhead: copies of weights or pages, passes over logits, activations.

Counted from the compiled text by `hlo_ledger`. Two things are counted from shapes instead, since
the text does not tell: an attention kernel reads of the pool each row's live pages, up to a whole
block, once a layer (`ragged_paged_attention`: the copies that it starts for each block of a row, a
row being one query; its queries and outputs are operands and results as any others).
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
from polaris_jax.rollout.program_spec import program_spec
from polaris_jax.sharding import slot_shards

WEIGHTS, KV = "weights", "KV"


@dataclasses.dataclass(frozen=True)
class DecodeBytes:
    """Of one decode step on one device.

    Attributes:
        rows: sequences of a data shard.
        context_tokens: live keys and values of each.
        weights: bytes of the weights.
        live: bytes of the live keys and values.
        moved: what the program moves in a step, by owner; what it moves once a call counts for
            each of the call's steps in part.
        lines: the instructions of a step, most bytes first.
        outside: those that run once a call.
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
        """Moved bytes over those that no program could do without."""
        return sum(self.moved.values()) / (self.weights + self.live)

    @property
    def ratio_without_kv(self) -> float:
        """All but keys and values over the weights: what long contexts hide in `ratio`."""
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

    Without a kernel, loops over pages whose end is known at run time only count one turn.

    Args:
        text: of the compiled program.
        args: those of `abstract_programs.decode_program`.
        config: the sizes that it was made for.
        mesh: the sampler's.
        context_tokens: live tokens of each row.
        branch: "least" draws without top-k, top-p and min-p and without a greedy row; "most" with.

    Raises:
        ValueError: arguments were left out by the compiler, so that the text's parameters cannot
            be told.
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
