"""Writes what `Preparation` decided, a few thousand rows at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polaris_jax.data.prepare.pipeline import Preparation
from polaris_jax.data.problems import problem_table, with_made_of

GROUP_ROWS = 20_000  # of one row group


def write_kept(found: Preparation, path: Path, *, made_of: Mapping[str, Any]) -> None:
    """Writes the problems that stay in the form of `write_problems`.

    Args:
        found: the rows and their fates.
        path: a local file.
        made_of: what `read_made_of` returns for the file.
    """
    import pyarrow.parquet as pq

    extras = found.has_extras
    problems = found.kept()
    schema = with_made_of(problem_table([], extras=extras), made_of).schema
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        while batch := list(itertools.islice(problems, GROUP_ROWS)):
            writer.write_table(with_made_of(problem_table(batch, extras=extras), made_of))


def write_rejected(found: Preparation, path: Path) -> None:
    """Writes a line of JSON for each row that was left out."""
    with open(path, "wb") as file:
        for record in found.rejected():
            file.write(json.dumps(record).encode() + b"\n")
