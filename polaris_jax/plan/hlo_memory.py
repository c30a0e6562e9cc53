"""The bytes that one instruction of a compiled program reads from HBM and writes to HBM.

Each operand and each result counts once, even if a fusion reads an operand twice. If an operand is
only sliced or gathered from, only the slices count. If an operand is updated in place, only the
update counts. Arrays in another memory (a TPU's VMEM) do not count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from polaris_jax.plan.hlo_text import HBM_SPACE, Computation, Instruction, Module, Shape

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"),
    *("call", "conditional", "opt-barrier", "partition-id", "replica-id", "domain"),
    *("async-start", "async-update", "async-done", "add-dependency", "get-dimension-size"),
}
FUSIONS = ("fusion", "fusion-start")
SLICES = ("dynamic-slice", "slice")
THROUGH = ("bitcast", "convert", "copy", "reshape", "get-tuple-element", "transpose")


@dataclasses.dataclass(frozen=True)
class Moves:
    """HBM bytes of one execution of an instruction.

    Attributes:
        reads: pairs of an operand and the bytes that are read from it.
        updates: pairs of an operand that is changed in place and the bytes read and written there.
        written: bytes of results that do not take an operand's place.
    """

    reads: tuple[tuple[str, int], ...] = ()
    updates: tuple[tuple[str, int], ...] = ()
    written: int = 0

    @property
    def total(self) -> int:
        return sum(size for _, size in (*self.reads, *self.updates)) + self.written


NOTHING = Moves()


def is_kernel(node: Instruction) -> bool:
    """True for a custom call with operands (Pallas, cuDNN).

    Such a call may read an operand several times, or only a part of it. AllocateBuffer and similar
    calls have no operands.
    """
    return node.opcode == "custom-call" and bool(node.operands)


def moves(module: Module, computation: Computation, node: Instruction) -> Moves:
    """The HBM bytes of `node`; for a kernel, the bytes of all its operands and results."""
    opcode = node.opcode
    if opcode in FREE or opcode.endswith(("-done", "-update")):
        return NOTHING
    if opcode == "custom-call" and not node.operands:
        return NOTHING
    if opcode in FUSIONS:
        return _fusion(module, computation, node)
    if opcode in ("gather", *SLICES):
        source = computation.by_name.get(node.operands[0])
        part = _bytes(node.shapes) if source is not None and hbm_bytes(source.shapes) else 0
        return Moves(((node.operands[0], part),), (), hbm_bytes(node.shapes))
    if opcode in ("dynamic-update-slice", "scatter"):
        update = node.operands[-1 if opcode == "scatter" else 1]
        shapes = computation.by_name[update].shapes
        written = _bytes(shapes) if hbm_bytes(node.shapes) else 0
        return Moves(((update, hbm_bytes(shapes)),), ((node.operands[0], written),))
    reads = tuple(_whole(computation, node))
    written = hbm_bytes(node.shapes)
    if opcode.endswith("-start"):
        # The result repeats the operand beside what is new.
        written = max(0, written - sum(size for _, size in reads))
    return Moves(reads, (), written)


def _whole(computation: Computation, node: Instruction) -> Iterator[tuple[str, int]]:
    for name in node.operands:
        source = computation.by_name.get(name)
        if source is not None:
            yield name, hbm_bytes(source.shapes)


def _fusion(module: Module, computation: Computation, node: Instruction) -> Moves:
    """The HBM bytes of a fusion. If the fusion only slices an operand, only the slices count."""
    inner = module.computations[node.called("calls") or ""]
    updated = updated_in_place(inner)
    reads, updates = [], []
    for index, name in enumerate(node.operands):
        source, parameter = computation.by_name.get(name), inner.parameters.get(index)
        if source is None or parameter is None:
            continue
        if parameter.name in updated:
            updates.append((name, 2 * updated[parameter.name]))
            continue
        parts = list(uses(module, inner, parameter.name, None))
        whole = hbm_bytes(source.shapes)
        if whole and parts and all(part is not None for part in parts):
            whole = min(whole, sum(part.bytes for part in parts if part is not None))
        reads.append((name, whole))
    # The result of a start repeats its operands before what is new.
    kept = hbm_bytes(node.shapes if node.opcode == "fusion" else inner.root.shapes)
    kept -= sum(hbm_bytes(inner.by_name[name].shapes) for name in updated)
    return Moves(tuple(reads), tuple(updates), max(kept, 0))


def updated_in_place(inner: Computation) -> dict[str, int]:
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
            found[target.name] = _bytes(update.shapes)
    return found


def uses(
    module: Module, computation: Computation, name: str, element: int | None
) -> Iterator[Shape | None]:
    """The slice that each reader takes of a result; None for a reader that takes all.

    Args:
        module: module with the fusions that read the result.
        computation: the computation that has the result.
        name: the result's name.
        element: number of the element to follow, for a tuple result.
    """
    for user in computation.users[name]:
        opcode = user.opcode
        if element is not None and opcode == "get-tuple-element":
            if user.index == element:
                yield from uses(module, computation, user.name, None)
        elif opcode in SLICES or (opcode == "gather" and user.operands[0] == name):
            yield user.shapes[0] if user.operands[0] == name else None
        elif opcode in THROUGH or opcode.endswith("-done"):
            yield from uses(module, computation, user.name, element)
        elif opcode in FUSIONS:
            inner = module.computations[user.called("calls") or ""]
            for index, operand in enumerate(user.operands):
                if operand == name:
                    yield from uses(module, inner, inner.parameters[index].name, None)
        else:
            yield None
    if computation.root.name == name:
        yield None


def hbm_bytes(shapes: tuple[Shape, ...]) -> int:
    """Bytes of those arrays that lie in HBM."""
    return sum(shape.bytes for shape in shapes if shape.space == HBM_SPACE)


def _bytes(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes)
