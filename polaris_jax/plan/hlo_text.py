"""Compiled HLO text as data: computations, instructions, and the HBM bytes that each one moves.

Of the bytes that an instruction reads from HBM and writes to HBM, each operand and each result
counts once, even if a fusion reads an operand twice. If an operand is only sliced or gathered from,
only the slices count. If an operand is updated in place, only the update counts. Arrays in another
memory (a TPU's VMEM) do not count.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

BITS = {
    "pred": 8,
    "token": 0,
    "opaque": 0,
    "s2": 2,
    "u2": 2,
    "s4": 4,
    "u4": 4,
    "f4e2m1fn": 4,
    **dict.fromkeys(("s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3", "f8e4m3b11fnuz"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    "c128": 128,
}
HBM_SPACE = 0  # S(1) is a TPU's VMEM, S(2) its semaphores, S(5) host memory, S(6) its SMEM

COPIES = ("bitcast", "copy")
CASTS = (*COPIES, "convert")

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# A line may begin with a brace inside an attribute that spans several (a kernel's metadata).
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"^ *([\w\-]+)\(")
_INDEX = re.compile(r"^, index=(\d+)")
_ORIGIN = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, dimensions, memory space."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM_SPACE

    @property
    def bytes(self) -> int:
        """Bytes without the padding of tiles."""
        return -(-math.prod(self.dims) * BITS[self.dtype] // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = shapes opcode(operands), attributes`."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str  # the text between the opcode's parentheses
    attributes: str
    is_root: bool

    def called(self, key: str) -> str | None:
        """The computation named by an attribute such as `calls`, `body`, `condition`."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    @property
    def index(self) -> int | None:
        """Which element a get-tuple-element takes."""
        found = _INDEX.search(self.attributes)
        return int(found.group(1)) if found else None

    @property
    def origin(self) -> str:
        """The operation's name in the source (`op_name`); empty if the compiler gives none."""
        found = _ORIGIN.search(self.attributes)
        return found.group(1) if found else ""

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional, in the order of its operands after the first."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return re.findall(r"%?([\w.\-]+)", listed.group(1))
        names = [self.called(f"{side}_computation") for side in ("true", "false")]
        return [name for name in names if name]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions in the order of the text."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        return {i.name: i for i in self.instructions}

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """The instructions that read each instruction's result, by its name."""
        found: dict[str, list[Instruction]] = {i.name: [] for i in self.instructions}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return {name: tuple(users) for name, users in found.items()}

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions if i.is_root)

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        return {int(i.arguments): i for i in self.instructions if i.opcode == "parameter"}

    def source(self, name: str, *, through: Sequence[str] = COPIES) -> Instruction | None:
        """The instruction whose result `name` is, or is a copy of."""
        node = self.by_name.get(name)
        while node is not None and node.opcode in through and node.operands:
            node = self.by_name.get(node.operands[0])
        return node


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations; `entry` is where execution begins."""

    entry: str
    computations: Mapping[str, Computation]

    def called(self, node: Instruction, key: str) -> Computation:
        """The computation that an attribute of `node` names, such as `calls` or `body`."""
        return self.computations[node.called(key) or ""]


def parse_module(text: str) -> Module:
    """The computations of `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation, or a computation has no root.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = None, None, []
    for line in text.splitlines():
        if name is None:
            header = _HEADER.match(line)
            if header:
                name, lines = header.group(2), []
                entry = name if header.group(1) else entry
        elif _END.match(line):
            if not any(instruction.is_root for instruction in lines):
                raise ValueError(f"HLO computation %{name}: no ROOT instruction was read in it")
            computations[name] = Computation(name, tuple(lines))
            name = None
        else:
            parsed = _INSTRUCTION.match(line)
            if parsed:
                lines.append(_instruction(parsed))
    if entry is None:
        raise ValueError("HLO text without an ENTRY computation: was it given by as_text()?")
    return Module(entry, computations)


def _instruction(match: re.Match[str]) -> Instruction:
    rest = match.group(3)
    end = _balanced(rest) if rest.startswith("(") else rest.find(" ")
    shapes, rest = parse_shapes(rest[:end]), rest[end:]
    opcode = _OPCODE.match(rest)
    if opcode is None:
        raise ValueError(f"HLO instruction %{match.group(2)}: no opcode in {rest[:60]!r}")
    start = opcode.end() - 1
    close = start + _balanced(rest[start:])
    arguments = rest[start + 1 : close - 1]
    return Instruction(
        name=match.group(2),
        opcode=opcode.group(1),
        shapes=shapes,
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[close:],
        is_root=bool(match.group(1)),
    )


def _balanced(text: str) -> int:
    """The index after the parenthesis that closes the one at the start of `text`."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return index + 1
    return len(text)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Every array in the text of a type; a tuple's in order."""
    shapes = []
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype not in BITS:
            continue
        space = _SPACE.search(layout)
        numbers = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
        shapes.append(Shape(dtype, numbers, int(space.group(1)) if space else HBM_SPACE))
    return tuple(shapes)


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
        return Moves()
    if opcode == "custom-call" and not node.operands:
        return Moves()
    if opcode in FUSIONS:
        return _fusion(module, computation, node)
    if opcode in ("gather", *SLICES):
        source = computation.by_name.get(node.operands[0])
        part = all_bytes(node.shapes) if source is not None and hbm_bytes(source.shapes) else 0
        return Moves(((node.operands[0], part),), (), hbm_bytes(node.shapes))
    if opcode in ("dynamic-update-slice", "scatter"):
        update = node.operands[-1 if opcode == "scatter" else 1]
        shapes = computation.by_name[update].shapes
        written = all_bytes(shapes) if hbm_bytes(node.shapes) else 0
        return Moves(((update, hbm_bytes(shapes)),), ((node.operands[0], written),))
    sources = ((name, computation.by_name.get(name)) for name in node.operands)
    reads = tuple(
        (name, hbm_bytes(source.shapes)) for name, source in sources if source is not None
    )
    written = hbm_bytes(node.shapes)
    if opcode.endswith("-start"):
        # The result repeats the operand beside what is new.
        written = max(0, written - sum(size for _, size in reads))
    return Moves(reads, (), written)


def _fusion(module: Module, computation: Computation, node: Instruction) -> Moves:
    """The HBM bytes of a fusion. If the fusion only slices an operand, only the slices count."""
    inner = module.called(node, "calls")
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
    root = inner.root
    found: dict[str, int] = {}
    for name in root.operands if root.opcode == "tuple" else [root.name]:
        node = inner.source(name, through=CASTS)
        if node is None or node.opcode not in ("dynamic-update-slice", "scatter"):
            continue
        target = inner.source(node.operands[0], through=CASTS)
        update = inner.by_name[node.operands[-1 if node.opcode == "scatter" else 1]]
        if target and target.opcode == "parameter" and target.shapes[0].space == HBM_SPACE:
            found[target.name] = all_bytes(update.shapes)
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
            inner = module.called(user, "calls")
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


def all_bytes(shapes: tuple[Shape, ...]) -> int:
    """Bytes of arrays in any memory."""
    return sum(shape.bytes for shape in shapes)
