"""A side of `benchmarks/sampler.py` as a process: one JSON line in, one JSON line out.

A side's script hands `serve` a function from the job (the first line) to a function that samples a
list of requests. Whatever the side's libraries print goes to stderr. Standard library only: this
runs in every side's own environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Sampled(NamedTuple):
    """What a side made of the requests, in their order.

    Attributes:
        tokens: token ids of each response, cut to the length asked for.
        logprobs: log-probs of the sampled tokens, in nats; None: they were not asked for.
        details: figures of the side's own, e.g. `row_waste`.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]] | None
    details: dict[str, Any]


Generate = Callable[[list[dict[str, Any]]], Sampled]
EXAMPLES = 4  # responses that are sent back whole, for the check of their log-probs


def pin(threads: int) -> list[int]:
    """Keeps this process to so many CPUs, where the platform can, and says which."""
    if not hasattr(os, "sched_setaffinity"):
        return list(range(threads))
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cpus)
    return cpus


def peak_bytes() -> int:
    """Peak resident memory of this process and of the largest of its children."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def libraries() -> dict[str, str]:
    """The allocator and the OpenMP runtimes that this process has loaded, by their files."""
    try:
        with open("/proc/self/maps") as maps:
            loaded = {line.rsplit("/", 1)[-1].split(".so")[0] for line in maps if ".so" in line}
    except OSError:
        return {"allocator": "unknown", "openmp": "unknown"}
    allocators = sorted(n for n in loaded if n.startswith(("libtcmalloc", "libjemalloc")))
    openmp = sorted(n.split("-")[0] for n in loaded if n.startswith(("libiomp5", "libgomp")))
    return {
        "allocator": "+".join(allocators) or "libc",
        "openmp": "+".join(dict.fromkeys(openmp)) or "none",
    }


def serve(load: Callable[[dict[str, Any]], Generate]) -> None:
    """Loads once, then answers each line of requests with a line of figures, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    job = json.loads(sys.stdin.readline())
    began_s = time.perf_counter()
    generate = load(job)
    answer({"load_s": time.perf_counter() - began_s, **libraries()})
    for line in sys.stdin:
        requests = json.loads(line)
        cpu_s, began_s = time.process_time(), time.perf_counter()
        sampled = generate(requests)
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        _check(requests, sampled)
        answer(
            {
                "seconds": seconds,
                "cpu_s": cpu_s,
                "useful_tokens": sum(len(tokens) for tokens in sampled.tokens),
                "peak_bytes": peak_bytes(),
                "digests": [
                    hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
                    for tokens in sampled.tokens
                ],
                **_logprobs(requests, sampled),
                **sampled.details,
            }
        )


def _logprobs(requests: list[dict[str, Any]], sampled: Sampled) -> dict[str, Any]:
    """The mean log-prob and a few complete responses; nothing if there are no log-probs."""
    if sampled.logprobs is None:
        return {}
    some = range(0, len(requests), max(1, len(requests) // EXAMPLES))
    return {
        "mean_logprob": sum(map(sum, sampled.logprobs)) / sum(map(len, sampled.logprobs)),
        "examples": [
            {
                "prompt": requests[i]["prompt"],
                "tokens": sampled.tokens[i],
                "logprobs": sampled.logprobs[i],
            }
            for i in some
        ],
    }


def _check(requests: list[dict[str, Any]], sampled: Sampled) -> None:
    asked = [request["tokens"] for request in requests]
    for what, found in (("tokens", sampled.tokens), ("log-probs", sampled.logprobs)):
        if found is not None and [len(x) for x in found] != asked:
            raise RuntimeError(
                f"{what}: {[len(x) for x in found][:8]}... where {asked[:8]}... were asked for"
            )
