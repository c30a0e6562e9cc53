"""The grading process: JSON lines in, JSON lines out, one answer at a time.

Started by `Grader` as `python -m polaris_jax.reward.worker TIMEOUT_S MEMORY_LIMIT_BYTES PRESET`. A
request is `[answer, [gold, ...]]`, a reply the fields of an `Explanation`, `"memory"` or `"error"`;
the first line out is `"ready"`. It ends when stdin closes. It kills itself if one answer takes
TIMEOUT_S and a second more: then the parent, which would have killed it, is gone.
"""

from __future__ import annotations

import json
import resource
import signal
import sys

# What follows the parent's own deadline before the alarm, in seconds.
GRACE_S = 1.0


def main(timeout_s: float, memory_limit_bytes: int, preset: str) -> None:
    """Answers requests from stdin on stdout until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Before the limit, so that a small one cannot break the import of what grading needs.
    from polaris_jax.reward.math.equivalence import explain
    from polaris_jax.reward.math.structures import compare  # noqa: F401

    if memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = sys.stdout
    sys.stdout = sys.stderr
    replies.write('"ready"\n')
    replies.flush()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, timeout_s + GRACE_S)
        try:
            answer, golds = json.loads(line)
            reply: tuple | str = explain(answer, golds, preset=preset)
        except MemoryError:
            reply = "memory"
        except Exception:  # noqa: BLE001 - a bad answer is reward 0, counted, never the end of a step
            reply = "error"
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except BrokenPipeError:  # the parent left between request and reply
        sys.exit(0)
