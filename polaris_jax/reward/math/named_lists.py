"""Lists whose items have names: `x = 1, y = 2` beside `1, 2`, and the order of such lists.

Values of one name (`x = 1, x = 2`, the roots x_1 and x_2) have no order. Of several names without
the names only the order is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from polaris_jax.reward.math.measures import measured_value
from polaris_jax.reward.math.relations import named_value
from polaris_jax.reward.math.syntax import Node, holds, symbols

Items = tuple[Node, ...]


def values(items: Items) -> Items:
    """Items with the names of `x = 1` gone."""
    found: list[Node] = []
    for item in items:
        named = named_value(item) if item[0] == "rel" else None
        found.append(item if named is None else named[1])
    return tuple(found)


def names_of(items: Items) -> set[Node] | None:
    """The names that all the items give values to, or None if one names nothing."""
    named = [named_value(item) if item[0] == "rel" else None for item in items]
    return None if None in named else {name for name, _ in filter(None, named)}


def without_subscripts(items: Items) -> Items:
    """Named values with the subscripts of their names gone: `x_1 = 2` as `x = 2`."""
    found: list[Node] = []
    for item in items:
        named = named_value(item) if item[0] == "rel" else None
        if named is not None and named[0][0] == "sym":
            item = ("rel", (("sym", named[0][1].partition("_")[0]), named[1]), ("=",))
        found.append(item)
    return tuple(found)


def usual_order(names: Items) -> Items:
    """Names in the order of a point's coordinates: x, y, z or x_1, x_2; else as given."""
    letters = [name[1] for name in names if name[0] == "sym"]
    if len(letters) != len(names):
        return names
    heads, _, tails = zip(*(letter.partition("_") for letter in letters), strict=True)
    if not any(tails):
        codes = sorted(ord(head) for head in heads if len(head) == 1)
        neighbours = codes == list(range(codes[0], codes[0] + len(names))) if codes else False
        return tuple(sorted(names)) if neighbours else names
    if len(set(heads)) == 1 and all(tail.isdecimal() for tail in tails):
        return tuple(sorted(names, key=lambda name: int(name[1].partition("_")[2])))
    return names


def in_usual_order(items: Items) -> Items:
    """Named items in the order that a point has them: `x = 2, y = 1` of `y = 1, x = 2`.

    As they are if one names nothing, or two name the same.
    """
    named = {_label(item): item for item in items}
    if not items or None in named or len(named) != len(items):
        return items
    return tuple(named[name] for name in usual_order(tuple(name for name in named if name)))


def by_name(items: Items, others: Items) -> Items | None:
    """The others in the order of items that give values to the same names; None for more or less.

    A name has one value in either list.
    """
    if not (is_system(items) and is_system(others)):
        return None
    named = {_label(item): item for item in others}
    found = tuple(named[name] for item in items if (name := _label(item)) in named)
    return found if len(found) == len(items) == len(others) else None


def has_several_names(items: Items) -> bool:
    """Whether items give values to several names; x_1 and x_2 are roots of one."""
    return len({_head(name) for item in items if (name := _label(item)) is not None}) > 1


def is_partly_named(items: Items) -> bool:
    """Whether some items are relations and others bare values: `x = 1, 2`."""
    return {item[0] == "rel" for item in items} == {True, False}


def with_systems(alternatives: Sequence[Sequence[Node]]) -> Items:
    """The items of a list, solutions of several unknowns as lists of their own.

    These are what stands between two `or` if its names are several, as in `x = 1, y = 2 or x = 3,
    y = 4`, and the repeats of `x = 1, y = 2, x = 3, y = 4`: an unknown has one value in each.

    Args:
        alternatives: the items between any two `or`.
    """
    if len(alternatives) > 1 and any(map(_is_mixed, alternatives)):
        return tuple(
            items[0] if len(items) == 1 else ("list", tuple(items)) for items in alternatives
        )
    items = tuple(item for part in alternatives for item in part)
    width = len({_label(item) for item in items})
    rounds = [items[at : at + width] for at in range(0, len(items), width)]
    if width > 1 and len(rounds) > 1 and all(is_system(part) for part in rounds):
        names = [frozenset(map(_label, part)) for part in rounds]
        return tuple(("list", part) for part in rounds) if len(set(names)) == 1 else items
    return items


def point_or_system(items: Items) -> Node:
    """What stands between two semicolons: `x = 1, y = 2` as a list, `1, 2` as a point."""
    return ("list", items) if is_system(items) else ("tuple", "(", ")", items)


def is_system(items: Items) -> bool:
    """Whether every item gives a value to a name of its own."""
    labels = {_label(item) for item in items}
    return len(items) > 1 and None not in labels and len(labels) == len(items)


def _is_mixed(items: Sequence[Node]) -> bool:
    """Whether relations are about several names: `x = 1, y > 2`, never `x = 1, x = 2`."""
    return len({about for item in items if (about := _subject(item)) is not None}) > 1


def _subject(item: Node) -> Node | frozenset[str] | None:
    """What a relation is about: its name, else its letters; None for others."""
    if item[0] != "rel" or item[2] == ("in",):
        return None
    name = _label(item)
    return frozenset(symbols(item)) if name is None else _head(name)


def _label(item: Node) -> Node | None:
    r"""What an item gives a value to: x of `x = 1`, the side of `|AB| = 1`; None for a bare one."""
    if item[0] != "rel" or not (symbols(item) or holds(item, "call")):
        return None  # `2 + 3 = 5` has no name, and takes work to check
    if (named := named_value(item)) is not None:
        return None if named[0] == ("words", "") else named[0]  # `5x \approx 7`
    value = measured_value(item)
    return next((side for side in item[1] if side != value), None) if value is not None else None


def _head(name: Node) -> Node:
    head, _, tail = name[1].partition("_") if name[0] == "sym" else ("", "", "")
    return ("sym", head) if tail.isdecimal() else name
