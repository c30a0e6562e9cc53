"""Segments whose responses share a prompt, against rows in which each has a copy of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.attention import attend, backends, shard_work, shares_prompts
from polaris_jax.models.attention.portable import attend_chunked, attend_reference
from polaris_jax.models.attention.shards import seen_keys
from tests.support.models.attention.cases import (
    Case,
    assert_equals_reference,
    case,
    forward_and_gradients,
    over_shards,
)
from tests.tolerances import ATTENTION_RTOL


def branched(c: Case, *, seed: int = 0, most: int = 4) -> np.ndarray:
    """Branches for the rows' segments: up to `most` of random lengths, after 0 or more tokens."""
    rng = np.random.default_rng(seed)
    branch_BS = np.zeros(c.segment_BS.shape, np.int32)
    for row, segment_S in enumerate(np.asarray(c.segment_BS)):
        for segment in range(1, segment_S.max() + 1):
            (at,) = np.nonzero(segment_S == segment)
            shared = rng.integers(0, len(at)) if segment > 1 else 0  # the first shares nothing
            own = at[shared:]
            count = min(int(rng.integers(1, most + 1)), len(own))
            cut = np.sort(rng.choice(np.arange(1, len(own)), count - 1, replace=False))
            branch_BS[row, own] = np.searchsorted(cut, np.arange(len(own)), side="right") + 1
    return branch_BS


def with_branches(attend, branch_BS):
    def run(q, k, v, segment_BS, context=None):
        return attend(q, k, v, segment_BS, context, jnp.asarray(branch_BS))

    return run


@pytest.fixture
def tiles_of(monkeypatch):
    def set_width(tokens: int) -> None:
        monkeypatch.setattr("polaris_jax.models.attention.portable.SHORT_ROW_BLOCK_TOKENS", tokens)

    return set_width


def copies(c: Case, branch_BS: np.ndarray) -> list[np.ndarray]:
    """Row indices of each sequence of row 0, as if its shared tokens had been copied for it."""
    segment_S, branch_S = np.asarray(c.segment_BS[0]), branch_BS[0]
    found = []
    for segment in range(1, segment_S.max() + 1):
        own_S = segment_S == segment
        found += [
            np.flatnonzero(own_S & ((branch_S == 0) | (branch_S == branch)))
            for branch in range(1, branch_S[own_S].max() + 1)
        ]
    return found


def test_a_branch_is_what_it_would_be_with_a_copy_of_the_shared_tokens():
    c = case(1, 90, segments=4)
    branch_BS = branched(c)
    got = forward_and_gradients(with_branches(attend_reference, branch_BS), c, c.segment_BS)
    want = [jnp.zeros_like(x) for x in got]
    seen_S = np.zeros(90, int)
    for at in copies(c, branch_BS):
        # The gradient that comes back to the shared tokens belongs to one of the copies.
        first_S = seen_S[at] == 0
        seen_S[at] += 1
        alone = Case(*(x[:, at] for x in c))
        alone = alone._replace(dout_BTNH=alone.dout_BTNH * first_S[None, :, None, None])
        out, *gradients = forward_and_gradients(attend_reference, alone, None)
        want[0] = want[0].at[:, at].set(out)
        want[1:] = [w.at[:, at].add(g) for w, g in zip(want[1:], gradients, strict=True)]
    assert seen_S.max() > 1, "nothing is shared"
    real = (c.segment_BS > 0)[..., None, None]
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        assert jnp.abs(jnp.where(real, a - b, 0)).max() <= ATTENTION_RTOL * jnp.abs(b).max(), name


@pytest.mark.parametrize(
    ("length", "tile", "segments"),
    [
        pytest.param(120, 8, 3, id="tiles of parts of a branch"),
        pytest.param(101, 16, 6, id="partial tile"),
        pytest.param(96, 64, 3, id="tiles of several segments"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_chunked_equals_the_reference(length, tile, segments, seed, tiles_of):
    tiles_of(tile)
    c = case(2, length, segments=segments, seed=seed)
    branch_BS = branched(c, seed=seed)
    want = forward_and_gradients(with_branches(attend_reference, branch_BS), c, c.segment_BS)
    assert_equals_reference(with_branches(attend_chunked, branch_BS), c, want=want)


@pytest.mark.parametrize("back_end", [attend_reference, attend_chunked])
@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_context_shards_equal_the_whole_row(back_end, layout, tiles_of):
    tiles_of(8)
    c = case(2, 80, segments=3)
    branch_BS = branched(c)
    want = forward_and_gradients(with_branches(attend_reference, branch_BS), c, c.segment_BS)
    shards = over_shards(with_branches(back_end, branch_BS), 4, layout)
    assert_equals_reference(shards, c, want=want)


@functools.partial(jax.jit, static_argnums=2)
def seen(segment_BS, branch_BS, shape):
    return seen_keys(segment_BS, branch_BS, shape)


def test_what_a_query_sees_and_how_much_work_that_is():
    segment_BS = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 2, 2, 2, 2, 3, 3, 0]])
    branch_BS = np.array([[0, 0, 1, 1, 2, 2, 1, 2, 3, 0], [0, 1, 2, 1, 1, 1, 2, 0, 1, 0]])
    own, first, end = seen(segment_BS, branch_BS, segment_BS.shape)
    index_S, work = np.arange(10), np.zeros((2, 1))
    for row, i in np.ndindex(2, 10):
        got = ((index_S >= own[row, i]) & (index_S <= i)) | (
            (index_S >= first[row, i]) & (index_S < end[row, i])
        )
        want = (segment_BS[row] == segment_BS[row, i]) & (index_S <= i)
        want &= (branch_BS[row] == 0) | (branch_BS[row] == branch_BS[row, i])
        assert got.tolist() == want.tolist(), (row, i)
        work[row] += want.sum()
    assert shard_work(segment_BS, 1, branch_BT=branch_BS).tolist() == work.tolist()
    assert (work < shard_work(segment_BS, 1)).all()


def test_tiles_of_other_branches_are_not_read(tiles_of):
    # A masked NaN would still poison the sums (0 x NaN): finite results show that it is skipped.
    tiles_of(8)
    c = case(1, 48, padding=0)
    segment_BS, index_S = jnp.ones((1, 48), jnp.int32), jnp.arange(48)
    branch_BS = jnp.where(index_S < 16, 0, jnp.where(index_S < 32, 1, 2))[None]
    first = ((index_S >= 16) & (index_S < 32))[None, :, None, None]
    poisoned = c._replace(v_BSKH=jnp.where(first, jnp.nan, c.v_BSKH))
    out, dq, *_ = forward_and_gradients(
        with_branches(attend_chunked, branch_BS), poisoned, segment_BS
    )
    for x in (out, dq):
        assert jnp.isfinite(x[:, :16]).all() and jnp.isfinite(x[:, 32:]).all()
        assert jnp.isnan(x[:, 16:32]).any()


def test_a_kernel_without_branches_refuses_them_by_name():
    c = case(1, 16, segments=2, padding=2)
    branch_BS = jnp.asarray(branched(c))
    assert {name for name in backends.BACK_ENDS if shares_prompts(name)} == {"chunked", "reference"}
    for name in ("splash", "triton", "cudnn"):
        with pytest.raises(ValueError, match=rf"attention={name}: it takes no branches.*chunked"):
            attend(*c[:4], backend=name, branch_BS=branch_BS)
    assert np.isfinite(attend(*c[:4], branch_BS=branch_BS)).all()
