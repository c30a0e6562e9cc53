"""HBM bytes of one decode step, from the compiled program: weights, keys and values, and the rest.

A step has to read every weight once and every live key and value once. All else that the compiled
program moves is overhead: copies of weights or pages, passes over logits, activations.

The bytes are counted in the compiled text, by instruction and by owner. A decode call is one loop
over steps. Instructions outside of the loop run once a call. Instructions inside run once a step,
times the trips of the inner loops (layers). Every read is traced back to its argument through
loops, fusions, copies and updates in place.

The text does not say how much of the pool an attention kernel reads, so this part is counted from
shapes: the kernel reads each row's live pages once a layer, rounded up to a full block.
(`ragged_paged_attention` starts a copy for each block of a row, and a row is one query. The
kernel's queries and outputs count like other operands and results.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from polaris_jax.plan.compile import device_bytes
from polaris_jax.plan.hlo import loop_trips
from polaris_jax.plan.hlo_text import (
    FREE,
    THROUGH,
    Computation,
    Instruction,
    Module,
    is_kernel,
    moves,
    parse_module,
)
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.programs.spec import program_spec
from polaris_jax.sharding import slot_shards

OTHER = "other"
# The branch of a conditional that counts: the one that moves the least, or the most.
Branch = Literal["least", "most"]
_SAME_BUFFER = (
    *(*THROUGH, "slice", "dynamic-slice", "dynamic-update-slice", "scatter", "opt-barrier"),
    *("copy-start", "copy-done", "async-update", "async-done", "fusion-update", "fusion-done"),
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One instruction.

    Attributes:
        name: the instruction's name.
        opcode: the instruction's opcode.
        origin: name in the program's source; empty if the compiler gives none.
        times: how often the instruction runs.
        owned: HBM bytes of all runs, by owner.
        kernel: True for a custom call.
    """

    name: str
    opcode: str
    origin: str
    times: float
    owned: Mapping[str, float]
    kernel: bool

    @property
    def total(self) -> float:
        return sum(self.owned.values())


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The instructions of a program that move bytes.

    Attributes:
        turn: the lines of one turn of the main loop.
        outside: the lines that one execution runs outside of the main loop.
        turns: the largest number of the main loop's turns.
        parameters: number of the program's parameters.
    """

    turn: tuple[Line, ...]
    outside: tuple[Line, ...]
    turns: int
    parameters: int


def owned_bytes(lines: Iterable[Line]) -> dict[str, float]:
    """Bytes by owner."""
    found: dict[str, float] = {}
    for line in lines:
        for owner, size in line.owned.items():
            found[owner] = found.get(owner, 0.0) + size
    return found


def main_loop_ledger(
    text: str,
    *,
    owners: Mapping[int, str],
    kernel_share: Mapping[str, float],
    branch: Branch = "least",
) -> Ledger:
    """The ledger of a compiled program whose work is one loop.

    Args:
        text: text of the compiled program.
        owners: owner of an entry parameter, by the parameter's number; all others are "other".
        kernel_share: by owner, the share of an operand that a kernel reads (may be above 1); an
            operand of an owner without an entry counts in full.
        branch: which branch of a conditional runs.

    Raises:
        ValueError: the entry has no loop, or its number of trips is not in the text.
    """
    walk = _Walk(parse_module(text), owners, kernel_share, branch)
    entry = _Frame(walk.module.computations[walk.module.entry])
    loops = [node for node in entry.computation.instructions if node.opcode == "while"]
    bodies = {node.name: walk.lines(entry.inside(walk.module, node, "body"), 1.0) for node in loops}
    if not loops:
        raise ValueError("the program has no loop at its top: is it a decode call?")
    main = max(loops, key=lambda node: sum(line.total for line in bodies[node.name]))
    trips = loop_trips(walk.module, entry.computation, main).count
    if trips is None:
        raise ValueError(f"%{main.name}: its number of turns is known at run time only")
    outside = walk.lines(entry, 1.0, without=main.name)
    return Ledger(
        turn=tuple(bodies[main.name]),
        outside=tuple(outside),
        turns=trips,
        parameters=len(entry.computation.parameters),
    )


@dataclasses.dataclass(frozen=True)
class _Frame:
    """A computation and where it is called from: `given` are its parameters in the caller."""

    computation: Computation
    caller: _Frame | None = None
    given: tuple[str, ...] = ()

    def inside(self, module: Module, node: Instruction, key: str) -> _Frame:
        """What `node`, which stands here, calls."""
        return _Frame(module.called(node, key), self, node.operands)

    def branches(self, module: Module, node: Instruction) -> list[_Frame]:
        return [
            _Frame(module.computations[name], self, (node.operands[1 + i],))
            for i, name in enumerate(node.branches)
        ]


@dataclasses.dataclass(frozen=True)
class _Walk:
    module: Module
    owners: Mapping[int, str]
    kernel_share: Mapping[str, float]
    branch: Branch

    def lines(self, frame: _Frame, times: float, *, without: str = "") -> list[Line]:
        found: list[Line] = []
        for node in frame.computation.instructions:
            if node.name == without:
                continue
            if node.opcode == "while":
                count = loop_trips(self.module, frame.computation, node).count
                body = frame.inside(self.module, node, "body")
                # The decode programs' own loops have known counts; another loop counts once.
                found += self.lines(body, times * (1 if count is None else count))
            elif node.opcode in ("call", "async-start"):
                key = "to_apply" if node.opcode == "call" else "calls"
                found += self.lines(frame.inside(self.module, node, key), times)
            elif node.opcode == "conditional":
                parts = [self.lines(f, times) for f in frame.branches(self.module, node)]
                choose = min if self.branch == "least" else max
                found += choose(parts, key=lambda part: sum(line.total for line in part))
            elif node.opcode not in FREE:
                line = self._line(frame, node, times)
                if line.total:
                    found.append(line)
        return found

    def _line(self, frame: _Frame, node: Instruction, times: float) -> Line:
        moved, kernel = moves(self.module, frame.computation, node), is_kernel(node)
        owned: dict[str, float] = {}
        for name, size in (*moved.reads, *moved.updates):
            number = self._argument(frame, name, None)
            owner = OTHER if number is None else self.owners.get(number, OTHER)
            part = size * self.kernel_share.get(owner, 1.0) if kernel else size
            owned[owner] = owned.get(owner, 0.0) + times * part
        owned[OTHER] = owned.get(OTHER, 0.0) + times * moved.written
        return Line(node.name, node.opcode, node.origin, times, owned, kernel)

    def _argument(self, frame: _Frame, name: str, element: int | None) -> int | None:
        """The entry parameter that a result is, or is a part or changed copy of."""
        node = frame.computation.by_name.get(name)
        if node is None:
            return None
        if node.opcode == "parameter":
            number = int(node.arguments)
            if frame.caller is None:
                return number
            return self._argument(frame.caller, frame.given[number], element)
        if node.opcode == "get-tuple-element":
            return self._argument(frame, node.operands[0], node.index)
        if node.opcode == "tuple" and element is not None:
            return self._argument(frame, node.operands[element], None)
        # An argument that a loop hands on stays in its place.
        if node.opcode == "while" or node.opcode in _SAME_BUFFER:
            return self._argument(frame, node.operands[0], element)
        key = "to_apply" if node.opcode == "call" else "calls"
        if node.opcode in ("call", "fusion", "fusion-start", "async-start"):
            inner = frame.inside(self.module, node, key)
            return self._argument(inner, inner.computation.root.name, element)
        return None


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
    turn, outside = owned_bytes(ledger.turn), owned_bytes(ledger.outside)
    return DecodeBytes(
        rows=rows_here,
        context_tokens=context_tokens,
        weights=device_bytes(weights),
        live=device_bytes(pool) * layers * rows_here * context_tokens // pool_tokens,
        moved={
            owner: turn.get(owner, 0.0) + outside.get(owner, 0.0) / ledger.turns
            for owner in (WEIGHTS, KV, OTHER)
        },
        lines=_largest_first(ledger.turn),
        outside=_largest_first(ledger.outside),
    )


def _largest_first(lines: Sequence[Line]) -> tuple[Line, ...]:
    return tuple(sorted(lines, key=lambda line: -line.total))
