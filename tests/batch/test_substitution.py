"""Substitution, rule by rule."""

import copy
from collections import Counter

import numpy as np
import pytest

from polaris_jax.batch import (
    RescueBuffer,
    fresh_rows,
    group_advantages,
    is_scarce,
    substitute_uninformative,
)
from tests.support.batch.batches import random_groups, to_graded, to_groups


def batch(pattern, responses=4):
    """A letter a group: i informative, 0 none right, 1 all right; ids and contents differ."""
    rng = np.random.default_rng(len(pattern))
    groups = random_groups(rng, prompts=len(pattern), responses=responses)
    rewards = {"i": [0] * (responses - 1) + [1], "0": [0] * responses, "1": [1] * responses}
    for p, (letter, group) in enumerate(zip(pattern, groups, strict=True)):
        group.update(id=f"p{p}", gold=f"gold {p}", prompt=(p + 1,))
        for row, reward in zip(group["rows"], rewards[letter], strict=True):
            row["reward"] = reward
    return to_graded(groups)


def substitute(graded, seed=0, **options):
    return substitute_uninformative(graded, rng=np.random.default_rng(seed), **options)


def test_a_copied_group_moves_whole():
    given = batch("i0i1")
    graded, done = substitute(given)
    groups = to_groups(given)
    assert to_groups(graded) == [groups[p] for p in done.source_P]
    for p in range(4):  # the gold is that of the problem, which the original gets wrong
        assert graded.golds[p] == "gold " + graded.problem_ids[p][1:]
    assert (done.informative, done.replaced, done.reused, done.action) == (2, 2, 0, "train")
    assert done.source_P[[0, 2]].tolist() == [0, 2]
    assert sorted(done.source_P[[1, 3]]) == [0, 2]


@pytest.mark.parametrize("scale", ["std", "off"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_no_group_keeps_zero_advantage(scale, baseline):
    rng = np.random.default_rng(0)
    trained = 0
    for _ in range(200):
        graded, done = substitute(to_graded(random_groups(rng)), min_informative=0.0)
        if done.action == "train":
            trained += 1
            advantage_PR = group_advantages(graded.reward_PR, scale=scale, baseline=baseline)
            assert (advantage_PR != 0).any(axis=1).all()
    assert trained > 100


def test_donors_without_replacement_while_they_last():
    for seed in range(50):
        _, done = substitute(batch("iii00"), seed)
        assert len(set(done.source_P[3:])) == 2
        assert done.reused == 0


def test_then_with_replacement():
    repeats = Counter()
    for seed in range(50):
        _, done = substitute(batch("ii00000"), seed, on_scarce="train")
        drawn = done.source_P[2:].tolist()
        assert sorted(drawn[:2]) == [0, 1]  # each donor once before any comes again
        assert done.reused == 3
        repeats[tuple(drawn[2:])] += 1
    assert (0, 0, 0) in repeats  # with replacement, not in rounds
    assert (1, 1, 1) in repeats


def test_all_informative_is_left_alone_without_a_draw():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    given = batch("iii")
    graded, done = substitute_uninformative(given, rng=rng)
    assert to_groups(graded) == to_groups(given)
    assert (done.replaced, done.reused, done.action) == (0, 0, "train")
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("on_scarce", ["train", "resample", "skip"])
@pytest.mark.parametrize("pattern", ["000", "111", "0101"])
def test_none_informative_makes_no_update(pattern, on_scarce):
    given = batch(pattern)
    graded, done = substitute(given, on_scarce=on_scarce)
    assert (done.action, done.informative, done.replaced) == ("none", 0, 0)
    assert to_groups(graded) == to_groups(given)
    assert done.source_P.tolist() == list(range(len(pattern)))


@pytest.mark.parametrize("on_scarce", ["train", "resample", "skip"])
@pytest.mark.parametrize(
    ("pattern", "share", "scarce"),
    [
        pytest.param("i00", 1 / 3, False, id="exactly-a-third"),
        pytest.param("ii0000", 1 / 3, False, id="a-third-of-six"),
        pytest.param("iii000000", 1 / 3, False, id="a-third-of-nine"),
        pytest.param("i000", 1 / 3, True, id="a-quarter"),
        pytest.param("i000", 0.0, False, id="limit-0"),
        pytest.param("iii0", 1.0, True, id="limit-1"),
    ],
)
def test_scarcity_is_strict_and_up_to_on_scarce(pattern, share, scarce, on_scarce):
    given = batch(pattern)
    graded, done = substitute(given, min_informative=share, on_scarce=on_scarce)
    assert done.action == (on_scarce if scarce else "train")
    assert done.informative == pattern.count("i")
    if done.action == "train":
        assert done.replaced == pattern.count("0")
        assert graded.informative_P.all()
    else:
        assert done.replaced == done.reused == 0
        assert to_groups(graded) == to_groups(given)
        assert done.source_P.tolist() == list(range(len(pattern)))


def test_default_limit_is_a_third_and_default_is_to_train():
    assert substitute(batch("i0000"))[1].action == "train"
    assert substitute(batch("i00"), on_scarce="skip")[1].action == "train"
    assert substitute(batch("i000"), on_scarce="skip")[1].action == "skip"


def test_rescued_rows_move_along_and_copies_are_not_fresh():
    given = batch("0ii0")
    sink = RescueBuffer()
    sink.update(
        batch("1000"), step=1, stage=0, temperature=0.3
    )  # the same ids; only p0 has a stored answer
    rescued, count = sink.rescue(given, max_response_tokens=99, rng=np.random.default_rng(0))
    assert count == 1
    graded, done = substitute(rescued, seed=1)
    np.testing.assert_array_equal(graded.rescued_PR, rescued.rescued_PR[done.source_P])
    fresh_PR = fresh_rows(graded, done)
    assert not fresh_PR[3].any()  # a copy
    assert fresh_PR[0].sum() == 3  # all but the stored row
    assert fresh_PR[1:3].all()
    np.testing.assert_array_equal(fresh_rows(rescued), ~rescued.rescued_PR)


def test_changes_no_input_and_repeats_with_its_seed():
    given = batch("i0i01", responses=3)
    before = copy.deepcopy(given)
    results = [substitute(given, seed)[1].source_P.tolist() for seed in (1, 1, 2, 3, 4)]
    for name in vars(before):
        np.testing.assert_equal(getattr(given, name), getattr(before, name))
    assert results[0] == results[1]
    assert any(result != results[0] for result in results)


def test_lists_come_back_as_lists():
    graded, _ = substitute(to_graded(to_groups(batch("i0")), kind=list))
    assert isinstance(graded.problem_ids, list)
    assert graded.token_ids[0] == graded.token_ids[1]


@pytest.mark.parametrize("share", [float("nan"), -1.0, 2.0])
def test_a_share_outside_0_to_1(share):
    with pytest.raises(ValueError, match=rf"min_informative={share}: .*batch.min_informative"):
        substitute(batch("i0"), min_informative=share)


def test_unknown_option():
    with pytest.raises(ValueError, match="on_scarce='retry'"):
        substitute(batch("i0"), on_scarce="retry")


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("pattern", ["i0000", "ii00000", "iii0", "0i0i00000000", "iiii"])
def test_a_limit_on_copies(pattern, limit):
    given = batch(pattern)
    donors, poor = pattern.count("i"), pattern.count("0")
    graded, done = substitute(given, 3, max_copies=limit)
    copies = Counter(int(source) for p, source in enumerate(done.source_P) if source != p)
    assert done.replaced == copies.total() == min(poor, limit * donors)
    assert done.reused == max(0, done.replaced - donors)
    assert all(count <= limit for count in copies.values())
    assert all(pattern[source] == "i" for source in copies)
    # Every donor is copied once before one is copied again; what is left has no advantage.
    assert max(copies.values(), default=0) - 1 <= (done.replaced - 1) // donors or limit > 1
    assert int((~graded.informative_P).sum()) == poor - done.replaced


def test_no_limit_draws_as_before():
    given = batch("ii00000")
    free, loose = substitute(given, 5), substitute(given, 5, max_copies=0)
    assert free[1].source_P.tolist() == loose[1].source_P.tolist()
    with pytest.raises(ValueError, match="max_copies=-1"):
        substitute(given, max_copies=-1)


@pytest.mark.parametrize(
    ("pattern", "share", "scarce"),
    [
        ("i00", 1 / 3, False),
        ("i000", 1 / 3, True),
        ("ii", 1.0, False),
        ("i0", 1.0, True),
        ("00", 0.0, True),
    ],
)
def test_scarce_batches(pattern, share, scarce):
    assert is_scarce(batch(pattern), share) == scarce
