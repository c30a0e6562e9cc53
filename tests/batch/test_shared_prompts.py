"""Rows in which responses share their prompt, against rows without sharing."""

import dataclasses

import numpy as np
import pytest

from polaris_jax.batch import concat_graded, pack, select_groups
from polaris_jax.batch.placing import first_fit_decreasing, place_shared
from polaris_jax.config.sections import ObjectiveSection
from tests.batch.test_packing import AGGREGATIONS, BUDGET, FIELDS, ROWS, case, contents, packed
from tests.support.batch.batches import random_groups, to_graded
from tests.tolerances import CLOSED_FORM_ATOL


def sequences(batch):
    """Every sequence's places as (row, positions): the shared tokens, then its branch."""
    for row, (segment_T, branch_T) in enumerate(
        zip(batch.segment_BT, batch.branch_BT, strict=True)
    ):
        for segment in range(1, segment_T.max() + 1):
            own_T = segment_T == segment
            (at,) = np.nonzero(own_T)
            assert at[-1] - at[0] + 1 == len(at)  # contiguous
            # Branches count from 1 in the order of their places: what attention relies on.
            steps = np.diff(branch_T[at], prepend=0)
            assert ((steps == 0) | (steps == 1)).all() and branch_T[at].max() >= 1
            for branch in range(1, branch_T[at].max() + 1):
                yield row, np.flatnonzero(own_T & ((branch_T == 0) | (branch_T == branch)))


def copied(batch):
    """The batch without sharing: a sequence a row, its shared tokens copied."""
    found = list(sequences(batch))
    shape = (len(found), batch.token_BT.shape[1])
    fields = {name: np.zeros(shape, getattr(batch, name).dtype) for name in FIELDS}
    fields["segment_BT"] = np.zeros(shape, np.int32)
    for i, (row, at) in enumerate(found):
        fields["segment_BT"][i, : len(at)] = 1
        for name in FIELDS:
            fields[name][i, : len(at)] = getattr(batch, name)[row, at]
    return dataclasses.replace(batch, **fields, branch_BT=None)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "mask-truncated"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS[:3])
def test_every_sequence_is_there_once_with_all_that_its_tokens_carry(aggregation, masked):
    saved = 0
    for seed in range(40):
        arguments, options = case(seed), {"aggregation": aggregation, "masked": masked}
        plain = packed(*arguments, **options)
        shared = packed(*arguments, **options, share_prompts=True)
        assert contents(copied(shared)) == contents(plain)
        assert (shared.tokens, shared.sequences) == (plain.tokens, plain.sequences)
        # A token is in the loss once: nothing is counted at the shared tokens.
        for name in ("weight_BT", "advantage_BT", "old_logp_BT", "fresh_BT"):
            assert not getattr(shared, name)[shared.branch_BT == 0].any()
        used = [int((batch.segment_BT > 0).sum()) for batch in (plain, shared)]
        assert used[0] - used[1] == shared.shared_prompt_tokens
        assert shared.padding_share == pytest.approx((shared.segment_BT == 0).mean())
        assert len(shared.token_BT) <= len(plain.token_BT)
        saved += shared.shared_prompt_tokens
    assert saved > 0


def test_tokens_of_former_policies_are_not_fresh():
    graded, advantage_PR, fresh_PR = case(1, prompts=3, responses=4)
    stale_PR = np.random.default_rng(0).integers(0, BUDGET, graded.reward_PR.shape)
    arguments = (graded, advantage_PR, np.ones_like(fresh_PR))
    shared = packed(*arguments, stale_PR=stale_PR, share_prompts=True)
    assert contents(copied(shared)) == contents(packed(*arguments, stale_PR=stale_PR))
    assert 0 < shared.fresh_BT.sum() < shared.tokens


def test_copied_groups_share_the_prompt_too():
    graded, advantage_PR, fresh_PR = case(2, prompts=1, responses=2)
    twice = np.array([0, 0])  # as `substitute_uninformative` copies a group over another
    batch = packed(
        select_groups(graded, twice), advantage_PR[twice], fresh_PR[twice], row_len=64, rows=1,
        share_prompts=True,
    )  # fmt: skip
    assert batch.segment_BT.max() == 1 and batch.branch_BT.max() == 4
    assert batch.shared_prompt_tokens == 3 * (len(graded.prompts[0]) - 1)


def test_a_group_of_several_rows_has_its_prompt_in_each():
    lengths, prompt = np.array([9, 8, 8, 7, 4]), [b"a"] * 5
    found = place_shared(lengths, np.full(5, 3), prompt, row_len=16, rows=1)
    # Prompts of 2 shared tokens: 9 + (8 - 2) and 8 + (7 - 2) + (4 - 2) fit, each with one copy.
    assert found.row.tolist() == [0, 0, 1, 1, 1]
    assert found.skip.tolist() == [0, 2, 0, 2, 2]
    assert found.start.tolist() == [0, 9, 0, 8, 13]
    assert found.segment.tolist() == [1] * 5
    assert found.branch.tolist() == [1, 2, 1, 2, 3]


def test_rows_hold_what_fits_and_are_never_more_than_without_sharing():
    rng = np.random.default_rng(0)
    fewer = 0
    for _ in range(200):
        prompts = rng.integers(0, 5, 20)
        prompt_len = rng.integers(1, 9, 5)[prompts]
        length = prompt_len + rng.integers(1, 30, 20)
        rows = int(rng.integers(1, 4))
        found = place_shared(
            length, prompt_len, [bytes([p]) for p in prompts], row_len=40, rows=rows
        )
        # Each sequence begins where one before it in the row ends, or the row begins.
        start, end = found.row * 40 + found.start, found.start + length - found.skip
        assert end.max() <= 40
        assert set(start[found.start > 0]) <= set(found.row * 40 + end)
        assert len(set(start)) == len(start)
        used, alone = found.row.max() + 1, first_fit_decreasing(length, 40)[0].max() + 1
        assert -(-used // rows) <= -(-alone // rows)
        fewer += used < alone
    assert fewer > 50


def test_rows_are_balanced_by_the_pairs_that_attention_sees():
    rng = np.random.default_rng(3)
    graded = to_graded(random_groups(rng, max_tokens=BUDGET, prompts=12, responses=4))
    ones = np.ones(graded.reward_PR.shape)
    batch = packed(graded, ones, ones.astype(bool), rows=4, shards=2, share_prompts=True)
    # Twice the visible pairs, less the diagonal, is the square of a sequence's length.
    pairs_R = np.zeros(len(batch.token_BT))
    for row, at in sequences(batch):
        branch_T = batch.branch_BT[row, at]
        pairs_R[row] += len(at) ** 2 - np.count_nonzero(branch_T == 0) ** 2
    for row, segment_T in enumerate(batch.segment_BT):
        shared = segment_T[batch.branch_BT[row] == 0]
        pairs_R[row] += sum(
            np.count_nonzero(shared == s) ** 2 for s in range(1, segment_T.max() + 1)
        )
    cost_MS = pairs_R.reshape(-1, 2, 2).sum(axis=2)
    assert batch.attention_imbalance == pytest.approx(
        2 * cost_MS.max(axis=1).sum() / cost_MS.sum(), rel=CLOSED_FORM_ATOL
    )


def test_a_batch_is_packed_alike_wherever_it_is_packed():
    graded, advantage_PR, fresh_PR = case(5, prompts=8, responses=5)
    many = concat_graded([graded, graded])
    arguments = (many, np.tile(advantage_PR, (2, 1)), np.tile(fresh_PR, (2, 1)))
    one, two = (packed(*arguments, share_prompts=True) for _ in range(2))
    for name in (*FIELDS, "segment_BT", "branch_BT"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.branch_BT.dtype == np.int32 and one.branch_BT.shape == one.token_BT.shape


def test_nothing_selected_is_one_microbatch_of_padding():
    graded, advantage_PR, fresh_PR = case(4)
    nothing = np.zeros(graded.reward_PR.shape, bool)
    batch = packed(graded, advantage_PR, fresh_PR, selected_PR=nothing, share_prompts=True)
    assert batch.token_BT.shape[0] == ROWS
    assert not batch.branch_BT.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"one_a_row": True}, "one_a_row=True"),
        ({"objective": ObjectiveSection(aggregation="microbatch_token_mean")}, "microbatch_token"),
    ],
)
def test_what_cannot_share_is_refused(options, words):
    graded, advantage_PR, fresh_PR = case(0)
    arguments = {
        "advantage_PR": advantage_PR, "fresh_PR": fresh_PR, "row_len": 24, "rows": 1,
        "objective": ObjectiveSection(), "max_response_tokens": BUDGET, "temperature": 1.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        pack(graded, **(arguments | options), share_prompts=True)
