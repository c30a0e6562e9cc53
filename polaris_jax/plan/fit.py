"""Whether a step fits: the memory that is resident in each of its phases, added up.

The compiler judges one program at a time and does not know what else lies in memory. Here each
phase of a step counts the program that runs in the phase and everything that stays resident beside
the program. A program counts with its total (arguments + outputs - aliased + temporaries + code).
On a TPU the total is pessimistic: the program's peak may be far lower.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

BUDGET = 0.90  # share of the HBM that a plan may use; the rest is the runtime's and fragmentation's


@dataclasses.dataclass(frozen=True)
class Residency:
    """Where the KV pool and the training state stay between the phases.

    Attributes:
        pool: whether the KV pool is kept during the update. New weights make all cached KV
            invalid, so `freed` loses nothing.
        state: where master weights and moments are while the sampler runs.
    """

    pool: Literal["freed", "kept"] = "freed"
    state: Literal["device", "host"] = "device"


COLOCATED = Residency()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the state and of the programs, in bytes a device.

    Attributes:
        params: float32 master weights.
        moments: AdamW's moments.
        weights: the sampler's weights.
        accumulate: the total of the update's gradient program, including its arguments: weights,
            accumulator and batch.
        apply: the total of the optimizer's program, including its arguments: state and gradients.
        sync_step: the most that one leaf's step of the weight sync needs: the leaf's new weight
            and temporaries. The leaf's old weight is freed first.
        page: one page of the pool, all layers, with the compiler's padding.
        sampling: the larger of the decode and prefill programs' totals, without the pool.
        reference: float32 weights of the KL term's frozen model, which stay on the device in every
            phase. `accumulate` already includes them among its arguments.
    """

    params: int
    moments: int
    weights: int
    accumulate: int
    apply: int
    sync_step: int
    page: float
    sampling: int
    reference: int = 0

    @property
    def state(self) -> int:
        return self.params + self.moments


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a step and the parts that are in memory, in bytes a device."""

    name: str
    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(size for _, size in self.parts)


@dataclasses.dataclass(frozen=True)
class Fit:
    """Whether a step fits.

    Attributes:
        budget: bytes a device that may be used.
        phases: the phases of a step, with the requested pool, or else the largest that fits.
        pages: pages in a data shard's pool.
        full_rows: sequences of full length that all pools hold at once.
        breaches: one line for each reason why the step does not fit; empty if the step fits.
    """

    budget: int
    phases: tuple[Phase, ...]
    pages: int
    full_rows: int
    breaches: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.breaches


def judge(
    sizes: Sizes,
    *,
    hbm_bytes: int,
    pages_per_row: int,
    data_shards: int,
    asked_pages: int = 0,
    residency: Residency = COLOCATED,
    max_pages: int = 0,
    least_pages: int = 0,
    scores: bool = False,
) -> Fit:
    """Compares the phases of a step with the memory of a device.

    Args:
        sizes: sizes of the programs and the state.
        hbm_bytes: memory of a device.
        pages_per_row: pages that a sequence of full length takes.
        data_shards: number of the sampler's pools.
        asked_pages: requested pages in each pool; 0: as many as fit.
        residency: where the pool and the state stay between the phases.
        max_pages: pages with which every slot can hold a sequence of full length, so that more
            are useless; 0: no such bound.
        least_pages: pages of the longest sequence of any stage, which a pool must hold; 0:
            `pages_per_row`.
        scores: True if the run takes held-out scores, whose sampler has weights of its own beside
            the stage's. With `asked_pages` = 0 its pool is what they leave.
    """
    budget = int(BUDGET * hbm_bytes)
    kept = residency.state == "device"
    beside = sizes.sampling + (sizes.state if kept else 0) + sizes.reference
    room = max(0, budget - beside)
    if residency.pool == "kept":
        apply = sizes.apply + sizes.reference
        update = max(sizes.accumulate + sizes.moments, apply) + sizes.weights
        room = min(room, max(0, budget - update))
    left = int(room // sizes.page)
    if max_pages:
        left = min(left, max_pages)
    pages = asked_pages or left
    pool = int(pages * sizes.page)
    phases = _phases(sizes, pool, residency, scores=scores and asked_pages > 0)
    breaches = [_over(phase, budget, hbm_bytes) for phase in phases if phase.total > budget]
    if asked_pages > left and asked_pages * sizes.page + beside > budget:
        breaches.append(
            f"the KV pool: {asked_pages} pages a data shard need {gib(pool)} GiB a device and "
            f"{gib(room)} GiB are left; at most {left} pages fit"
        )
    # Page 0 of a pool is not usable.
    rows = data_shards * (max(0, pages - 1) // pages_per_row)
    longest = max(pages_per_row, least_pages)
    if not breaches and pages - 1 < longest:
        breaches.append(
            f"sampling: a pool of {pages} pages a data shard holds no sequence of full length "
            f"({longest} pages); {gib(room)} GiB a device are left for it"
        )
    return Fit(budget, phases, pages, rows, tuple(breaches))


def _phases(sizes: Sizes, pool: int, residency: Residency, *, scores: bool) -> tuple[Phase, ...]:
    weights, kv_pool = ("sampler weights", sizes.weights), ("KV pool", pool)
    state = ("master weights and moments", sizes.state)
    kept = [kv_pool] if residency.pool == "kept" else []
    beside = [state] if residency.state == "device" else []
    reference = [("reference model", sizes.reference)] if sizes.reference else []
    gradients = ("program (weights, accumulator, batch, temporaries)", sizes.accumulate)
    optimizer = ("program (state, gradients, temporaries)", sizes.apply)
    leaf = ("one leaf and temporaries", sizes.sync_step)
    sampling = ("program (sampler weights, temporaries)", sizes.sampling)
    phases = {
        "update: gradients": [gradients, ("moments", sizes.moments), weights, *kept],
        "update: optimizer": [optimizer, weights, *reference, *kept],
        "weight sync": [state, weights, leaf, *reference, *kept],
        "sampling": [sampling, kv_pool, *beside, *reference],
    }
    if scores:
        phases["held-out score"] = [*phases["sampling"], ("the stage's sampler", sizes.weights)]
    return tuple(Phase(name, tuple(parts)) for name, parts in phases.items())


def _over(phase: Phase, budget: int, hbm_bytes: int) -> str:
    name, size = max(phase.parts, key=lambda part: part[1])
    return (
        f"{phase.name}: {gib(phase.total)} GiB a device, over {BUDGET:.0%} of {gib(hbm_bytes)} GiB "
        f"by {gib(phase.total - budget)} GiB; most of it {name}, {gib(size)} GiB"
    )


def gib(size: float) -> str:
    """Bytes as GiB: two decimals, or two significant digits for small sizes."""
    value = size / (1 << 30)
    return f"{value:.2f}" if value >= 0.095 or value == 0 else f"{value:.2g}"
