"""Seeds for every random choice of a run, made from names instead of a shared stream."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fold_seed(*parts: Any) -> int:
    """A 31-bit seed from a run seed, a step, an id, ...: the same parts give the same seed."""
    text = json.dumps([str(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1
