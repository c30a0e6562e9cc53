"""Times of day and dates in plain forms: `3:30 PM` is `15:30`, `May 5th, 2020` is `5 May 2020`."""

from __future__ import annotations

from polaris_jax.reward.math.normalize import Token

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september",
    "october", "november", "december",
)  # fmt: skip
_SILENT_WORDS = frozenset({"st", "nd", "rd", "th", "of", "the", "on", "at"})


def same_time(answer: tuple[Token, ...], gold: tuple[Token, ...]) -> bool | None:
    """Whether two times or two dates agree; None if either side is neither.

    A time without `am` or `pm` is on the 24-hour clock, and at least one side must have one of
    them: `3:30` alone is a ratio.
    """
    ours, theirs = _parts(answer), _parts(gold)
    if ours is None or theirs is None:
        return None
    for read in (_minutes, _date):
        left, right = read(ours), read(theirs)
        if left is not None and right is not None:
            marked = read is _date or any(part in ("am", "pm") for part in (*ours, *theirs))
            return left == right if marked else None
    return None


def _parts(tokens: tuple[Token, ...]) -> list[str] | None:
    """Numbers, words and colons in lower case, letters joined to words; None at anything else."""
    parts: list[str] = []
    joins = False
    for kind, value in tokens[:24]:
        if kind in ("let", "tlet"):
            if joins:
                parts[-1] += value.lower()
            else:
                parts.append(value.lower())
            joins = True
        elif (kind, value) != ("op", "."):  # `p.m.`
            joins = False
            if kind in ("num", "word", "run") or value == ":":
                parts.append(value.lower())
            elif value not in (",", "{", "}", "^"):
                return None
    return parts if len(tokens) <= 24 else None


def _minutes(parts: list[str]) -> int | None:
    """Minutes since midnight of `3`, `3:30` or `15:30` with or without am or pm."""
    mark = parts[-1] if parts and parts[-1] in ("am", "pm") else ""
    clock = parts[:-1] if mark else parts
    if len(clock) == 1 and mark and clock[0].isdigit():
        hour, minute = int(clock[0][:4]), 0
    elif len(clock) == 3 and clock[1] == ":" and clock[0].isdigit() and clock[2].isdigit():
        hour, minute = int(clock[0][:4]), int(clock[2][:4])
    else:
        return None
    if minute > 59 or hour > 23 or (mark and not 1 <= hour <= 12):
        return None
    if mark:
        hour = hour % 12 + (12 if mark == "pm" else 0)
    return 60 * hour + minute


def _date(parts: list[str]) -> tuple[int | None, int, int] | None:
    """(year or None, month, day)."""
    rest = [part for part in parts if part not in _SILENT_WORDS]
    months = [part for part in rest if _month(part)]
    numbers = [part for part in rest if part.isdigit() and len(part) <= 4]
    if len(months) != 1 or not 1 <= len(numbers) <= 2 or len(rest) != 1 + len(numbers):
        return None
    day = int(numbers[0])
    if not 1 <= day <= 31:
        return None
    return (int(numbers[1]) if len(numbers) == 2 else None), _month(months[0]), day


def _month(word: str) -> int:
    """1 to 12, or 0 for no month."""
    word = "sep" if word == "sept" else word
    known = (number for number, name in enumerate(_MONTHS, 1) if word in (name, name[:3]))
    return next(known, 0)
