"""Each text is assigned its way of writing, and a gain is the sum of its parts."""

import itertools

import pytest

from polaris_jax.demo.arithmetic import solution, supervised_examples
from polaris_jax.demo.chains import Chain, Mix
from polaris_jax.demo.ways import WAYS, WayCount, count_ways, decompose, gain_lines, way_of


@pytest.mark.parametrize("steps", range(1, 9))
def test_texts_are_of_the_way_that_wrote_them(steps):
    chain = Chain("trade", 9, (("+", 3), ("-", 4)) * 4)
    chain = Chain("trade", 9, chain.steps[:steps])
    assert way_of(solution(chain)) == "careful"
    assert way_of(solution(chain, hurried=True)) == "hurried"


def test_every_supervised_text_has_a_way():
    texts = [text for _, text in supervised_examples(600, seed=0, slip_rate=0.4, mix=Mix(1, 7))]
    ways = [way_of(text) for text in texts]
    assert set(ways) == {"careful", "hurried"}
    for text, way in zip(texts, ways, strict=True):
        assert (way == "careful") == (": " in text)
        cut = text[: len(text) * 2 // 3]
        assert way_of(cut) in (way, "other")


@pytest.mark.parametrize("text", ["", "<think></think>", "no idea", "<think>a\nb</think>", "4"])
def test_other_texts_are_of_no_way(text):
    assert way_of(text) == "other"


def test_counts():
    careful, hurried = "<think>Add 2: 3 + 2 = 5</think>", "<think>3 + 2 = 5</think>"
    found = count_ways([careful, hurried, hurried, "?"], [1.0, 1.0, 0.0, 0.0])
    assert found == {
        "careful": WayCount(0.25, 1.0),
        "hurried": WayCount(0.5, 0.5),
        "other": WayCount(0.25, 0.0),
    }
    with pytest.raises(ValueError, match="1 texts, 2 rewards"):
        count_ways(["?"], [1.0, 0.0])


def mix(careful, right_careful, right_hurried):
    return {
        "careful": WayCount(careful, right_careful),
        "hurried": WayCount(1 - careful, right_hurried),
        "other": WayCount(0.0, 0.0),
    }


def test_a_gain_is_the_sum_of_choice_and_skill():
    choice = decompose(mix(0.4, 0.8, 0.1), mix(1.0, 0.8, 0.0))
    assert choice.choice == pytest.approx(choice.total) == pytest.approx(0.8 - 0.38)
    assert choice.within == 0  # no response is hurried any more, so nothing is known of its skill
    skill = decompose(mix(0.4, 0.2, 0.1), mix(0.4, 0.6, 0.5))
    assert skill.within == pytest.approx(skill.total) == pytest.approx(0.4)
    for numbers in itertools.product((0.0, 0.3, 1.0), repeat=6):
        before, after = mix(*numbers[:3]), mix(*numbers[3:])
        gain = decompose(before, after)
        assert gain.choice + gain.within == pytest.approx(gain.total)
        back = decompose(after, before)
        assert (back.choice, back.within) == pytest.approx((-gain.choice, -gain.within))
    assert gain_lines(skill)[0].startswith("gain +40.0 points: +40.0 within a way of writing, +0.0")
    assert len(gain_lines(skill)) == 3
    assert set(WAYS) == set(skill.before)
