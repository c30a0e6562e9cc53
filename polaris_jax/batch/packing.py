"""Packs sequences into rows and expresses the loss aggregation as one weight for each token."""

from __future__ import annotations

from typing import Any

import numpy as np

from polaris_jax.batch.placing import balanced, place_alone, place_shared
from polaris_jax.config.sections import ObjectiveSection
from polaris_jax.records import Graded, TrainBatch


def stale_tokens(graded: Graded, version: int) -> np.ndarray | None:
    """Tokens at each response's beginning that policies before `version` sampled, [P, R].

    None if the record has no versions: then the present policy sampled all tokens.
    """
    if not graded.versions:
        return None
    counts = [
        [sum(count for sampled, count in versions if sampled < version) for versions in group]
        for group in graded.versions
    ]
    return np.array(counts, np.int64)


def pack(
    graded: Graded,
    *,
    advantage_PR: np.ndarray,
    fresh_PR: np.ndarray,
    row_len: int,
    rows: int,
    objective: ObjectiveSection,
    max_response_tokens: int,
    temperature: float,
    stale_PR: np.ndarray | None = None,
    selected_PR: np.ndarray | None = None,
    shards: int = 1,
    one_a_row: bool = False,
    share_prompts: bool = False,
) -> TrainBatch:
    """All sequences of a batch in packed rows, ready for the update.

    Sequences are placed first-fit-decreasing by length, ties in batch order, so the same batch
    always gives the same rows. With `share_prompts`, responses in one row share an equal prompt,
    those of copied groups too (`placing.place_shared`). Then rows of similar attention cost (the
    sum of squared lengths, the square of a shared prompt counted once) are put in one microbatch,
    and within a microbatch each shard gets similar sums. The reason: devices wait for the slowest
    device in a microbatch, and rows with equal numbers of tokens differ in cost by their sequences'
    lengths. Rows are not reordered under "microbatch_token_mean", where the packing changes the
    loss.

    Entry t of a field belongs to the prediction of token t+1, so a response of n tokens fills n
    entries, starting at the last token of its prompt.

    `weight_BT` expresses `objective.aggregation` over the response tokens that count:
    "token_mean" is 1 / tokens of the batch; "sequence_mean" is 1 / (sequences x own tokens);
    "sequence_sum_constant" is 1 / (sequences x max_response_tokens); "microbatch_token_mean" is
    1 / (tokens of the own microbatch x microbatches) and alone depends on the packing. With
    `objective.mask_truncated`, truncated responses have weight 0 and are excluded from all counts.

    Args:
        graded: P groups of R rows.
        advantage_PR: advantage of each row.
        fresh_PR: True if the present policy sampled the row and the row is no copy.
        row_len: tokens in a row.
        rows: rows in a microbatch; the number of rows returned is a multiple of `rows`.
        objective: section whose aggregation and mask_truncated are used.
        max_response_tokens: the stage's budget, for "sequence_sum_constant".
        temperature: temperature of the trained policy, for every row, including rescued rows.
        stale_PR: number of tokens at each response's beginning that former policies sampled. These
            tokens are not fresh. None: no such tokens.
        selected_PR: True for the rows to pack (one minibatch); None: all.
        shards: parts into which a microbatch's rows are split, in order; divides `rows`.
        one_a_row: True: each sequence gets its own row, for attention without segment ids.
        share_prompts: True: a row holds a prompt once for all of its responses there. The loss and
            its gradient are the same to rounding.

    Raises:
        ValueError: a sequence is longer than a row, a prompt is empty, log-probs do not match their
            tokens, or a shape does not match; the text names the problem's id. Or share_prompts is
            True together with one_a_row or "microbatch_token_mean", whose loss would change.
    """
    shape = graded.reward_PR.shape
    selected_PR = np.ones(shape, bool) if selected_PR is None else np.asarray(selected_PR, bool)
    advantage_PR, fresh_PR = np.asarray(advantage_PR), np.asarray(fresh_PR, bool)
    for name, values_PR in (
        ("advantage_PR", advantage_PR),
        ("fresh_PR", fresh_PR),
        ("selected_PR", selected_PR),
    ):
        if values_PR.shape != shape:
            raise ValueError(f"{name} has shape {values_PR.shape}: expected {shape} as reward_PR")
    if rows < 1 or temperature <= 0:
        raise ValueError(f"rows={rows}, temperature={temperature}: both must be above 0")
    if shards < 1 or rows % shards:
        raise ValueError(f"shards={shards}: must divide rows={rows}")
    if share_prompts and (one_a_row or objective.aggregation == "microbatch_token_mean"):
        raise ValueError(
            f"share_prompts=True with one_a_row={one_a_row} and objective.aggregation="
            f"{objective.aggregation}: prompts are shared by rows of several responses, under an "
            "aggregation that does not depend on the packing"
        )

    pairs = [(int(p), int(r)) for p, r in np.argwhere(selected_PR)]
    prompt_tokens, tokens = _token_lists(graded, pairs, row_len=row_len)
    # Lowercase suffix-free locals below are indexed by sequence (one entry a pair).
    prompt_len = np.array([len(prompt) for prompt in prompt_tokens], np.int64)
    response_len = np.array([len(graded.token_ids[p][r]) for p, r in pairs], np.int64)
    total_len = prompt_len + response_len
    if share_prompts:
        keys = [prompt.tobytes() for prompt in prompt_tokens]
        placed = place_shared(total_len, prompt_len, keys, row_len=row_len, rows=rows)
    else:
        placed = place_alone(np.full_like(total_len, row_len) if one_a_row else total_len, row_len)
    row, start, skip = placed.row, placed.start, placed.skip
    own_len = total_len - skip
    row_count = max(1, -(-(int(row.max(initial=-1)) + 1) // rows)) * rows
    squares = total_len.astype(np.float64) ** 2 - skip.astype(np.float64) ** 2
    cost = np.bincount(row, squares, minlength=row_count)
    place = np.arange(row_count)
    if objective.aggregation != "microbatch_token_mean":  # there the packing changes the loss
        place = balanced(cost, rows=rows, shards=shards)
    row = place[row]
    cost_MS = cost[np.argsort(place)].reshape(row_count // rows, shards, -1).sum(axis=2)

    counts = response_len > 0
    if objective.mask_truncated:
        counts &= np.array([graded.finish_reasons[p][r] != "length" for p, r in pairs], bool)
    weight = _weights(
        objective.aggregation,
        counted_len=np.where(counts, response_len, 0),
        microbatch=row // rows,
        microbatches=row_count // rows,
        max_response_tokens=max_response_tokens,
    )

    token_index = _ranges(row * row_len + start, own_len)
    last_prompt_token = row * row_len + start + prompt_len - 1 - skip
    response_index = _ranges(last_prompt_token, response_len)

    def fill(index: np.ndarray, values: Any, dtype: type, empty: float = 0) -> np.ndarray:
        field_BT = np.full((row_count, row_len), empty, dtype)
        field_BT.reshape(-1)[index] = values
        return field_BT

    def per_response(values: np.ndarray) -> np.ndarray:
        return fill(response_index, np.repeat(values, response_len), np.float32)

    p_of, r_of = (np.array(pairs, np.int64).reshape(-1, 2)).T
    fresh_BT = per_response(fresh_PR[p_of, r_of])
    if stale_PR is not None:
        stale = np.minimum(np.asarray(stale_PR)[p_of, r_of], response_len)
        fresh_BT.reshape(-1)[_ranges(last_prompt_token, stale)] = 0.0
    branch_BT = None
    if share_prompts:
        branch_index = _ranges(last_prompt_token, response_len + 1)
        branch_BT = fill(branch_index, np.repeat(placed.branch, response_len + 1), np.int32)
    own_tokens = [tokens[i][skip[i] :] for i in range(len(tokens))]
    return TrainBatch(
        token_BT=fill(token_index, _flat(own_tokens, np.int32), np.int32),
        position_BT=fill(token_index, _ranges(skip, own_len), np.int32),
        segment_BT=fill(token_index, np.repeat(placed.segment, own_len), np.int32),
        weight_BT=per_response(weight),
        advantage_BT=per_response(advantage_PR[p_of, r_of]),
        old_logp_BT=fill(
            response_index,
            _flat([np.asarray(graded.logprobs[p][r]) for p, r in pairs], np.float32),
            np.float32,
        ),
        temperature_BT=fill(token_index, temperature, np.float32, empty=1.0),
        fresh_BT=fresh_BT,
        sequences=int(counts.sum()),
        tokens=int(response_len[counts].sum()),
        padding_share=1.0 - float(own_len.sum()) / (row_count * row_len),
        attention_imbalance=float(cost_MS.max(axis=1).sum() * shards / max(cost_MS.sum(), 1.0)),
        branch_BT=branch_BT,
        shared_prompt_tokens=int(skip.sum()),
    )


def _token_lists(
    graded: Graded, pairs: list[tuple[int, int]], *, row_len: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The checked token ids of each sequence: its prompt, and its prompt + response."""
    prompts_by_group: dict[int, np.ndarray] = {}
    prompts, tokens = [], []
    for p, r in pairs:
        if p not in prompts_by_group:
            prompts_by_group[p] = np.array(graded.prompts[p], np.int32)
        prompt_T = prompts_by_group[p]
        response_T = np.array(graded.token_ids[p][r], np.int32)
        where = f"problem {graded.problem_ids[p]!r}, response {r}"
        if not len(prompt_T):
            raise ValueError(f"{where}: the prompt is empty; nothing predicts its first token")
        if len(graded.logprobs[p][r]) != len(response_T):
            raise ValueError(
                f"{where}: {len(graded.logprobs[p][r])} log-probs for {len(response_T)} tokens"
            )
        length = len(prompt_T) + len(response_T)
        if length > row_len:
            raise ValueError(
                f"{where}: prompt {len(prompt_T)} + response {len(response_T)} = {length} tokens "
                f"exceed row_len={row_len}; raise batch.row_len or lower the stage's "
                "max_response_tokens"
            )
        prompts.append(prompt_T)
        tokens.append(np.concatenate([prompt_T, response_T]))
    return prompts, tokens


def _weights(
    aggregation: str,
    *,
    counted_len: np.ndarray,
    microbatch: np.ndarray,
    microbatches: int,
    max_response_tokens: int,
) -> np.ndarray:
    """The weight of one response token of each sequence; 0 if the sequence does not count."""
    sequences = np.count_nonzero(counted_len)
    if aggregation == "token_mean":
        denominator = np.full(len(counted_len), counted_len.sum())
    elif aggregation == "sequence_mean":
        denominator = sequences * counted_len
    elif aggregation == "sequence_sum_constant":
        denominator = np.full(len(counted_len), sequences * max_response_tokens)
    elif aggregation == "microbatch_token_mean":
        tokens_by_microbatch = np.bincount(microbatch, counted_len, minlength=microbatches)
        denominator = tokens_by_microbatch[microbatch] * microbatches
    else:
        raise ValueError(
            f"objective.aggregation={aggregation!r}: expected token_mean, sequence_mean, "
            "sequence_sum_constant or microbatch_token_mean"
        )
    return np.where(counted_len > 0, 1.0 / np.maximum(denominator, 1), 0.0)


def _ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The ranges [start[i], start[i] + length[i]) of all i, concatenated."""
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(int(length.sum()))


def _flat(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
