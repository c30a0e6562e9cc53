"""The counts and lines that `prepare` prints and records about its rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from polaris_jax.data.prepare.pipeline import Preparation
from polaris_jax.data.prepare.terms import COUNTED, REASONS
from polaris_jax.data.problems import short_line
from polaris_jax.data.source_text import parse_source
from polaris_jax.system.files import names_a_place
from polaris_jax.system.text import printable


def reasons_line(found: Preparation) -> str:
    """The counts of reasons, in one line."""
    total = sum(found.counts, Counter())
    return ", ".join(f"{total[reason]} {reason}" for reason in COUNTED if total[reason])


def none_left(found: Preparation) -> str:
    """The error if no row stays: the reasons, and what to do about them."""
    remedy = "--drop names the rules that apply"
    if sum(found.counts, Counter())["answer_unreadable"] > found.rows / 2:
        remedy = (
            "the math grader cannot read these answers; set reward.function for answers such as "
            "programs"
        )
    return f"every one of {found.rows:,} rows was left out ({reasons_line(found)}); {remedy}"


def messages(found: Preparation, most: int) -> list[str]:
    """Lines about files that were not read, the first malformed rows and contradictions.

    Args:
        found: the rows and their fates.
        most: lines about rows of a kind.
    """
    beside = [source.beside for source in found.sources if source.beside]
    return list(map(short_line, beside + found.malformed(most) + found.contradictions(most)))


def table(found: Preparation) -> list[str]:
    """The number of rows by reason and source, as lines of text."""
    total = sum(found.counts, Counter())
    shown = ["kept", *(reason for reason in COUNTED if total[reason])]
    columns = [["", "rows", *shown]]
    counted = list(zip([source.name for source in found.sources], found.counts, strict=True))
    if len(counted) > 1:
        counted.append(("all", total))
    for name, counts in counted:
        numbers = [sum(counts[r] for r in ("kept", *REASONS[1:])), *(counts[r] for r in shown)]
        columns.append([printable(name), *(f"{number:,}" for number in numbers)])
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in zip(*columns, strict=True)
    ]


def summary(found: Preparation, most: int) -> dict[str, Any]:
    """What prepare.json says about the rows.

    Args:
        found: the rows and their fates.
        most: see `messages`.
    """
    total = sum(found.counts, Counter())
    return {
        "rows": found.rows,
        "kept": total["kept"],
        "counts": _counts(total),
        "sources": {
            source.name: {
                "source": source.text,
                "local": names_a_place(parse_source(source.text).where),
                "rows": sum(counts[reason] for reason in ("kept", *REASONS[1:])),
                "kept": counts["kept"],
                "counts": _counts(counts),
            }
            for source, counts in zip(found.sources, found.counts, strict=True)
        },
        "lost": dict(sorted(found.lost.items())),
        "messages": messages(found, most),
    }


def _counts(counts: Counter[str]) -> dict[str, int]:
    return {reason: counts[reason] for reason in COUNTED if counts[reason]}
