"""The page of the declared metrics, docs/metrics.md, and what a written name means.

`python -m polaris_jax.metrics.glossary` prints the page; `make docs` writes it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

from polaris_jax.metrics.declared import STEP, TIMING, Metric

HEAD = """# Metrics

Every number that a run writes, by file. [Reading a run](howto/reading_a_run.md) says which to look
at first, and what healthy and unhealthy runs look like. This page is made by `make docs` from
`polaris_jax/metrics/declared.py`.

A mean over nothing is null, and so are the metrics of an update that a step did not make. Numbers
of the tiny run are those of `launch/tiny.sh`: 48 steps of 32 groups, 0.8M parameters.
"""


_FILES = (
    ("metrics.jsonl", "one line a step; the same bytes for the same config, data and seed", STEP),
    ("timing.jsonl", "one line a step, of the clock and the machine", TIMING),
)


def known_names() -> frozenset[str]:
    """Every declared name."""
    return frozenset(name for entry in entries() for name in entry.names)


def entries() -> Iterator[Metric]:
    """Every declaration, in the order of the page."""
    for _, _, table in _FILES:
        yield from table


def is_known(name: str) -> bool:
    """True if a written name is declared, or fits a declared one with NAME or N in it."""
    return _entry_of(name) is not None


def meaning_of(name: str) -> str:
    """What a written name measures; empty if it is not declared."""
    entry = _entry_of(name)
    return "" if entry is None else entry.meaning


def _entry_of(name: str) -> Metric | None:
    for entry in entries():
        for known in entry.names:
            pattern = re.escape(known).replace("NAME", r"\w+").replace("@N", r"@\d+")
            if re.fullmatch(pattern, name):
                return entry
    return None


def markdown() -> str:
    """The text of docs/metrics.md: one table a file."""
    parts = [HEAD]
    for file, about, table in _FILES:
        rows = ["| name | meaning | look for |", "|---|---|---|", *_rows(table)]
        parts.append(f"## {file}\n\n{about[0].upper()}{about[1:]}.\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _rows(table: Iterable[Metric]) -> Iterable[str]:
    for entry in table:
        names = ", ".join(f"`{name}`" for name in entry.names)
        yield f"| {names} | {entry.meaning} | {entry.look} |"


if __name__ == "__main__":
    sys.stdout.write(markdown())
