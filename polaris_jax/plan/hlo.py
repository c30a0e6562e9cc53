"""What a compiled program moves: collective bytes by kind and HBM bytes, loops counted in full.

XLA's own cost analysis counts a loop's body once. Here the compiled text is walked from its entry,
and everything in a loop's body counts as often as the loop runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from polaris_jax.plan.hlo_text import (
    HBM_SPACE,
    Computation,
    Instruction,
    Module,
    Shape,
    loop_trips,
    parse_module,
)

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
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"),
    *("call", "conditional", "opt-barrier", "partition-id", "replica-id", "domain"),
    *("async-start", "async-update", "async-done", "add-dependency", "get-dimension-size"),
}
_FUSIONS = ("fusion", "fusion-start")
_SLICES = ("dynamic-slice", "slice")
_THROUGH = ("bitcast", "convert", "copy", "reshape", "get-tuple-element", "transpose")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and group size in a program.

    Attributes:
        kind: HLO's name, or `all-reduce+slice`.
        group: devices that take part in one.
        executed: how many run, loops counted in full.
        payload_bytes: of the whole array that a group gathers, reduces or exchanges, summed.
    """

    kind: str
    group: int
    executed: float
    payload_bytes: float

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device sends in a ring: (n - 1)/n of the payload, twice for a reduce."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.payload_bytes
        passes = 2 if self.kind in ("all-reduce", SLICED_ALL_REDUCE) else 1
        return passes * self.payload_bytes * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one execution of a program moves, a device.

    Attributes:
        collectives: by kind and group size, most bytes first.
        hbm_bytes: read and written by XLA's own instructions (operands and results in HBM; of a
            sliced operand the slice). An estimate: what a fusion reads twice counts once.
        kernel_bytes: operands and results of custom calls (Pallas, cuDNN), which may read them
            more or less often than once.
        dynamic_loops: loops whose count is known at run time only; counted `dynamic_trips` times.
        bounded_loops: loops that may end before the count that they were given here.
    """

    collectives: tuple[Collective, ...]
    hbm_bytes: float
    kernel_bytes: float
    dynamic_loops: int
    bounded_loops: int

    def wire_bytes(self, kind: str | None = None) -> float:
        """Bytes that a device sends, of one kind or of all."""
        return sum(c.wire_bytes for c in self.collectives if kind in (None, c.kind))


def program_traffic(text: str, *, devices: int, dynamic_trips: float = 1.0) -> Traffic:
    """The traffic of one execution of a compiled program.

    Args:
        text: `compiled.as_text()`.
        devices: of the program; the group of a collective that names none.
        dynamic_trips: executions of a loop whose count the text does not tell.
    """
    walk = _Walk(parse_module(text), devices, dynamic_trips)
    walk.visit(walk.module.computations[walk.module.entry], 1.0)
    grouped: dict[tuple[str, int], list[float]] = {}
    for kind, group, times, payload in walk.collectives:
        total = grouped.setdefault((kind, group), [0.0, 0.0])
        total[0] += times
        total[1] += times * payload
    found = [Collective(kind, group, n, size) for (kind, group), (n, size) in grouped.items()]
    return Traffic(
        collectives=tuple(sorted(found, key=lambda c: -c.wire_bytes)),
        hbm_bytes=walk.hbm_bytes,
        kernel_bytes=walk.kernel_bytes,
        dynamic_loops=walk.dynamic_loops,
        bounded_loops=walk.bounded_loops,
    )


class _Walk:
    """Sums over one module."""

    def __init__(self, module: Module, devices: int, dynamic_trips: float) -> None:
        self.module, self.devices, self.dynamic_trips = module, devices, dynamic_trips
        self.collectives: list[tuple[str, int, float, float]] = []
        self.hbm_bytes = self.kernel_bytes = 0.0
        self.dynamic_loops = self.bounded_loops = 0

    def visit(self, computation: Computation, times: float, *, in_fusion: bool = False) -> None:
        for instruction in computation.instructions:
            opcode = instruction.opcode
            if opcode == "while":
                self._visit_loop(computation, instruction, times)
            elif opcode == "call":
                self.visit(self._called(instruction, "to_apply"), times, in_fusion=in_fusion)
            elif opcode == "conditional":
                for branch in _branches(instruction):
                    self.visit(self.module.computations[branch], times, in_fusion=in_fusion)
            elif instruction.called("calls") and not opcode.endswith(("-update", "-done")):
                # A TPU writes some collectives inside a fusion, and fusions that run beside others
                # as `fusion-start`; what such a start runs is named again by its end.
                inside = in_fusion or opcode != "async-start"
                self.visit(self._called(instruction, "calls"), times, in_fusion=inside)
            base = opcode.removesuffix("-start")
            if base in COLLECTIVES and not opcode.endswith("-done"):
                self._count_collective(computation, instruction, base, times)
            if not in_fusion:
                self._count_memory(computation, instruction, times)

    def _called(self, instruction: Instruction, key: str) -> Computation:
        return self.module.computations[instruction.called(key) or ""]

    def _visit_loop(self, computation: Computation, loop: Instruction, times: float) -> None:
        trips = loop_trips(self.module, computation, loop)
        self.dynamic_loops += trips.count is None
        self.bounded_loops += trips.is_bound
        count = self.dynamic_trips if trips.count is None else trips.count
        self.visit(self._called(loop, "body"), times * count)

    def _count_collective(
        self, computation: Computation, instruction: Instruction, kind: str, times: float
    ) -> None:
        group = _group_size(instruction, self.devices)
        for index, name in enumerate(instruction.operands):
            source = computation.by_name.get(name)
            if source is None:
                continue
            size = sum(shape.bytes for shape in source.shapes)
            payload = size * group if kind == "all-gather" else size
            sliced = kind == "all-reduce" and self._is_sliced(computation, instruction, index)
            name = SLICED_ALL_REDUCE if sliced else kind
            self.collectives.append((name, group, times, payload))

    def _is_sliced(self, computation: Computation, reduce: Instruction, index: int) -> bool:
        """Whether every reader of an all-reduce's result keeps at most half of it."""
        many = len(reduce.operands) > 1
        whole = reduce.shapes[min(index, len(reduce.shapes) - 1)].bytes
        uses = list(_uses(self.module, computation, reduce.name, index if many else None))
        return bool(uses) and all(use is not None and use.bytes <= whole / 2 for use in uses)

    def _count_memory(self, computation: Computation, node: Instruction, times: float) -> None:
        opcode = node.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            return
        if opcode == "custom-call":
            # AllocateBuffer and the like move nothing; a kernel has operands.
            if node.operands:
                size = _operand_bytes(computation, node) + _hbm(node.shapes)
                self.kernel_bytes += times * size
            return
        if opcode in _FUSIONS:
            size = self._fusion_bytes(computation, node)
        elif opcode in ("dynamic-slice", "gather", "slice"):
            size = 2 * _hbm(node.shapes)
        elif opcode in ("dynamic-update-slice", "scatter"):
            update = computation.by_name[node.operands[-1 if opcode == "scatter" else 1]]
            size = 2 * _hbm(update.shapes)
        elif opcode.endswith("-start"):
            # The result repeats the operand beside what is new.
            size = max(_hbm(node.shapes), _operand_bytes(computation, node))
        else:
            size = _operand_bytes(computation, node) + _hbm(node.shapes)
        self.hbm_bytes += times * size

    def _fusion_bytes(self, computation: Computation, node: Instruction) -> int:
        """Operands and results of a fusion; of an operand that it only slices, the slices."""
        inner = self._called(node, "calls")
        updated = _updated_in_place(inner)
        size = 0
        for index, name in enumerate(node.operands):
            source, parameter = computation.by_name.get(name), inner.parameters.get(index)
            if source is None or parameter is None or parameter.name in updated:
                continue
            parts = list(_uses(self.module, inner, parameter.name, None))
            whole = _hbm(source.shapes)
            if whole and parts and all(part is not None for part in parts):
                whole = min(whole, sum(part.bytes for part in parts if part is not None))
            size += whole
        written = sum(updated.values())
        # The result of a start repeats its operands before what is new.
        kept = _hbm(node.shapes if node.opcode == "fusion" else inner.root.shapes)
        for name in updated:
            kept -= _hbm(inner.by_name[name].shapes)
        return size + max(kept, 0) + 2 * written


def _updated_in_place(inner: Computation) -> dict[str, int]:
    """Parameters that a fusion's root updates in part -> bytes of the update."""
    roots = [inner.root]
    if inner.root.opcode == "tuple":
        roots = [inner.by_name[name] for name in inner.root.operands]
    found: dict[str, int] = {}
    for root in roots:
        while root.opcode in ("bitcast", "convert", "copy"):
            root = inner.by_name[root.operands[0]]
        if root.opcode not in ("dynamic-update-slice", "scatter"):
            continue
        target = inner.by_name[root.operands[0]]
        while target.opcode in ("bitcast", "convert", "copy"):
            target = inner.by_name[target.operands[0]]
        update = inner.by_name[root.operands[-1 if root.opcode == "scatter" else 1]]
        if target.opcode == "parameter" and target.shapes[0].space == HBM_SPACE:
            found[target.name] = sum(shape.bytes for shape in update.shapes)
    return found


def _uses(
    module: Module, computation: Computation, name: str, element: int | None
) -> Iterator[Shape | None]:
    """The slice that each reader takes of a result; None for a reader that takes all.

    Args:
        module: for the fusions that read it.
        computation: where it stands.
        name: the result.
        element: of a tuple result, the element followed.
    """
    for user in computation.users[name]:
        opcode = user.opcode
        if element is not None and opcode == "get-tuple-element":
            if f"index={element}" in user.attributes.split(",")[1].replace(" ", ""):
                yield from _uses(module, computation, user.name, None)
        elif opcode in _SLICES or (opcode == "gather" and user.operands[0] == name):
            yield user.shapes[0] if user.operands[0] == name else None
        elif opcode in _THROUGH or opcode.endswith("-done"):
            yield from _uses(module, computation, user.name, element)
        elif opcode in _FUSIONS:
            inner = module.computations[user.called("calls") or ""]
            for index, operand in enumerate(user.operands):
                if operand == name:
                    yield from _uses(module, inner, inner.parameters[index].name, None)
        else:
            yield None
    if computation.root.name == name:
        yield None


def _group_size(instruction: Instruction, devices: int) -> int:
    text = instruction.attributes
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", text)
    return int(iota.group(2)) if iota else devices


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed.group(1))
    names = [instruction.called(f"{side}_computation") for side in ("true", "false")]
    return [name for name in names if name]


def _hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.space == HBM_SPACE)


def _operand_bytes(computation: Computation, node: Instruction) -> int:
    sources = [computation.by_name.get(name) for name in node.operands]
    return sum(_hbm(source.shapes) for source in sources if source is not None)
