"""A place in the tokens of an answer: look ahead, take, insist."""

from __future__ import annotations

from polaris_jax.reward.math.normalize import Token, Unreadable

MAX_DEPTH = 100  # of the parser: some 25 levels of nesting
END: Token = ("end-of-answer", "")


class Cursor:
    """Where a parser stands, how deep, and how many absolute values are open."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = list(tokens)
        self.position = 0
        self.depth = 0
        self.bars = 0
        # `\\ln 2/3`: whether a function takes the quotient, and whether that was ever the question.
        self.takes_quotient = True
        self.met_quotient = False
        # `P(2) = 5`: whether a name may be called here; not within what another one holds.
        self.holds_equation = ("op", "=") in tokens
        self.may_call = self.holds_equation
        # The names that are functions wherever brackets follow, besides FUNCTION_NAMES.
        self.functions: frozenset[str] = frozenset()

    def peek(self, ahead: int = 0) -> Token:
        """The token some places ahead, END behind the last."""
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else END

    def next(self) -> Token:
        """Takes a token."""
        token = self.peek()
        self.position += 1
        return token

    def is_op(self, *values: str, ahead: int = 0) -> bool:
        """Whether a sign out of some is next."""
        kind, value = self.peek(ahead)
        return kind == "op" and value in values

    def is_cmd(self, *values: str) -> bool:
        """Whether a command out of some is next."""
        kind, value = self.peek()
        return kind == "cmd" and value in values

    def expect(self, *values: str) -> str:
        """Takes a sign out of some. Raises Unreadable at another."""
        if not self.is_op(*values):
            raise Unreadable(f"expected one of {values}, found {self.peek()}")
        return self.next()[1]

    def enter(self) -> None:
        """Counts a level of nesting. Raises Unreadable past the limit."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
