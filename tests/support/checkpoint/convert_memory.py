"""A conversion in a process of its own, and the most memory that it held: run by test_convert.py.

Arguments: source, target, most bytes of a shard, "hf" or "orbax". Prints JSON: `before` is what
the process holds before it converts (interpreter, jax, orbax), `peak` the most it ever held; bytes.
"""

import json
import re
import resource
import sys
from pathlib import Path


def resident_bytes() -> int:
    """The most this process has held; getrusage also counts what its parent held at its birth."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    import jax

    jax.devices()
    from polaris_jax.checkpoint.convert import convert

    before = resident_bytes()
    source, target, max_shard_bytes, form = sys.argv[1:]
    convert(source, target, form=form, dtype="auto", max_shard_bytes=int(max_shard_bytes))
    print(json.dumps({"before": before, "peak": resident_bytes()}))
