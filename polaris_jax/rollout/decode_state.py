"""The sampler's sizes and its decode state: the pool, its allocators, and the slots."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from polaris_jax.rollout.kv import pages_for
from polaris_jax.rollout.kv.backends import Attention
from polaris_jax.rollout.number_checks import real_number, whole_number
from polaris_jax.rollout.pages import TRASH_PAGE, PageAllocator
from polaris_jax.rollout.settings import PromptParams, RowParams

Layout = Literal["auto", "pages", "staged"]
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Sizes of the sampler.

    `slots` and `num_pages` count over all data shards; on a mesh each data shard has its part.
    Rotary scaling is not set here. YaRN's factor, original length and attention factor come from
    `model.config.rope_scaling`, for all requests of a sampler.

    Attributes:
        slots: number of sequences decoded at once.
        page_size: tokens of a page.
        num_pages: pages of the pool; the first page of each data shard is not usable. 0: as many
            pages as fit into device memory, at most enough for every slot at `max_len`. On a CPU,
            0 gives this maximum.
        max_len: maximum number of prompt + response tokens of a sequence.
        decode_steps: decode steps of one device call.
        prefill_chunk: maximum number of tokens of a prompt in one row of a prefill call.
        prefill_budget: maximum number of prompt tokens prefilled between two decode calls. A longer
            prompt is prefilled in several turns while other rows decode. 0: no limit.
        prefix_cache: True: later sequences that begin alike share the full pages of earlier ones,
            until the weights change.
        layout: when decode writes to the pool. "pages": each step writes its keys and values.
            "staged": each call writes once (see `kv.staged`; fast on a CPU). "auto": "staged" on a
            CPU, else "pages".
        attention: attention back end, see `kv.layouts`. "native": C++ kernels of a CPU, also for
            matrix products (one device, float32). "auto": the platform's own kernel if there is one
            that serves. "ragged" and "pallas_gpu" imply the layout "pages".
        min_rows: on a CPU, the smallest number of rows with its own decode program. 0: chosen by
            the model's size, because a step of a small model costs little more than its dispatch.
        dtype: dtype of weights and pages ("float32", "bfloat16", "float16"); None: the model's own.
        dispatch_ahead: True: the driver dispatches the next call before it has read the last call's
            tokens, if pages suffice and no sequence waits for a slot. None: True on accelerators
            only, because host and device share the cores of a CPU.
        reserve: share of device memory that stays free beside the pool if num_pages=0, in [0, 1).
            Prefill and decode need this memory for temporaries.
    """

    slots: int = 8
    page_size: int = 16
    num_pages: int = 512
    max_len: int = 1024
    decode_steps: int = 16
    prefill_chunk: int = 128
    prefill_budget: int = 8192
    prefix_cache: bool = True
    layout: Layout = "auto"
    attention: Attention = "auto"
    min_rows: int = 0
    dtype: str | None = None
    dispatch_ahead: bool | None = None
    reserve: float = 0.1

    def __post_init__(self) -> None:
        for name in ("slots", "page_size", "max_len", "decode_steps", "prefill_chunk"):
            if whole_number(name, getattr(self, name)) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)}: must be at least 1; leave it out for "
                    "the default"
                )
        for name, meaning in (("prefill_budget", "no limit"), ("min_rows", "by the model's size")):
            if whole_number(name, getattr(self, name)) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0 (0: {meaning})")
        whole_number("num_pages", self.num_pages)
        if self.num_pages < 2 and self.num_pages != 0:
            raise ValueError(
                f"num_pages={self.num_pages}: page 0 is not usable; at least 2, or 0 to derive it"
            )
        if self.layout not in ("auto", "pages", "staged"):
            raise ValueError(f"layout={self.layout!r}: expected auto, pages or staged")
        if not 0 <= real_number("reserve", self.reserve) < 1:
            raise ValueError(
                f"reserve={self.reserve}: must be a share in [0, 1); 0.1 leaves a tenth free"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(
                f"dtype={self.dtype!r}: must be one of {', '.join(DTYPES)}; None is the model's own"
            )
        for name, others in (("prefix_cache", ()), ("dispatch_ahead", (None,))):
            value = getattr(self, name)
            if not isinstance(value, bool) and value not in others:
                raise ValueError(
                    f"{name}={value!r}: must be one of {[True, False, *others]}; give it as a bool"
                )

    @property
    def pages_of_a_row(self) -> int:
        """J, pages of the longest sequence."""
        return pages_for(self.max_len, self.page_size)


class Rows(NamedTuple):
    """Inputs of a decode call for its rows, each [B].

    Attributes:
        token_B: last token; its keys and values are not in the pool yet.
        position_B: position of the last token.
        prompt_len_B: number of prompt tokens; response positions count from here.
        limit_B: prompt tokens + max_tokens. No token is drawn for this position or beyond. 0: the
            slot has been cleared, and the row is dead whatever `alive_B` says.
        alive_B: False if the row is dead: the call computes no token for the row.
        params: sampling settings.
    """

    token_B: Any
    position_B: Any
    prompt_len_B: Any
    limit_B: Any
    alive_B: Any
    params: RowParams


class DecodeState:
    """The pool, its allocators, and the slots: the input and output of `generate`.

    Slot arrays lie on the host, because they are small and scheduling changes them between calls.
    Data shard d has the slots from d * slots / data on, its own pages (numbered from 0 in each
    shard), and an allocator for its pages.

    Attributes:
        pool: the pages on the device; None while the pool is released.
        num_pages: number of pages of all data shards together.
    """

    def __init__(self, pool: Any, config: SamplerConfig, *, num_pages: int, data: int = 1):
        slots = config.slots
        self.pool = pool
        self.num_pages = num_pages
        self.allocators = [PageAllocator(num_pages // data) for _ in range(data)]
        self._slots_a_shard, self._max_len = slots // data, config.max_len
        self._page_size = config.page_size
        self.pages: list[list[int]] = [[] for _ in range(slots)]
        self.table_BJ = np.zeros((slots, config.pages_of_a_row), np.int32)

        def zeros(dtype: Any) -> np.ndarray:
            return np.zeros(slots, dtype)

        self.rows = Rows(
            token_B=zeros(np.int32),
            position_B=zeros(np.int32),
            prompt_len_B=zeros(np.int32),
            limit_B=zeros(np.int32),
            alive_B=zeros(bool),
            params=RowParams(
                temperature_B=zeros(np.float32),
                top_p_B=zeros(np.float32),
                top_k_B=zeros(np.int32),
                min_p_B=zeros(np.float32),
                seed_B=zeros(np.uint32),
                sample_B=zeros(np.int32),
            ),
        )

    def allocator(self, slot: int) -> PageAllocator:
        """The allocator of the slot's data shard."""
        return self.allocators[slot // self._slots_a_shard]

    def place(
        self,
        slot: int,
        pages: list[int],
        *,
        last_token: int,
        length: int,
        prompt_len: int,
        params: PromptParams,
        sample: int,
    ) -> None:
        """Puts a sequence into a slot; `pages` hold all of its `length` tokens but the last."""
        self.set_pages(slot, pages)
        rows = self.rows
        rows.token_B[slot] = last_token
        rows.position_B[slot] = length - 1
        rows.prompt_len_B[slot] = prompt_len
        # JetStream may ask for more than `max_len`, and frees a slot some calls after its end.
        rows.limit_B[slot] = min(prompt_len + params.max_tokens, self._max_len)
        rows.alive_B[slot] = True
        rows.params.temperature_B[slot] = params.temperature
        rows.params.top_p_B[slot] = params.top_p
        rows.params.top_k_B[slot] = params.top_k
        rows.params.min_p_B[slot] = params.min_p
        rows.params.seed_B[slot] = params.seed
        rows.params.sample_B[slot] = sample

    def set_pages(self, slot: int, pages: list[int]) -> None:
        """Makes `pages` the slot's pages, in position order."""
        self.pages[slot] = pages
        self.table_BJ[slot, : len(pages)] = pages
        self.table_BJ[slot, len(pages) :] = TRASH_PAGE

    def clear(self, slot: int) -> None:
        """Empties a slot without releasing its pages."""
        self.set_pages(slot, [])
        self.rows.alive_B[slot], self.rows.limit_B[slot] = False, 0

    def free(self, slot: int) -> None:
        """Empties a slot and releases its pages."""
        self.allocator(slot).release(self.pages[slot])
        self.clear(slot)

    def reserve(self, slot: int, steps: int) -> None:
        """Allocates the pages that the slot needs for `steps` more steps.

        Raises:
            RuntimeError: too few pages are free.
        """
        missing = pages_for(self.tokens_after(slot, steps), self._page_size) - len(self.pages[slot])
        if missing <= 0:
            return
        allocator = self.allocator(slot)
        pages = allocator.allocate(missing)
        if pages is None:
            raise RuntimeError(
                f"slot {slot}: needs {missing} more pages, {allocator.num_free} are free; "
                "enlarge num_pages or use the scheduler, which preempts"
            )
        self.set_pages(slot, [*self.pages[slot], *pages])

    def tokens_after(self, slot: int, steps: int) -> int:
        """Tokens that the slot's pages must hold for `steps` more steps."""
        # The last drawn token is never written to a page, because no token is drawn after it.
        position, limit = int(self.rows.position_B[slot]), int(self.rows.limit_B[slot])
        return min(position + steps, limit - 1)


def compact(state: DecodeState, index_B: np.ndarray) -> tuple[Rows, np.ndarray]:
    """The rows of the given slots; an index of -1 gives a dead row."""
    live_B = index_B >= 0

    def take(x: np.ndarray) -> np.ndarray:
        out = np.zeros((len(index_B), *x.shape[1:]), x.dtype)
        out[live_B] = x[index_B[live_B]]
        return out

    return jax.tree.map(take, state.rows), take(state.table_BJ)
