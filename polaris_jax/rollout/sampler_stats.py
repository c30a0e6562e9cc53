"""The numbers of `Sampler.stats`."""

from __future__ import annotations

from typing import Any

from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.driver import Driver
from polaris_jax.rollout.weights import SyncReport


def happened(
    driver: Driver | None,
    state: DecodeState | None,
    *,
    slots: int,
    seconds: float,
    compiles: int,
    synced: SyncReport,
) -> dict[str, Any]:
    """The numbers of `Sampler.stats`, by name.

    prompt_tokens: tokens of submitted prompts. response_tokens: tokens that samples were given.
    tokens_per_s: response tokens per second in `step`.
    slot_occupancy: share of slot-steps that made a token, in [0, 1].
    row_steps: rows that the devices computed, summed over steps. row_waste: the share of row_steps
        that made no token, in [0, 1].
    live_rows: list of the rows now in the slots of each data shard. live_rows_min, live_rows_max:
        the fewest and the most rows that a data shard decoded in a call (0: no call).
    pages_used, pages_peak: pages with a reference now, and the most so far. pages_idle: unused
        pages that hold a prefix.
    preemptions: rows preempted because pages ran out. voided: rows preempted because new weights
        came, or the pool was freed, while the sampler was paused.
    failures: requests that ended because their own callback or `decode` raised.
    prefix_hits: samples that shared a prompt that another sample had prefilled.
    prefix_query_tokens: tokens that admitted sequences needed in their pages. prefix_hit_tokens:
        those of them that were in pages already. prefix_hit_rate: the share of these, in [0, 1];
        0 if none was needed.
    compiles: XLA compilations in `step`.
    weight_sync_bytes: bytes written to this process's devices. weight_sync_s: seconds of the syncs.

    Args:
        driver: the sampler's driver; None before the first request.
        state: slots and pages of the driver.
        slots: number of slots of all data shards.
        seconds: seconds in `step`.
        compiles: XLA compilations in `step`.
        synced: the weight syncs.
    """
    schedulers = [] if driver is None else driver.schedulers
    allocators = [] if state is None else state.allocators
    tokens = 0 if driver is None else driver.response_tokens
    slot_steps = 0 if driver is None else driver.steps * slots
    row_steps = 0 if driver is None else driver.row_steps
    fewest, most = (0, 0) if driver is None else driver.live_rows or (0, 0)
    needed = sum(s.prefix_query_tokens for s in schedulers)
    found = sum(s.prefix_hit_tokens for s in schedulers)
    return {
        "prompt_tokens": 0 if driver is None else driver.prompt_tokens,
        "response_tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds else 0.0,
        "slot_occupancy": tokens / slot_steps if slot_steps else 0.0,
        "row_steps": row_steps,
        "row_waste": 1 - tokens / row_steps if row_steps else 0.0,
        "live_rows": [len(s.live) for s in schedulers],
        "live_rows_min": fewest,
        "live_rows_max": most,
        "pages_used": sum(a.num_used for a in allocators),
        "pages_peak": sum(a.peak_used for a in allocators),
        "pages_idle": sum(a.num_idle for a in allocators),
        "preemptions": sum(s.preemptions for s in schedulers),
        "voided": sum(s.voided for s in schedulers),
        "failures": 0 if driver is None else driver.failures,
        "prefix_hits": sum(s.prefix_hits for s in schedulers),
        "prefix_query_tokens": needed,
        "prefix_hit_tokens": found,
        "prefix_hit_rate": found / needed if needed else 0.0,
        "compiles": compiles,
        "weight_sync_bytes": synced.bytes,
        "weight_sync_s": synced.seconds,
    }
