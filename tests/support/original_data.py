"""The original's own files, for slow tests that look into them.

They are no part of the project. Set POLARIS_SHARED to a folder that holds them as `data/`; without
it these tests are skipped, and a test on data of ours stands beside each.
"""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("POLARIS_SHARED", "")) / "data"
MARKS = (
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("POLARIS_SHARED"),
        reason="the original's data: set POLARIS_SHARED to its folder",
    ),
)


def needs_original(test):
    """A slow test, skipped without the original's data."""
    for mark in MARKS:
        test = mark(test)
    return test
