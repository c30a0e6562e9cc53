"""The bytes that a compiled program moves: collective bytes by kind, and HBM bytes.

XLA's own cost analysis counts a loop's body once. Here the compiled text is walked from its entry,
and everything in a loop's body counts as often as the loop runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from polaris_jax.plan.hlo_text import (
    CASTS,
    Computation,
    Instruction,
    Module,
    all_bytes,
    is_kernel,
    moves,
    parse_module,
    uses,
)
from polaris_jax.plan.topologies import Chip

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# An all-reduce of which each device keeps a slice: a reduce-scatter at twice the traffic.
SLICED_ALL_REDUCE = "all-reduce+slice"
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Trips:
    """How often a loop's body runs.

    Attributes:
        count: the number of turns; None if it is not in the text.
        is_bound: True if the loop may end earlier (the loop has a second condition).
    """

    count: int | None
    is_bound: bool = False


def loop_trips(module: Module, computation: Computation, loop: Instruction) -> Trips:
    """How often a `while` runs: XLA's own note, else the constant that its condition compares with.

    The induction variable is taken to begin at its initial constant (0 when that is not one) and
    to grow by 1, as in every loop that jax makes.
    """
    noted = _TRIPS.search(loop.attributes)
    if noted:
        return Trips(int(noted.group(1)))

    def bounds(condition: Computation, node: Instruction) -> tuple[list[int], bool]:
        """(iteration counts that the condition compares with, whether it asks for more)."""
        if node.opcode == "and":
            parts = [bounds(condition, condition.by_name[name]) for name in node.operands]
            found = [bound for part in parts for bound in part[0]]
            return found, any(part[1] for part in parts) or len(found) < len(parts)
        if node.opcode in CASTS:
            return bounds(condition, condition.by_name[node.operands[0]])
        if node.opcode == "fusion":
            flat = _inline(condition, node, module.called(node, "calls"))
            return bounds(flat, flat.root)
        if node.opcode != "compare" or "direction=LT" not in node.attributes:
            return [], True
        start, stop = (_constant(computation, condition, name, loop) for name in node.operands[:2])
        return ([stop - (start or 0)], False) if stop is not None else ([], True)

    condition = module.called(loop, "condition")
    found, others = bounds(condition, condition.root)
    return Trips(min(found), is_bound=others) if found else Trips(None)


def _inline(condition: Computation, fusion: Instruction, inner: Computation) -> Computation:
    """`inner` with its parameters replaced by what the fusion is given, inside `condition`."""
    names = {i.name: f"{fusion.name}/{i.name}" for i in inner.instructions}
    given = {inner.parameters[i].name: name for i, name in enumerate(fusion.operands)}
    names |= given
    body = [
        dataclasses.replace(
            i, name=names[i.name], operands=tuple(names.get(name, name) for name in i.operands)
        )
        for i in inner.instructions
        if i.name not in given
    ]
    rest = [dataclasses.replace(i, is_root=False) for i in condition.instructions]
    return Computation(condition.name, (*rest, *body))


def _constant(
    outer: Computation, condition: Computation, name: str, loop: Instruction
) -> int | None:
    """An integer operand of a loop's condition, followed into the loop's initial values."""
    node = condition.source(name)
    if node is not None and node.opcode == "get-tuple-element" and node.index is not None:
        initial = outer.by_name.get(loop.operands[0])
        if condition.by_name[node.operands[0]].opcode != "parameter":
            return None
        if initial is None or initial.opcode != "tuple":
            return None
        node = outer.source(initial.operands[node.index])
    if node is None or node.opcode != "constant" or not re.fullmatch(r"-?\d+", node.arguments):
        return None
    return int(node.arguments)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind, group size, span and number of hosts in a program.

    Attributes:
        kind: HLO's name, or `all-reduce+slice`.
        group: number of devices in a group.
        span: device numbers from a group's first device to its last, both counted; the largest
            over all groups.
        hosts: number of hosts of a group's devices, the largest over all groups; 1 without hosts.
        executed: number of executions, loops counted in full.
        payload_bytes: bytes of the complete array that a group gathers, reduces or exchanges,
            summed over all executions.
        largest_bytes: bytes of the largest such array.
    """

    kind: str
    group: int
    span: int
    hosts: int
    executed: float
    payload_bytes: float
    largest_bytes: float

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device sends in a ring: (n - 1)/n of the payload, twice for a reduce."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.payload_bytes
        passes = 2 if self.kind in ("all-reduce", SLICED_ALL_REDUCE) else 1
        return passes * self.payload_bytes * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one execution of a program moves on a device.

    Attributes:
        collectives: sums by kind, group size, span and hosts, most bytes first.
        hbm_bytes: bytes read and written by XLA's own instructions: operands and results in HBM,
            and only the slice of a sliced operand. An estimate: an operand that a fusion reads
            twice counts once.
        kernel_bytes: operands and results of custom calls (Pallas, cuDNN). A custom call may read
            an operand several times, or only a part of it.
        dynamic_loops: loops whose count is known only at run time; each counts as `dynamic_trips`
            turns.
        bounded_loops: loops that may end before the count that is assumed here.
    """

    collectives: tuple[Collective, ...]
    hbm_bytes: float
    kernel_bytes: float
    dynamic_loops: int
    bounded_loops: int

    def wire_bytes(self, kind: str | None = None) -> float:
        """Bytes that a device sends in collectives of one kind, or of all kinds."""
        return sum(c.wire_bytes for c in self.collectives if kind in (None, c.kind))


def program_traffic(
    text: str, *, devices: int, dynamic_trips: float = 1.0, host_devices: int = 0
) -> Traffic:
    """The traffic of one execution of a compiled program.

    Args:
        text: `compiled.as_text()`.
        devices: number of the program's devices, which are the group of a collective that names
            no group.
        dynamic_trips: assumed turns of a loop whose count is not in the text.
        host_devices: number of devices on a host, numbered one after the other; 0: all devices are
            on one host.
    """
    walk = _Walk(parse_module(text), devices, dynamic_trips, host_devices or devices)
    walk.visit(walk.module.computations[walk.module.entry], 1.0)
    grouped: dict[tuple[str, int, int, int], list[float]] = {}
    for kind, group, span, hosts, times, payload in walk.collectives:
        total = grouped.setdefault((kind, group, span, hosts), [0.0, 0.0, 0.0])
        total[0] += times
        total[1] += times * payload
        total[2] = max(total[2], payload)
    found = [Collective(*key, *sums) for key, sums in grouped.items()]
    return Traffic(
        collectives=tuple(sorted(found, key=lambda c: -c.wire_bytes)),
        hbm_bytes=walk.hbm_bytes,
        kernel_bytes=walk.kernel_bytes,
        dynamic_loops=walk.dynamic_loops,
        bounded_loops=walk.bounded_loops,
    )


class _Walk:
    """Sums over one module."""

    def __init__(
        self, module: Module, devices: int, dynamic_trips: float, host_devices: int
    ) -> None:
        self.module, self.devices, self.dynamic_trips = module, devices, dynamic_trips
        self.host_devices = host_devices
        self.collectives: list[tuple[str, int, int, int, float, float]] = []
        self.hbm_bytes = self.kernel_bytes = 0.0
        self.dynamic_loops = self.bounded_loops = 0

    def visit(
        self,
        computation: Computation,
        times: float,
        *,
        in_fusion: bool = False,
        caller: tuple[Computation, Instruction] | None = None,
    ) -> None:
        """Adds what a computation moves; others read its root under the name of its `caller`."""
        for instruction in computation.instructions:
            opcode = instruction.opcode
            named = caller if caller and instruction.is_root else (computation, instruction)
            if opcode == "while":
                self._visit_loop(computation, instruction, times)
            elif opcode == "call":
                called = self.module.called(instruction, "to_apply")
                self.visit(called, times, in_fusion=in_fusion, caller=named)
            elif opcode == "conditional":
                for branch in instruction.branches:
                    self.visit(self.module.computations[branch], times, in_fusion=in_fusion)
            elif instruction.called("calls") and not opcode.endswith(("-update", "-done")):
                # A TPU writes some collectives inside a fusion, and fusions that run beside others
                # as `fusion-start`; what such a start runs is named again by its end.
                inside = in_fusion or opcode != "async-start"
                called = self.module.called(instruction, "calls")
                begun = named if opcode == "async-start" else None
                self.visit(called, times, in_fusion=inside, caller=begun)
            base = opcode.removesuffix("-start")
            if base in COLLECTIVES and not opcode.endswith("-done"):
                self._count_collective(computation, instruction, base, times, named=named)
            if not in_fusion:
                size = times * moves(self.module, computation, instruction).total
                if is_kernel(instruction):
                    self.kernel_bytes += size
                else:
                    self.hbm_bytes += size

    def _visit_loop(self, computation: Computation, loop: Instruction, times: float) -> None:
        trips = loop_trips(self.module, computation, loop)
        self.dynamic_loops += trips.count is None
        self.bounded_loops += trips.is_bound
        count = self.dynamic_trips if trips.count is None else trips.count
        self.visit(self.module.called(loop, "body"), times * count)

    def _count_collective(
        self,
        computation: Computation,
        instruction: Instruction,
        kind: str,
        times: float,
        *,
        named: tuple[Computation, Instruction],
    ) -> None:
        """Adds one collective; `named`: the instruction under whose name others read it."""
        group, groups = _groups(instruction, self.devices)
        span = max(map(_span, groups))
        hosts = max(np.unique(ids // self.host_devices).size for ids in groups)
        for index, name in enumerate(instruction.operands):
            source = computation.by_name.get(name)
            if source is None:
                continue
            size = all_bytes(source.shapes)
            payload = size * group if kind == "all-gather" else size
            sliced = kind == "all-reduce" and self._is_sliced(instruction, index, named)
            name = SLICED_ALL_REDUCE if sliced else kind
            self.collectives.append((name, group, span, hosts, times, payload))

    def _is_sliced(
        self, reduce: Instruction, index: int, named: tuple[Computation, Instruction]
    ) -> bool:
        """Whether every reader of an all-reduce's result keeps at most half of it."""
        many = len(reduce.operands) > 1
        whole = reduce.shapes[min(index, len(reduce.shapes) - 1)].bytes
        computation, instruction = named
        found = list(uses(self.module, computation, instruction.name, index if many else None))
        return bool(found) and all(use is not None and use.bytes <= whole / 2 for use in found)


def _groups(instruction: Instruction, devices: int) -> tuple[int, Sequence[np.ndarray]]:
    """(devices of one group, the numbers of each group's): see `Collective`.

    `{{0,1},..}`, `[groups,size]<=[dims]T(order)`, axes of a named mesh, or pairs of a permute.
    """
    text = instruction.attributes
    listed = re.search(r"(replica_groups|source_target_pairs)=\{(\{[\d,]+\}[\d,{} ]*)\}", text)
    if listed:
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed.group(2))]
        pairs = listed.group(1) == "source_target_pairs"
        return devices if pairs else len(groups[0]), groups
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=" + _IOTA, text)
    if iota:
        groups_GS = _iota(*iota.groups()[2:]).reshape(int(iota.group(1)), int(iota.group(2)))
        return groups_GS.shape[1], list(groups_GS)
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", text)
    if named:
        groups_GS = _mesh_groups(*named.groups())
        return groups_GS.shape[1], list(groups_GS)
    return devices, [np.arange(devices)]


_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # numbers from 0 in this shape, its axes in this order


def _mesh_groups(axes: str, order: str, split: str) -> np.ndarray:
    """[groups, size] of device numbers: a mesh's devices, grouped along some of its axes.

    Args:
        axes: `'name'=size`, outermost first.
        order: `, device_ids=(...)`, where the mesh does not number its devices from 0 on.
        split: `'name'` along which a group lies; `'name':(before)size` for a part of an axis.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    iota = re.search(r"device_ids=\(" + _IOTA + r"\)", order)
    listed = re.search(r"device_ids=\(([\d,]+)\)", order)
    if iota:
        ids = _iota(*iota.groups())
    else:
        ids = _numbers(listed.group(1)) if listed else np.arange(math.prod(sizes.values()))
    parts = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", split)
    }
    shape, along = [], []
    for name, whole in sizes.items():
        before, size = parts.get(name, (1, 1))
        along.append(len(shape) + 1)
        shape += [before, size, whole // (before * size)]
    others = [i for i in range(len(shape)) if i not in along]
    count = math.prod(size for _, size in parts.values())
    return ids.reshape(shape).transpose(others + along).reshape(-1, count)


def _iota(dims: str, order: str | None) -> np.ndarray:
    shape = _numbers(dims)
    ids = np.arange(shape.prod()).reshape(shape)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> np.ndarray:
    return np.array([int(number) for number in text.split(",")])


def _span(group: np.ndarray) -> int:
    return int(group.max() - group.min()) + 1


def link_s(traffic: Traffic, chip: Chip) -> float:
    """Seconds that one device's links need for a program's collectives.

    The numbers of a group's devices decide whether the group leaves a host, not the group's size:
    two devices eight apart are on two hosts, and so are two neighbours if the first of them is the
    last device of its host.
    """
    seconds = 0.0
    for collective in traffic.collectives:
        far = collective.hosts > 1
        speed = chip.far_link_bytes_per_s if far else chip.link_bytes_per_s
        seconds += collective.wire_bytes / speed
    return seconds
