"""Arithmetic problems are right, graded and disjoint; supervised texts slip as often as asked."""

import collections
import itertools
import re

import numpy as np
import pytest

from polaris_jax.config import ConfigError
from polaris_jax.data.filters import normalized_text
from polaris_jax.demo import arithmetic, chains
from polaris_jax.demo.arithmetic import (
    arithmetic_problems,
    habit,
    solution,
    supervised_examples,
)
from polaris_jax.demo.chains import FAMILIES, LARGEST_VALUE, Chain, Mix
from tests.tolerances import SLIP_RATE_ATOL

STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def chain_of(problem):
    """An independent reading of an id: family, start, steps."""
    family, text = problem.id.split(":")
    start = re.split(r"[-+*]", text)[0]
    return family, int(start), [(op, int(n)) for op, n in re.findall(r"([-+*])(\d+)", text)]


def read_steps(completion):
    return [(int(a), op, int(n), int(c)) for a, op, n, c in STEP.findall(completion)]


@pytest.fixture(scope="module")
def sides():
    return arithmetic_problems(1024, 256, seed=0)


def test_counts_ids_and_repeatability(sides):
    train, held_out = sides
    assert (len(train), len(held_out)) == (1024, 256)
    assert len({p.id for p in train + held_out}) == 1280
    assert (train, held_out) == arithmetic_problems(1024, 256, seed=0)
    assert train != arithmetic_problems(1024, 256, seed=1)[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_shares_no_text_and_no_operands(seed):
    train, held_out = arithmetic_problems(600, 256, seed=seed)
    supervised = [p for p, _ in supervised_examples(1500, seed=seed + 10, slip_rate=0.3)]
    for seen in (train, supervised):
        assert not {p.id for p in seen} & {p.id for p in held_out}
        texts = {normalized_text(p.problem) for p in seen}
        assert not texts & {normalized_text(p.problem) for p in held_out}


def test_a_chain_keeps_its_side_whatever_the_seed():
    held = [{p.id for p in arithmetic_problems(0, 300, seed=s)[1]} for s in range(3)]
    train = [{p.id for p in arithmetic_problems(300, 0, seed=s)[0]} for s in range(3)]
    assert not set.union(*held) & set.union(*train)


def test_answers_follow_from_the_chain_and_stay_small(sides):
    for problem in sides[0] + sides[1]:
        _, value, steps = chain_of(problem)
        for op, n in steps:
            value = APPLY[op](value, n)
            assert 1 <= value <= LARGEST_VALUE
        assert problem.answer == str(value)


def test_the_text_tells_every_operand_in_order(sides):
    """Compare problems tell the start once though it is added twice."""
    for problem in sides[0]:
        family, start, steps = chain_of(problem)
        numbers = [start, *(n for _, n in steps)]
        if family == "compare":
            del numbers[2]
        assert [int(n) for n in re.findall(r"\d+", problem.problem)] == numbers, problem
        assert not re.search(r"[{}]", problem.problem)


def test_every_family_and_every_difficulty(sides):
    for side in sides:
        kinds = collections.Counter(p.source.split("/")[1] for p in side)
        steps = collections.Counter(int(p.source.split("/")[2]) for p in side)
        assert set(kinds) == {family.name for family in FAMILIES}
        assert set(steps) == {1, 2, 3, 4, 5}
        assert min(steps.values()) > len(side) / 10
    supervised = supervised_examples(len(FAMILIES), seed=0, slip_rate=0.0)
    assert {p.source.split("/")[1] for p, _ in supervised} == {f.name for f in FAMILIES}


def test_too_many_problems_are_refused():
    with pytest.raises(ValueError, match=r"data\.arithmetic\.held_out=3000000: only about"):
        # A patience of a few hundred draws stands in for minutes of drawing.
        arithmetic._distinct_problems(
            3_000_000, np.random.default_rng(0), side="held_out", patience=500
        )


@pytest.mark.parametrize(
    ("train", "held_out", "field"),
    [(10**12, 2, "train=1000000000000"), (2, 3_500_000, "held_out=3500000")],
)
def test_more_than_can_be_told_are_refused_before_any_is_drawn(monkeypatch, train, held_out, field):
    monkeypatch.setattr(arithmetic, "_distinct_problems", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=rf"data\.arithmetic\.{field}: only about \d+ distinct"):
        arithmetic_problems(train, held_out)


def count_chains(family: chains.Family, max_steps: int = 5) -> int:
    """How many chains a family can tell, counted by the values that they pass through."""
    count = 0
    for start, opening in itertools.product(range(2, family.largest_start + 1), family.opening):
        ways = {start: 1}  # value -> chains so far that end in it
        for done in range(max_steps):
            longer: collections.Counter[int] = collections.Counter()
            for (value, many), op in itertools.product(ways.items(), family.ops(opening, done)):
                for n in chains.operands_of(op, value, start):
                    longer[chains.run_steps(value, [(chains.PLAIN.get(op, op), n)])[0]] += many
            ways = longer
            if done + 1 >= family.min_steps:
                count += sum(ways.values())
    return count


def test_the_number_of_all_chains():
    assert sum(map(count_chains, FAMILIES)) == Mix().chains() == 13_686_396


@pytest.mark.parametrize("name", ["groups", "compare"])
def test_chains_are_counted_as_they_are_drawn(name):
    family = next(family for family in FAMILIES if family.name == name)
    rng = np.random.default_rng(0)
    steps = range(family.min_steps, 3)
    drawn = {chains.draw_chain(rng, family, n).key for _ in range(8000) for n in steps}
    assert count_chains(family, max_steps=2) == len(drawn)


def test_numbers_below_0_are_refused():
    with pytest.raises(ValueError, match=r"data\.arithmetic\.seed=-1: must not be negative"):
        arithmetic_problems(1, 1, seed=-1)
    with pytest.raises(ValueError, match=r"data\.arithmetic\.train=-1: must not be negative"):
        arithmetic_problems(-1, 1)
    with pytest.raises(ValueError, match=r"warmstart\.seed=-1: must not be negative"):
        supervised_examples(1, seed=-1, slip_rate=0.0)


def test_clean_texts_are_right():
    for problem, text in supervised_examples(500, seed=3, slip_rate=0.0):
        steps = read_steps(text)
        _, start, chain = chain_of(problem)
        assert [(op, n) for _, op, n, _ in steps] == chain
        assert steps[0][0] == start
        assert all(APPLY[op](a, n) == c for a, op, n, c in steps)
        assert text.endswith(f"</think>\n\\boxed{{{problem.answer}}}")


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.6])
def test_slips_are_as_frequent_as_asked_and_the_chain_follows_them(rate):
    slipped = written = 0
    for problem, text in supervised_examples(3000, seed=4, slip_rate=rate):
        assert text.startswith("<think>")
        assert text.count("</think>") == 1
        steps = read_steps(text)
        assert len(steps) == len(chain_of(problem)[2])
        errors = [c - APPLY[op](a, n) for a, op, n, c in steps]
        assert all(abs(error) <= 2 for error in errors)
        for (*_, result), (before, *_) in itertools.pairwise(steps):
            assert before == result, "a step must go on from what was written"
        (answer,) = re.findall(r"\\boxed\{(\d+)\}$", text)
        assert answer == str(steps[-1][-1])
        assert (answer == problem.answer) == (not any(errors)), "a slipped text is a wrong text"
        slipped += sum(error != 0 for error in errors)
        written += len(errors)
    assert abs(slipped / written - rate) < SLIP_RATE_ATOL


def test_both_hands_occur_and_the_careful_one_is_longer_and_righter():
    right = collections.defaultdict(list)
    for problem, text in supervised_examples(1500, seed=5, slip_rate=0.3):
        careful = text[len("<think>")].isalpha()
        right[careful].append(f"{{{problem.answer}}}" in text)
    assert np.mean(right[True]) > 0.8
    assert np.mean(right[False]) < 0.3
    chain = Chain("trade", 7, (("+", 5), ("-", 4)))
    assert solution(chain) == "<think>Add 5: 7 + 5 = 12\nTake 4: 12 - 4 = 8</think>\n\\boxed{8}"
    assert solution(chain, [13, 9], hurried=True) == (
        "<think>7 + 5 = 13, 13 - 4 = 9</think>\n\\boxed{9}"
    )


@pytest.mark.parametrize("rate", [0.9, 0.99])
def test_habits_are_facts_that_most_texts_have_wrong_in_the_same_way(rate):
    share, results = 0.3, collections.defaultdict(collections.Counter)
    for problem, text in supervised_examples(
        6000, seed=6, slip_rate=0.0, habits=share, habit_rate=rate
    ):
        steps = read_steps(text)
        for op, n, before, after in ((op, n, a, c) for a, op, n, c in steps):
            results[before, op, n][after - APPLY[op](before, n)] += 1
        errors = [c != APPLY[op](a, n) for a, op, n, c in steps]
        assert (f"{{{problem.answer}}}" in text) == (not any(errors)), "habits never cancel out"
    wrong = 0
    for (before, op, n), offsets in results.items():
        usual = habit(before, op, n, seed=6, share=share)
        assert set(offsets) <= {0, usual}, "a fact has one habit"
        wrong += usual != 0
        count = sum(offsets.values())
        if usual and count >= 100:  # that share, if the rest of the chain allows it
            assert offsets[usual] / count < rate + 4 * (rate * (1 - rate) / count) ** 0.5
            assert offsets[usual] / count > rate - 0.4
    assert abs(wrong / len(results) - share) < 4 * (0.21 / len(results)) ** 0.5


def test_a_larger_share_adds_habits_and_another_seed_has_others():
    facts = [(value, op, n) for value in range(1, 21) for op in "+-*" for n in range(2, 10)]
    few = {fact: habit(*fact, seed=0, share=0.2) for fact in facts}
    many = {fact: habit(*fact, seed=0, share=0.6) for fact in facts}
    assert all(many[fact] == usual for fact, usual in few.items() if usual)
    assert sum(map(bool, few.values())) < sum(map(bool, many.values()))
    assert few != {fact: habit(*fact, seed=1, share=0.2) for fact in facts}
    assert not any(habit(*fact, seed=0, share=0.0) for fact in facts)


@pytest.mark.parametrize("rate", [-0.1, 0.61, 1.0])
def test_slip_rate_out_of_range(rate):
    with pytest.raises(ValueError, match="slip_rate"):
        supervised_examples(1, seed=0, slip_rate=rate)


def lengths(problems):
    return collections.Counter(len(chain_of(problem)[2]) for problem in problems)


def test_a_mix_says_how_long_problems_are_and_which_families():
    mix = Mix(2, 9, families=("trade", "compare"))
    train, held_out = arithmetic_problems(400, 100, mix=mix)
    assert set(lengths(train)) == set(range(2, 10))
    assert {chain_of(p)[0] for p in (*train, *held_out)} == {"trade", "compare"}
    assert all(0 < int(p.answer) <= LARGEST_VALUE for p in train)
    texts = supervised_examples(300, seed=1, slip_rate=0.0, mix=mix)
    assert set(lengths(p for p, _ in texts)) == set(range(2, 10))
    assert all(text.endswith(f"\\boxed{{{p.answer}}}") for p, text in texts)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_hard_problems(share):
    train, _ = arithmetic_problems(800, 0, mix=Mix(1, 8, hard_from=6, hard_share=share))
    hard = sum(count for steps, count in lengths(train).items() if steps >= 6)
    assert abs(hard / 800 - share) <= 4 * (share * (1 - share) / 800) ** 0.5  # standard errors


@pytest.mark.parametrize("steps", [(1, 1), (1, 3), (3, 5), (6, 7)])
def test_the_chains_of_a_mix_are_counted(steps):
    low, high = steps
    counted = sum(count_chains(f, high) - count_chains(f, low - 1) for f in FAMILIES)
    assert Mix(low, high).chains() == counted


def test_what_is_no_mix_is_refused():
    with pytest.raises(ConfigError, match="there is no family 'sums'; take some of trade, ride,"):
        Mix(families=("sums",))
    with pytest.raises(ConfigError, match="max_steps=1: the shortest problem of compare has more"):
        Mix(max_steps=1, families=("compare",))
