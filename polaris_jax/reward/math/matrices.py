"""Small matrices worked out: scalar multiples, sums, products, transposes, determinants.

Entries stay trees; every size is bounded, and what does not fit is left as it was written.
"""

from __future__ import annotations

from typing import Any

from polaris_jax.reward.math.syntax import Node, Undecidable, exact_value, holds

MAX_SIDE = 4
MAX_ENTRY_NODES = 500  # a product of products doubles its entries: past this it is left as written
_TRANSPOSES = (("sym", "T"), ("sym", "top"))

Rows = tuple[tuple[Node, ...], ...]


def worked_out(node: Node) -> Node:
    """The tree with matrix arithmetic done where it is well formed and small."""
    if not holds(node, "matrix") or node[0] not in ("mul", "add", "neg", "pow", "matrix", "unit"):
        return node
    if node[0] == "matrix":
        return _determinant(node)
    if node[0] == "neg":
        rows = _rows(worked_out(node[1]))
        return node if rows is None else _map(rows, lambda entry: ("neg", entry))
    if node[0] == "pow" and node[2] in _TRANSPOSES:
        rows = _rows(worked_out(node[1]))
        return node if rows is None else _matrix(tuple(zip(*rows, strict=True)))
    if node[0] in ("mul", "add"):
        return _folded(node)
    return node


def _folded(node: Node) -> Node:
    if len(node[1]) > 2 * MAX_SIDE:
        return node
    parts = [worked_out(part) for part in node[1]]
    total = parts[0]
    for part in parts[1:]:
        combined = _sum(total, part) if node[0] == "add" else _product(total, part)
        if combined is None:
            return node
        total = _settled(combined)
        if total is None:
            return node
    return total


def _settled(node: Node) -> Node | None:
    """A matrix with rational entries worked out to numbers; None if an entry is too large."""
    rows = _rows(node)
    if rows is None:
        return node
    settled = tuple(tuple(_number(entry) for entry in row) for row in rows)
    entries = [entry for row in settled for entry in row]
    return None if any(_is_large(entry) for entry in entries) else _matrix(settled)


def _number(entry: Node) -> Node:
    if holds(entry, "unit", "percent"):
        return entry
    try:
        value = exact_value(entry)
    except Undecidable:
        return entry
    return entry if value is None else ("num", value, None)


def _is_large(entry: Node) -> bool:
    left, stack = MAX_ENTRY_NODES, [entry]
    while stack and left:
        left -= 1
        stack.extend(part for part in stack.pop() if isinstance(part, tuple))
    return bool(stack)


def _matrix(rows: Rows) -> Node:
    return ("matrix", "matrix", rows)


def _rows(node: Node) -> Rows | None:
    if node[0] != "matrix" or node[1] != "matrix":
        return None
    small = len(node[2]) <= MAX_SIDE and len(node[2][0]) <= MAX_SIDE
    return node[2] if small else None


def _map(rows: Rows, change: Any) -> Node:
    return _matrix(tuple(tuple(change(entry) for entry in row) for row in rows))


def _sum(left: Node, right: Node) -> Node | None:
    ours, theirs = _rows(left), _rows(right)
    if ours is None or theirs is None:
        return None
    if len(ours) != len(theirs) or len(ours[0]) != len(theirs[0]):
        return None
    pairs = (zip(*rows, strict=True) for rows in zip(ours, theirs, strict=True))
    return _matrix(tuple(tuple(("add", pair) for pair in row) for row in pairs))


def _product(left: Node, right: Node) -> Node | None:
    ours, theirs = _rows(left), _rows(right)
    if ours is None and theirs is None:
        whole = holds((left, right), "matrix")
        return None if whole else ("mul", (left, right))
    if ours is None and theirs is not None:
        return None if holds(left, "matrix") else _map(theirs, lambda e: ("mul", (left, e)))
    if theirs is None and ours is not None:
        return None if holds(right, "matrix") else _map(ours, lambda e: ("mul", (e, right)))
    if ours is None or theirs is None or len(ours[0]) != len(theirs):
        return None
    columns = tuple(zip(*theirs, strict=True))
    return _matrix(
        tuple(
            tuple(
                ("add", tuple(("mul", pair) for pair in zip(row, column, strict=True)))
                for column in columns
            )
            for row in ours
        )
    )


def _determinant(node: Node) -> Node:
    """A determinant as the sum over its first row; any other matrix as it is."""
    rows = node[2]
    if node[1] != "determinant" or len(rows) != len(rows[0]) or len(rows) > MAX_SIDE:
        return node
    return _expanded(rows)


def _expanded(rows: Rows) -> Node:
    if len(rows) == 1:
        return rows[0][0]
    terms: list[Node] = []
    for column, entry in enumerate(rows[0]):
        minor = tuple(row[:column] + row[column + 1 :] for row in rows[1:])
        term = ("mul", (entry, _expanded(minor)))
        terms.append(("neg", term) if column % 2 else term)
    return ("add", tuple(terms))
