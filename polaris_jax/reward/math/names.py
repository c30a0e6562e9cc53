"""The names that equations give to values: which there are, and which two may be one thing.

A derivative, an inverse or an iterate is another function than the one it is made of, and a mean
or a conjugate another number: what stands on a letter counts, but for arrows, bars over two points
and angle signs.
"""

from __future__ import annotations

from polaris_jax.reward.math import numeric
from polaris_jax.reward.math.syntax import Node, holds, render, symbols
from polaris_jax.reward.math.units import denies
from polaris_jax.reward.math.vocabulary import CHANGING_WORDS, FUNCTION_NAMES, word_set

# Letters that stand for a function wherever brackets and an equals sign follow; other small ones
# do so only where the other side holds the bracket's letter: `a(n) = n^2`, never `x(y) = 5`.
_FUNCTION_LETTERS = frozenset("pqrsuvw") | word_set(
    "phi psi sigma tau mu zeta omega rho chi eta Gamma Phi Psi Lambda Omega"
)
_MUTE = frozenset({"vec", "angle", "triangle"})
_FALSE_WORDS = word_set("wrong false untrue incorrect incorrectly invalid no none")
_INVERSE = "^(neg 1)"


def is_name(node: Node) -> bool:
    """Whether a left-hand side only names the value: x, x_1, AB, f(x), (p, q), some words."""
    kind = node[0]
    if kind == "words":  # never "the answer is not = 5"
        words = node[1].lower().removeprefix("the ").removeprefix("a ").split()
        return not denies(words) and _FALSE_WORDS.isdisjoint(words[:1] + words[-1:])
    if kind in ("sym", "call", "decor"):
        return True
    if kind == "const":
        return node[1] in ("e", "i")
    if kind == "mul":
        heads = node[1]
        if all(_is_capital(head) for head in heads) or _plain(node) != node:
            return True
        return len(heads) == 2 and heads[0][0] == "sym" and heads[1][0] == "tuple"
    if kind == "ratio":
        return all(is_name(part) for part in node[1])
    if kind == "tuple":
        return all(is_name(part) for part in node[3])
    return False


def is_called(name: str, marks: str, arguments: tuple[Node, ...], rest: set[str]) -> bool:
    """Whether a name with brackets before an equals sign is a function of them, and no factor.

    Args:
        name: a letter with its subscript, a Greek letter's name, or a word.
        marks: its primes, or its power.
        arguments: what the brackets hold.
        rest: the letters of the other sides.
    """
    base = name.partition("_")[0]
    if marks.startswith("^"):
        return base in FUNCTION_NAMES and (marks == _INVERSE or arguments[0][0] == "sym")
    if base in FUNCTION_NAMES:
        return True
    own = symbols(arguments)
    if base in own | rest or (holds(arguments, "add") and own):  # `x(x+1) = 6`
        return False
    if marks or base in _FUNCTION_LETTERS or base.isupper() or (len(base) > 1 and base.islower()):
        return base not in CHANGING_WORDS
    if base == "n" and own and all(letter.isupper() for letter in own):  # elements of a set
        return True
    return len(arguments) == 1 and arguments[0][0] == "sym" and arguments[0][1] in rest


def names_differ(ours: Node, theirs: Node, held: set[str]) -> bool:
    r"""Whether two names are different ones: x and y, f(x) and g(x), f and f', x and f(x).

    Names of different kinds may be one thing (y and f(x), y and the inverse of f, an area in words
    and A); so are y and its estimate `\hat{y}` where the values are formulas.

    Args:
        held: the letters of both values.
    """
    ours, theirs = (_plain(_estimated(name) if held else name) for name in (ours, theirs))
    if ours[0] != theirs[0]:
        ours, theirs = _undressed(ours), _undressed(theirs)
    kinds = {ours[0], theirs[0]}
    if ours == theirs or "words" in kinds:
        return False
    marks = _marks(ours), _marks(theirs)
    if marks[0] != marks[1]:
        call, name = (ours, theirs) if ours[0] == "call" else (theirs, ours)
        inverse = call[0] == "call" and call[1].endswith(_INVERSE) and name[0] == "sym"
        return not inverse or call[1].startswith(name[1])
    if kinds <= {"sym", "const"} or kinds in ({"decor"}, {"tuple"}, {"ratio"}):
        return True
    if kinds <= {"mul", "call"} and "mul" in kinds:  # `P(A)` may be written `PA`
        return _factors(ours) != _factors(theirs)
    if kinds == {"call"}:
        if ours[1] != theirs[1] or len(ours[2]) != 1 or len(theirs[2]) != 1:
            return True
        if not symbols((ours, theirs)) and numeric.same_constant(ours[2][0], theirs[2][0]):
            return False
        pair = (ours[2][0], theirs[2][0])
        return not all(
            part[0] == "sym" and part[1].islower() and part[1] not in held for part in pair
        )
    if kinds == {"call", "sym"}:
        call, name = (ours, theirs) if ours[0] == "call" else (theirs, ours)
        own = symbols(call)
        if name[1] in own or call[1].partition("_")[0] in FUNCTION_NAMES:
            return name[1] in own
        return not own or not own <= held  # `A(3) = 12` is not `A = 12`, nor `y = 12`
    return False


def _estimated(node: Node) -> Node:
    return node[2] if node[:2] == ("decor", "hat") else node


def _is_capital(node: Node) -> bool:
    return node[0] == "sym" and len(node[1]) == 1 and node[1].isupper()


def _plain(node: Node) -> Node:
    r"""A product that writes a name as that name: `f'(x)`, `f^{-1}(x)`, `m\angle A`."""
    if node[0] != "mul" or len(node[1]) != 2:
        return node
    head, other = node[1]
    if head == ("sym", "m") and other[:2] == ("decor", "angle"):
        return other
    if other[0] != "sym":
        return node
    marks = ""
    if head[0] == "pow":
        head, marks = head[1], f"^{render(head[2])}"
    while head[:2] == ("decor", "'"):
        head, marks = head[2], f"'{marks}"
    named = bool(marks) and head[0] == "sym" and head[1] in FUNCTION_NAMES
    return ("call", f"{head[1]}{marks}", (other,)) if named else node


def _undressed(node: Node) -> Node:
    """A name without arrow, angle sign, or a bar over two points."""
    while node[0] == "decor" and (
        node[1] in _MUTE or (node[1] == "overline" and node[2][0] == "mul")
    ):
        node = node[2]
    return node


def _marks(node: Node) -> str:
    """What makes another thing of a name: primes, dots, a bar, an inverse's or iterate's power."""
    if node[0] == "call":
        cut = min((node[1].find(sign) for sign in "'^" if sign in node[1]), default=None)
        return "" if cut is None else node[1][cut:]
    marks = ""
    while node[0] == "decor":
        marks, node = marks + ("" if node[1] in _MUTE else node[1]), node[2]
    return marks


def _factors(node: Node) -> list[str]:
    parts = node[1] if node[0] == "mul" else (("sym", node[1]), *node[2])
    return sorted(map(repr, parts))
