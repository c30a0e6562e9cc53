"""The grading process: JSON lines in, JSON lines out, one response at a time.

Started by `WorkerPool` as `python -m polaris_jax.reward.worker TIMEOUT_S MEMORY_LIMIT_BYTES PRESET
FUNCTIONS`. FUNCTIONS is JSON: import path, weight and `file_digest` of each reward function, or []
for the math grader. A request of the math grader is `[answer, [gold, ...]]`, its reply the fields
of an `Explanation`. A request of functions is the fields of a `RewardInput`, the reply
`[reward, parts]`; before it comes the index of each function as it is called. Either may be
answered by `["memory", ""]`, `["error", reason]` or `["invalid", reason]`.

The first line out is `"ready"`, or `{"refused": reason}` if a function cannot be used. The process
ends when stdin closes. It kills itself if one response takes TIMEOUT_S and a second more: then the
parent, which would have killed it, is gone.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from polaris_jax.system.signals import LIKE_SIGTERM

# What follows the parent's own deadline before the alarm, in seconds.
GRACE_S = 1.0

# Ctrl-C, and what schedulers send to every process of a run: the parent handles these, and ends its
# workers itself. A worker that died of one would cost a response its reward.
THE_PARENTS = (signal.SIGINT, signal.SIGTERM, *LIKE_SIGTERM)

Reply = Callable[[Any], None]


def main(
    timeout_s: float,
    memory_limit_bytes: int,
    preset: str,
    functions: Sequence[tuple[str, float, str]] = (),
) -> None:
    """Answers requests from stdin on stdout until stdin closes."""
    for number in THE_PARENTS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    requests, replies = _private_pipes()
    own = os.getpid()

    def reply(value: Any) -> None:
        if os.getpid() != own:  # forked by a reward function, and back from it: no second worker
            os._exit(0)
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    # Before the limit, so that a small one cannot break the import of what grading needs.
    from polaris_jax.reward.math.equivalence import explain
    from polaris_jax.reward.math.structures import compare  # noqa: F401
    from polaris_jax.reward.protocol import FailedFunction
    from polaris_jax.system.child import limit_memory
    from polaris_jax.system.user_code import RefusedFunction

    try:
        score = _scorer(functions, reply) if functions else None
    except RefusedFunction as error:
        reply({"refused": str(error)})
        return
    if memory_limit_bytes:
        limit_memory(memory_limit_bytes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reply("ready")
    for line in requests:
        signal.setitimer(signal.ITIMER_REAL, timeout_s + GRACE_S)
        try:
            request = json.loads(line)
            answer: Any = score(request) if score else explain(*request, preset=preset)
        except MemoryError:
            answer = ["memory", ""]
        except FailedFunction as error:
            answer = [error.kind, error.reason]
        except Exception:  # noqa: BLE001 - a bad answer is reward 0, counted, never the end of a step
            answer = ["error", ""]
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        reply(answer)


def _private_pipes() -> tuple[Any, Any]:
    """The parent's pipes, out of reach: what is printed or read by graded code is not a message."""
    requests = os.fdopen(os.dup(0), "r")
    replies = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, replies


def _scorer(
    functions: Sequence[tuple[str, float, str]], reply: Reply
) -> Callable[[Any], list[Any]]:
    """What turns the fields of a `RewardInput` into its weighted reward and named entries.

    Raises:
        RefusedFunction: a function cannot be used, or its file is not the one that the other
            workers have imported; the text begins with its path.
    """
    from polaris_jax.reward.protocol import RewardInput, call, combined
    from polaris_jax.system.user_code import RefusedFunction, file_digest, load_function

    loaded = []
    for path, _, digest in functions:
        if file_digest(path) != digest:
            raise RefusedFunction(
                f"{path}: the file was edited or is gone since this command began, and one command "
                "rewards by one text; put the former text back, or start the command again"
            )
        try:
            loaded.append(load_function(path))
        except RefusedFunction as error:
            raise RefusedFunction(f"{path}: {error}") from error
    weights = [weight for _, weight, _ in functions]

    def score(fields: dict[str, Any]) -> list[Any]:
        response, rewards, parts = RewardInput(**fields), [], {}
        for index, function in enumerate(loaded):
            reply(index)
            reward, entries = call(function, response)
            rewards.append(reward)
            parts |= entries
        return [combined(rewards, weights), parts]

    return score


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
    except BrokenPipeError:  # the parent left between request and reply
        sys.exit(0)
