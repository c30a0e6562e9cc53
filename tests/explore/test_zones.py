"""Zones on curves whose borders are known."""

import numpy as np
import pytest

from polaris_jax.config import ProbeSection
from polaris_jax.explore import find_zones
from polaris_jax.explore.zones import MIN_SAMPLES, is_above_zero, plateau, tolerances

STEP = 0.05
GRID = np.round(np.arange(0.2, 1.81, STEP), 2)
DRAWS = 1_000
# Share of sweeps whose three borders all lie within a step of the curve's own. `polaris probe` says
# so where it has fewer samples a temperature (64 problems x 32 responses) than the first needs.
SHARE_WITHIN_ONE_STEP = 0.95
SHARE_OF_FEWER = {1024: 0.80, 512: 0.60}  # measured 0.83 to 0.91, 0.62 to 0.74


def blog_curve(*, flat_to=1.4, slight_to=1.55, fall=0.09, collapse=0.25, cold_to=0.6, base=0.65):
    """Flat, a slight fall, a collapse: the blog's Qwen3-4B by default."""
    accuracy = np.full(len(GRID), base)
    slight = (GRID - flat_to) / (slight_to - flat_to)
    accuracy = np.where(flat_to + 1e-9 < GRID, base - fall * slight, accuracy)
    below = base - fall - collapse * (GRID - slight_to) / STEP
    accuracy = np.where(slight_to + 1e-9 < GRID, below, accuracy)
    accuracy = np.where(cold_to - 1e-9 > GRID, base - 0.04 * (cold_to - GRID) / STEP, accuracy)
    return np.clip(accuracy, 0.0, 1.0)


def test_the_blogs_qwen3_4b():
    zones = find_zones(GRID, blog_curve())
    assert zones.rgz == (0.6, 1.4)
    assert zones.cez == (1.4, 1.55)
    assert zones.pcz_from == 1.55
    assert zones.initial_temperature == 1.4
    assert dict(zip(GRID.tolist(), zones.labels, strict=True)) == {
        t: "cold" if t < 0.6 else "rgz" if t <= 1.4 else "cez" if t <= 1.55 else "pcz"
        for t in GRID.tolist()
    }


SHAPES = [
    pytest.param({}, id="qwen3-4b"),
    pytest.param({"collapse": 0.1}, id="gentle-collapse"),
    pytest.param({"flat_to": 1.0, "slight_to": 1.2, "collapse": 0.15}, id="wide-cez"),
    pytest.param({"flat_to": 0.7, "slight_to": 0.85, "cold_to": 0.3}, id="r1-distill-7b"),
]


def sweeps_within_one_step(shape: dict[str, float], samples: int, *, with_errors: bool) -> float:
    """Share of binomial sweeps of a curve whose borders are those it was made with."""
    curve, rng, within = blog_curve(**shape), np.random.default_rng(0), 0
    truth = [
        shape.get(name, usual)
        for name, usual in (("cold_to", 0.6), ("flat_to", 1.4), ("slight_to", 1.55))
    ]
    for _ in range(DRAWS):
        accuracy = rng.binomial(samples, curve) / samples
        errors = np.sqrt(accuracy * (1 - accuracy) / samples) if with_errors else None
        zones = find_zones(GRID, accuracy, stderrs=errors)
        borders = [*zones.rgz, zones.pcz_from]
        within += all(
            b is not None and abs(b - t) <= STEP + 1e-9 for b, t in zip(borders, truth, strict=True)
        )
    return within / DRAWS


@pytest.mark.parametrize("shape", SHAPES)
def test_borders_survive_binomial_noise(shape):
    share = sweeps_within_one_step(shape, MIN_SAMPLES, with_errors=False)
    assert share >= SHARE_WITHIN_ONE_STEP


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("samples", "bound"), SHARE_OF_FEWER.items())
def test_fewer_samples_lose_borders(shape, samples, bound):
    share = sweeps_within_one_step(shape, samples, with_errors=False)
    assert bound <= share < SHARE_WITHIN_ONE_STEP


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_standard_errors_win_some_borders_back(shape):
    """At 512 samples they exceed the robust zone's tolerance; at 1,024 they change nothing."""
    few, given, more, no_wider = (
        sweeps_within_one_step(shape, samples, with_errors=with_errors)
        for samples in (512, 1024)
        for with_errors in (False, True)
    )
    assert few < given < more == no_wider


def test_a_tolerance_is_a_share_of_the_plateau():
    """A tenth of the accuracy has the same zones; two points would call all of it robust."""
    zones, low = find_zones(GRID, blog_curve()), find_zones(GRID, blog_curve() / 10)
    assert low == zones
    temperatures = [1.0, 1.2, 1.4, 1.6, 1.7]
    accuracy, stderrs = [0.05, 0.05, 0.045, 0.034, 0.03], [0.002] * 5
    assert find_zones(temperatures, accuracy, stderrs=stderrs).initial_temperature == 1.2
    points = tolerances(ProbeSection(rgz_tolerance=0.02, cez_tolerance=0.1), accuracy)
    assert find_zones(temperatures, accuracy, stderrs=stderrs, **points).initial_temperature == 1.7


def test_points_of_an_earlier_version_are_turned_into_shares():
    curve = blog_curve()
    assert tolerances(ProbeSection(), curve) == {"rgz_tolerance": 0.03, "cez_tolerance": 0.14}
    points = tolerances(ProbeSection(rgz_tolerance=0.02, cez_tolerance=0.1), curve)
    assert points == pytest.approx({"rgz_tolerance": 0.02 / 0.65, "cez_tolerance": 0.1 / 0.65})
    one = tolerances(ProbeSection(rgz_tolerance=0.2), curve)
    assert one == pytest.approx(dict.fromkeys(one, 0.2 / 0.65))


def test_a_temperature_at_the_end_of_the_sweep_is_marked():
    assert find_zones([0.5, 1.0, 1.5], [0.4, 0.4, 0.4]).at_edge
    assert not find_zones(GRID, blog_curve()).at_edge


def test_a_plateau_within_two_standard_errors_of_0_is_none():
    assert is_above_zero([0.5, 0.5, 0.1], [0.02] * 3)
    assert not is_above_zero([0.0] * 4, [0.0] * 4)
    one_of_1024 = [0.0, 1 / 1024, 0.0, 0.0]  # a problem was solved once in 16
    assert not is_above_zero(one_of_1024, [0.0, 1 / 1024, 0.0, 0.0])
    assert plateau([0.3, 0.3, 0.3], [0.03, 0.03, 0.03]) == pytest.approx((0.3, 0.03 / 2**0.5))


def test_the_defaults_of_a_probe_have_samples_enough_and_the_blogs_temperatures():
    section = ProbeSection()
    assert section.problems * section.n >= MIN_SAMPLES
    steps = np.round((np.array([1.4, 1.55]) - section.start) / section.step, 6)
    assert (steps == np.round(steps)).all()
    grid = section.start + section.step * np.arange(11)
    zones = find_zones(grid, np.interp(grid, GRID, blog_curve()))
    borders = [*(zones.cez or ()), zones.pcz_from, zones.initial_temperature]
    assert np.round(borders, 6).tolist() == [1.4, 1.55, 1.55, 1.4]


def test_flat_curve_is_all_plateau():
    zones = find_zones([0.5, 1.0, 1.5], [0.4, 0.4, 0.4])
    assert zones.labels == ("rgz",) * 3
    assert (zones.rgz, zones.cez, zones.pcz_from) == ((0.5, 1.5), None, None)
    assert zones.initial_temperature == 1.5


def test_rising_curve_ends_on_its_plateau():
    zones = find_zones(GRID[:8], np.linspace(0.1, 0.8, 8))
    assert zones.initial_temperature == GRID[7]
    assert zones.labels[0] == "cold"
    assert zones.pcz_from is None


def test_falling_curve_starts_on_its_plateau():
    zones = find_zones(GRID[:8], np.linspace(0.8, 0.1, 8))
    assert zones.initial_temperature == GRID[0]
    assert (zones.labels[0], zones.labels[-1]) == ("rgz", "pcz")


def test_cliff_has_no_exploration_zone():
    zones = find_zones([0.8, 1.0, 1.2, 1.4, 1.6], [0.6, 0.6, 0.6, 0.1, 0.0])
    assert (zones.cez, zones.pcz_from, zones.initial_temperature) == (None, 1.2, 1.2)


def test_sweep_that_ends_where_the_collapse_begins_sees_it():
    zones = find_zones([1.0, 1.2, 1.4], [0.6, 0.6, 0.45])
    assert zones.labels == ("rgz", "rgz", "pcz")


@pytest.mark.parametrize("backwards", [False, True], ids=["last", "first"])
def test_the_ends_are_judged_as_measured(backwards):
    accuracy = [0.7, 0.7, 0.7, 0.7, 0.7, 0.67]  # the end's mean of 2, 0.685, is inside
    zones = find_zones([0.2, 0.4, 0.6, 0.8, 1.0, 1.2], accuracy[::-1] if backwards else accuracy)
    if backwards:
        assert zones.labels == ("cold",) + ("rgz",) * 5
    else:
        assert zones.labels == ("rgz",) * 5 + ("cez",)
        assert zones.initial_temperature == 1.0


def test_one_sharp_peak():
    zones = find_zones([0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 0.0, 0.9, 0.0, 0.0])
    assert zones.rgz == (0.4, 0.8)  # its smoothed neighbours share the plateau


def test_a_value_on_the_border_is_inside():
    """0.03 and 0.14 of a plateau at 0.7 are 2.1 and 9.8 points."""
    zones = find_zones([1.0, 1.1, 1.2, 1.3, 1.4], [0.7, 0.7, 0.679, 0.602, 0.3])
    assert zones.labels == ("rgz", "rgz", "rgz", "cez", "pcz")


def test_noise_invents_no_zone_inside_the_plateau():
    accuracy = np.full(len(GRID), 0.6)
    accuracy[10] = 0.4
    assert set(find_zones(GRID, accuracy).labels) == {"rgz"}


def test_tolerance_is_never_narrower_than_the_standard_error():
    temperatures, accuracy = [0.8, 1.0, 1.2, 1.4], [0.6, 0.6, 0.6, 0.55]
    assert find_zones(temperatures, accuracy).labels[-1] == "cez"
    wide = find_zones(temperatures, accuracy, stderrs=[0.06] * 4)
    assert wide.labels[-1] == "rgz"
    assert wide.initial_temperature == 1.4


def test_random_curves_give_zones_in_order():
    rng = np.random.default_rng(1)
    order = {"cold": 0, "rgz": 1, "cez": 2, "pcz": 3}
    for _ in range(300):
        count = int(rng.integers(3, 12))
        temperatures = np.cumsum(rng.uniform(0.05, 0.2, count))
        zones = find_zones(temperatures, rng.random(count), stderrs=rng.random(count) * 0.1)
        ranks = [order[label] for label in zones.labels]
        assert ranks == sorted(ranks)
        assert 1 in ranks
        assert zones.rgz[0] <= zones.rgz[1] == zones.initial_temperature
        assert (zones.pcz_from is None) == (3 not in ranks)
        assert (zones.cez is None) == (2 not in ranks)


@pytest.mark.parametrize(
    ("temperatures", "accuracies", "options", "message"),
    [
        pytest.param([1.0], [0.5], {}, "at least 3", id="one-point"),
        pytest.param([1.0, 1.1], [0.5, 0.5], {}, "at least 3", id="two-points"),
        pytest.param([], [], {}, "at least 3", id="none"),
        pytest.param([1.0, 1.2, 1.1], [0.5] * 3, {}, "ascend", id="not-ascending"),
        pytest.param([1.0, 1.0, 1.1], [0.5] * 3, {}, "ascend", id="repeated"),
        pytest.param([1.0, 1.1, 1.2], [0.5] * 2, {}, "2 values for 3", id="lengths"),
        pytest.param([1.0, 1.1, 1.2], [0.5, np.nan, 0.5], {}, "finite", id="nan"),
        pytest.param([1.0, 1.1, 1.2], [0.0] * 3, {}, "0 at every", id="nothing-solved"),
        pytest.param(
            [1.0, 1.1, 1.2], [0.5] * 3, {"stderrs": [-1.0] * 3}, "negative", id="negative-error"
        ),
        pytest.param(
            [1.0, 1.1, 1.2], [0.5] * 3, {"cez_tolerance": 0.01}, "rgz_tol", id="tolerances"
        ),
    ],
)
def test_clear_refusals(temperatures, accuracies, options, message):
    with pytest.raises(ValueError, match=message):
        find_zones(temperatures, accuracies, **options)
