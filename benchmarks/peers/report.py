"""A benchmark's report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


class Report:
    """Printed and written part by part: what is measured stays, whatever comes after.

    Args:
        out: a Markdown file, or nothing.

    Raises:
        SystemExit: it cannot be written; before anything is measured.
    """

    def __init__(self, out: str) -> None:
        self._out, self._text = out, ""
        if out:
            try:
                Path(out).touch()
            except OSError as error:
                sys.exit(f"--out={out}: {error.strerror}; name a file in a folder that is there")

    def add(self, lines: Sequence[str]) -> None:
        """Prints the lines of a part, and writes all parts so far."""
        part = "\n".join(lines) + "\n"
        print(part, end="", flush=True)
        self._text += part
        if self._out:
            Path(self._out).write_text(self._text)
