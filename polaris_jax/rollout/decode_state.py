"""The sampler's sizes, and what it goes on from: the pool, its allocator, and the slots."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from polaris_jax.rollout.layout_choice import Attention
from polaris_jax.rollout.number_checks import real_number, whole_number
from polaris_jax.rollout.page_allocator import TRASH_PAGE, PageAllocator
from polaris_jax.rollout.paged_kv import pages_for
from polaris_jax.rollout.sampling import PromptParams, RowParams

Layout = Literal["auto", "pages", "staged"]
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Sizes of the sampler.

    `slots` and `num_pages` are those of the whole sampler; on a mesh each data shard has its part.
    Rotary positions are no setting here: YaRN's factor, original length and attention factor are
    those of `model.config.rope_scaling`, one for all requests of a sampler.

    Attributes:
        slots: sequences decoded at once.
        page_size: tokens of a page.
        num_pages: pages of the pool; the first of each data shard is not usable. 0: what the device
            memory has room for, at most enough for every slot at `max_len` (on a CPU: that).
        max_len: prompt + response tokens of a sequence at most.
        decode_steps: decode steps of one device call.
        prefill_chunk: tokens of a prompt that one prefill call takes at most.
        prefill_budget: prompt tokens that are prefilled between two decode calls at most; a longer
            prompt takes several while other rows decode. 0: no limit.
        prefix_cache: full pages of former sequences serve later ones that begin alike, until the
            weights change.
        layout: how decode goes about the pool: "pages" writes each step's keys and values into
            their pages, "staged" once a call (see `staged_kv`; fast on a CPU), "auto" is "staged"
            on a CPU.
        attention: back end, see `kv_layouts`; "native" is the C++ kernels of a CPU, for products
            too (one device, float32); "auto" is the platform's own kernel where there is one and
            it serves. "ragged" and "pallas_gpu" imply the layout "pages".
        min_rows: on a CPU, fewer live rows than these get no decode program of their own; 0: by the
            model's size, since a small model's step costs little more than its dispatch.
        dtype: of weights and pages ("float32", "bfloat16", "float16"); None: the model's own.
        dispatch_ahead: the driver gives the device its next call before it has read the last one's
            tokens, where pages allow and nothing waits for a slot; None: on accelerators, since on
            a CPU host and device are the same cores.
        reserve: with num_pages=0, the share of device memory that stays free beside the pool, in
            [0, 1): room for the temporaries of prefill and decode.
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
    """What a decode call knows of its rows, each [B].

    Attributes:
        token_B: the last token, whose keys and values are not yet in the pool.
        position_B: its position.
        prompt_len_B: tokens of the prompt; response positions count from here.
        limit_B: prompt + max_tokens: no token is drawn for this position or beyond; 0: the slot has
            been cleared, and the row is dead whatever `alive_B` says.
        alive_B: False: the row does nothing.
        params: sampling settings.
    """

    token_B: Any
    position_B: Any
    prompt_len_B: Any
    limit_B: Any
    alive_B: Any
    params: RowParams


class DecodeState:
    """The pool, its allocators, and the slots: what `generate` goes on from.

    Slot arrays live on the host: they are small, and scheduling changes them between calls. Data
    shard d has the slots from d * slots / data on, pages of its own (numbered from 0 in each
    shard), and an allocator for them.

    Attributes:
        pool: the pages on the device; None while it is released.
        num_pages: of all data shards together.
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
        """That of the slot's data shard."""
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
        """Puts a sequence into a slot: its pages, and `length` tokens of which all but the last
        are in them."""
        self.set_pages(slot, pages)
        rows = self.rows
        rows.token_B[slot] = last_token
        rows.position_B[slot] = length - 1
        rows.prompt_len_B[slot] = prompt_len
        # JetStream asks for more than fits, and frees a slot some calls after its row should end.
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
        """Empties a slot; its pages stay as they are."""
        self.set_pages(slot, [])
        self.rows.alive_B[slot], self.rows.limit_B[slot] = False, 0

    def free(self, slot: int) -> None:
        """Empties a slot and releases its pages."""
        self.allocator(slot).release(self.pages[slot])
        self.clear(slot)

    def reserve(self, slot: int, steps: int) -> None:
        """Takes the pages that the slot needs for `steps` more steps.

        Raises:
            RuntimeError: none is free.
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
        # The last drawn token is never put into the cache: nothing is drawn after it.
        position, limit = int(self.rows.position_B[slot]), int(self.rows.limit_B[slot])
        return min(position + steps, limit - 1)


def compact(state: DecodeState, index_B: np.ndarray) -> tuple[Rows, np.ndarray]:
    """The rows of the given slots; dead ones where the index is -1."""
    live_B = index_B >= 0

    def take(x: np.ndarray) -> np.ndarray:
        out = np.zeros((len(index_B), *x.shape[1:]), x.dtype)
        out[live_B] = x[index_B[live_B]]
        return out

    return jax.tree.map(take, state.rows), take(state.table_BJ)
