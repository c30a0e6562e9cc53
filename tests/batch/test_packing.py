"""Packed rows against the sequences that went in."""

import copy
import dataclasses
import itertools
import time
from collections import Counter

import numpy as np
import pytest

from polaris_jax.batch import pack, select_groups
from polaris_jax.config.sections import ObjectiveSection
from tests.support.batch.batches import random_groups, to_graded
from tests.tolerances import CLOSED_FORM_ATOL, WEIGHT_RTOL

AGGREGATIONS = (
    "token_mean",
    "sequence_mean",
    "sequence_sum_constant",
    "microbatch_token_mean",
)
FIELDS = (
    "token_BT",
    "position_BT",
    "weight_BT",
    "advantage_BT",
    "old_logp_BT",
    "temperature_BT",
    "fresh_BT",
)
ROW_LEN, ROWS, BUDGET = 24, 3, 12


def case(seed, **sizes):
    """A random batch, its advantages (each distinct) and fresh marks."""
    rng = np.random.default_rng(seed)
    graded = to_graded(random_groups(rng, max_tokens=BUDGET, **sizes))
    advantage_PR = rng.normal(size=graded.reward_PR.shape).astype(np.float32)
    return graded, advantage_PR, rng.random(graded.reward_PR.shape) < 0.7


def packed(graded, advantage_PR, fresh_PR, *, aggregation="token_mean", masked=False, **options):
    arguments = {"row_len": ROW_LEN, "rows": ROWS, "temperature": 1.4} | options
    return pack(
        graded,
        advantage_PR=advantage_PR,
        fresh_PR=fresh_PR,
        objective=ObjectiveSection(aggregation=aggregation, mask_truncated=masked),
        max_response_tokens=BUDGET,
        **arguments,
    )


def segments(batch):
    """Every packed sequence as (row, first position, length), found from segment ids alone."""
    found = []
    for row, segment_T in enumerate(batch.segment_BT):
        for segment in range(1, segment_T.max() + 1):
            (at,) = np.nonzero(segment_T == segment)
            assert at[-1] - at[0] + 1 == len(at)  # contiguous
            found.append((row, int(at[0]), len(at)))
    return found


def contents(batch):
    """The multiset of packed sequences with all that a token carries."""
    return Counter(
        tuple(tuple(getattr(batch, name)[row, at : at + n].tolist()) for name in FIELDS)
        for row, at, n in segments(batch)
    )


def expected_sequence(graded, p, r, advantage, fresh, weight):
    """One sequence's fields, written out token by token."""
    prompt, response = graded.prompts[p], graded.token_ids[p][r]
    before, after = [0.0] * (len(prompt) - 1), [0.0]

    def f32(x):
        return float(np.float32(x))

    return {
        "token_BT": [*prompt, *response],
        "position_BT": list(range(len(prompt) + len(response))),
        "weight_BT": before + [f32(weight)] * len(response) + after,
        "advantage_BT": before + [f32(advantage)] * len(response) + after,
        "old_logp_BT": before + [f32(x) for x in graded.logprobs[p][r]] + after,
        "temperature_BT": [f32(1.4)] * (len(prompt) + len(response)),
        "fresh_BT": before + [float(fresh)] * len(response) + after,
    }


@pytest.mark.parametrize("masked", [False, True], ids=["all", "mask-truncated"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS[:3])
def test_every_sequence_is_there_once_with_its_weights(aggregation, masked):
    for seed in range(40):
        graded, advantage_PR, fresh_PR = case(seed)
        counted = {
            (p, r): len(graded.token_ids[p][r])
            for p in range(len(graded))
            for r in range(graded.reward_PR.shape[1])
            if not (masked and graded.finish_reasons[p][r] == "length")
        }
        tokens, sequences = sum(counted.values()), len(counted)
        wanted = Counter()
        for p in range(len(graded)):
            for r in range(graded.reward_PR.shape[1]):
                own = counted.get((p, r), 0)
                weight = 0.0
                if own:
                    weight = {
                        "token_mean": 1 / tokens,
                        "sequence_mean": 1 / (sequences * own),
                        "sequence_sum_constant": 1 / (sequences * BUDGET),
                    }[aggregation]
                fields = expected_sequence(graded, p, r, advantage_PR[p, r], fresh_PR[p, r], weight)
                wanted[tuple(tuple(fields[name]) for name in FIELDS)] += 1
        batch = packed(graded, advantage_PR, fresh_PR, aggregation=aggregation, masked=masked)
        assert contents(batch) == wanted
        assert (batch.tokens, batch.sequences) == (tokens, sequences)
        if aggregation != "sequence_sum_constant" and sequences:
            assert batch.weight_BT.sum(dtype=np.float64) == pytest.approx(1.0, rel=WEIGHT_RTOL)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "mask-truncated"])
def test_microbatch_mean_weighs_by_the_own_microbatch(masked):
    for seed in range(20):
        graded, advantage_PR, fresh_PR = case(seed, prompts=6, responses=4)
        batch = packed(
            graded, advantage_PR, fresh_PR, aggregation="microbatch_token_mean", masked=masked
        )
        microbatches = len(batch.token_BT) // ROWS
        assert microbatches > 1
        for weight_BT in batch.weight_BT.reshape(microbatches, ROWS, ROW_LEN):
            on = weight_BT > 0
            assert len(np.unique(weight_BT[on])) == 1
            assert weight_BT.sum(dtype=np.float64) == pytest.approx(
                1 / microbatches, rel=WEIGHT_RTOL
            )
            assert weight_BT[on][0] == pytest.approx(1 / (on.sum() * microbatches), rel=WEIGHT_RTOL)


@pytest.mark.parametrize("aggregation", AGGREGATIONS[:3])
def test_order_of_sequences_changes_no_sequence(aggregation):
    graded, advantage_PR, fresh_PR = case(3, prompts=7, responses=4)
    order = np.random.default_rng(0).permutation(7)
    one = packed(graded, advantage_PR, fresh_PR, aggregation=aggregation)
    other = packed(
        select_groups(graded, order), advantage_PR[order], fresh_PR[order], aggregation=aggregation
    )
    assert contents(one) == contents(other)
    assert (one.tokens, one.sequences) == (other.tokens, other.sequences)


def test_padding_carries_nothing():
    for seed in range(10):
        batch = packed(*case(seed))
        empty = batch.segment_BT == 0
        for name in ("token_BT", "position_BT", "weight_BT", "advantage_BT", "old_logp_BT"):
            assert not getattr(batch, name)[empty].any()
        assert not batch.fresh_BT[empty].any()
        assert (batch.temperature_BT[empty] == 1.0).all()
        assert batch.padding_share == pytest.approx(empty.mean())
        assert len(batch.token_BT) % ROWS == 0
        # Only the last microbatch may hold empty rows.
        assert (batch.segment_BT[: len(batch.segment_BT) - ROWS, 0] > 0).all()


def test_dtypes_and_determinism():
    one, two = packed(*case(0)), packed(*case(0))
    for name in (*FIELDS, "segment_BT"):
        value = getattr(one, name)
        np.testing.assert_array_equal(value, getattr(two, name))
        whole = name in ("token_BT", "position_BT", "segment_BT")
        assert value.dtype == (np.int32 if whole else np.float32)
        assert value.shape == one.token_BT.shape


def test_first_fit_decreasing_fills_what_fits():
    graded, advantage_PR, fresh_PR = case(1, prompts=8, responses=5)
    batch = packed(graded, advantage_PR, fresh_PR)
    lengths = sorted((n for _, _, n in segments(batch)), reverse=True)
    free = []
    for n in lengths:
        row = next((i for i, space in enumerate(free) if space >= n), None)
        if row is None:
            free.append(ROW_LEN - n)
        else:
            free[row] -= n
    used = int((batch.segment_BT[:, 0] > 0).sum())
    assert used == len(free)
    assert sorted(free) == sorted((batch.segment_BT[:used] == 0).sum(axis=1).tolist())


def test_minibatches_share_out_the_sequences():
    graded, advantage_PR, fresh_PR = case(2, prompts=4, responses=4)
    odd_PR = np.indices((4, 4)).sum(axis=0) % 2 == 1
    halves = [packed(graded, advantage_PR, fresh_PR, selected_PR=s) for s in (odd_PR, ~odd_PR)]
    whole = packed(graded, advantage_PR, fresh_PR)
    assert sum(half.sequences for half in halves) == whole.sequences == 16
    assert sum(half.tokens for half in halves) == whole.tokens
    for half in halves:
        assert half.weight_BT.sum(dtype=np.float64) == pytest.approx(1.0, rel=WEIGHT_RTOL)


def test_everything_truncated_and_masked_weighs_nothing():
    graded, advantage_PR, fresh_PR = case(4)
    reasons = tuple(tuple("length" for _ in group) for group in graded.finish_reasons)
    graded = dataclasses.replace(graded, finish_reasons=reasons)
    for aggregation in AGGREGATIONS:
        batch = packed(graded, advantage_PR, fresh_PR, aggregation=aggregation, masked=True)
        assert (batch.tokens, batch.sequences) == (0, 0)
        assert not batch.weight_BT.any()


def test_nothing_selected_is_one_microbatch_of_padding():
    graded, advantage_PR, fresh_PR = case(4)
    nothing = np.zeros(graded.reward_PR.shape, bool)
    batch = packed(graded, advantage_PR, fresh_PR, selected_PR=nothing)
    assert batch.token_BT.shape == (ROWS, ROW_LEN)
    assert (batch.padding_share, batch.tokens, batch.sequences) == (1.0, 0, 0)


def test_sequence_of_exactly_a_row_fits_and_one_more_token_does_not():
    graded, advantage_PR, fresh_PR = case(5, prompts=1, responses=2)
    longest = max(len(row) for row in graded.token_ids[0]) + len(graded.prompts[0])
    packed(graded, advantage_PR, fresh_PR, row_len=longest)
    with pytest.raises(ValueError, match=rf"'{graded.problem_ids[0]}'.*row_len={longest - 1}"):
        packed(graded, advantage_PR, fresh_PR, row_len=longest - 1)


def test_clear_refusals():
    graded, advantage_PR, fresh_PR = case(6, prompts=2, responses=2)
    with pytest.raises(ValueError, match="advantage_PR has shape"):
        packed(graded, advantage_PR[:1], fresh_PR)
    with pytest.raises(ValueError, match="temperature=0"):
        packed(graded, advantage_PR, fresh_PR, temperature=0.0)
    with pytest.raises(ValueError, match="prompt is empty"):
        packed(dataclasses.replace(graded, prompts=((), (1,))), advantage_PR, fresh_PR)
    short = tuple(tuple(row[:-1] for row in group) for group in graded.logprobs)
    with pytest.raises(ValueError, match="log-probs for"):
        packed(dataclasses.replace(graded, logprobs=short), advantage_PR, fresh_PR)


def test_changes_no_input():
    given = case(7)
    before = copy.deepcopy(given)
    packed(*given)
    for name in vars(before[0]):
        np.testing.assert_equal(getattr(given[0], name), getattr(before[0], name))
    np.testing.assert_array_equal(given[1], before[1])
    np.testing.assert_array_equal(given[2], before[2])


def test_256_sequences_pack_in_time():
    rng = np.random.default_rng(0)
    graded = to_graded(random_groups(rng, prompts=32, responses=8, max_tokens=400))
    ones = np.ones((32, 8), np.float32)
    took_s = []
    for _ in range(5):
        start = time.process_time()
        packed(graded, ones, ones.astype(bool), row_len=512, rows=8)
        took_s.append(time.process_time() - start)
    assert min(took_s) < 0.05


def test_rows_of_like_attention_cost_share_a_microbatch_and_shards_work_alike():
    """Long and short sequences, 2 shards of 2 rows: dealt blindly, one shard did all the work."""
    rng = np.random.default_rng(3)
    graded = to_graded(random_groups(rng, max_tokens=BUDGET, prompts=12, responses=4))
    ones = np.ones(graded.reward_PR.shape)
    batch = packed(graded, ones, ones.astype(bool), rows=4, shards=2)
    cost_R = np.array([sum(n**2 for r, _, n in segments(batch) if r == row) for row in range(
        len(batch.token_BT))])  # fmt: skip
    cost_MSR = cost_R.reshape(-1, 2, 2)
    # Microbatches descend: none holds a row that costs more than one of the microbatch before.
    for before, after in itertools.pairwise(cost_MSR):
        assert before.min() >= after.max()
    cost_MS = cost_MSR.sum(axis=2)
    assert batch.attention_imbalance == pytest.approx(
        2 * cost_MS.max(axis=1).sum() / cost_MS.sum(), rel=CLOSED_FORM_ATOL
    )
    # To and fro: a shard's excess is at most the spread of one row.
    spread_M = cost_MSR.max(axis=(1, 2)) - cost_MSR.min(axis=(1, 2))
    assert (np.abs(cost_MS[:, 0] - cost_MS[:, 1]) <= spread_M).all()
    naive_MS = np.sort(cost_R)[::-1].reshape(-1, 2, 2).sum(axis=2)  # in order, not to and fro
    assert cost_MS.max(axis=1).sum() < naive_MS.max(axis=1).sum()


def test_shards_must_divide_the_rows():
    graded, advantage_PR, fresh_PR = case(0)
    with pytest.raises(ValueError, match="shards=2: must divide rows=3"):
        packed(graded, advantage_PR, fresh_PR, shards=2)


def test_one_sequence_a_row():
    batch = packed(*case(1), one_a_row=True)
    assert batch.segment_BT.max() == 1
    assert sorted(contents(batch)) == sorted(contents(packed(*case(1))))
