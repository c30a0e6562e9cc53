"""One setting: its default, its help, its range, and what a resume may do with it.

`config/sections.py` and the modules that it imports declare every field of the config with
`setting`. All else is derived from these declarations: the check of ranges, the list of fields that
a resume may change, the names that an error suggests, docs/config.md, and --help.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Any, Literal

# Values of `Setting.resume`.
NO = "no"  # a resume with another value is refused
YES = "yes"  # does not change what a run computes: a resume may change it
GROWS = "may grow in the last stage"  # a resume may raise it there, and not change it elsewhere

ALWAYS: Any = object()  # `before` of a field that every version had, or that a resume may change
_KEY = "setting"


class ConfigError(ValueError):
    """A bad config value; its text is one line for the user.

    Attributes:
        may_pass: True if the same line may succeed later, as when another process owns the files.
    """

    may_pass = False


def require(ok: bool, path: str, value: object, rule: str) -> None:
    """Raises ConfigError if `ok` is false.

    Args:
        ok: True if the rule holds.
        path: name of the field.
        value: value of the field.
        rule: text of the rule and of the remedy.

    Raises:
        ConfigError: `ok` is false. The text names the field, its value and the rule.
    """
    if not ok:
        raise ConfigError(f"{path}={value!r}: {rule}")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The declaration of one config field.

    Attributes:
        default: the field's value in a config that does not set the field.
        help: one or two sentences for docs/config.md and --help.
        above: exclusive lower limit; None: no such limit. In a list each entry must keep to the
            limits.
        at_least: inclusive lower limit, or None.
        below: exclusive upper limit, or None.
        at_most: inclusive upper limit, or None.
        also: one value outside the limits that is allowed as well, or None.
        rule: text of the error for a value outside the limits; empty: made from the limits.
        resume: NO, YES or GROWS: whether a resume may change the value.
        before: the value that reproduces the behaviour of versions that lacked the field. A run of
            such a version resumes with this value. ALWAYS: there is none. A new field needs
            `before`, unless a resume may change the field.
        former: defaults of earlier versions. A run that recorded one of them keeps it, unless the
            config now has another value than the default.
        usual: names of this field in other trainers, separated by spaces. If a user gives one of
            these names, the error suggests this field.
        name: dotted name, such as `stages[i].steps`; filled in by `declared_sections`.
        kind: the field's type; filled in by `declared_sections`.
    """

    default: Any
    help: str = ""
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    also: float | None = None
    rule: str = ""
    resume: str = NO
    before: Any = ALWAYS
    former: tuple[Any, ...] = ()
    usual: str = ""
    name: str = ""
    kind: Any = object

    @property
    def earlier(self) -> tuple[Any, ...]:
        """What earlier versions did by default and this one does not: `former` and `before`."""
        known = list(self.default) if isinstance(self.default, tuple) else self.default
        found = self.former if self.before is ALWAYS else (*self.former, self.before)
        return tuple(value for value in found if value != known)

    def check(self, name: str, value: Any) -> None:
        """Checks `value` against the limits.

        Args:
            name: the field's name in the error, such as `stages[1].steps`.
            value: value of the field; every entry is checked if it is a list.

        Raises:
            ConfigError: the value lies outside the limits.
        """
        is_list = isinstance(value, list)
        entries = value if is_list else [value]
        if not all(entry == self.also or self._allows(entry) for entry in entries):
            shown, each = (tuple(value), "each ") if is_list else (value, "")
            raise ConfigError(f"{name}={shown!r}: {self.rule or each + self._rule()}")

    def allowed(self) -> str:
        """The values that the type and the limits allow, e.g. `[0, 1]`; "" if all are allowed."""
        if typing.get_origin(self.kind) is Literal:
            return ", ".join(map(str, typing.get_args(self.kind)))
        low, high = _limit(self.above, self.at_least), _limit(self.below, self.at_most)
        if low is None and high is None:
            return "true, false" if self.kind is bool else ""
        if low == high:
            return _number(low)
        text = self._interval() if high is not None else self._lower()
        return text if self.also is None else f"{text}, or {_number(self.also)}"

    def _allows(self, value: float) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def _lower(self) -> str:
        return f"at least {_number(self.at_least)}" if self.above is None else f"above {self.above}"

    def _interval(self) -> str:
        low, high = _limit(self.above, self.at_least), _limit(self.below, self.at_most)
        left, right = "[" if self.above is None else "(", ")" if self.at_most is None else "]"
        return f"{left}{_number(low)}, {_number(high)}{right}"

    def _rule(self) -> str:
        if _limit(self.below, self.at_most) is not None:
            rule = f"must lie in {self._interval()}"
        else:
            rule = "must not be negative" if self.at_least == 0 else f"must be {self._lower()}"
        also = "" if self.also is None else f", or {_number(self.also)}"
        return f"{rule}{also}; the default is {self.default}"


def setting(default: Any, help: str = "", **facts: Any) -> Any:
    """A dataclass field that carries its `Setting` as metadata.

    Args:
        default: see `Setting`.
        help: see `Setting`.
        facts: further fields of `Setting`, such as `at_least=0`.
    """
    return dataclasses.field(
        default=default, metadata={_KEY: Setting(default=default, help=help, **facts)}
    )


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the config.

    Attributes:
        name: dotted name, such as `rollout`; empty for the config itself.
        help: docstring of the section's dataclass.
        settings: the section's own fields, without those of sections inside it.
    """

    name: str
    help: str
    settings: tuple[Setting, ...]


def declared_sections(cls: type, name: str = "", *, resume: str = NO) -> list[Section]:
    """The section that a dataclass declares, then the sections inside it, at any depth.

    Args:
        cls: a dataclass whose fields are all declared with `setting`.
        name: the section's dotted name; empty for the config itself.
        resume: `resume` of the field that holds the section. It applies to the section's fields
            whose own `resume` is NO.
    """
    own, inner = [], []
    for field, kind in typing.get_type_hints(cls).items():
        path = f"{name}.{field}" if name else field
        facts: Setting = cls.__dataclass_fields__[field].metadata[_KEY]
        facts = dataclasses.replace(
            facts, name=path, kind=kind, resume=resume if facts.resume == NO else facts.resume
        )
        entries = [kind, *typing.get_args(kind)]
        if section := next(filter(dataclasses.is_dataclass, entries), None):
            path += "" if section is kind else "[i]"
            inner += declared_sections(typing.cast(type, section), path, resume=facts.resume)
        else:
            own.append(facts)
    return [Section(name, inspect.getdoc(cls) or "", tuple(own)), *inner]


def config_fields(config: Any) -> dict[str, Any]:
    """Every field's value by dotted name, e.g. `stages[0].steps` -> 100; tuples become lists."""
    leaves: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, f"{path}.{name}" if path else name)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            for i, item in enumerate(value):
                walk(item, f"{path}[{i}]")
        else:
            leaves[path] = list(value) if isinstance(value, tuple) else value

    walk(dataclasses.asdict(config), "")
    return leaves


def declared_name(field: str) -> str:
    """`Setting.name` of a field: the index of a list becomes `i`.

    For example, `stages[2].steps` becomes `stages[i].steps`.
    """
    return re.sub(r"\[-?\d+\]", "[i]", field)


def _limit(first: float | None, second: float | None) -> float | None:
    return second if first is None else first


def _number(value: float | None) -> str:
    if isinstance(value, int) and value >= 1 << 20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}"
