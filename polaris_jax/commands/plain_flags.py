"""The part of absl's flags that our commands use, for a Python without absl.

`polaris grade` and `polaris doctor` work where absl is not installed; `commands.flags` then takes
this module in its place. Names, results and error texts are absl's own, which a test compares.
Differs: no --flagfile, no --undefok, no short names, no global FLAGS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Parser = Callable[[str], Any]  # text -> value; raises ValueError


class Error(Exception):
    """A mistake on the command line."""


class IllegalFlagValueError(Error):
    """A flag's value cannot be used."""


class UnrecognizedFlagError(Error):
    """There is no such flag."""

    def __init__(self, flagname: str) -> None:
        super().__init__(f"Unknown command line flag '{flagname}'")
        self.flagname = flagname


class Flag:
    """A declared flag and its value."""

    def __init__(self, name: str, default: Any, help_text: str, parser: Parser) -> None:
        self.name, self.default, self.help, self.parser = name, default, help_text, parser
        self.value = default
        self.boolean = parser is _boolean

    def parse(self, text: str) -> None:
        """Takes the value from the command line."""
        try:
            self.value = self.parser(text)
        except (ValueError, OverflowError) as error:
            raise IllegalFlagValueError(f"flag --{self.name}={text}: {error}") from error


class FlagValues:
    """The flags of one command, in the order of declaration."""

    def __init__(self) -> None:
        self._flags: dict[str, Flag] = {}
        self._gnu = False

    def __iter__(self) -> Iterator[str]:
        return iter(self._flags)

    def __contains__(self, name: str) -> bool:
        return name in self._flags

    def __getitem__(self, name: str) -> Flag:
        return self._flags[name]

    def set_gnu_getopt(self, gnu_getopt: bool = True) -> None:
        """True: flags may follow positional words."""
        self._gnu = gnu_getopt

    def add(self, name: str, default: Any, help_text: str, parser: Parser) -> None:
        """Declares a flag."""
        self._flags[name] = Flag(name, default, help_text, parser)

    def __call__(self, argv: Sequence[str]) -> list[str]:
        """Sets the flags; returns the program's name and the words that are no flags.

        Raises:
            Error: a flag is unknown, lacks its value, or has one that it does not take.
            ValueError: a negated flag has a value, as in --nofast=1.
        """
        rest, words, unknown = [argv[0]], iter(argv[1:]), ""
        for word in words:
            if word == "--":
                break
            bare = word[1 + word.startswith("--") :] if word.startswith("-") else ""
            name, has_value, text = bare.partition("=")
            if not name:
                rest.append(word)
                if self._gnu:
                    continue
                break
            flag, given = self._flags.get(name), text if has_value else None
            if flag is None and self._is_negated(name):
                if given is not None:
                    raise ValueError(f"{word} does not take an argument")
                flag, given = self._flags[name[2:]], "false"
            if flag is None:
                unknown = unknown or name
                continue
            if given is None:
                given = "true" if flag.boolean else next(words, None)
            if given is None:
                raise Error(f"Missing value for flag {word}")
            flag.parse(given)
        if unknown:
            raise UnrecognizedFlagError(unknown)
        return [*rest, *words]

    def _is_negated(self, name: str) -> bool:
        """Whether a name is that of a boolean flag behind `no`."""
        return name.startswith("no") and name[2:] in self and self[name[2:]].boolean


def DEFINE_string(name: str, default: str | None, help: str, *, flag_values: FlagValues) -> None:
    """Declares a text."""
    flag_values.add(name, default, help, str)


def DEFINE_bool(name: str, default: bool, help: str, *, flag_values: FlagValues) -> None:
    """Declares a flag that is on or off."""
    flag_values.add(name, default, help, _boolean)


def DEFINE_enum(
    name: str, default: str, enum_values: Sequence[str], help: str, *, flag_values: FlagValues
) -> None:
    """Declares a text that is one of a few."""

    def one_of(text: str) -> str:
        if text not in enum_values:
            raise ValueError(f"value should be one of <{'|'.join(enum_values)}>")
        return text

    flag_values.add(name, default, f"<{'|'.join(enum_values)}>: {help}", one_of)


def DEFINE_integer(
    name: str,
    default: int | None,
    help: str,
    *,
    lower_bound: int | None = None,
    upper_bound: int | None = None,
    flag_values: FlagValues,
) -> None:
    """Declares a whole number."""
    kind = "an integer", "integer"
    flag_values.add(name, default, help, _number(_whole, kind, lower_bound, upper_bound))


def DEFINE_float(
    name: str,
    default: float | None,
    help: str,
    *,
    lower_bound: float | None = None,
    upper_bound: float | None = None,
    flag_values: FlagValues,
) -> None:
    """Declares a number."""
    kind = "a number", "number"
    flag_values.add(name, default, help, _number(float, kind, lower_bound, upper_bound))


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "t", "1"):
        return True
    if text.lower() in ("false", "f", "0"):
        return False
    raise ValueError("Non-boolean argument to boolean flag", text)


def _whole(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10) if len(text) > 2 else 10
    return int(text, base)


def _number(
    convert: Callable[[str], Any], kind: tuple[str, str], least: Any, most: Any
) -> Callable[[str], Any]:
    """A parser of numbers from `least` to `most`, with absl's words for the bounds."""
    rule = kind[0]
    if least is not None and most is not None:
        rule = f"{kind[0]} in the range [{least}, {most}]"
    elif convert is _whole and least == 1:
        rule = f"a positive {kind[1]}"
    elif convert is _whole and most == -1:
        rule = f"a negative {kind[1]}"
    elif least == 0:
        rule = f"a non-negative {kind[1]}"
    elif most == 0:
        rule = f"a non-positive {kind[1]}"
    elif most is not None:
        rule = f"{kind[1]} <= {most}"
    elif least is not None:
        rule = f"{kind[1]} >= {least}"

    def parsed(text: str) -> Any:
        value = convert(text)
        if (least is not None and value < least) or (most is not None and value > most):
            raise ValueError(f"{value} is not {rule}")
        return value

    return parsed
