"""Compiled HLO text as data: computations, instructions, shapes, and how often each loop runs."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

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
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, dimensions, memory space."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM_SPACE

    @property
    def bytes(self) -> int:
        """Bytes without the padding of tiles."""
        count = 1
        for dim in self.dims:
            count *= dim
        return -(-count * BITS[self.dtype] // 8)


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


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations; `entry` is where execution begins."""

    entry: str
    computations: Mapping[str, Computation]


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
    condition = module.computations[loop.called("condition") or ""]
    bounds, others = _bounds(module, computation, condition, condition.root, loop)
    if not bounds:
        return Trips(None)
    return Trips(min(bounds), is_bound=others)


def _bounds(
    module: Module,
    outer: Computation,
    condition: Computation,
    node: Instruction,
    loop: Instruction,
) -> tuple[list[int], bool]:
    """(iteration counts that the condition compares with, whether it asks for more)."""
    if node.opcode == "and":
        parts = [
            _bounds(module, outer, condition, condition.by_name[name], loop)
            for name in node.operands
        ]
        bounds = [bound for part in parts for bound in part[0]]
        return bounds, any(part[1] for part in parts) or len(bounds) < len(parts)
    if node.opcode in ("bitcast", "copy", "convert"):
        return _bounds(module, outer, condition, condition.by_name[node.operands[0]], loop)
    if node.opcode == "fusion":
        inner = module.computations[node.called("calls") or ""]
        flat = _inline(condition, node, inner)
        return _bounds(module, outer, flat, flat.root, loop)
    if node.opcode != "compare" or "direction=LT" not in node.attributes:
        return [], True
    start = _constant(outer, condition, node.operands[0], loop)
    stop = _constant(outer, condition, node.operands[1], loop)
    return ([stop - (start or 0)], False) if stop is not None else ([], True)


def _inline(condition: Computation, fusion: Instruction, inner: Computation) -> Computation:
    """`inner` with its parameters replaced by what the fusion is given, inside `condition`."""
    given = {inner.parameters[i].name: name for i, name in enumerate(fusion.operands)}
    prefix = f"{fusion.name}/"

    def renamed(name: str) -> str:
        return given.get(name, prefix + name)

    body = [
        dataclasses.replace(
            i, name=prefix + i.name, operands=tuple(renamed(name) for name in i.operands)
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
    node = condition.by_name.get(name)
    if node is None:
        return None
    if node.opcode == "constant":
        return int(node.arguments) if re.fullmatch(r"-?\d+", node.arguments) else None
    if node.opcode in ("bitcast", "copy"):
        return _constant(outer, condition, node.operands[0], loop)
    if node.opcode == "get-tuple-element":
        source = condition.by_name[node.operands[0]]
        index = re.search(r"index=(\d+)", node.attributes)
        initial = outer.by_name.get(loop.operands[0])
        if source.opcode == "parameter" and index and initial and initial.opcode == "tuple":
            return _outer_constant(outer, initial.operands[int(index.group(1))])
    return None


def _outer_constant(outer: Computation, name: str) -> int | None:
    node = outer.by_name.get(name)
    while node is not None and node.opcode in ("copy", "bitcast") and node.operands:
        node = outer.by_name.get(node.operands[0])
    if node is not None and node.opcode == "constant" and re.fullmatch(r"-?\d+", node.arguments):
        return int(node.arguments)
    return None
