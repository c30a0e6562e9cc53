"""What the decode and verify programs take for each row, and what they give back."""

from __future__ import annotations

from typing import Any, NamedTuple

from polaris_jax.rollout.programs.draw import RowParams


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


class Packed(NamedTuple):
    """Results of a decode call for the host, by the rows of the call; `steps` by data shard.

    Another call can continue at once with `token_B` (the last token), `position_B` and `alive_B`.
    """

    token_BK: Any
    logp_BK: Any
    count_B: Any
    token_B: Any
    position_B: Any
    alive_B: Any
    steps: Any
