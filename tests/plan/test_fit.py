"""The arithmetic of residents against cases computed by hand."""

import dataclasses

import pytest

from polaris_jax.plan.fit import Residency, Sizes, judge

GIB = 1 << 30
# A device of 100 GiB, of which 90 may be used.
SIZES = Sizes(
    params=2 * GIB,
    moments=4 * GIB,
    weights=8 * GIB,
    accumulate=40 * GIB,
    apply=9 * GIB,
    sync_step=GIB,
    page=GIB / 16,
    sampling=10 * GIB,
)


def judged(sizes=SIZES, *, hbm_gib=100, **kwargs):
    given = {"pages_per_row": 64, "data_shards": 4} | kwargs
    return judge(sizes, hbm_bytes=hbm_gib * GIB, **given)


def test_the_phases_add_up():
    fit = judged()
    totals = {phase.name: phase.total for phase in fit.phases}
    # 90 - 10 (programs) - 6 (state) = 74 GiB of pool = 1184 pages.
    assert fit.pages == 74 * 16
    assert totals == {
        "update: gradients": (40 + 4 + 8) * GIB,
        "update: optimizer": (9 + 8) * GIB,
        "weight sync": (6 + 8 + 1) * GIB,
        "sampling": (10 + 74 + 6) * GIB,
    }
    assert fit.fits


def test_a_reference_model_stays_in_every_phase():
    """The gradient program has it among its arguments; parking the state does not move it."""
    sizes = dataclasses.replace(SIZES, reference=2 * GIB)
    without = {phase.name: phase.total for phase in judged(asked_pages=64).phases}
    more = {phase.name: phase.total for phase in judged(sizes, asked_pages=64).phases}
    assert {name: total - without[name] for name, total in more.items()} == {
        "update: gradients": 0,
        "update: optimizer": 2 * GIB,
        "weight sync": 2 * GIB,
        "sampling": 2 * GIB,
    }
    assert judged(sizes).pages == 72 * 16
    assert judged(sizes, residency=Residency(state="host")).pages == 78 * 16
    large = dataclasses.replace(SIZES, apply=60 * GIB)
    kept = Residency(pool="kept")
    assert judged(large, residency=kept).pages == (90 - 68) * 16
    large = dataclasses.replace(large, reference=2 * GIB)
    assert judged(large, residency=kept).pages == (90 - 70) * 16


def test_full_rows_come_in_whole_numbers_a_shard_and_page_0_is_not_used():
    assert judged(asked_pages=64 * 3 + 1).full_rows == 4 * 3
    assert judged(asked_pages=64 * 3).full_rows == 4 * 2


@pytest.mark.parametrize(
    ("residency", "pool_gib"),
    [
        pytest.param(Residency(), 74, id="pool freed during the update"),
        pytest.param(Residency(state="host"), 80, id="state parked while sampling"),
        pytest.param(Residency(pool="kept"), 90 - 52, id="pool kept"),
    ],
)
def test_pool_that_is_left(residency, pool_gib):
    assert judged(residency=residency).pages == pool_gib * 16


def test_no_more_pages_than_the_slots_can_fill():
    assert judged(max_pages=129).pages == 129


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            {"accumulate": 79 * GIB},
            ["update: gradients: 91.00 GiB a device, over 90% of 100.00 GiB by 1.00 GiB"],
            id="the update",
        ),
        pytest.param({"apply": 83 * GIB}, ["update: optimizer: 91.00 GiB"], id="the optimizer"),
        pytest.param(
            {"weights": 37 * GIB, "sync_step": 48 * GIB, "accumulate": GIB},
            ["weight sync: 91.00 GiB"],
            id="the weight sync",
        ),
        pytest.param(
            {"sampling": 82 * GIB},
            ["holds no sequence of full length (64 pages); 2.00 GiB a device are left"],
            id="no room for a row",
        ),
    ],
)
def test_what_is_too_much_is_named(change, words):
    breaches = judged(dataclasses.replace(SIZES, **change)).breaches
    assert len(breaches) == len(words)
    for breach, word in zip(breaches, words, strict=True):
        assert word in breach


def test_residents_together_exceed_what_each_program_does_not():
    """Each phase's program fits alone; moments and sampler weights beside it do not."""
    sizes = dataclasses.replace(SIZES, accumulate=80 * GIB)
    fit = judged(sizes)
    assert sizes.accumulate < fit.budget
    assert not fit.fits


def test_a_pool_over_the_memory_is_refused_with_the_largest_that_fits():
    fit = judged(asked_pages=74 * 16 + 1)
    assert not fit.fits
    assert any("at most 1184 pages fit" in breach for breach in fit.breaches)
    assert judged(asked_pages=74 * 16).fits


def test_a_pool_must_hold_the_longest_sequence_of_any_stage():
    assert judged(asked_pages=65).fits
    refused = judged(asked_pages=65, least_pages=80)
    assert refused.full_rows == 4  # of the stage that is planned
    assert "holds no sequence of full length (80 pages)" in refused.breaches[0]


def test_a_held_out_score_has_weights_of_its_own():
    """With a pool of the room that is left; a pool that the run sizes takes what they leave."""
    assert judged(scores=True).fits
    full = judged(scores=True, asked_pages=74 * 16)
    assert [breach.split(":")[0] for breach in full.breaches] == ["held-out score"]
    assert judged(scores=True, asked_pages=66 * 16).fits
