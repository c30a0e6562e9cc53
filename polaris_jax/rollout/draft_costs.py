"""What a verify call of drafts costs, by a few figures for each kind of device and no clock."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from polaris_jax.rollout.settings import SamplerConfig

# Tokens of a verify call of one data shard if every draft is of full length; they bound its rows. A
# CPU's are 16 rows of 8 drafted tokens: with more rows, what drafts gain goes into the longer call.
CPU_TOKENS, ACCELERATOR_TOKENS = 144, 320
LEAST_GAIN = 1.05  # estimated tokens per time, over those of plain decoding


class CallShape(NamedTuple):
    """A verify call, and the plain decode call in its place.

    Attributes:
        rows: live rows of all data shards.
        most_rows: the most live rows of a data shard.
        tokens: tokens of the compiled program, for each data shard.
        decode_steps: steps of the plain call.
    """

    rows: int
    most_rows: int
    tokens: int
    decode_steps: int


class CallCosts(NamedTuple):
    """What a device call takes, as shares of the time to read the weights once.

    Attributes:
        token: one more token in a call.
        call: the host's part of a call: plan, dispatch, read-back.
        listed: True: a verify call costs the tokens that are in it. False: it costs those of its
            shape.
        cheap: the first tokens of a call, which cost half of the others.
    """

    token: float
    call: float
    listed: bool = False
    cheap: int = 0

    def step(self, tokens: int) -> float:
        """What the device takes for one step with that many tokens, without the host's part."""
        return 1 + (tokens - min(tokens, self.cheap) / 2) * self.token

    def draft_lengths(
        self, drafts: Sequence[tuple[float, int]], call: CallShape
    ) -> tuple[list[int], float]:
        """How many tokens of each draft a verify call takes, and its tokens per time over plain's.

        Args:
            drafts: for each, the share of its tokens that is expected to be accepted after those
                that were, below 1, and its length.
            call: what would be called.
        """
        plain = self.step(call.most_rows) + self.call / call.decode_steps

        def speedup(gain: float, tokens: int) -> float:
            return (1 + gain / call.rows) * plain / (self.step(tokens) + self.call)

        if not self.listed:
            gain = sum(share**i for share, length in drafts for i in range(1, length + 1))
            return [length for _, length in drafts], speedup(gain, call.tokens)
        # The likeliest tokens first; a token is likelier than those behind it.
        likely = sorted(
            (-(share**i), draft)
            for draft, (share, length) in enumerate(drafts)
            for i in range(1, length + 1)
        )
        gains = [0.0, *itertools.accumulate(-share for share, _ in likely)]
        speedups = [speedup(gain, call.most_rows + n) for n, gain in enumerate(gains)]
        count = speedups.index(max(speedups))
        taken = collections.Counter(draft for _, draft in likely[:count])
        return [taken[draft] for draft in range(len(drafts))], speedups[count]


NO_COSTS = CallCosts(token=0.0, call=0.0)


def call_costs(*, on_cpu: bool, weight_bytes: float, listed: bool = False) -> CallCosts:
    """The costs for weights of `weight_bytes` bytes on each device; `listed` as in `CallCosts`.

    Rough figures: 1 ms of the host is 20 MB of weights on a CPU (2 cores) and 2 GB on an
    accelerator. A CPU reads the weights in the time of 16 tokens behind the first 8, which take
    half: SmolLM2-135M takes 12.0 ms for 1 row, 14.3 for 8 and 31.4 for 32 on 2 AVX-512 cores, and
    its products alone 21, 28 and 78 on 2 AVX2 cores. For an accelerator it is the time of 240:
    peak FLOPs over bandwidth is 170 to 560.
    """
    if on_cpu:
        return CallCosts(token=1 / 16, call=20e6 / weight_bytes, listed=listed, cheap=8)
    return CallCosts(token=1 / 240, call=2e9 / weight_bytes)


def verify_rows(
    config: SamplerConfig, data: int, *, min_rows: int, on_cpu: bool, exact_rows: int = 1
) -> tuple[int, ...]:
    """Row counts of a data shard for which the verify program is compiled, ascending.

    Args:
        config: sizes of the sampler; () if it does not draft.
        data: number of data shards.
        min_rows: smallest number of rows with its own program.
        on_cpu: True: halves down to `min_rows`. False: quarters down to 8.
        exact_rows: smallest number of rows of any program; see `programs.spec.exact_rows`.
    """
    if config.draft == "off":
        return ()
    tokens = CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS
    most = max(1, tokens // (config.draft_tokens + 1))
    rows = [max(exact_rows, min(config.slots // data, 1 << most.bit_length() - 1))]
    parts, least = (2, max(1, min_rows)) if on_cpu else (4, 8)
    while rows[0] >= parts * least:
        rows.insert(0, -(-rows[0] // parts))
    return tuple(rows)
