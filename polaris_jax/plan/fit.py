"""Does it fit: what is resident in each phase of a step, added up.

The compiler judges one program at a time and knows nothing of what else lies in memory. Here every
phase of a step is the program that runs in it plus all that stays resident beside it. Judged by
the programs' totals (arguments + outputs - aliased + temporaries + code), which on a TPU is
pessimistic: its peak may be far lower.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

BUDGET = 0.90  # share of the HBM that a plan may use; the rest is the runtime's and fragmentation's


@dataclasses.dataclass(frozen=True)
class Residency:
    """What stays where between the phases.

    Attributes:
        pool: the KV pool during the update. New weights void all cached KV, so `freed` loses
            nothing.
        state: master weights and moments while sampling.
    """

    pool: Literal["freed", "kept"] = "freed"
    state: Literal["device", "host"] = "device"


COLOCATED = Residency()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes a device.

    Attributes:
        params: float32 master weights.
        moments: AdamW's.
        weights: the sampler's.
        accumulate: the total of the update's gradient program: weights, accumulator and batch in.
        apply: the total of the optimizer's program: state and gradients in.
        sync_step: the most that one leaf's step of the weight sync needs: its new weight and
            temporaries. The old weight of a leaf is freed first.
        page: one page of the pool, all layers, as the compiler lays it out.
        sampling: the larger of the decode and prefill programs' totals, without the pool.
        reference: float32 weights of the KL term's frozen model, which stay on the device in every
            phase; `accumulate` has them among its arguments already.
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
    """One phase of a step: what is in memory, bytes a device."""

    name: str
    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(size for _, size in self.parts)


@dataclasses.dataclass(frozen=True)
class Fit:
    """The verdict.

    Attributes:
        budget: bytes a device that may be used.
        phases: of a step, with the pool that was asked for or that is left.
        pages: of a data shard's pool.
        full_rows: sequences of full length that all pools hold at once.
        breaches: one line for each reason why it does not fit; empty: it fits.
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
) -> Fit:
    """The phases of a step against the memory of a device.

    Args:
        sizes: of the programs and the state.
        hbm_bytes: of a device.
        pages_per_row: of a sequence of full length.
        data_shards: pools of the sampler.
        asked_pages: of each pool; 0: as many as fit.
        residency: what stays where.
        max_pages: more than this serve nothing (every slot at full length); 0: no such bound.
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
    phases = _phases(sizes, pool, residency)
    breaches = [_over(phase, budget, hbm_bytes) for phase in phases if phase.total > budget]
    if asked_pages > left and asked_pages * sizes.page + beside > budget:
        breaches.append(
            f"the KV pool: {asked_pages} pages a data shard need {_gib(pool)} a device and "
            f"{_gib(room)} are left; at most {left} pages fit"
        )
    # Page 0 of a pool is not usable.
    rows = data_shards * (max(0, pages - 1) // pages_per_row)
    if not breaches and rows == 0:
        breaches.append(
            f"sampling: a pool of {pages} pages a data shard holds no sequence of full length "
            f"({pages_per_row} pages); {_gib(room)} a device are left for it"
        )
    return Fit(budget, phases, pages, rows, tuple(breaches))


def _phases(sizes: Sizes, pool: int, residency: Residency) -> tuple[Phase, ...]:
    kept_pool = (("KV pool", pool),) if residency.pool == "kept" else ()
    weights = ("sampler weights", sizes.weights)
    reference = (("reference model", sizes.reference),) if sizes.reference else ()
    state = (("master weights and moments", sizes.state),) if residency.state == "device" else ()
    return (
        Phase(
            "update: gradients",
            (
                ("program (weights, accumulator, batch, temporaries)", sizes.accumulate),
                ("moments", sizes.moments),
                weights,
                *kept_pool,
            ),
        ),
        Phase(
            "update: optimizer",
            (
                ("program (state, gradients, temporaries)", sizes.apply),
                weights,
                *reference,
                *kept_pool,
            ),
        ),
        Phase(
            "weight sync",
            (
                ("master weights and moments", sizes.state),
                weights,
                ("one leaf and temporaries", sizes.sync_step),
                *reference,
                *kept_pool,
            ),
        ),
        Phase(
            "sampling",
            (
                ("program (sampler weights, temporaries)", sizes.sampling),
                ("KV pool", pool),
                *state,
                *reference,
            ),
        ),
    )


def _over(phase: Phase, budget: int, hbm_bytes: int) -> str:
    name, size = max(phase.parts, key=lambda part: part[1])
    return (
        f"{phase.name}: {_gib(phase.total)} a device, over {BUDGET:.0%} of {_gib(hbm_bytes)} by "
        f"{_gib(phase.total - budget)}; most of it {name}, {_gib(size)}"
    )


def _gib(size: float) -> str:
    value = size / (1 << 30)
    return f"{value:.2f} GiB" if value >= 0.095 or value == 0 else f"{value:.2g} GiB"
